"""Prints the table of the runs that `learning.py` made, a peer's beside ours, and draws their curves.

python benchmarks/learning_table.py
python benchmarks/learning_table.py --tasks hopper walker2d --plot docs/images/learning

The second command also writes docs/images/learning_steps.png and docs/images/learning_seconds.png.
"""

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

import numpy as np
import tyro
from learning import PEERS, RESULTS, TASKS
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from rl.commands.plot import Axis, draw_curve, tidy
from rl.commands.text import number
from rl.run.curves import Curve

Record = dict[str, Any]  # the content of a run's file
Runs = dict[str, list[Record]]  # of each task
AXES: tuple[Axis, ...] = ("steps", "seconds")
MISSING = "–"
NAMES = {"sb3": "stable-baselines3, tuned"}
OURS, PEER = "#1f77b4", "#d95f02"
MAX_COLUMNS = 4


@dataclass
class Arguments:
    """Prints the table of runs, and draws their curves."""

    tasks: list[str] = field(default_factory=list)
    """The rows of the table; without them every task that has runs."""
    results: Path = RESULTS
    """Folder of the runs' files."""
    peer: Literal["sb3"] = "sb3"
    """The program beside ours."""
    plot: Path | None = None
    """Also draw the curves, in PLOT_steps.png and PLOT_seconds.png."""


def main(arguments: Arguments) -> None:
    """Prints the table, and draws the pictures if asked."""
    records = [json.loads(path.read_text()) for path in sorted(arguments.results.glob("*.json"))]
    tasks = arguments.tasks or [task for task in TASKS if any(record["task"] == task for record in records)]
    ours: Runs = {task: [r for r in records if r["task"] == task and r["program"] not in PEERS] for task in tasks}
    peers: Runs = {task: [r for r in records if (r["task"], r["program"]) == (task, arguments.peer)] for task in tasks}
    print("\n".join([*table(ours, peers, arguments.peer), "", *origins(records)]))
    if arguments.plot:
        for axis in AXES:
            draw(ours, peers, arguments.peer, axis, Path(f"{arguments.plot}_{axis}.png"))


def table(ours: Runs, peers: Runs, peer: str) -> list[str]:
    """The lines of a Markdown table with a row for each task."""
    columns = ("seeds", "greedy return", "minimum", "sampled return", "CPU seconds")
    header = ["task", "steps", *columns, *(f"{peer}: {column}" for column in columns), "ratio of CPU seconds"]
    rows = [
        [
            task,
            steps(ours[task] or peers[task]),
            *cells(ours[task]),
            *cells(peers[task]),
            ratio(ours[task], peers[task]),
        ]
        for task in ours
    ]
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


def steps(runs: Sequence[Record]) -> str:
    """Steps of a task's runs, which may differ by less than a rollout."""
    return f"{mean(run['steps'] for run in runs):,.0f}" if runs else MISSING


def cells(runs: Sequence[Record]) -> list[str]:
    """Number of seeds, greedy return (mean and standard deviation over seeds, minimum), sampled return, CPU seconds."""
    if not runs:
        return ["0", *[MISSING] * 4]
    greedy, sampled, seconds = (
        [run[key] for run in runs] for key in ("greedy_return", "sampled_return", "cpu_seconds")
    )
    spread = f" ± {number(stdev(greedy), like=mean(greedy))}" if len(runs) > 1 else ""
    values = f"{number(mean(greedy))}{spread}", number(min(greedy)), number(mean(sampled)), f"{mean(seconds):,.0f}"
    return [str(len(runs)), *values]


def ratio(ours: Sequence[Record], peers: Sequence[Record]) -> str:
    """How many times our CPU seconds the peer takes."""
    if not (ours and peers):
        return MISSING
    return f"{mean(run['cpu_seconds'] for run in peers) / mean(run['cpu_seconds'] for run in ours):.1f}"


def origins(records: Sequence[Record]) -> list[str]:
    """The machines, versions and revisions that runs come from, one line for each different value."""
    machines = (f"{r['cpu']}, {r['cores']} cores, up to {r['jobs']} runs at once, {versions(r)}" for r in records)
    revisions = sorted({record["revision"] for record in records})
    return [*dict.fromkeys(machines), f"revisions {', '.join(revisions)}"] if records else []


def versions(record: Record) -> str:
    """The versions of packages in words."""
    return ", ".join(f"{name} {version}" for name, version in record["versions"].items())


def draw(ours: Runs, peers: Runs, peer: str, axis: Axis, path: Path) -> None:
    """Draws a panel for each task: our sampled return over steps or seconds, and the peer's."""
    tasks = [task for task in ours if ours[task] or peers[task]]
    columns = max(1, min(MAX_COLUMNS, len(tasks)))
    rows = math.ceil(len(tasks) / columns)
    figure = Figure(figsize=(9.6, 1.9 * rows + 0.8), layout="constrained")
    for panel, task in enumerate(tasks, start=1):
        axes = figure.add_subplot(rows, columns, panel)
        axes.set_title(task, fontsize="medium")
        draw_runs(axes, ours[task], axis, color=OURS, linestyle="-")
        draw_runs(axes, peers[task], axis, color=PEER, linestyle="--")
        tidy(axes, axis)
    figure.supxlabel(axis)
    figure.supylabel("sampled return")
    drawn = [run for runs in peers.values() for run in runs]
    name = NAMES[peer] if any("curve" in run for run in drawn) else f"{NAMES[peer]}: last return"
    lines = [Line2D([], [], color=OURS, label="this project: mean and standard deviation over seeds")]
    lines += [Line2D([], [], color=PEER, linestyle="--", label=name)] if drawn else []
    figure.legend(handles=lines, loc="outside upper center", ncols=2, frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=140)
    Image.open(picture).convert("RGB").quantize(64).save(path, optimize=True)  # a third of the size


def draw_runs(axes: Axes, runs: Sequence[Record], axis: Axis, **style: Any) -> None:
    """Draws mean and spread over seeds; runs without curves as a line at the height of their last return."""
    if not runs:
        return
    curves = [run["curve"] for run in runs if run.get("curve")]
    if not curves:
        end = mean(run[axis] for run in runs)
        height = mean(run["sampled_return"] for run in runs)
        axes.plot([0, end], [height, height], **style)
        axes.plot([end], [height], marker="o", markersize=4, color=style["color"])
        return
    draw_curve(axes, [Curve(*np.array(curve).T) for curve in curves], axis, **style)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
