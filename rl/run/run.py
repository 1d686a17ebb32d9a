"""A training run as its user sees it: counts, logs and checks updates, writes checkpoints, stops, evaluates.

`Run` knows nothing of losses. Every rank has one and makes the same calls; only rank 0 writes files and prints.
"""

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from signal import Signals as SignalNumber
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from rl.dist.launch import rank
from rl.dist.ranks import Ranks
from rl.errors import CheckpointError, StopError, require
from rl.learners.learner import Metrics
from rl.reporting import COMPLETE, exit_file
from rl.rollout import Rollout
from rl.run.assembled import Assembled
from rl.run.checkpoint import Content, Position, content_of
from rl.run.control import MAX_FAILED_WRITES, Control, Signals
from rl.run.evaluation import Evaluation
from rl.run.folder import PERIODIC
from rl.run.keeper import Keeper
from rl.run.learning_rate import LearningRate
from rl.run.loggers import Guarded, Logger
from rl.run.metrics import Averages, Finite, action_metrics, in_order
from rl.run.progress import Episodes, Progress, say
from rl.run.result import write_result
from rl.run.resume import note_learning_rate
from rl.run.state import Stateful
from rl.run.summary import summary

MAX_LOG_POINTS = 1000  # of a run: logging takes a millisecond, and a small update little more
COUNTERS = ("update", "seconds", "unlogged_seconds", "step", "skipped_steps")


