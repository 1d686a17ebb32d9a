"""Prints the table of a file that `speed.py` wrote, peers beside ours, and draws it as bars.

python benchmarks/speed_table.py --plot docs/images/speed.png
"""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import tyro
from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results/2026-11-21_speed_peers.json"
PROGRAMS = {"ours": "this project", "sb3": "stable-baselines3", "jax": "a PPO compiled by JAX as a whole"}
COLORS = {"ours": "#4051b5", "sb3": "#d95f02", "jax": "#9e9e9e"}
MISSING = "–"

Case = dict[str, Any]


@dataclass
class Arguments:
    """Prints the table of a file of speeds, and draws them."""

    results: Path = RESULTS
    """The file."""
    plot: Path | None = None
    """Also draw bars, into this picture."""


def main(arguments: Arguments) -> None:
    """Prints the table, and draws the picture if asked."""
    cases = cases_in(arguments.results)
    print("\n".join(table(cases)))
    if arguments.plot:
        draw(cases, arguments.plot)


def cases_in(path: Path) -> list[Case]:
    """The problems that a peer was measured on too."""
    cases: list[Case] = json.loads(path.read_text())["peers"]
    return [case for case in cases if case["peers"]]


def table(cases: list[Case]) -> list[str]:
    """The lines of a Markdown table: medians of the rounds, and how many times as fast as each peer."""
    peers = [program for program in PROGRAMS if program != "ours"]
    ratios = [f"beside {PROGRAMS[peer]}" for peer in peers]
    header = [
        "problem, environments",
        "epochs × minibatches",
        "ranks × threads, precision",
        *PROGRAMS.values(),
        *ratios,
    ]
    rows = []
    for case in cases:
        problem, way, speeds = case["problem"], case["way"], speeds_of(case)
        row = [case["name"], f"{problem['epochs']} × {problem['minibatches']}"]
        row.append(f"{way['ranks']} × {way['threads']}, {way['precision']}")
        row += [f"{speeds[program]:,.0f}" if program in speeds else MISSING for program in PROGRAMS]
        row += [f"{speeds['ours'] / speeds[peer]:.2f}" if peer in speeds else MISSING for peer in peers]
        rows.append(row)
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


def speeds_of(case: Case) -> dict[str, float]:
    """Steps per second of each program, the median of the rounds."""
    return {program: median(run["steps_per_s"] for run in runs) for program, runs in case["runs"].items()}


def draw(cases: list[Case], path: Path) -> None:
    """Draws a group of bars for each problem."""
    figure = Figure(figsize=(9.6, 0.75 * len(cases) + 0.9), layout="constrained")
    axes = figure.add_subplot()
    for place, case in enumerate(cases):
        speeds = speeds_of(case)
        width = 0.8 / max(2, len(speeds))
        for index, (program, speed) in enumerate(speeds.items()):
            y = place + (index - (len(speeds) - 1) / 2) * width
            axes.barh(y, speed, width * 0.92, color=COLORS[program])
            axes.text(speed, y, f" {speed:,.0f}", va="center", fontsize="small")
    axes.set_yticks(range(len(cases)), [label(case) for case in cases])
    axes.invert_yaxis()
    axes.margins(x=0.09)
    axes.set_xlabel("steps per second of training, collecting and learning, on two CPU cores")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.spines[["top", "right"]].set_visible(False)
    handles = [axes.barh(0, 0, color=COLORS[program], label=name) for program, name in PROGRAMS.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(PROGRAMS), frameon=False)
    figure.savefig(path, dpi=110)


def label(case: Case) -> str:
    """A problem in two lines."""
    problem, way = case["problem"], case["way"]
    ranks = f"{way['ranks']} rank{'s' * (way['ranks'] > 1)} of {way['threads']} thread{'s' * (way['threads'] > 1)}"
    name = case["name"].partition(",")[0]
    return f"{name}, {problem['num_envs']:,} environments\n{ranks}, {way['precision']}"


if __name__ == "__main__":
    main(tyro.cli(Arguments))
