"""Compares precisions: returns, memory and speed of every learner, or speed by the width of the network.

python benchmarks/precision.py --seeds 3
python benchmarks/precision.py --tasks actor-critic --precisions 32-true bf16-mixed --seeds 20 --first-seed 21 --ranks 2
python benchmarks/precision.py --tasks width --widths 64 256 1024 4096 8192 --cuda     # on a GPU
python benchmarks/precision.py --tasks width --widths 64 128                           # small, on a CPU
"""

import os
import statistics
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import tyro
from programs import run_program

CARTPOLE = "--env-id CartPole-v1 --gamma 0.99 --no-shared-encoder"
TASKS = {
    "ppo": "ppo --total-timesteps 300000 --num-envs 32",
    "ppo-cartpole": f"ppo {CARTPOLE} --total-timesteps 100000 --num-envs 8 --num-steps 64 --update-epochs 10"
    " --per-rank-batch-size 128 --learning-rate 2e-3 --gae-lambda 0.9",
    "actor-critic": "actor-critic",
    "actor-critic-cartpole": f"actor-critic {CARTPOLE} --total-episodes None --buffer-size 512"
    " --per-rank-batch-size 256 --no-normalize-values --vf-coef 0.5 --ent-coef 0.05",
    "reinforce": "reinforce",
    "reinforce-custom": "reinforce --env-id CustomEnv-v0 --gamma 0.95",
    "width": "ppo --vectorization tensor --no-shared-encoder --eval-episodes 1",
}
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "32-true --fp8", "bf16-mixed --fp8")


@dataclass
class Arguments:
    """Trains tasks in several precisions with train_torch.py and prints a row for each."""

    tasks: list[str] = field(default_factory=lambda: ["ppo", "ppo-cartpole", "actor-critic", "reinforce"])
    """Any of: ppo, ppo-cartpole, actor-critic, actor-critic-cartpole, reinforce, reinforce-custom, width."""
    precisions: list[str] = field(default_factory=lambda: list(PRECISIONS))
    """Values of --precision; further flags may follow a value."""
    widths: list[int] = field(default_factory=lambda: [64])
    """Hidden sizes for the task "width"."""
    seeds: int = 3
    """Number of seeds."""
    first_seed: int = 1
    """The smallest seed."""
    ranks: int = 1
    """Number of ranks of a run."""
    at_once: int = 1
    """Number of runs at the same time; they slow each other down, so speeds compare only with an equal number."""
    cuda: bool = False
    """Train on a GPU."""


def train(arguments: Arguments, seed: int, task: str, precision: str, width: int | None) -> dict[str, list[float]]:
    """The scalars of one run."""
    cuda = arguments.cuda
    flags = f"{TASKS[task]} --precision {precision} --seed {seed}"
    if task == "width":
        num_envs = 16384 if cuda else 64
        flags += f" --hidden-sizes {width} {width} --num-envs {num_envs} --num-steps 32"
        flags += f" --total-timesteps {num_envs * 32 * 20}"
    variables = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    all_flags = [*flags.split(), *(["--cuda"] * cuda)]
    scalars, _ = run_program("train_torch.py", all_flags, ranks=arguments.ranks, variables=variables)
    return scalars


def main(arguments: Arguments) -> None:
    """Prints a row for each task and precision when its seeds are done."""
    print("| task | precision | greedy returns | sampled returns | steps | steps/s | MiB |")
    print("|---|---|---|---|---|---|---|")
    with ThreadPoolExecutor(arguments.at_once) as pool:
        rows = [
            (task, precision, width)
            for task in arguments.tasks
            for width in (arguments.widths if task == "width" else [None])
            for precision in arguments.precisions
        ]
        seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
        started = [(row, [pool.submit(train, arguments, seed, *row) for seed in seeds]) for row in rows]
        for (task, precision, width), futures in started:
            runs = [future.result() for future in futures]
            greedy = sorted(run["Test/cumulative_reward"][-1] for run in runs)
            sampled = sorted(run.get("Rewards/last_100_episodes", [float("nan")])[-1] for run in runs)
            speed = statistics.median(statistics.median(run["Time/step_per_second"]) for run in runs)
            memory = statistics.median(run["memory_mib"][0] for run in runs)
            steps = statistics.median(run["step"][-1] for run in runs)
            returns = (", ".join(f"{value:.1f}" for value in values) for values in (greedy, sampled))
            cells = (
                task if width is None else f"{task} {width:,}",
                precision,
                *returns,
                f"{steps:,.0f}",
                f"{speed:,.0f}",
                f"{memory:,.0f}",
            )
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
