"""Finds runs and the policies that they have trained; what all commands on a run take from the command line."""

import difflib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import tyro

from rl.arguments import value_of
from rl.commands.text import MISSING
from rl.config import LEARNER_NAME
from rl.envs.config import EnvConfig
from rl.errors import NothingToResumeError, UserError, one_line
from rl.help import FLAGS, flags_of
from rl.models.agent import Agent
from rl.models.encoders import check_encoder
from rl.parsing import help_wanted, print_help, read_words
from rl.recipes import learner_with
from rl.run.checkpoint import Content, agent_of, check_types, read_checkpoint, refused
from rl.run.folder import CONFIG, kept_checkpoints, run_of
from rl.spelling import spelled

Flags = TypeVar("Flags")
CONF = (tyro.conf.FlagCreatePairsOff,)
RIGHT = "must be a run's folder, a checkpoint, or --last"


@dataclass(frozen=True)
class OfRun:
    """The flags of every command that loads a policy."""

    run: tyro.conf.Positional[Path]
    """The run's folder, or a checkpoint in it; or --last, the run that changed last below --log-dir."""
    log_dir: Path = field(default=Path("logs"), kw_only=True)
    """Folder that holds the folders of all runs."""
    allow_import: bool = field(default=False, kw_only=True)
    """Let the run's environment, wrappers and encoder import modules, and so run their code."""


class Trained(NamedTuple):
    """A policy, and what is needed to play it."""

    file: Path
    content: Content
    agent: Agent
    env: EnvConfig
    seed: int
    max_steps: int  # of an episode


def read(kind: type[Flags], name: str, words: Sequence[str]) -> Flags:
    """A command's flags; --last stands for the run that changed last.

    Raises:
        NothingToResumeError: There is no such run.
        UserError: A flag is unknown or its value has the wrong type.
    """
    return cast(Flags, _read(kind, name, words))


def read_known(kind: type[Flags], name: str, words: Sequence[str]) -> tuple[Flags, list[str]]:
    """As `read`, and the words that are another program's flags."""
    return cast(tuple[Flags, list[str]], _read(kind, name, words, return_unknown_args=True))


def _read(kind: type[Any], name: str, words: Sequence[str], **options: Any) -> Any:
    flags = list(flags_of(kind, FLAGS, pairs=False))
    if help_wanted(words):
        usage = " ".join([f"rl {name}", *(flag.form for flag in flags if flag.is_positional), "[FLAGS]"])
        print_help(words, usage, str(kind.__doc__), flags, has_short=False)
        sys.exit(0)

    def unknown(field: str) -> str:
        near = difflib.get_close_matches(field, [flag.name for flag in flags], n=1)
        return "is not a flag" + "".join(f"; use {spelled(name)}" for name in near)

    return read_words(kind, with_last(words), flags, unknown, prog=f"rl {name}", config=CONF, **options)


def with_last(words: Sequence[str]) -> list[str]:
    """The words, with the path that --last stands for as the first of them."""
    given = list(words)
    if "--last" in given:
        given.remove("--last")
        given.insert(0, str(last_run(Path(value_of("--log-dir", given) or "logs"))))
    return given


def trained(flags: OfRun) -> Trained:
    """The policy that the flags name: of a run's folder, the one of its last checkpoint.

    Raises:
        NothingToResumeError: There is none.
        CheckpointError: It is damaged.
        UserError: It needs a module that nothing permits to import.
    """
    file = checkpoint_of(flags.run)
    content = read_checkpoint(file)
    config = content["config"]
    with refused(f"{file}: its flags are not of this version of the program"):
        env = EnvConfig(**config["env"])
        check_types(env)
        seed, max_steps = int(config["seed"]), int(config["max_eval_steps"])
        encoder = str(config["network"].get("encoder", "auto"))
    env = replace(env, allow_import=flags.allow_import)
    env.check()
    check_encoder(encoder, allow_import=flags.allow_import)
    if flags.allow_import and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    agent = agent_of(content, allow_import=flags.allow_import)
    return Trained(file, content, agent, env, seed, max_steps)


def checkpoint_of(path: Path) -> Path:
    """The checkpoint that a path is, or the newest one of the run whose folder it is.

    Raises:
        NothingToResumeError: There is none.
    """
    path = path.expanduser()
    try:
        if path.is_file():
            return path
        files, what = kept_checkpoints(path), "has no checkpoint" if path.is_dir() else "does not exist"
    except OSError as error:  # the name is too long
        files, what = [], f"cannot be opened ({error.strerror})"
    if not files:
        raise NothingToResumeError(f"{str(path)[:200]}: {what}; {RIGHT}")
    return files[0]


def folder_of(path: Path) -> Path:
    """The run's folder that a path is, or that a checkpoint is in.

    Raises:
        NothingToResumeError: It is in none.
    """
    path = path.expanduser()
    folder = run_of(path if path.is_file() else path / CONFIG)
    if folder is None:
        what = "is in no run's folder" if path.exists() else "does not exist"
        raise NothingToResumeError(f"{str(path)[:200]}: {what}; {RIGHT}")
    return folder


class About(NamedTuple):
    """What the flags in a run's folder say of it."""

    task: str
    learner: str
    exp_name: str
    seed: str


def about(folder: Path) -> About:
    """What a run is of; anyone may have written its flags, and an earlier version has others."""
    config = json.loads((folder / CONFIG).read_text())
    try:  # a run of an earlier version does not say it
        learner = config.get(LEARNER_NAME) or learner_with(config["learner"].keys(), str(folder))
    except (AttributeError, UserError):
        learner = MISSING  # of the user's own
    env = config["env"] if isinstance(config["env"], dict) else {}
    said = (env.get("env_id"), learner, config.get("exp_name"), config.get("seed"))
    return About(*(MISSING if value is None else one_line(str(value), 60) for value in said))


def runs_in(folder: Path) -> Iterator[Path]:
    """The folders of all runs in a folder, at any depth."""
    return (path.parent for path in sorted(folder.rglob(CONFIG)) if run_of(path) is not None)


def changed_at(folder: Path) -> float:
    """When a run last wrote a file, in seconds since 1970."""
    return max((path.stat().st_mtime for path in folder.iterdir()), default=0.0)


def last_run(log_dir: Path) -> Path:
    """The run that changed last.

    Raises:
        NothingToResumeError: There is none.
    """
    runs = list(runs_in(log_dir.expanduser()))
    if not runs:
        raise NothingToResumeError(f"--last: there is no run in {log_dir}; name another folder with --log-dir")
    return max(runs, key=changed_at)


def described(trained: Trained) -> str:
    """Environment and checkpoint in a line."""
    return f"{trained.env.env_id}, {trained.file} after {trained.content['run']['step']:,} steps"
