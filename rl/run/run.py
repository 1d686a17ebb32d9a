"""What is kept of a run, and what is told of it; it knows nothing of learning."""

import contextlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor
from typing_extensions import Self

from rl.agent import Agent
from rl.config import Config
from rl.distributed import Ranks, rank, world_size
from rl.envs.stepping import make_envs
from rl.errors import UserError
from rl.execution import Execution
from rl.learners.learner import AnyLearner
from rl.rollout import Rollout
from rl.run.checkpoint import save_checkpoint
from rl.run.evaluation import Evaluation, evaluate, record_video
from rl.run.finite import Finite
from rl.run.logger import Averages, Episodes, Logger, Progress
from rl.seeding import evaluation_seed

MAX_LOG_POINTS = 1000  # of a run: to log an update takes a millisecond, and small updates take little more


def make_run_folder(config: Config[AnyLearner], program: str) -> Path:
    """A new folder for this run below `program`'s in the log folder; rank 0 makes it.

    Raises:
        UserError: It cannot be made.
    """
    started_at = time.strftime("%Y-%m-%d_%H-%M-%S")
    env_name = config.env.env_id.replace(":", "_").replace("/", "_")
    folder = Path(config.log_dir) / program / f"{env_name}_{config.exp_name}_seed{config.seed}_{started_at}"
    if rank() == 0:
        try:
            # Runs that start in the same second are told apart by a number.
            for suffix in ("", *(f"_{number}" for number in range(2, 100))):
                with contextlib.suppress(FileExistsError):
                    numbered = folder.with_name(folder.name + suffix)
                    numbered.mkdir(parents=True)
                    return numbered
        except OSError as error:
            raise UserError(f"--log-dir {config.log_dir}: no folder can be made there: {error.strerror}") from error
        raise UserError(f"--log-dir {config.log_dir}: {folder} and 98 more of its name are there already")
    return folder


