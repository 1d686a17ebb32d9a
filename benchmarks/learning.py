"""Trains tasks with many seeds, as a user would start the program, and prints the returns.

python benchmarks/learning.py --tasks custom cartpole pendulum lunarlander --seeds 10
python benchmarks/learning.py --program train_fabric_decoupled.py --tasks custom-small cartpole-one-player
    --ranks 2 3 4 --variants=",--share-data,--overlap,--share-data --overlap" --seeds 1
"""

import itertools
import statistics
from dataclasses import dataclass, field

import tyro
from programs import run_program

CARTPOLE = (
    "--env-id CartPole-v1 --total-timesteps 100000 --num-steps 64 --update-epochs 10 --learning-rate 2e-3"
    " --gamma 0.99 --gae-lambda 0.9 --no-shared-encoder"
)
TASKS = {
    "custom": "",
    "custom-small": "--total-timesteps 300000 --num-envs 32",
    "cartpole": f"{CARTPOLE} --num-envs 8 --per-rank-batch-size 128",
    "cartpole-one-player": f"{CARTPOLE} --num-envs 16 --per-rank-batch-size 64",
    # The settings of the example that these programs grew from.
    "cartpole-example": "--env-id CartPole-v1 --num-envs 4 --num-steps 128 --per-rank-batch-size 64 --update-epochs 10"
    " --total-timesteps 65536",
    "pendulum": "--env-id Pendulum-v1 --total-timesteps 300000 --num-envs 8 --num-steps 256 --per-rank-batch-size 128"
    " --update-epochs 10 --learning-rate 1e-3 --no-shared-encoder --eval-episodes 100",
    "lunarlander": "--env-id LunarLander-v3 --total-timesteps 500000 --ortho-init --num-envs 2 --num-steps 2048"
    " --per-rank-batch-size 64 --update-epochs 10 --learning-rate 1e-3 --gamma 0.995 --ent-coef 0.01"
    " --no-shared-encoder --activation-function relu",
}


@dataclass
class Arguments:
    """Trains tasks with many seeds and prints the returns."""

    tasks: list[str]
    """Any of: custom, custom-small, cartpole, cartpole-one-player, cartpole-example, pendulum, lunarlander."""
    seeds: int = 10
    """Number of seeds, from 1 on."""
    program: str = "train_fabric.py"
    """The program."""
    ranks: list[int] = field(default_factory=lambda: [2])
    """Numbers of ranks."""
    variants: str = ""
    """Groups of further flags of the program, separated by commas; each is run with all tasks and ranks."""
    options: str = ""
    """Further options of `fabric run`, such as --precision=bf16-mixed."""


def main(arguments: Arguments) -> None:
    """Prints a row for each run when it ends."""
    print("| task | ranks | flags | seed | greedy return | sampled return | steps/s (median) | total seconds |")
    print("|---|---|---|---|---|---|---|---|")
    seeds = range(1, arguments.seeds + 1)
    for task, ranks, variant, seed in itertools.product(
        arguments.tasks, arguments.ranks, arguments.variants.split(","), seeds
    ):
        flags = [*TASKS[task].split(), *variant.split(), f"--seed={seed}"]
        scalars, seconds = run_program(arguments.program, flags, ranks=ranks, options=arguments.options.split())
        print(
            f"| {task} | {ranks} | {variant} | {seed} | {scalars['Test/cumulative_reward'][0]:.2f}"
            f" | {scalars['Rewards/rew_avg'][-1]:.1f}"
            f" | {statistics.median(scalars['Time/step_per_second']):,.0f} | {seconds:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main(tyro.cli(Arguments))