class Run:
    """One rank's part of a training run; a context, in which signals are noted until the end of an update."""

    def __init__(self, session: Assembled, loggers: Sequence[Logger]) -> None:
        """`loggers` are for rank 0."""
        self.session = session
        self.config, self.folder, self.ranks = session.config, session.folder, session.ranks
        self.execution = session.execution
        self.logger = Guarded(loggers)
        self.num_updates, self.last_step = self.config.num_updates(), self.config.last_step()
        self.everyone, self.is_rank_0 = Ranks.of(), rank() == 0
        device, collector = session.agent.critic.weight.device, session.collector if session.plays else None
        self.signals = Signals()
        self.control = Control(
            self.ranks, self.signals, session.state.replicas, collector, self.config.steps_per_update()
        )
        # The only sum of trainers is that of their averages, so requests and checksums travel with it.
        self.averages = Averages(device, self.ranks.sum if collector else self.control.sum, self.ranks)
        self.finite = Finite(self.config.env.env_id, self.ranks, device)
        # Reading what ranks agreed on waits for the device: on a GPU it is put off to the log points if possible.
        self.resets_in_next_step = collector is not None and collector.envs.resets_in_next_step
        self.reads_each_update = device.type == "cpu" or self.config.learner.whole_episodes or self.resets_in_next_step
        self.episodes = Episodes()
        self.learning_rate = LearningRate(session.learner, session.optimizer, self.ranks)
        self.progress: Progress | None = None
        self.update = self.step = 0
        self.seconds, self.skipped_steps = 0.0, 0.0
        self.unlogged_seconds, self.logged_at, self.fraction = 0.0, 0.0, 0.0
        self.evaluation: Evaluation | None = None  # of the final agent
        self.keeper = Keeper(self.config, self.folder, session.agent, self.logger, self.signals)
        self.parts: dict[str, Stateful] = {
            "episodes": self.episodes,
            "averages": self.averages,
            "finite": self.finite,
            "keeper": self.keeper,
        }
        self.saved_at = time.monotonic()

    def __enter__(self) -> Self:
        """Restores the checkpoint, if there is one; writes the flags; notes signals from now on."""
        if self.folder.checkpoint is not None:
            self.session.state.load(self.folder.checkpoint["ranks"], self.everyone)
            position = self.folder.checkpoint["run"]
            if not self.session.plays:
                self.update, self.step = position["update"], position["step"]
            if (self.update, self.step) != (position["update"], position["step"]):
                raise CheckpointError("--resume: the checkpoint contradicts itself on how many updates are done")
            self.fraction = position["fraction"]
            note_learning_rate(self.folder.checkpoint, self.config, self.fraction_done())
        if self.is_rank_0:
            self.progress = Progress(self.last_step, self.config.report_episodes, self.step)
            self.folder.begin(self.config)
            if self.folder.checkpoint is not None:
                self.keeper.resume(self.folder.checkpoint["run"]["best_return"])
        self.signals.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        self.signals.__exit__(kind)
        if self.progress is not None:
            self.progress.close()
            self.logger.finalize("success" if error is None else "failed")
            write_result(self, self.evaluation, error)

    def updates(self) -> Iterator[float]:
        """Counts and logs the updates of a rank that plays; yields the fraction of the run done before each.

        Raises:
            EnvError: An observation or a reward was not finite.
            NumericError: A loss or a gradient was not finite.
            RanksError: The weights of two ranks differ.
            DiskError: Checkpoints cannot be written.
            StopError: A signal requested it; a checkpoint has been written.
        """
        # The length of whole episodes, and so the number of updates, is unknown: every update is logged.
        updates_per_point = 1 if self.config.learner.whole_episodes else math.ceil(self.num_updates / MAX_LOG_POINTS)
        every_updates, every_seconds = self.config.keep.interval()
        self.logged_at = self._clock() - self.unlogged_seconds
        self.signals.in_loop = True
        if self.session.statistics.are_missing():
            self._measure()
        # Steps that only reset do not count, so the run takes a few more updates where environments have them.
        while (self.update < self.num_updates or self.resets_in_next_step) and (done := self.fraction_done()) < 1:
            is_due = (self.update + 1) % every_updates == 0 or time.monotonic() - self.saved_at >= every_seconds
            self.signals.save |= self.is_rank_0 and is_due
            self.fraction = done
            self.anneal(done)
            yield done
            self.learning_rate.adapt()
            self.update += 1
            self.session.statistics.update()
            if self.reads_each_update:
                self.control.read()
            is_evaluated = self.evaluates(self.control.num_steps)
            self.step += self.control.num_steps
            is_point = self.update % updates_per_point == 0 or self.update == 1 or self.fraction_done() >= 1
            if is_point and not self.reads_each_update:
                self.control.read()
            if is_point or self.reads_each_update:
                self.control.check(self.update)
            if is_point:
                began_at, self.logged_at = self.logged_at, self._clock()
                self._log(self.logged_at - began_at)
            self.obey(self.control.save, self.control.stop, evaluate=is_evaluated and self.fraction_done() < 1)

    def _measure(self) -> None:
        """Collects a rollout for its statistics only: its observations could not be normalized."""
        session = self.session
        with self.timed("collect"), torch.no_grad(), session.autocast():
            rollout = session.learner.collect(session.collector)
        session.statistics.begin(rollout, self.control.sum, self.ranks.sum)  # the first also counts the steps
        self.record_rollout(rollout, {})
        self.control.read()
        self.step += self.control.num_steps
        right = f"the first rollout has {self.step:,} steps, and is only measured; must be more"
        require(self.fraction_done() < 1, "--total-timesteps", self.config.total_timesteps, right)

    def anneal(self, done: float) -> None:
        """Sets the learning rate after this fraction of the run, on a rank that learns."""
        if metrics := self.learning_rate.anneal(done):
            self.record(metrics)
        if self.session.scaler is not None:
            self.record({"Info/loss_scale": self.session.scaler.get_scale()})

    def sum(self, values: Tensor, rollout: Rollout) -> Tensor:
        """The sum over ranks that every update takes; statistics, requests and checksums travel with it."""
        return self.session.statistics.sum(values, rollout, self.control.sum)

    def timed(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Records the seconds that a block takes."""
        return self.averages.timed(name)

    def record(self, metrics: Mapping[str, Tensor | float]) -> None:
        """Records scalars; their mean since the last log point and over ranks is logged."""
        self.averages.add(metrics)

    def record_rollout(self, rollout: Rollout, metrics: Metrics) -> None:
        """Records a rollout: its metrics, its steps, the episodes that ended in it, and whether all is finite."""
        self.record(metrics)
        ended = rollout.episode_length > 0  # the loss of a life may be a termination too
        num_episodes = ended.sum()
        sums = {"Rewards/rew_avg": rollout.episode_return.sum(), "Game/ep_len_avg": rollout.episode_length.sum()}
        self.averages.add(sums, count=num_episodes)
        self.averages.add_episodes(rollout.episode_return, ended)
        self.averages.add({"Count/steps": self.control.sent[-1], "Count/episodes": num_episodes})
        self.record(self.finite.look(rollout))

    def learned(self, metrics: Metrics) -> bool:
        """Records a gradient step; returns whether the learner ends the update after it."""
        self.record(metrics)
        self.learning_rate.steps.append(metrics)
        return self.session.learner.should_stop(metrics, self.ranks.mean)

    def finish(self) -> None:
        """Writes the last checkpoint; rank 0 evaluates the agent and prints a summary.

        Raises:
            DiskError: The last checkpoint cannot be written.
            StopError: A signal requested it after the last update; the last checkpoint has been written.
        """
        content = self._gather(complete=True)
        self._saved()
        if content is None or self.progress is None:
            return
        path = self.keeper.write_last(content)
        self.signals.in_loop = False  # from now on a stop takes effect at once
        self._stop(self.signals.stop, path)
        self.progress.close()  # the summary is printed below it
        self.evaluation = self.keeper.evaluate_last(content)
        seconds = self.execution.compile_seconds
        compiling = {"Time/compile_seconds": seconds} if seconds > 0 else {}
        self.logger.log_hyperparams(self.config.flags(), self.evaluation.metrics() | compiling, self.step)
        if self.config.capture_video:
            self.keeper.film("test_videos", "greedy")
        say(summary(self, self.evaluation))
        exit_file.write(*COMPLETE)

    def fraction_done(self, num_steps: int = 0) -> float:
        """The fraction of the run that is done, by steps or by episodes; `num_steps` is added to the steps."""
        of_steps = (self.step + num_steps) / self.last_step
        return max(of_steps, self.episodes.number / (self.config.total_episodes or math.inf))

    def evaluates(self, num_steps: int) -> bool:
        """Whether the agent is evaluated after an update of so many steps, unless that is the last."""
        every = self.config.eval_every()
        return self.config.keep.evaluates() and (self.step + num_steps) // every > self.step // every

    def state_dict(self) -> dict[str, Any]:
        self.unlogged_seconds = self._clock() - self.logged_at
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        return {name: getattr(self, name) for name in COUNTERS} | parts

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in COUNTERS:
            setattr(self, name, type(getattr(self, name))(state[name]))  # a number of the same type
        for name, part in self.parts.items():
            if name in state:  # a resume on another number of ranks drops the averages
                part.load_state_dict(state[name])

    def _clock(self) -> float:
        """Seconds, without those spent on compiling and evaluating."""
        return time.perf_counter() - self.execution.compile_seconds - self.keeper.evaluation_seconds

    def _log(self, seconds: float) -> None:
        """Logs the updates since the last log point, which took `seconds`."""
        metrics = self.averages.take()
        self.finite.check(metrics, self.update)
        num_steps, _ = metrics.pop("Count/steps"), metrics.pop("Count/bad_rows")
        self.seconds += seconds
        means = (metrics.get(tag, 0.0) for tag in ("Rewards/rew_avg", "Game/ep_len_avg"))
        self.episodes.add(round(metrics["Count/episodes"]), *means)
        self.skipped_steps += metrics.get("Count/skipped_steps", 0.0)
        if self.progress is None:
            return
        metrics["Time/step_per_second"] = steps_per_second = num_steps / seconds
        if self.episodes.number > 0:
            metrics["Rewards/last_100_episodes"] = self.episodes.mean_return()
        self.logger.log_metrics(in_order(metrics | action_metrics(self.session.agent)), self.step)
        self.progress.show(self.step, self.episodes, steps_per_second, self.fraction_done())
        # The policy changes most at the beginning: a video after updates 1, 2, 4, 8, …
        if self.config.capture_video and self.update.bit_count() == 1:
            self.keeper.film("train_videos", f"step_{self.step}")

    def obey(self, save: bool, stop: int, *, evaluate: bool = False) -> None:
        """Evaluates the agent, and writes a checkpoint if ranks agreed on it; ends the run if `stop` is a signal."""
        if not (save or stop or evaluate):
            return
        is_best = evaluate and self.is_rank_0 and self.keeper.is_best(self.step, self.seconds, self.fraction_done())
        content = self._gather()
        if content is not None and is_best:
            self.keeper.write_best(content)
        if not (save or stop):
            return
        self._saved()
        path: Path | None = self.folder.path / PERIODIC.format(self.update)
        if content is not None:
            path = self.keeper.write_periodic(content)
            self.signals.failed = self.keeper.failed_writes >= MAX_FAILED_WRITES
        self._stop(stop, path)

    def _gather(self, *, complete: bool = False) -> Content | None:
        """A checkpoint's content, on rank 0."""
        parts = self.session.state.gather(self.everyone, leads=self.ranks.rank == 0)
        if not self.is_rank_0:
            return None
        best = self.keeper.best_return
        run = Position(update=self.update, step=self.step, fraction=self.fraction, complete=complete, best_return=best)
        return content_of(self.session.agent, self.config, run, parts)

    def _saved(self) -> None:
        self.control.saved()
        self.saved_at = time.monotonic()

    def _stop(self, number: int, path: Path | None) -> None:
        if number:
            kept = f"the checkpoint is {path}" if path else "no checkpoint could be written"
            after = f"{SignalNumber(number).name} after update {self.update:,}"
            raise StopError(number, f"{after}; {kept}; to continue: --resume {self.folder.path}")
