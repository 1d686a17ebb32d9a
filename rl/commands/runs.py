"""`rl runs`: what runs there are, how far they have come, and how they ended."""

import contextlib
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro

from rl.commands.of_run import about, changed_at, read, runs_in
from rl.commands.text import duration, number, table
from rl.errors import CheckpointError, NothingToResumeError, one_line
from rl.reporting import COMPLETE, how_ended
from rl.run.checkpoint import read_checkpoint
from rl.run.curves import read_curve
from rl.run.folder import BEST, RESULT

NUMBERS = ("seed", "steps", "return", "best", "changed")


@dataclass(frozen=True)
class Runs:
    """Lists the runs in a folder, the ones that changed last first."""

    folder: tyro.conf.Positional[Path] = Path("logs")
    """Folder that holds the folders of runs, at any depth."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class Row:
    """What is known of a run; None for what it has not logged."""

    task: str
    program: str
    learner: str
    seed: str
    steps: int
    last_return: float | None  # of the last hundred training episodes
    best: float | None  # greedy return of best.ckpt
    ended: str
    changed_at: float  # seconds since 1970
    path: str


def command(words: Sequence[str]) -> None:
    """Prints a table of the runs.

    Raises:
        NothingToResumeError: There is none.
    """
    flags = read(Runs, "runs", words)
    rows = sorted(map(row_of, runs_in(flags.folder.expanduser())), key=lambda row: row.changed_at, reverse=True)
    if not rows:
        raise NothingToResumeError(f"{flags.folder}: has no run; must be a folder in which runs are, such as logs")
    if flags.json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    header = ("task", "program", "learner", "seed", "steps", "return", "best", "ended", "changed", "run")
    print("\n".join(table(header, [cells(row) for row in rows], NUMBERS)))


def row_of(folder: Path) -> Row:
    """What a run's folder says."""
    of = about(folder)
    steps, last_return, best = come_to(folder)
    return Row(
        task=of.task,
        program=folder.parent.name.removesuffix("_logs"),
        learner=of.learner,
        seed=of.seed,
        steps=steps,
        last_return=last_return,
        best=best,
        ended=ended(folder),
        changed_at=changed_at(folder),
        path=os.path.relpath(folder),
    )


def come_to(folder: Path) -> tuple[int, float | None, float | None]:
    """Steps, last return and best return of a run: from its result, which is quicker to read, or so far."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):  # anyone may have written it
        result = json.loads((folder / RESULT).read_text())
        last, best = (result["returns"][name] for name in ("sampled", "best"))
        return int(result["steps"]), None if last is None else float(last), None if best is None else float(best)
    curve = read_curve(folder)
    last = float(curve.values[-1]) if len(curve.values) else None
    return int(curve.steps[-1]) if len(curve.steps) else 0, last, best_return(folder)


def best_return(folder: Path) -> float | None:
    """The greedy return of a run's best checkpoint, if it has one."""
    with contextlib.suppress(CheckpointError, OSError):
        best = read_checkpoint(folder / BEST)["run"]["best_return"]
        return best if math.isfinite(best) else None
    return None


def ended(folder: Path) -> str:
    """How a run ended, in a few words."""
    if end := how_ended(folder):
        return "complete" if end == COMPLETE else f"{one_line(end[1], 40)} ({end[0]})"
    with contextlib.suppress(OSError, ValueError):
        os.kill(int((folder / ".lock").read_text()), 0)  # raises unless there is such a process
        return "running"
    return "killed"


def cells(row: Row) -> list[str]:
    """A row of the table."""
    returns = number(row.last_return), number(row.best)
    age = f"{duration(time.time() - row.changed_at)} ago"
    return [row.task, row.program, row.learner, row.seed, f"{row.steps:,}", *returns, row.ended, age, row.path]
