"""Command lines as lists of words: the learner's name, values of flags, and flags of earlier versions."""

import itertools
from collections import Counter
from collections.abc import Mapping
from typing import Any

from rl.config import CONFIGS, Config
from rl.errors import UserError, require
from rl.models.agent import LARGEST_DEPTH
from rl.reporting import note

RENAMED = {  # flags of earlier versions
    "--execution compiled": "--execution compile",
    "--execution captured": "--execution cudagraphs",
    "--env-backend tensor": "--vectorization tensor",
    "--env-backend gymnasium": "--vectorization auto",  # and not in tensors: `asks_for_gymnasium`
    "--anneal-lr": "--schedule linear",
    "--no-anneal-lr": "--schedule constant",
}


def note_repeated(arguments: list[str]) -> None:
    """Tells the user which flags are given more than once."""
    flags = Counter(argument.partition("=")[0] for argument in arguments if argument.startswith("--"))
    for flag in (flag for flag, number in flags.items() if number > 1):
        note(f"{flag} is given more than once; the last one holds")


def learner_of(arguments: list[str], choices: Mapping[str, Config[Any]]) -> str:
    """The learner that a command line names before all flags, or else the first.

    Raises:
        UserError: The program does not take that learner.
    """
    if not arguments or arguments[0] not in CONFIGS:
        return next(iter(choices))
    if arguments[0] not in choices:
        raise UserError(f"{arguments[0]}: this program takes only {', '.join(choices)}; the others take that learner")
    return arguments[0]


def flag_of(word: str) -> str:
    """The flag that a word of a command line is, spelled with dashes; any other word as it is."""
    return word.partition("=")[0].replace("_", "-") if word.startswith("--") else word


def value_of(flag: str, arguments: list[str]) -> str | None:
    """The last value that a command line gives a flag, if it does."""
    value = None
    for word, following in itertools.pairwise([*arguments, ""]):
        if flag_of(word) == flag:
            value = word.partition("=")[2] if "=" in word else following
    return value


def asks_for_gymnasium(flags: list[str]) -> bool:
    """Whether a flag of earlier versions rules out the tensor form of the environment."""
    _, changes = in_new_spelling(flags, (1,))
    return "--env-backend gymnasium" in changes


def in_new_spelling(flags: list[str], hidden_sizes: tuple[int, ...]) -> tuple[list[str], dict[str, str]]:
    """The flags with those of earlier versions as they are spelled now, and which have changed to what.

    `hidden_sizes` are the defaults, which decide where --hidden-size or --hidden-layers is given alone.
    """
    kept: list[str] = []
    sizes: dict[str, str] = {}
    changes: dict[str, str] = {}
    words = iter(flags)
    for word in words:
        flag, equals, value = word.partition("=")
        flag = flag.replace("_", "-")
        if flag not in ("--hidden-size", "--hidden-layers", *(old.split()[0] for old in RENAMED)):
            kept.append(word)
            continue
        value = value if equals or flag in RENAMED else next(words, "")  # those that are in it alone take no value
        if flag.startswith("--hidden"):
            require(value.isdecimal(), flag, value, "must be a whole number")
            sizes[flag] = value
            continue
        old = f"{flag} {value}".strip()
        changes[old] = RENAMED.get(old, old)
        kept += changes[old].split()
    if sizes:
        width = sizes.get("--hidden-size", str(hidden_sizes[0]))
        depth = sizes.get("--hidden-layers", str(len(hidden_sizes)))
        fits = len(depth) < 10 and 1 <= int(depth) <= LARGEST_DEPTH
        require(fits, "--hidden-layers", depth, f"must be 1 to {LARGEST_DEPTH:,}")
        given = " ".join(f"{flag} {value}" for flag, value in sizes.items())
        if "--hidden-sizes" in kept:
            raise UserError(f"{given} and --hidden-sizes: say the same; must be only one of the two")
        changes[given] = " ".join(["--hidden-sizes", *int(depth) * [width]])
        kept += changes[given].split()
    return kept, {old: new for old, new in changes.items() if old != new}
