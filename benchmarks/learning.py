"""Trains each task on many seeds with the program as a user starts it, and prints a table of the returns reached.

python benchmarks/learning.py --tasks custom cartpole pendulum lunarlander --seeds 10
"""

import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).parent.parent

TASKS = {
    "custom": "",
    "cartpole": "--env-id CartPole-v1 --total-timesteps 100000 --num-envs 8 --num-steps 64 --per-rank-batch-size 128"
    " --update-epochs 10 --learning-rate 2e-3 --gamma 0.99 --gae-lambda 0.9 --no-shared-encoder",
    "pendulum": "--env-id Pendulum-v1 --total-timesteps 300000 --num-envs 8 --num-steps 256 --per-rank-batch-size 128"
    " --update-epochs 10 --learning-rate 1e-3 --no-shared-encoder --eval-episodes 100",
    "lunarlander": "--env-id LunarLander-v3 --total-timesteps 500000 --ortho-init --num-envs 2 --num-steps 2048"
    " --per-rank-batch-size 64 --update-epochs 10 --learning-rate 1e-3 --gamma 0.995 --ent-coef 0.01"
    " --no-shared-encoder --activation-function relu",
}


@dataclass
class Arguments:
    """Trains tasks on many seeds and prints the returns reached."""

    tasks: list[str]
    """Which of: custom, cartpole, pendulum, lunarlander."""
    seeds: int = 10
    """How many seeds, from 1."""
    ranks: int = 2
    """How many ranks."""
    options: str = ""
    """Further options of `fabric run`, such as --precision=bf16-mixed."""


@dataclass
class Result:
    """What one run reached."""

    greedy_return: float
    sampled_return: float
    steps_per_second: float
    seconds: float


def train(task: str, seed: int, ranks: int, options: str) -> Result:
    """One run of the program."""
    with tempfile.TemporaryDirectory() as folder:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        launcher = [str(Path(sys.executable).parent / "fabric"), "run", f"--devices={ranks}", f"--main-port={port}"]
        program = [str(ROOT / "train_fabric.py"), *TASKS[task].split(), f"--seed={seed}", f"--log-dir={folder}"]
        began_at = time.perf_counter()
        result = subprocess.run([*launcher, *options.split(), *program], capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - began_at
        if result.returncode != 0:
            sys.exit(result.stderr)
        (run,) = Path(folder, "fabric_logs").iterdir()
        events = EventAccumulator(str(run)).Reload()

        def values(tag: str) -> list[float]:
            return [event.value for event in events.Scalars(tag)]

        return Result(
            values("Test/cumulative_reward")[0],
            values("Rewards/rew_avg")[-1],
            statistics.median(values("Time/step_per_second")),
            seconds,
        )


def main(arguments: Arguments) -> None:
    """Prints a row per task, in Markdown, as its runs end."""
    print("| task | seed | greedy return | sampled return | steps/s | seconds in all |")
    print("|---|---|---|---|---|---|")
    for task in arguments.tasks:
        for seed in range(1, arguments.seeds + 1):
            r = train(task, seed, arguments.ranks, arguments.options)
            print(
                f"| {task} | {seed} | {r.greedy_return:.2f} | {r.sampled_return:.1f}"
                f" | {r.steps_per_second:,.0f} | {r.seconds:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main(tyro.cli(Arguments))
