"""Trains in two checkouts of this repository with the same flags, and compares the final parameters bit by bit.

    python benchmarks/compare_checkouts.py OLD NEW --only ppo-fabric-2 share-data

Every run has one thread and a temporary log folder; both checkouts use the interpreter that runs this script. Unless
the name of a case says "truncated", its runs are too short for the time limit of an environment to end an episode.
The exit code is 1 if a run fails or any parameter differs by more than --tolerance.
"""

import functools
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import tyro
from programs import launched
from torch import Tensor


class Case(NamedTuple):
    """A training: a program, its number of ranks, and the flags of the program and its launcher."""

    program: str
    ranks: int
    flags: str
    options: str = ""


TORCH, FABRIC, DECOUPLED = "train_torch.py", "train_fabric.py", "train_fabric_decoupled.py"
LEARNERS = {
    # The defaults of all environments before there were recipes.
    "ppo": "--num-envs 4 --num-steps 24 --update-epochs 4 --per-rank-batch-size 24 --learning-rate 3e-3 --gamma 0.95"
    " --gae-lambda 0.95 --shared-encoder",
    "actor-critic": "actor-critic --num-envs 4 --num-steps 24",
    "reinforce": "reinforce --num-envs 2",
}
STEPS = 144  # of an environment; CustomEnv truncates after 200, CartPole after 500
LONG = 768  # long enough to truncate


def case(
    program: str,
    ranks: int,
    *flags: str,
    learner: str = "ppo",
    execution: str = "eager",
    envs: str = "native",
    steps: int = STEPS,
    options: str = "",
) -> Case:
    """A training of about `steps` steps of each environment; REINFORCE needs more, to make some updates."""
    num_players = 1 if program == DECOUPLED else ranks
    total = 3000 if learner == "reinforce" else 4 * steps * num_players
    common = f"--hidden-size 16 --total-timesteps {total} --execution {execution} --vectorization {envs}"
    return Case(program, ranks, " ".join((LEARNERS[learner], common, *flags)), options)


CARTPOLE, PENDULUM = "--env-id CartPole-v1", "--env-id Pendulum-v1"
CASES = {
    f"{learner}-{program[6:-3]}-{ranks}{'-compile' * (execution == 'compile')}": case(
        program, ranks, learner=learner, execution=execution
    )
    for learner, program, ranks, execution in product(LEARNERS, (TORCH, FABRIC), (1, 2), ("eager", "compile"))
    if (learner, execution) != ("reinforce", "compile")  # the length of whole episodes is not fixed
}
CASES |= {
    "bf16-mixed": case(TORCH, 2, "--precision bf16-mixed"),
    "bf16-mixed-fabric": case(FABRIC, 2, options="--precision=bf16-mixed"),
    "bf16-mixed-compile": case(TORCH, 1, "--precision bf16-mixed", execution="compile"),
    "share-data": case(TORCH, 2, "--share-data"),
    "share-data-fabric": case(FABRIC, 2, "--share-data"),
    "share-data-compile": case(FABRIC, 2, "--share-data", execution="compile"),
    "same-step": case(FABRIC, 2, CARTPOLE, envs="sync"),
    "same-step-async": case(TORCH, 1, CARTPOLE, envs="async"),
    "same-step-reinforce": case(FABRIC, 1, learner="reinforce", envs="sync"),
    "same-step-truncated": case(FABRIC, 1, PENDULUM, envs="sync", steps=LONG),
    "next-step": case(TORCH, 2, CARTPOLE),
    "next-step-actor-critic": case(FABRIC, 1, CARTPOLE, learner="actor-critic"),
    "tensor": case(FABRIC, 2, envs="tensor"),
    "tensor-compile": case(TORCH, 1, CARTPOLE, envs="tensor", execution="compile"),
    "tensor-reinforce": case(TORCH, 1, learner="reinforce", envs="tensor"),
    "tensor-truncated": case(TORCH, 1, PENDULUM, envs="tensor", steps=LONG),
    "every-option": case(
        FABRIC,
        2,
        "--clip-vloss --ent-coef 0.01 --no-anneal-lr --no-normalize-advantages --no-ortho-init --no-shared-encoder",
        "--activation-function relu --target-kl 0.001 --per-rank-batch-size 10 --seed 7",
    ),
    "decoupled-1": case(DECOUPLED, 2),
    "decoupled-1-compile": case(DECOUPLED, 2, execution="compile"),
    "decoupled-2": case(DECOUPLED, 3),
    "decoupled-2-compile": case(DECOUPLED, 3, execution="compile"),
    "decoupled-2-share-data": case(DECOUPLED, 3, "--share-data"),
    "decoupled-2-overlap": case(DECOUPLED, 3, "--overlap"),
}

FORMER_FLAGS = {
    "--vectorization tensor": "--env-backend tensor",
    "--vectorization native": "--vectorization auto",
    "--execution compile": "--execution compiled",
}
"""What an older checkout calls a flag, where it refuses the present spelling."""
VARIABLES = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
TIMEOUT_SECONDS = 900


