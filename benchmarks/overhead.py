"""What safety costs: the programs as they are beside the same ones without checks, in turn.

python benchmarks/overhead.py --rounds 7
"""

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from programs import run_program

import train_torch
from rl.command_line import parse
from rl.config import CONFIGS
from rl.run.checkpoint import read_checkpoint, write_checkpoint

CARTPOLE = "--env-id CartPole-v1 --vectorization sync"
SMALL = "--num-envs 2 --per-rank-batch-size 64 --update-epochs 10 --execution compiled"
PROBLEMS = {
    "the bare command": (2, ""),
    "CartPole in Python, 8 a rank": (2, f"{CARTPOLE} --num-envs 8 --total-timesteps 60000"),
    "CartPole in Python, 2 a rank": (2, f"{CARTPOLE} --total-timesteps 30000 {SMALL}"),
    "tensors, compiled": (1, "--env-backend tensor --execution compiled --total-timesteps 2000000"),
    "actor-critic": (2, "actor-critic --execution eager --total-timesteps 100000"),
}


@dataclass
class Arguments:
    """Which problems, and how often."""

    rounds: int = 7
    """Pairs of runs of each problem."""
    problems: tuple[str, ...] = tuple(PROBLEMS)
    """Names of problems."""


def main(arguments: Arguments) -> None:
    """Prints a row for each problem, and what a checkpoint takes."""
    print("| problem | ranks | steps/s as it is | without checks | time that checks take: median, quartiles |")
    print("|---|---|---|---|---|")
    for name in arguments.problems:
        ranks, flags = PROBLEMS[name]
        programs = ("train_torch.py", "benchmarks/bare.py")
        pairs = [tuple(speed(program, flags, ranks) for program in programs) for _ in range(arguments.rounds)]
        costs = sorted(1 - safe / bare for safe, bare in pairs)
        low, middle, high = statistics.quantiles(costs, n=4) if len(costs) > 1 else costs * 3
        safe, bare = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"| {name} | {ranks} | {safe:,.0f} | {bare:,.0f} | {middle:.1%} ({low:.1%} to {high:.1%}) |", flush=True)
    seconds = checkpoint_seconds()
    print(
        f"\nTo write a checkpoint of the bare command takes {1e3 * seconds:.1f} ms: {seconds / 600:.4%} of ten minutes."
    )


def speed(program: str, flags: str, ranks: int) -> float:
    """Steps a second at the median update."""
    arguments = ["train_torch.py", *flags.split()] if "bare" in program else flags.split()
    scalars, _ = run_program(program, [*arguments, "--eval-episodes", "1"], ranks=ranks)
    return statistics.median(scalars["Time/step_per_second"])


def checkpoint_seconds() -> float:
    """The median time that writing a checkpoint takes."""
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--total-timesteps 16384 --eval-episodes 1 --log-dir {folder}"
        train_torch.main(parse(flags.split(), CONFIGS))
        (path,) = Path(folder).glob("*/*/last.ckpt")
        content, seconds = read_checkpoint(path), []
        for _ in range(50):
            began_at = time.perf_counter()
            write_checkpoint(path, content)
            seconds.append(time.perf_counter() - began_at)
    return statistics.median(seconds)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
