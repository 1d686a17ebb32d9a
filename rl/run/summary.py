"""The summary that is printed at the end of a run."""

import shlex
import shutil
import sys
from pathlib import Path
from typing import Any, Protocol

from rl.compile import Execution
from rl.config import Config
from rl.dist.launch import world_size
from rl.errors import counted
from rl.run.evaluation import Evaluation
from rl.run.folder import BEST, RunFolder
from rl.run.keeper import Keeper
from rl.run.progress import Episodes


class EndedRun(Protocol):
    """What the summary needs to know of a run."""

    config: Config[Any]
    execution: Execution
    folder: RunFolder
    episodes: Episodes
    keeper: Keeper
    update: int
    step: int
    seconds: float
    skipped_steps: float


def summary(run: EndedRun, evaluation: Evaluation) -> str:
    """How good the agent is, how fast the run was, where its files are, and what can be done with them."""
    returns, num_cut = evaluation.total_return, int(evaluation.unfinished.sum())
    cut = f", {num_cut} of them cut after {run.config.max_eval_steps} steps" if num_cut else ""
    skipped = run.skipped_steps > 0
    compiled = run.execution.compile_seconds
    compiling = f", after {compiled:.0f} s of compiling" if compiled else ""
    sampled = "no episode has ended"
    if number := run.episodes.number:
        recent = f"in the last {run.episodes.num_recent():,} of {number:,} episodes"
        sampled = f"return {run.episodes.mean_return():.2f} {recent}"
    folder = shlex.quote(str(below_here(run.folder.path)))
    is_better = run.config.keep.keep_best and run.keeper.best_return > returns.mean()
    agent = shlex.quote(str(below_here(run.folder.path / BEST))) if is_better else folder
    imports = " --allow-import" if run.config.env.allow_import else ""
    longer = f"--total-timesteps {2 * run.config.total_timesteps}"
    if run.config.total_episodes is not None:
        longer += f" --total-episodes {2 * run.config.total_episodes}"
    rl = "rl" if shutil.which("rl") else f"{shlex.quote(str(below_here(Path(sys.executable))))} -m rl"
    return "\n".join(
        (
            "",
            f"{run.config.env.env_id} after {run.step:,} steps",
            f"  greedy policy    return {returns.mean():.2f}, from {returns.min():.2f} to {returns.max():.2f}"
            f" in {counted(len(returns), 'episode')}{cut}",
            *best_line(run.keeper),
            f"  sampled policy   {sampled}",
            *([f"  skipped          {run.skipped_steps:,.0f} steps whose gradient overflowed"] * skipped),
            f"  speed            {run.step / max(run.seconds, 1e-9):,.0f} steps/s on"
            f" {counted(world_size(), 'rank')}{compiling}",
            f"  logs and agent   {run.folder.path}",
            f"  watch it         {rl} play {agent}{imports}",
            f"  train it longer  {rl} resume {folder} {longer}{imports}",
            f"  export it        {rl} export {agent} policy.onnx{imports}",
            f"  see the curves   tensorboard --logdir {shlex.quote(str(below_here(run.folder.path.parent)))}",
        )
    )


def best_line(keeper: Keeper) -> list[str]:
    """The best evaluation, if the run keeps the best agent."""
    if not keeper.config.keep.keep_best:
        return []
    return [f"  best policy      return {keeper.best_return:.2f}, after {keeper.best_step:,} steps ({BEST})"]


def below_here(path: Path) -> Path:
    """The path as seen from the working folder, if it is below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
