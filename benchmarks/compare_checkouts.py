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
    """A training; `flags` of the program, `options` of its launcher."""

    program: str
    ranks: int
    flags: str
    options: str = ""


TORCH, FABRIC, DECOUPLED = "train_torch.py", "train_fabric.py", "train_fabric_decoupled.py"
EAGER, COMPILE = "--execution eager", "--execution compile"
# Steps of an environment: at most 144, where CustomEnv truncates after 200.
PPO = "--num-envs 4 --num-steps 24 --hidden-size 16 --total-timesteps {}"
LEARNERS = {
    "ppo": PPO,
    "actor-critic": "actor-critic --num-envs 4 --num-steps 24 --hidden-size 16 --total-timesteps {}",
    "reinforce": "reinforce --num-envs 2 --hidden-size 16 --total-timesteps 3000",
}


def ppo(steps: int, *flags: str) -> str:
    """Flags of PPO for a total number of environment steps."""
    return " ".join((PPO.format(steps), *flags))


CASES = {
    f"{learner}-{program[6:-3]}-{ranks}{'-compile' * (execution == COMPILE)}": Case(
        program, ranks, f"{flags.format(576 * ranks)} {execution}"
    )
    for (learner, flags), program, ranks, execution in product(
        LEARNERS.items(), (TORCH, FABRIC), (1, 2), (EAGER, COMPILE)
    )
    if (learner, execution) != ("reinforce", COMPILE)  # whole episodes have no fixed length
}
CASES |= {
    "bf16-mixed": Case(TORCH, 2, ppo(1152, EAGER, "--precision bf16-mixed")),
    "bf16-mixed-fabric": Case(FABRIC, 2, ppo(1152, EAGER), "--precision=bf16-mixed"),
    "bf16-mixed-compile": Case(TORCH, 1, ppo(576, COMPILE, "--precision bf16-mixed")),
    "share-data": Case(TORCH, 2, ppo(1152, EAGER, "--share-data")),
    "share-data-fabric": Case(FABRIC, 2, ppo(1152, EAGER, "--share-data")),
    "share-data-compile": Case(FABRIC, 2, ppo(1152, COMPILE, "--share-data")),
    "same-step": Case(FABRIC, 2, ppo(1152, EAGER, "--env-id CartPole-v1 --vectorization sync")),
    "same-step-async": Case(TORCH, 1, ppo(576, EAGER, "--env-id CartPole-v1 --vectorization async")),
    "same-step-reinforce": Case(FABRIC, 1, LEARNERS["reinforce"] + " --execution eager --vectorization sync"),
    "same-step-truncated": Case(FABRIC, 1, ppo(3072, EAGER, "--env-id Pendulum-v1 --vectorization sync")),
    "next-step": Case(TORCH, 2, ppo(1152, EAGER, "--env-id CartPole-v1")),
    "tensor": Case(FABRIC, 2, ppo(1152, EAGER, "--vectorization tensor")),
    "tensor-compile": Case(TORCH, 1, ppo(576, COMPILE, "--vectorization tensor")),
    "tensor-truncated": Case(TORCH, 1, ppo(3072, EAGER, "--vectorization tensor --env-id Pendulum-v1")),
    "tensor-reinforce": Case(TORCH, 1, LEARNERS["reinforce"] + " --execution eager --vectorization tensor"),
    "every-option": Case(
        FABRIC,
        2,
        ppo(
            1152,
            f"{EAGER} --clip-vloss --ent-coef 0.01 --no-anneal-lr --no-normalize-advantages --no-ortho-init",
            "--no-shared-encoder --activation-function relu --target-kl 0.001 --per-rank-batch-size 10 --seed 7",
        ),
    ),
    "decoupled-1": Case(DECOUPLED, 2, ppo(576, EAGER)),
    "decoupled-1-compile": Case(DECOUPLED, 2, ppo(576, COMPILE)),
    "decoupled-2": Case(DECOUPLED, 3, ppo(576, EAGER)),
    "decoupled-2-compile": Case(DECOUPLED, 3, ppo(576, COMPILE)),
    "decoupled-2-share-data": Case(DECOUPLED, 3, ppo(576, EAGER, "--share-data")),
    "decoupled-2-overlap": Case(DECOUPLED, 3, ppo(576, EAGER, "--overlap")),
}

FORMER_FLAGS = {"--vectorization tensor": "--env-backend tensor", "--execution compile": "--execution compiled"}
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
    cases = {name: case for name, case in CASES.items() if not only or name.startswith(only)}
    if not cases:
        sys.exit(f"error: --only {' '.join(only)}: must be among {', '.join(CASES)}")
    print("| case | parameters | largest difference | result | old, s | new, s |")
    print("|---|---|---|---|---|---|")
    agree = 0
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for agrees, row in pool.map(functools.partial(compare, arguments), cases):
            agree += agrees
            print(row, flush=True)
    print(f"\n{agree} of {len(cases)} cases agree")
    return int(agree < len(cases))


def compare(arguments: Arguments, name: str) -> tuple[bool, str]:
    """Whether both checkouts end with the same parameters, and the row that says so."""
    case = CASES[name]
    seed = "" if arguments.new_seed is None else f" --seed {arguments.new_seed}"
    try:
        # One after the other: the second finds in the compiler's cache what is the same.
        old = train(arguments.old, case)
        new = train(arguments.new, case._replace(flags=case.flags + seed))
    except subprocess.SubprocessError as error:
        return False, f"| {name} | | | FAILED | | |\n{error}\n{getattr(error, 'stderr', '')}"
    equal, largest = difference(old.parameters, new.parameters)
    result = "equal" if equal else "close" if largest <= arguments.tolerance > 0 else "DIFFERENT"
    count = sum(parameter.numel() for parameter in new.parameters.values())
    row = f"| {name} | {count:,} | {largest:.3g} | {result} | {old.seconds:.1f} | {new.seconds:.1f} |"
    return result != "DIFFERENT", row


def train(checkout: Path, case: Case) -> Trained:
    """Trains in a checkout.

    Raises:
        SubprocessError: The program failed, or takes too long.
    """
    checkout = checkout.resolve()
    flags = case.flags
    for now, former in FORMER_FLAGS.items():
        if now in flags and not accepts(checkout, now):
            flags = flags.replace(now, former)
    with tempfile.TemporaryDirectory() as folder:
        launcher = launched(checkout / case.program, ranks=case.ranks, options=case.options.split())
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