class Run:
    """A training run as its user sees it: log, progress bar, checkpoint, evaluation, summary."""

    def __init__(
        self,
        config: Config[AnyLearner],
        policy: Agent,
        folder: Path,
        logger: Logger,
        ranks: Ranks,
        execution: Execution,
    ) -> None:
        """Every rank that plays makes one; rank 0's speaks and writes."""
        self.config = config
        self.policy = policy
        self.folder = folder
        self.logger = logger
        self.execution = execution
        self.device = policy.critic.weight.device
        self.averages = Averages(self.device, ranks)
        self.finite = Finite(config.env.env_id, ranks, self.device)
        self.episodes = Episodes()
        learner = config.learner
        total = config.total_timesteps if learner.whole_episodes else config.num_updates() * config.steps_per_update()
        self.progress = Progress(total, config.report_episodes) if rank() == 0 else None
        self.seconds = 0.0
        self.step = 0
        self.skipped_steps = 0.0

    def __enter__(self) -> Self:
        """Keeps the flags."""
        if rank() == 0:
            (self.folder / "config.json").write_text(json.dumps(self.config.to_dict(), indent=2))
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """Closes progress bar and log."""
        if self.progress is not None:
            self.progress.close()
            self.logger.finalize("success" if error is None else "failed")

    def updates(self) -> Iterator[float]:
        """Counts the updates of the run, as the fraction of it that is done; logs them, some together if many.

        Raises:
            EnvError: An observation or a reward was not finite.
            NumericError: A loss or a gradient was not finite.
        """
        num_updates = self.config.num_updates()
        # How long whole episodes take is known once they have ended, so that every update is asked.
        updates_per_point = 1 if self.config.learner.whole_episodes else math.ceil(num_updates / MAX_LOG_POINTS)
        began_at, compiled = time.perf_counter(), self.execution.compile_seconds
        for update in range(num_updates):
            yield self._fraction_done(update / num_updates)
            if (update + 1) % updates_per_point != 0 and update not in (0, num_updates - 1):
                continue
            metrics = self.averages.take()
            self.finite.check(metrics, update + 1)
            del metrics["Count/bad_rows"]
            ended_at, compile_seconds = time.perf_counter(), self.execution.compile_seconds
            seconds = ended_at - began_at - (compile_seconds - compiled)
            began_at, compiled = ended_at, compile_seconds
            self.seconds += seconds
            self.step += round(metrics["Count/steps"])
            self.episodes.add(round(metrics["Count/episodes"]), metrics.get("Rewards/rew_avg", 0.0))
            self.skipped_steps += metrics.get("Count/skipped_steps", 0.0)
            if self.progress is not None:
                if compiled > 0:
                    metrics["Time/compile_seconds"] = compiled
                self._show(self.progress, metrics, metrics["Count/steps"] / seconds)
                # Early changes are the large ones: a film after updates 1, 2, 4, 8, …
                if self.config.capture_video and (update + 1).bit_count() == 1:
                    self._film("train_videos", f"step_{self.step}")
            if self._fraction_done(0.0) >= 1:
                break

    def _show(self, progress: Progress, metrics: dict[str, float], steps_per_second: float) -> None:
        metrics["Time/step_per_second"] = steps_per_second
        if self.episodes.number > 0:
            metrics["Rewards/last_100_episodes"] = self.episodes.mean_return()
        self.logger.log_metrics(metrics, self.step)
        progress.show(self.step, self.episodes, steps_per_second)

    def _fraction_done(self, of_updates: float) -> float:
        """Of the steps or the episodes of the run, whichever comes first."""
        of_steps = self.step / self.config.total_timesteps if self.config.learner.whole_episodes else of_updates
        return max(of_steps, self.episodes.number / (self.config.total_episodes or math.inf))

    def timed(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Records the seconds that a block takes."""
        return self.averages.timed(name)

    def record(self, metrics: Mapping[str, Tensor | float]) -> None:
        """Records scalars; an update's log is their mean."""
        self.averages.add(metrics)

    def record_rollout(self, rollout: Rollout) -> None:
        """Records the steps of a rollout, and the episodes that ended in it."""
        num_episodes = (rollout.terminated | rollout.truncated).sum()
        sums = {"Rewards/rew_avg": rollout.episode_return.sum(), "Game/ep_len_avg": rollout.episode_length.sum()}
        self.averages.add(sums, count=num_episodes)
        self.averages.add({"Count/steps": float(rollout.reward.numel()), "Count/episodes": num_episodes})
        self.record(self.finite.look(rollout))

    def finish(self) -> None:
        """Rank 0 saves the agent, evaluates it and says where everything is."""
        if self.progress is None:
            return
        self.progress.close()  # what follows is printed below it
        save_checkpoint(self.folder / "last.ckpt", self.policy, self.config.to_dict())
        envs = make_envs(replace(self.config.env, num_envs=self.config.eval_episodes, vectorization="sync"))
        evaluation = evaluate(
            self.policy,
            envs.to(self.device),
            seed=evaluation_seed(self.config.seed),
            max_steps=self.config.max_eval_steps,
        )
        envs.close()
        reached = {"Test/cumulative_reward": evaluation.total_return.mean().item()}
        self.logger.log_hyperparams(self.config.flags(), reached, self.step)
        if self.config.capture_video:
            self._film("test_videos", "greedy")
        print(self._summary(evaluation))

    def _film(self, folder: str, name: str) -> None:
        path = self.folder / folder / f"{name}.mp4"
        seed, max_steps = evaluation_seed(self.config.seed), self.config.max_eval_steps
        record_video(self.policy, self.config.env, path, seed=seed, max_steps=max_steps)

    def _summary(self, evaluation: Evaluation) -> str:
        returns, num_cut = evaluation.total_return, int(evaluation.unfinished.sum())
        cut = f", {num_cut} of them cut after {self.config.max_eval_steps} steps" if num_cut else ""
        skipped = self.skipped_steps > 0
        compiled = self.execution.compile_seconds
        compiling = f", after {compiled:.0f} s of compiling" if compiled else ""
        return "\n".join(
            (
                "",
                f"{self.config.env.env_id} after {self.step:,} steps",
                f"  greedy policy    return {returns.mean():.2f}, from {returns.min():.2f} to {returns.max():.2f}"
                f" in {len(returns)} episodes{cut}",
                f"  sampled policy   return {self.episodes.mean_return():.2f} in the last hundred of"
                f" {self.episodes.number:,} episodes",
                *([f"  skipped          {self.skipped_steps:,.0f} steps whose gradient overflowed"] * skipped),
                f"  speed            {self.step / self.seconds:,.0f} steps/s on {world_size()} rank(s){compiling}",
                f"  logs and agent   {self.folder}",
                f"  to see the logs  tensorboard --logdir {self.folder.parent}",
            )
        )
