"""Trains in two checkouts of this repository in turn, and compares their steps per second.

    python benchmarks/compare_speed.py OLD NEW --rounds 5

Each round runs every case in one checkout and then in the other, which of them first changes from round to round. What
is compared are the medians of the ratios within a round, so that a machine that is slower for a while does little harm.
"""

import re
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from compare_checkouts import FABRIC, FORMER_FLAGS, accepts, environment
from programs import launched

CARTPOLE = "--env-id CartPole-v1 --num-steps 128 --update-epochs 4 --per-rank-batch-size 256"  # in every version
CASES = {
    "two ranks, flags as they are": (2, ""),
    "64 environments, eager": (1, "--vectorization native --execution eager --total-timesteps 100000"),
    "64 environments, compiled": (1, "--vectorization native --execution compile --total-timesteps 300000"),
    "1,024 environments, compiled": (1, "--num-envs 1024 --vectorization native --total-timesteps 2000000"),
    "CartPole in Python": (1, f"{CARTPOLE} --num-envs 8 --vectorization sync --total-timesteps 40000"),
}


@dataclass
class Arguments:
    """Which checkouts, and how often."""

    old: Annotated[Path, tyro.conf.Positional]
    new: Annotated[Path, tyro.conf.Positional]
    rounds: int = 5
    only: tuple[str, ...] = ()
    """Beginnings of the names of cases; all if not given."""


def speed(checkout: Path, ranks: int, flags: str) -> float:
    """Environment steps per second, without compiling, as the program's summary says."""
    checkout = checkout.resolve()
    for now, former in FORMER_FLAGS.items():
        if now in flags and not accepts(checkout, now):
            flags = flags.replace(now, former)
    with tempfile.TemporaryDirectory() as folder:
        command = [*launched(checkout / FABRIC, ranks=ranks), *flags.split(), "--log-dir", folder]
        result = subprocess.run(
            command, cwd=folder, env=environment(checkout), capture_output=True, text=True, check=False
        )
    if (found := re.search(r"^  speed +([\d,]+) steps/s", result.stdout, re.MULTILINE)) is None:
        sys.exit(f"error: {' '.join(command)}: {result.stderr}")
    return float(found[1].replace(",", ""))


def main(arguments: Arguments) -> None:
    """Prints a row for each case."""
    print("| case | old, steps/s | new, steps/s | new / old, median of the rounds | each round |")
    print("|---|---|---|---|---|")
    for name, (ranks, flags) in CASES.items():
        if arguments.only and not name.startswith(arguments.only):
            continue
        speeds: dict[Path, list[float]] = {arguments.old: [], arguments.new: []}
        for round_ in range(arguments.rounds):
            for checkout in (arguments.old, arguments.new)[:: -1 if round_ % 2 else 1]:
                speeds[checkout].append(speed(checkout, ranks, flags))
        old, new = speeds.values()
        ratios = [b / a for a, b in zip(old, new, strict=True)]
        each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        row = (name, *(f"{statistics.median(values):,.0f}" for values in (old, new)))
        print(f"| {' | '.join(row)} | {statistics.median(ratios):.2f} | {each} |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
