"""Measures what the checks cost: times updates with and without them, alternating within one run.

python benchmarks/overhead.py --rounds 5
"""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from programs import ROOT

from rl.run.checkpoint import read_checkpoint, write_checkpoint

PLAIN = "--config none --num-steps 128 --update-epochs 4 --num-minibatches 4 --shared-encoder"
CARTPOLE = f"--env-id CartPole-v1 --vectorization sync {PLAIN}"
LUNAR_LANDER = f"--env-id LunarLander-v3 {PLAIN}"
PROBLEMS = {
    "the bare command": (2, "--execution eager"),
    "CartPole in Python, 8 a rank": (2, f"{CARTPOLE} --num-envs 8 --total-timesteps 120000 --execution eager"),
    "LunarLander, 2 a rank": (
        2,
        f"--env-id LunarLander-v3 {PLAIN} --num-envs 2 --total-timesteps 40000 --execution eager",
    ),
    "tensors, compiled": (1, "--vectorization tensor --execution compile --total-timesteps 2000000"),
    "actor-critic": (2, "actor-critic --execution eager --total-timesteps 100000"),
}


@dataclass
class Arguments:
    """Measures what the checks of an update cost."""

    rounds: int = 5
    """Runs of each problem."""
    problems: tuple[str, ...] = tuple(PROBLEMS)
    """Names of the problems to measure."""


def main(arguments: Arguments) -> None:
    """Prints a row for each problem, then the time to write a checkpoint."""
    print("| problem | ranks | update with checks, ms | without, ms | share of the time | control (checks in both) |")
    print("|---|---|---|---|---|---|")
    for name in arguments.problems:
        ranks, flags = PROBLEMS[name]
        pairs, controls = [], []
        for _ in range(arguments.rounds):
            pairs.append(seconds_of_updates(flags, ranks, {}))
            controls.append(seconds_of_updates(flags, ranks, {"TOGGLED_IN_NAME_ONLY": "1"}))
        safe, bare = (1e3 * statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"| {name} | {ranks} | {safe:.1f} | {bare:.1f} | {share(pairs)} | {share(controls)} |", flush=True)
    seconds = checkpoint_seconds()
    print(f"\nA checkpoint of the bare command takes {1e3 * seconds:.1f} ms, {seconds / 600:.4%} of ten minutes.")


def share(pairs: list[tuple[float, float]]) -> str:
    """The share of the first time that the second one saves: median, lowest and highest."""
    shares = sorted(1 - bare / safe for safe, bare in pairs)
    return f"{statistics.median(shares):.1%} ({shares[0]:.1%} to {shares[-1]:.1%})"


def seconds_of_updates(flags: str, ranks: int, variables: dict[str, str]) -> tuple[float, float]:
    """The median seconds of an update with and without checks."""
    launcher = [str(Path(sys.executable).parent / "torchrun"), f"--nproc_per_node={ranks}", "--standalone"]
    with tempfile.TemporaryDirectory() as folder:
        learner, rest = ([flags.split()[0]], flags.split()[1:]) if flags[0] != "-" else ([], flags.split())
        arguments = [*learner, "--log-dir", folder, "--eval-episodes", "1", *rest]
        command = [*launcher, str(ROOT / "benchmarks/toggled.py"), "train_torch.py", *arguments]
        environment = os.environ | variables
        output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    safe, bare = re.search(r"^\[([\d.e-]+), ([\d.e-]+)\]$", output, re.MULTILINE).groups()
    return float(safe), float(bare)


def checkpoint_seconds() -> float:
    """The median seconds that writing a checkpoint takes."""
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--total-timesteps 16384 --eval-episodes 1 --log-dir {folder}"
        subprocess.run([sys.executable, str(ROOT / "train_torch.py"), *flags.split()], capture_output=True, check=True)
        (path,) = Path(folder).glob("*/*/last.ckpt")
        content, seconds = read_checkpoint(path), []
        for _ in range(50):
            began_at = time.perf_counter()
            write_checkpoint(path, content)
            seconds.append(time.perf_counter() - began_at)
    return statistics.median(seconds)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
