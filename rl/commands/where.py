"""`rl where`: the path of a program that comes along, for launchers that take no module. It imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

import rl
from rl.errors import UserError

PROGRAMS = {
    "fabric_logs": "train_fabric",
    "fabric_decoupled_logs": "train_fabric_decoupled",
    "torch_logs": "train_torch",
}
"""The programs that come along, by the folder of their runs."""


@dataclass(frozen=True)
class Where:
    """Prints the path of a program, for launchers that take one: `fabric run $(rl where train_fabric) --seed 3`."""

    program: tyro.conf.Positional[str]
    """A program: train_fabric, train_fabric_decoupled or train_torch."""


def command(words: Sequence[str]) -> None:
    """Prints the path."""
    print(path_of(tyro.cli(Where, prog="rl where", args=words).program))


def path_of(program: str) -> Path:
    """The file of a program: beside the package, where pip installs both, as in a checkout.

    Raises:
        UserError: There is no such program.
    """
    if program not in PROGRAMS.values():
        raise UserError(f"{program!a}: is no program; must be one of {', '.join(PROGRAMS.values())}")
    path = Path(rl.__file__).parent.with_name(f"{program}.py")
    if not path.is_file():
        raise UserError(f"{path}: does not exist; install the package again: pip install --force-reinstall fabric-rl")
    return path
