"""Shows whether speed and memory of a long run stay constant, with a row for every tenth of the run.

python benchmarks/endurance.py --flags="--vectorization tensor --execution compile --total-timesteps 5000000"
"""

import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

import psutil
import tyro
from programs import ROOT

LINE = re.compile(r"^([\d,]+) of [\d,]+ steps")


@dataclass
class Arguments:
    """Observes one run of a program on one rank."""

    flags: str = "--vectorization tensor --execution compile --total-timesteps 5000000"
    """Flags of the program."""
    program: str = "train_fabric.py"
    """The program."""


def main(arguments: Arguments) -> None:
    """Prints a row whenever the program prints its progress."""
    print("| steps | steps/s since the last row | MiB |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / arguments.program), *arguments.flags.split(), f"--log-dir={folder}"]
        process = psutil.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        before, began_at = 0, time.perf_counter()
        for line in process.stdout:
            if match := LINE.match(line):
                steps, now = int(match.group(1).replace(",", "")), time.perf_counter()
                speed, mib = (steps - before) / (now - began_at), process.memory_info().rss / 2**20
                print(f"| {steps:,} | {speed:,.0f} | {mib:,.0f} |", flush=True)
                before, began_at = steps, now
        if process.wait() != 0:
            sys.exit(f"{arguments.program} failed")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
