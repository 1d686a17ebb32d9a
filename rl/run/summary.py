"""What a run says at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rl.dist.launch import world_size
from rl.run.evaluation import Evaluation

if TYPE_CHECKING:
    from rl.run.run import Run


def summary(run: Run, evaluation: Evaluation) -> str:
    """How good its agent is, how fast it was, and where everything is; for people."""
    returns, num_cut = evaluation.total_return, int(evaluation.unfinished.sum())
    cut = f", {num_cut} of them cut after {run.config.max_eval_steps} steps" if num_cut else ""
    skipped = run.skipped_steps > 0
    compiled = run.session.execution.compile_seconds
    compiling = f", after {compiled:.0f} s of compiling" if compiled else ""
    sampled = "no episode has ended"
    if number := run.episodes.number:
        recent = f"in the last {run.episodes.num_recent():,} of {number:,} episodes"
        sampled = f"return {run.episodes.mean_return():.2f} {recent}"
    return "\n".join(
        (
            "",
            f"{run.config.env.env_id} after {run.step:,} steps",
            f"  greedy policy    return {returns.mean():.2f}, from {returns.min():.2f} to {returns.max():.2f}"
            f" in {len(returns)} episodes{cut}",
            f"  sampled policy   {sampled}",
            *([f"  skipped          {run.skipped_steps:,.0f} steps whose gradient overflowed"] * skipped),
            f"  speed            {run.step / run.seconds:,.0f} steps/s on {world_size()} rank(s){compiling}",
            f"  logs and agent   {run.folder.path}",
            f"  to see the logs  tensorboard --logdir {run.folder.path.parent}",
        )
    )
