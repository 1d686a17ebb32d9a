"""Measures how much faster --overlap is when collecting takes as long as learning (at most twice as fast).

python benchmarks/overlap.py
"""

import statistics
from dataclasses import dataclass
from pathlib import Path

import tyro
from programs import run_program

NUM_STEPS = 128
FLAGS = (
    f"--env-id slow_env:SlowEnv-v0 --allow-import --num-envs 64 --num-steps {NUM_STEPS} --update-epochs 10"
    " --num-minibatches 4 --shared-encoder --total-timesteps 250000"
).split()


@dataclass
class Arguments:
    """Measures the speedup of --overlap."""

    rounds: int = 3
    """Pairs of runs, without and with --overlap."""
    ranks: int = 2
    """Number of ranks: one player, the others trainers."""


def main(arguments: Arguments) -> None:
    """Calibrates the environment, then prints a row for each pair of runs."""

    def run(step_seconds: float, *flags: str) -> dict[str, list[float]]:
        variables = {"SLOW_ENV_SECONDS": str(step_seconds), "PYTHONPATH": str(Path(__file__).parent)}
        program = "train_fabric_decoupled.py"
        return run_program(program, [*FLAGS, *flags], ranks=arguments.ranks, variables=variables)[0]

    def median(scalars: dict[str, list[float]], tag: str) -> float:
        return statistics.median(scalars[tag])

    fast = run(0.0)
    learn_seconds, collect_seconds = median(fast, "Time/learn_seconds"), median(fast, "Time/collect_seconds")
    step_seconds = max(0.0, learn_seconds - collect_seconds) / NUM_STEPS
    print(
        f"learning takes {learn_seconds:.3f} s an update, collecting {collect_seconds:.3f} s:"
        f" the environments sleep {1000 * step_seconds:.2f} ms in each step"
    )
    print("| round | collect s | learn s | steps/s | collect s, overlapped | learn s | steps/s | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    ratios = []
    for number in range(1, arguments.rounds + 1):
        apart, together = run(step_seconds), run(step_seconds, "--overlap")
        cells = [
            f"{median(scalars, tag):,.3f}" if "seconds" in tag else f"{median(scalars, tag):,.0f}"
            for scalars in (apart, together)
            for tag in ("Time/collect_seconds", "Time/learn_seconds", "Time/step_per_second")
        ]
        ratios.append(median(together, "Time/step_per_second") / median(apart, "Time/step_per_second"))
        print(f"| {number} | {' | '.join(cells)} | {ratios[-1]:.2f} |", flush=True)
    print(f"\nmedian ratio: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
