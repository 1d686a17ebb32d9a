"""What is kept of a run, and what is told of it; it knows nothing of learning."""

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from signal import Signals
from typing import Any, cast

from torch import Tensor
from typing_extensions import Self

from rl.compile import Execution
from rl.config import Config
from rl.dist.launch import rank
from rl.dist.ranks import Ranks
from rl.errors import CheckpointError, DiskError, StopError
from rl.learners.learner import AnyLearner
from rl.models.agent import Agent
from rl.reporting import COMPLETE, exit_file
from rl.rollout import AnyCollector, Rollout
from rl.run.checkpoint import Content, Position, content_of
from rl.run.checks import Finite
from rl.run.control import MAX_FAILED_WRITES, Agreement, Requests
from rl.run.evaluation import Evaluation, evaluate_run, film_run
from rl.run.folder import BEST, LAST, PERIODIC, RunFolder
from rl.run.logger import Averages, Episodes, Guarded, Logger, Progress, say
from rl.run.resume import note_learning_rate
from rl.run.state import State, Stateful
from rl.run.summary import summary

MAX_LOG_POINTS = 1000  # of a run: to log an update takes a millisecond, and small updates take little more
KEPT = ("update", "seconds", "unlogged_seconds", "step", "skipped_steps", "evaluation_seconds")  # what `Run` counts
MAX_EVALUATION_SHARE = 0.01  # of the run's time, for evaluations at checkpoints


