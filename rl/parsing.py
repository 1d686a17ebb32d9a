"""Reads words of a command line into dataclasses by tyro; what is wrong with them is said in one line."""

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import NoneType
from typing import Any, get_args

import tyro
from tyro.constructors import PrimitiveConstructorSpec, PrimitiveTypeInfo

from rl.dist.launch import rank
from rl.errors import UserError, one_line
from rl.help import Flag, help_text
from rl.spelling import out_of_place

OPTIONAL = tyro.constructors.ConstructorRegistry()
HELP = {"-h", "--help", "--help-all"}


def read_words(
    kind: Any, words: Sequence[str], flags: Sequence[Flag], unknown: Callable[[str], str], **options: Any
) -> Any:
    """A dataclass with the flags that the words give; further options are tyro's.

    `unknown` says what is wrong with a name that is no flag.

    Raises:
        UserError: A flag is unknown, or its value has the wrong type.
    """
    named = {flag.name: flag for flag in flags}
    if not options.get("return_unknown_args"):
        check_known(words, named, unknown)
    said = io.StringIO()
    try:
        with columns(10_000), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            return tyro.cli(kind, args=list(words), registry=OPTIONAL, add_help=False, **options)
    except SystemExit as exit_:
        if exit_.code:
            raise UserError(refusal(said.getvalue(), words, named)) from None
        print(said.getvalue())  # a script with which shells complete flags
        raise


def check_known(words: Sequence[str], flags: Mapping[str, Flag], unknown: Callable[[str], str]) -> None:
    """Raises `UserError` for a word that looks like a flag and is none."""
    for word in words:
        name = word.partition("=")[0]
        field = name.removeprefix("--").replace("-", "_")
        switch = flags.get(field.removeprefix("no_"))
        if not word.startswith("--") or field in flags or (switch and switch.is_switch) or field.startswith("tyro_"):
            continue
        raise UserError(f"{name}: {unknown(field)}")


def refusal(said: str, words: Sequence[str], flags: Mapping[str, Flag]) -> str:
    """What is wrong, in a line, given what tyro says in a box."""
    lines = [line.strip("│╭╮╰╯─-+| ") for line in said.splitlines()]
    about = next((line for line in lines[1:] if line), said)
    if match := re.match(r"Unrecognized options: (\S+)", about):
        at = next(i for i, word in enumerate(words) if word.endswith(match[1]))
        before = next((word for word in reversed(words[: at + 1]) if word.startswith("--")), "").partition("=")[0]
        flag = flags.get(before.removeprefix("--").replace("-", "_"))
        return f"{words[at]}: {out_of_place(match[1], before, is_switch=flag is not None and flag.is_switch)}"
    match = re.search(r"(?:for argument|parsing) '?--([\w-]+)", about)
    flag = flags.get(match[1].replace("-", "_")) if match else None
    if flag is None or match is None:
        missing = [flag.form for flag in flags.values() if flag.is_positional]
        return f"{' '.join(missing)}: is missing" if "required" in said.lower() and missing else one_line(about)
    if about.startswith("Missing value"):
        return f"--{match[1]}: has no value; must be {flag.right}"
    return f"--{match[1]} {values_of(match[1], words)}: must be {flag.right}"


def values_of(name: str, words: Sequence[str]) -> str:
    """The words that the last flag of this name is given, as a user has written them."""
    found = ""
    for at, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag.replace("_", "-") == f"--{name}":
            following = next((i for i, other in enumerate(words) if i > at and other.startswith("--")), len(words))
            found = value if equals else " ".join(words[at + 1 : following])
    return found


def help_wanted(words: Sequence[str]) -> bool:
    """Whether a command line asks for help."""
    return not HELP.isdisjoint(words)


def print_help(words: Sequence[str], usage: str, about: str, flags: Sequence[Flag], *, has_short: bool) -> None:
    """Prints what a command line asks for, once for all ranks."""
    if rank() == 0:
        with for_any_reader():
            print(help_text(usage, about, flags, short=has_short and "--help-all" not in words))


@contextlib.contextmanager
def for_any_reader() -> Iterator[None]:
    """Ends the program in silence if what reads its output, such as `head`, has seen enough."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


@contextlib.contextmanager
def columns(number: int) -> Iterator[None]:
    """Lets tyro think that the terminal is so wide, so that it breaks no line."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(number)
    try:
        yield
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before


@OPTIONAL.primitive_rule
def value_or_none(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Lets flags that may be left out take a value, or None as the run's own flags have it."""
    kinds = [kind for kind in get_args(info.type) if kind is not NoneType]
    if len(kinds) != 1 or NoneType not in get_args(info.type):
        return None
    spec = OPTIONAL.get_primitive_spec(PrimitiveTypeInfo.make(kinds[0], info.markers))
    assert isinstance(spec, PrimitiveConstructorSpec)
    return replace(
        spec,
        instance_from_str=lambda words: None if words == ["None"] else spec.instance_from_str(words),
        is_instance=lambda value: value is None or spec.is_instance(value),
        str_from_instance=lambda value: ["None"] if value is None else spec.str_from_instance(value),
    )
