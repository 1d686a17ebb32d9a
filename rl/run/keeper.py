"""Evaluates a run's agent, writes its checkpoints, keeps the best one, and records videos; on rank 0."""

import functools
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rl.config import Config
from rl.errors import DiskError, UserError
from rl.models.agent import Agent
from rl.run.checkpoint import Content
from rl.run.control import Signals
from rl.run.evaluation import Evaluation, evaluate_run, film_run
from rl.run.folder import BEST, LAST, PERIODIC, RunFolder
from rl.run.loggers import Guarded
from rl.run.progress import say
from rl.seeding import kept_generators

MAX_EVALUATION_SHARE = 0.05  # of the run's time, for evaluations during training that no flag asks for
MAX_SECONDS_AT_STOP = 10.0  # of an evaluation that keeps a run from stopping


class Keeper:
    """Writes the agent into the files of a run, and knows its best return.

    Evaluations are due after fixed numbers of steps. Without --eval-every, one that is due is left out while they have
    taken more than their share of the time. That changes the evaluation's curve and which agent is the best, but never
    the training: an evaluation has environments and seeds of its own, and one that fails only leaves out the others.
    """

    def __init__(self, config: Config[Any], folder: RunFolder, agent: Agent, logger: Guarded, signals: Signals) -> None:
        self.config = config
        self.folder = folder
        self.agent = agent
        self.logger = logger
        self.signals = signals
        self.best_return, self.best_step = -math.inf, 0
        self.best_before = self.best_return, self.best_step  # if the best agent cannot be written
        self.fails = False  # whether an evaluation has failed
        self.evaluation_seconds, self.last_seconds = 0.0, 0.0  # of all evaluations during training; of the last one
        self.failed_writes = 0  # in a row

    def state_dict(self) -> dict[str, Any]:
        seconds = {"evaluation_seconds": self.evaluation_seconds, "last_seconds": self.last_seconds}
        return {"best_step": self.best_step, **seconds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.evaluation_seconds = float(state["evaluation_seconds"])
        self.last_seconds, self.best_step = float(state.get("last_seconds", 0.0)), int(state.get("best_step", 0))

    def resume(self, best_return: float) -> None:
        """Goes on from a checkpoint; if the best agent came after it, the run has to find that again."""
        if (self.folder.path / BEST).exists():
            self.best_return = best_return

    def is_best(self, step: int, run_seconds: float, fraction: float) -> bool:
        """Evaluates the agent during training, if there is time; whether it is the best that was evaluated."""
        max_seconds = self._seconds_left(run_seconds, fraction)
        if max_seconds <= 0 or self.fails:
            return False
        began_at = time.perf_counter()
        try:
            with kept_generators():
                evaluation = evaluate_run(
                    self.config, self.agent, functools.partial(self._gives_up, began_at, max_seconds)
                )
        except UserError as error:
            self.fails = True
            say(f"note: the evaluation after {step:,} steps failed, and the ones to come are left out: {error}")
            return False
        finally:
            self.last_seconds = time.perf_counter() - began_at
            self.evaluation_seconds += self.last_seconds
        if evaluation.given_up:
            if self.last_seconds >= 1:  # not in runs of seconds, in which there is no time for it
                say(f"note: the evaluation after {step:,} steps was given up after {self.last_seconds:.0f} s")
            return False
        self.logger.log_metrics(evaluation.metrics(), step)
        return self._improves(evaluation, step)

    def write_best(self, content: Content) -> None:
        """Writes the best agent; if it cannot, prints a note, and the one before remains the best."""
        if self._write(BEST, content) is None:
            self.best_return, self.best_step = self.best_before
            content["run"]["best_return"] = self.best_return

    def write_periodic(self, content: Content) -> Path | None:
        """Writes a checkpoint; if it cannot, prints a note, keeps the one before and returns None."""
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
        evaluation = evaluate_run(self.config, self.agent)
        if self._improves(evaluation, content["run"]["step"]):
            content["run"]["best_return"] = self.best_return
            self.write_best(content)
            self._write(LAST, content)
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

    def _improves(self, evaluation: Evaluation, step: int) -> bool:
        """Of equal agents the newest is the best: a greedy policy may be optimal by chance before it has learned."""
        mean_return = evaluation.total_return.mean().item()
        if not self.config.keep.keep_best or mean_return < self.best_return:
            return False
        self.best_before = self.best_return, self.best_step
        self.best_return, self.best_step = mean_return, step
        return True

    def _gives_up(self, began_at: float, max_seconds: float) -> bool:
        """Whether an evaluation has taken too long; it is not to outlast the patience of whoever stops the run."""
        most = min(max_seconds, MAX_SECONDS_AT_STOP) if self.signals.stop else max_seconds
        return time.perf_counter() - began_at > most

    def _seconds_left(self, run_seconds: float, fraction: float) -> float:
        """How long an evaluation may take now, after this fraction of the run; 0 if it is to be left out.

        The first may take what is there for the whole run, so that one whose episodes are long is not given up each
        time. The other ranks wait meanwhile, which they do no longer than --rank-timeout.
        """
        most = self.config.rank_timeout / 2
        if self.config.keep.eval_every is not None:
            return most
        spent = self.evaluation_seconds
        if spent + self.last_seconds > MAX_EVALUATION_SHARE * run_seconds and self.last_seconds > 0:
            return 0.0
        return min(most, MAX_EVALUATION_SHARE * run_seconds / fraction - spent)