class Run:
    """A training run as its user sees it: log, progress bar, checkpoints, stops, evaluation, summary."""

    def __init__(
        self,
        config: Config[AnyLearner],
        policy: Agent,
        folder: RunFolder,
        logger: Logger,
        ranks: Ranks,
        execution: Execution,
        state: State,
    ) -> None:
        """Every rank that plays makes one; rank 0's speaks and writes."""
        self.config = config
        self.policy = policy
        self.folder = folder
        self.logger = Guarded(logger)
        self.everyone = Ranks.of()
        self.execution = execution
        self.state = state
        self.device = policy.critic.weight.device
        self.averages = Averages(self.device, ranks.sum)
        self.finite = Finite(config.env.env_id, ranks, self.device)
        self.episodes = Episodes()
        self.requests = Requests()
        collector = cast(AnyCollector, state.own["collector"])
        self.resets = collector.envs.resets_in_next_step
        self.agreement = Agreement(ranks, self.requests, state.alike, collector, config.steps_per_update())
        self.progress: Progress | None = None
        self.update = self.step = 0
        self.seconds = 0.0
        self.skipped_steps = 0.0
        self.unlogged_seconds, self.logged_at, self.fraction = 0.0, 0.0, 0.0
        self.best_return = -math.inf
        self.evaluation_seconds = 0.0
        self.failed_writes = 0
        self.saved_at = time.monotonic()
        state.own["run"] = self

    def __enter__(self) -> Self:
        """Goes on from the checkpoint, if there is one; keeps the flags; notes signals from now on."""
        if self.folder.checkpoint is not None:
            self.state.load(self.folder.checkpoint["ranks"], self.everyone)
            position = self.folder.checkpoint["run"]
            if (self.update, self.step) != (position["update"], position["step"]):
                raise CheckpointError("--resume: the checkpoint does not agree with itself on how far the run is")
            self.best_return, self.fraction = position["best_return"], position["fraction"]
            note_learning_rate(self.folder.checkpoint, self.config, self.fraction_done())
        if rank() == 0:
            self.progress = Progress(self.config.last_step(), self.config.report_episodes, self.step)
            self.folder.begin(self.config)
        self.requests.__enter__()
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """Closes progress bar and log."""
        self.requests.__exit__(error)
        if self.progress is not None:
            self.progress.close()
            self.logger.finalize("success" if error is None else "failed")
        self.folder.release()

    def state_dict(self) -> dict[str, Any]:
        """How far the run is."""
        self.unlogged_seconds = self._clock() - self.logged_at
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        return {name: getattr(self, name) for name in KEPT} | parts

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there."""
        for name in KEPT:
            setattr(self, name, type(getattr(self, name))(state[name]))  # a number of the same kind
        for name, part in self._parts().items():
            if name in state:  # averages are not dealt to other ranks
                part.load_state_dict(state[name])

    def _parts(self) -> dict[str, Stateful]:
        return {"episodes": self.episodes, "averages": self.averages, "finite": self.finite}

    def updates(self) -> Iterator[float]:
        """Counts the updates of the run, as the fraction of it that is done; logs them, some together if many.

        Raises:
            EnvError: An observation or a reward was not finite.
            NumericError: A loss or a gradient was not finite.
            RanksError: The weights of two ranks are not the same any more.
            DiskError: Checkpoints cannot be written.
            StopError: A signal asked for it; a checkpoint has been written.
        """
        num_updates = self.config.num_updates()
        # How long whole episodes take is known once they have ended, so that every update is asked.
        updates_per_point = 1 if self.config.learner.whole_episodes else math.ceil(num_updates / MAX_LOG_POINTS)
        # To look costs nothing where nobody has to wait for a device, or where the host has waited for it already.
        looks_at_all = self.device.type == "cpu" or self.resets or self.config.learner.whole_episodes
        self.logged_at = self._clock() - self.unlogged_seconds
        self.requests.in_loop = True
        # Where environments reset in steps of their own, it takes some updates more.
        while (self.update < num_updates or self.resets) and (done := self.fraction_done()) < 1:
            if rank() == 0 and self.config.keep.due(self.update + 1, time.monotonic() - self.saved_at):
                self.requests.save = True
            self.fraction = done
            yield done
            self.update += 1
            if looks_at_all:
                self.agreement.look()
            self.step += self.agreement.num_steps
            is_point = self.update % updates_per_point == 0 or self.update == 1 or self.fraction_done() >= 1
            if is_point and not looks_at_all:
                self.agreement.look()
            if is_point or looks_at_all:
                self.agreement.check(self.update)
            if is_point:
                began_at, self.logged_at = self.logged_at, self._clock()
                self._log(self.logged_at - began_at)
            if self.agreement.save or self.agreement.stop:
                self._stop(self.agreement.stop, self._save(PERIODIC.format(self.update)))

    def _clock(self) -> float:
        """Seconds, which stand still while something is compiled."""
        return time.perf_counter() - self.execution.compile_seconds

    def _log(self, seconds: float) -> None:
        """Logs the updates since the last time, which took so long."""
        metrics = self.averages.take()
        self.finite.check(metrics, self.update)
        del metrics["Count/bad_rows"]
        self.seconds += seconds
        self.episodes.add(round(metrics["Count/episodes"]), metrics.get("Rewards/rew_avg", 0.0))
        self.skipped_steps += metrics.get("Count/skipped_steps", 0.0)
        if self.progress is not None:
            if self.execution.compile_seconds > 0:
                metrics["Time/compile_seconds"] = self.execution.compile_seconds
            metrics["Time/step_per_second"] = steps_per_second = metrics["Count/steps"] / seconds
            if self.episodes.number > 0:
                metrics["Rewards/last_100_episodes"] = self.episodes.mean_return()
            self.logger.log_metrics(metrics, self.step)
            self.progress.show(self.step, self.episodes, steps_per_second)
            # Early changes are the large ones: a film after updates 1, 2, 4, 8, …
            if self.config.capture_video and self.update.bit_count() == 1:
                self._film("train_videos", f"step_{self.step}")

    def _stop(self, number: int, path: Path | None) -> None:
        """Ends the run if a signal of this number asked for it, with what was kept."""
        if number:
            kept = f"the checkpoint is {path}" if path else "no checkpoint could be written"
            after = f"{Signals(number).name} after update {self.update:,}"
            raise StopError(number, f"{after}; {kept}; to go on: --resume {self.folder.path}")

    def _save(self, name: str) -> Path | None:
        """Writes a checkpoint of all ranks' states; if it cannot be, says so and leaves the one before."""
        is_best = rank() == 0 and self._is_best()
        content = self._gather()
        if content is None:
            return self.folder.path / name
        if is_best:
            self._write(BEST, content)
        path = self._write(name, content)
        self.failed_writes = 0 if path else self.failed_writes + 1
        self.requests.failed = self.failed_writes >= MAX_FAILED_WRITES
        return path

    def _gather(self, *, complete: bool = False) -> Content | None:
        """What a checkpoint holds, on rank 0."""
        parts = self.state.gather(self.everyone, leads=rank() == 0)
        self.agreement.saved()
        self.saved_at = time.monotonic()
        if rank() != 0:
            return None
        run = Position(
            update=self.update, step=self.step, fraction=self.fraction, complete=complete, best_return=self.best_return
        )
        return content_of(self.policy, self.config, run, parts)

    def _write(self, name: str, content: Mapping[str, Any]) -> Path | None:
        """Writes a file of the run's folder, and what was logged until now."""
        self.logger.save()
        try:
            path = self.folder.write(name, content)
            self.folder.forget(self.config.keep.keep_checkpoints)
        except OSError as error:
            say(f"note: {self.folder.path / name} cannot be written: {error.strerror}; the one before it is kept")
            return None
        return path

    def _is_best(self) -> bool:
        """Whether the agent is better than at any checkpoint before, as far as there is time to find out."""
        time_left = MAX_EVALUATION_SHARE * self.seconds - self.evaluation_seconds
        return self.config.keep.keep_best and time_left > 0 and self._improves(self._evaluate(time_left))

    def _improves(self, evaluation: Evaluation) -> bool:
        before = self.best_return
        if not evaluation.given_up:
            self.best_return = max(before, evaluation.total_return.mean().item())
        return self.best_return > before

    def _evaluate(self, max_seconds: float = math.inf) -> Evaluation:
        """Plays greedy episodes with the agent as it is."""
        began_at = time.perf_counter()
        evaluation = evaluate_run(self.config, self.policy, max_seconds)
        self.evaluation_seconds += time.perf_counter() - began_at
        return evaluation

    def fraction_done(self, num_steps: int = 0) -> float:
        """Of the steps or the episodes of the run, whichever comes first; after so many steps more."""
        of_steps = (self.step + num_steps) / self.config.last_step()
        return max(of_steps, self.episodes.number / (self.config.total_episodes or math.inf))

    def timed(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Records the seconds that a block takes."""
        return self.averages.timed(name)

    def record(self, metrics: Mapping[str, Tensor | float]) -> None:
        """Records scalars; an update's log is their mean."""
        self.averages.add(metrics)

    def record_rollout(self, rollout: Rollout) -> None:
        """Records the steps of an update's rollout, and the episodes that ended in it."""
        num_episodes = (rollout.terminated | rollout.truncated).sum()
        sums = {"Rewards/rew_avg": rollout.episode_return.sum(), "Game/ep_len_avg": rollout.episode_length.sum()}
        self.averages.add(sums, count=num_episodes)
        self.averages.add({"Count/steps": self.agreement.told[-1], "Count/episodes": num_episodes})
        self.record(self.finite.look(rollout))

    def finish(self) -> None:
        """Keeps the end of the run; rank 0 evaluates the agent and says where everything is.

        Raises:
            DiskError: The end cannot be kept.
            StopError: A signal asked for it after the last update; the end has been kept.
        """
        content = self._gather(complete=True)
        if content is None or self.progress is None:
            return
        if self._write(LAST, content) is None:
            raise DiskError(f"{self.folder.path / LAST}: cannot be written; the last checkpoint is still there")
        self.requests.in_loop = False  # from now on a stop is at once
        self._stop(self.requests.stop, self.folder.path / LAST)
        self.progress.close()  # what follows is printed below it
        evaluation = self._evaluate()
        if self.config.keep.keep_best and self._improves(evaluation):
            content["run"]["best_return"] = self.best_return
            for name in (BEST, LAST):
                self._write(name, content)
        reached = {"Test/cumulative_reward": evaluation.total_return.mean().item()}
        self.logger.log_hyperparams(self.config.flags(), reached, self.step)
        if self.config.capture_video:
            self._film("test_videos", "greedy")
        say(summary(self, evaluation))
        exit_file.write(*COMPLETE)

    def _film(self, folder: str, name: str) -> None:
        path = self.folder.path / folder / f"{name}.mp4"
        try:
            film_run(self.config, self.policy, path)
        except OSError as error:
            say(f"note: {path} cannot be written: {error}")
