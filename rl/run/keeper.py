"""Writes the checkpoints of a run, keeps the best one, and records videos of the agent; on rank 0."""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rl.config import Config
from rl.errors import DiskError
from rl.models.agent import Agent
from rl.run.checkpoint import Content
from rl.run.evaluation import Evaluation, evaluate_run, film_run
from rl.run.folder import BEST, LAST, PERIODIC, RunFolder
from rl.run.logger import Logger, say

MAX_EVALUATION_SHARE = 0.01  # of the run's time, for evaluations at checkpoints


class Keeper:
    """Writes the agent into the files of a run, and knows its best return."""

    def __init__(self, config: Config[Any], folder: RunFolder, agent: Agent, logger: Logger) -> None:
        self.config = config
        self.folder = folder
        self.agent = agent
        self.logger = logger
        self.best_return = -math.inf
        self.evaluation_seconds = 0.0
        self.failed_writes = 0  # in a row

    def state_dict(self) -> dict[str, Any]:
        return {"evaluation_seconds": self.evaluation_seconds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.evaluation_seconds = float(state["evaluation_seconds"])

    def is_best(self, run_seconds: float) -> bool:
        """Whether the agent is better than at all checkpoints before; false if there is no time to evaluate it."""
        time_left = MAX_EVALUATION_SHARE * run_seconds - self.evaluation_seconds
        return self.config.keep.keep_best and time_left > 0 and self._improves(self._evaluate(time_left))

    def write_periodic(self, content: Content, *, is_best: bool) -> Path | None:
        """Writes a checkpoint; if it cannot, prints a note, keeps the one before and returns None."""
        if is_best:
            self._write(BEST, content)
        path = self._write(PERIODIC.format(content["run"]["update"]), content)
        self.failed_writes = 0 if path else self.failed_writes + 1
        return path

    def write_last(self, content: Content) -> Path:
        """Writes the run's last checkpoint; raises `DiskError` if it cannot."""
        path = self._write(LAST, content)
        if path is None:
            raise DiskError(f"{self.folder.path / LAST}: cannot be written; the checkpoint before it is intact")
        return path

    def evaluate_last(self, content: Content) -> Evaluation:
        """Evaluates the final agent, and also writes it as the best one if it is better."""
        evaluation = self._evaluate()
        if self.config.keep.keep_best and self._improves(evaluation):
            content["run"]["best_return"] = self.best_return
            for name in (BEST, LAST):
                self._write(name, content)
        return evaluation

    def film(self, folder: str, name: str) -> None:
        """Records a video of a greedy episode in a folder of the run."""
        path = self.folder.path / folder / f"{name}.mp4"
        try:
            film_run(self.config, self.agent, path)
        except OSError as error:
            say(f"note: {path} cannot be written: {error}")

    def _write(self, name: str, content: Content) -> Path | None:
        self.logger.save()
        try:
            path = self.folder.write(name, content)
            self.folder.forget(self.config.keep.keep_checkpoints)
        except OSError as error:
            say(f"note: {self.folder.path / name} cannot be written: {error.strerror}; the one before it is kept")
            return None
        return path

    def _improves(self, evaluation: Evaluation) -> bool:
        """Of equal agents the newest is the best: a greedy policy may be optimal by chance before it has learned."""
        mean_return = evaluation.total_return.mean().item()
        if evaluation.given_up or mean_return < self.best_return:
            return False
        self.best_return = mean_return
        return True

    def _evaluate(self, max_seconds: float = math.inf) -> Evaluation:
        began_at = time.perf_counter()
        evaluation = evaluate_run(self.config, self.agent, max_seconds)
        self.evaluation_seconds += time.perf_counter() - began_at
        return evaluation
