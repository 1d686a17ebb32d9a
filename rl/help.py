"""The flags of a program as its help shows them: read from the fields of dataclasses and the texts below them.

`--help` shows the flags that most runs need, `--help-all` shows all.
"""

import ast
import inspect
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from rl.spelling import spelled

SHORT = (
    *("env_id", "total_timesteps", "num_envs", "seed", "config"),
    *("learning_rate", "schedule", "num_steps", "gamma", "ent_coef", "hidden_sizes", "normalize_obs"),
    *("cuda", "exp_name", "log_dir", "capture_video", "resume", "quiet"),
)
"""The flags that most runs need."""
RUN, HARDWARE, FILES = "The run", "Hardware and speed", "What is shown, and where files go"
GROUP = {"env": "The environment", "network": "The network", "learner": "Learning", "keep": "Checkpoints and resuming"}
"""Titles of the flags of `Config` that are in a group."""
OWN_GROUP = dict.fromkeys(("cuda", "precision", "fp8", "execution", "torch_deterministic", "rank_timeout"), HARDWARE)
OWN_GROUP |= dict.fromkeys(("player_on_gpu", "overlap"), HARDWARE)
OWN_GROUP |= dict.fromkeys(
    ("exp_name", "log_dir", "quiet", "report_episodes", "capture_video", "eval_episodes", "max_eval_steps", "logger"),
    FILES,
)
"""Titles of the other flags of `Config`; those that are not here are the run's."""
FLAGS = "Flags"  # of a command
ORDER = (FLAGS, GROUP["env"], RUN, GROUP["learner"], GROUP["network"], GROUP["keep"], HARDWARE, FILES)
NOUNS = {
    int: ("INT", "a whole number"),
    float: ("FLOAT", "a number"),
    str: ("TEXT", "a text"),
    Path: ("PATH", "a path"),
}
"""How help names a value of a type, and how a message does."""
INDENT, MOST_COLUMNS = 26, 110


class Flag(NamedTuple):
    """A flag, or an argument without one."""

    name: str  # of the field
    group: str
    form: str  # as it is given on a command line
    right: str  # what its value must be
    text: str
    default: str
    is_switch: bool
    is_positional: bool

    def lines(self, columns: int) -> list[str]:
        """Its part of the help."""
        default = f" (default: {self.default})" if self.default else ""
        text = textwrap.wrap(f"{self.text}{default}", max(20, columns - INDENT), break_on_hyphens=False)
        if len(self.form) <= INDENT - 4:
            first, *rest = text
            return [f"  {self.form:<{INDENT - 2}}{first}", *(" " * INDENT + line for line in rest)]
        return [f"  {self.form}", *(" " * INDENT + line for line in text)]


def flags_of(default: Any, title: str = RUN, *, pairs: bool = True) -> Iterator[Flag]:
    """The flags of a dataclass, of which `default` is one with the defaults, or the class itself.

    `pairs` are switches that can also be switched off.
    """
    kind = default if isinstance(default, type) else type(default)
    hints, texts = get_type_hints(kind, include_extras=True), texts_of(kind)
    for field in fields(kind):
        value = getattr(default, field.name, field.default)
        if is_dataclass(value):
            yield from flags_of(value, GROUP.get(field.name, title))
            continue
        group = OWN_GROUP.get(field.name, title) if title == RUN else title
        flag = flag_of(field.name, group, hints[field.name], texts.get(field.name, ""), value)
        yield flag if pairs or not flag.is_switch else flag._replace(form=spelled(flag.name), default="")


def flag_of(name: str, group: str, hint: Any, text: str, value: Any) -> Flag:
    """The flag of a field with this type, description and default."""
    is_positional = "Positional" in str(hint)
    while hasattr(hint, "__metadata__"):  # tyro's marks
        hint = get_args(hint)[0]
    if get_origin(hint) not in (tuple, Literal) and NoneType in get_args(hint):
        (hint,) = (kind for kind in get_args(hint) if kind is not NoneType)
    many, choices = get_origin(hint) is tuple, get_args(hint) if get_origin(hint) is Literal else ()
    metavar, right = NOUNS.get(get_args(hint)[0] if many else hint, ("TEXT", "a text"))
    if choices:
        metavar, right = f"{{{','.join(choices)}}}", f"one of {', '.join(choices)}"
    if many:
        metavar, right = f"{metavar} ...", "whole numbers" if metavar == "INT" else "texts"
    if is_positional:
        return Flag(name, "", name.upper(), right, text, "", is_switch=False, is_positional=True)
    form = spelled(name, "--[no-]") if hint is bool else f"{spelled(name)} {metavar}"
    return Flag(name, group, form, right, text, shown(value), is_switch=hint is bool, is_positional=False)


def shown(value: Any) -> str:
    """A default as help shows it; nothing for what is not given."""
    if value is None or value is MISSING or value == ():
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) and value >= 10_000 else str(value)


@cache
def texts_of(kind: type) -> dict[str, str]:
    """The texts below the fields of a dataclass and of those that it extends."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if is_dataclass(base):
            (node,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
            assert isinstance(node, ast.ClassDef)
            for field, below in zip(node.body, node.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                    found[ast.unparse(field.target)] = inspect.cleandoc(ast.literal_eval(below.value))
    return found


def help_text(usage: str, about: str, every: Sequence[Flag], *, short: bool) -> str:
    """What `--help` prints if `short`, or else `--help-all`."""
    columns = min(MOST_COLUMNS, max(40, shutil.get_terminal_size().columns))
    chosen = [flag for flag in every if not short or flag.name in SHORT]
    lines = [f"usage: {usage}", ""]
    for paragraph in about.split("\n\n"):
        lines += [*textwrap.wrap(" ".join(paragraph.split()), columns), ""]
    for title in ("", *ORDER):
        if flags := [flag for flag in chosen if flag.group == title]:
            lines += [f"{title}:"] * bool(title) + [line for flag in flags for line in flag.lines(columns)] + [""]
    if short:
        more = f"{len(every) - len(chosen)} more flags: --help-all. Environments: rl envs. Trained agents: rl --help."
        lines += textwrap.wrap(more, columns)
    return "\n".join(lines).rstrip()