@dataclass
class Arguments:
    """Which checkouts, and which trainings."""

    old: Annotated[Path, tyro.conf.Positional]
    new: Annotated[Path, tyro.conf.Positional]
    only: tuple[str, ...] = ()
    """Names of cases, or beginnings of names; all if not given."""
    tolerance: float = 0.0
    """Largest absolute difference between two parameters that is not an error; 0 asks for equal bits."""
    jobs: int = 2
    """Cases that run at the same time."""
    new_seed: int | None = None
    """Seed of NEW's runs, to see that a difference is found: every case must then fail."""


class Trained(NamedTuple):
    """The agent's parameters after a training, and how many seconds it took."""

    parameters: dict[str, Tensor]
    seconds: float


def main(arguments: Arguments) -> int:
    """Prints a row for each case; the exit code."""
    only = arguments.only
    cases = [name for name in CASES if not only or name.startswith(only)]
    if not cases:
        sys.exit(f"error: --only {' '.join(only)}: must be among {', '.join(CASES)}")
    print("| case | parameters | largest difference | result | old, s | new, s |")
    print("|---|---|---|---|---|---|")
    errors = []
    num_agreeing = 0
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for agrees, row, error in pool.map(functools.partial(compare, arguments), cases):
            num_agreeing += agrees
            errors += [error] if error else []
            print(row, flush=True)
    print(f"\n{num_agreeing} of {len(cases)} cases agree", *errors, sep="\n\n")
    return int(num_agreeing < len(cases))


def compare(arguments: Arguments, name: str) -> tuple[bool, str, str]:
    """Whether both checkouts end with the same parameters, the row that says so, and why a run failed."""
    training = CASES[name]
    seed = "" if arguments.new_seed is None else f" --seed {arguments.new_seed}"
    try:
        # One after the other: the second finds in the compiler's cache what is the same.
        old = train(arguments.old, training)
        new = train(arguments.new, training._replace(flags=training.flags + seed))
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        return False, f"| {name} | | | FAILED | | |", f"{name}: {error}\n{error.stderr}"
    equal, largest = difference(old.parameters, new.parameters)
    result = "equal" if equal else "close" if largest <= arguments.tolerance > 0 else "DIFFERENT"
    count = sum(parameter.numel() for parameter in new.parameters.values())
    row = f"| {name} | {count:,} | {largest:.3g} | {result} | {old.seconds:.1f} | {new.seconds:.1f} |"
    return result != "DIFFERENT", row, ""


def train(checkout: Path, training: Case) -> Trained:
    """Trains in a checkout.

    Raises:
        CalledProcessError: The program failed.
        TimeoutExpired: It took longer than `TIMEOUT_SECONDS`.
    """
    checkout = checkout.resolve()
    flags = training.flags
    for now, former in FORMER_FLAGS.items():
        if now in flags and not accepts(checkout, now):
            flags = flags.replace(now, former)
    with tempfile.TemporaryDirectory() as folder:
        launcher = launched(checkout / training.program, ranks=training.ranks, options=training.options.split())
        command = [*launcher, *flags.split(), "--eval-episodes", "1", "--log-dir", folder]
        began_at = time.perf_counter()
        subprocess.run(
            command,
            cwd=folder,
            env=environment(checkout),
            capture_output=True,
            text=True,
            check=True,
            timeout=TIMEOUT_SECONDS,
        )
        seconds = time.perf_counter() - began_at
        (path,) = Path(folder).glob("*/*/last.ckpt")
        return Trained(torch.load(path, weights_only=True)["agent"], seconds)


@functools.cache
def accepts(checkout: Path, flag: str) -> bool:
    """Whether the programs of a checkout know a flag and its value."""
    command = [sys.executable, str(checkout / TORCH), *flag.split(), "--help"]
    return subprocess.run(command, env=environment(checkout), capture_output=True, check=False).returncode == 0


def environment(checkout: Path) -> dict[str, str]:
    """Variables with which processes import from a checkout, and compute in one thread."""
    return os.environ | VARIABLES | {"PYTHONPATH": str(checkout)}


def difference(old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> tuple[bool, float]:
    """Whether all bits are equal, and the largest absolute difference of numbers whose bits differ.

    Parameters are compared in their order, since a refactoring may rename them. The difference is infinite where
    shapes or types differ, or where a number is not finite on one side only.
    """
    if [(p.shape, p.dtype) for p in old.values()] != [(p.shape, p.dtype) for p in new.values()]:
        return False, math.inf
    largest, equal = 0.0, True
    for before, after in zip(old.values(), new.values(), strict=True):
        changed = bits(before) != bits(after)
        if changed.any():
            distance = (before.double() - after.double())[changed].abs()
            largest, equal = max(largest, distance.nan_to_num(nan=math.inf, posinf=math.inf).max().item()), False
    return equal, largest


def bits(tensor: Tensor) -> Tensor:
    """The same memory as integers, which compare equal only if all bits are: unlike NaN with itself, or 0 with -0."""
    return tensor.contiguous().view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.itemsize])


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments)))
