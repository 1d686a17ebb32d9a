"""The command line: reads the flags, checks them, and settles what holds for the whole process."""

import io
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import tyro

from rl.arguments import asks_for_gymnasium, in_new_spelling, learner_of, note_repeated, value_of
from rl.compilers import keep_caches_private
from rl.config import Config
from rl.dist.launch import check_variables, end_with_launcher, take_slurm_ranks
from rl.dist.ranks import choose_threads
from rl.envs.make import has_gymnasium_form, has_tensor_form
from rl.errors import CheckpointError, require
from rl.help import flags_of
from rl.parsing import help_wanted, print_help, read_words
from rl.recipes import naming_recipes, note_recipe, with_recipe
from rl.reporting import note, reported, silence
from rl.run.checkpoint import Content
from rl.run.evaluation import check_video
from rl.run.resume import check_goes_on, config_of, find_checkpoint, is_complete, note_resumed
from rl.spelling import unknown

ConfigType = TypeVar("ConfigType", bound=Config[Any])


def command_line(
    main: Callable[[ConfigType], None],
    choices: Mapping[str, ConfigType],
    program: str,
    told: Callable[[], Mapping[str, Any]] = dict,
) -> None:
    """Runs a program: reads and checks the flags, settles what holds for the whole process, and calls `main`.

    Args:
        main: What to do with the flags.
        choices: Learners by name, with their defaults.
        program: Folder of the program's runs, below the log folder.
        told: Returns the flags that the launcher has taken as its own, by their field in `Config`; called once this
            process knows its rank.
    """
    mend_streams()
    with reported():
        if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # as programs have it while they import
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL:
            signal.signal(signal.SIGUSR1, lambda *_: None)  # before the first update there is nothing to save
        end_with_launcher()
        take_slurm_ranks()
        check_variables()
        check_versions()
        silence.is_on = "--quiet" in sys.argv
        note_repeated(sys.argv[1:])
        os.umask(os.umask(0o022) | 0o022)  # others may at most read what a run writes
        config, resumed = read_flags(sys.argv[1:], choices, program)
        silence.is_on = config.quiet  # a resumed run keeps its own
        config = replace(config, **told())
        with naming_recipes(sys.argv[1:], lambda: None if resumed else config.config):
            config.check()
        if resumed is not None:
            check_goes_on(resumed, config)
            if is_complete(resumed, config):
                return
            note_resumed(resumed, config)
        else:
            note_recipe(config, sys.argv[1:])
        settle_process(config)
        main(config if resumed is not None or asks_for_gymnasium(sys.argv[1:]) else with_tensor_form(config))


def settle_process(config: Config[Any]) -> None:
    """Settles what holds for the whole process: import paths, caches, threads, determinism."""
    if config.env.allow_import:
        sys.path.append(os.getcwd())  # launchers add the program's folder only
    if config.capture_video:
        # Frames are only written to a file: SDL must not look for a screen and complain that there is none.
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        check_video(config.env)
    if config.execution != "eager":
        keep_caches_private()
    choose_threads()
    if config.torch_deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def with_tensor_form(config: ConfigType) -> ConfigType:
    """Takes `--vectorization auto` to mean the tensor form where there is no other or rollouts are compiled; says so.

    The flags of the run then name that form, so a resumed run keeps it whatever its length.
    """
    if config.env.vectorization != "auto" or not has_tensor_form(config.env):
        return config
    if not has_gymnasium_form(config.env):
        return replace(config, env=replace(config.env, vectorization="tensor"))
    if config.collects_eagerly():
        return config
    note(
        f"this run is compiled, so it uses the tensor form of {config.env.env_id}; for Gymnasium's use --vectorization"
        " native or sync"
    )
    return replace(config, env=replace(config.env, vectorization="tensor"))


def mend_streams() -> None:
    """Lets printing succeed where a stream is closed or cannot encode the text."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (as long as the process)
        elif isinstance(getattr(sys, name), io.TextIOWrapper):
            getattr(sys, name).reconfigure(errors="backslashreplace")


def check_versions() -> None:
    """Raises `UserError` where a library is older than this program needs."""
    for name, least in (("torch", "2.11"), ("gymnasium", "1.4")):
        found = version(name)
        require(
            [int(part) for part in found.split(".")[:2]] >= [int(part) for part in least.split(".")],
            name,
            found,
            f"is too old; must be {least} or later: pip install '{name}>={least}'",
        )


def read_flags(
    arguments: list[str], choices: Mapping[str, ConfigType], program: str
) -> tuple[ConfigType, Content | None]:
    """The flags of a command line, over those of a recipe; with `--resume`, over those of the run.

    Also returns the checkpoint of the run that is resumed.
    """
    given = arguments
    arguments = with_recipe(given, choices, own=value_of("--resume", given) in (None, "None"))
    with naming_recipes(given, lambda: value_of("--config", arguments)):
        config, checkpoint = parse(arguments, choices), None
    if config.keep.resume is not None:
        config.check_names()
        resume = None
        if found := find_checkpoint(config, program):
            resume, checkpoint = os.path.abspath(found[0]), found[1]
            name, own = config_of(checkpoint, choices)
            if arguments[0] in choices.keys() - {name}:
                raise CheckpointError(f"--resume: the run is one of {name}, not of {arguments[0]}")
            choices = {name: own}
            config = parse(arguments, choices)
            if config.env.vectorization == "auto":  # which was resolved when the run began
                if own.env.vectorization == "tensor" and asks_for_gymnasium(arguments):
                    raise CheckpointError("--resume: the run has --vectorization tensor; leave --env-backend out")
                config = replace(config, env=replace(config.env, vectorization=own.env.vectorization))
        else:
            arguments = with_recipe(given, choices, own=True)
            config = parse(arguments, choices)
        config = replace(config, keep=replace(config.keep, resume=resume))
    _, changes = in_new_spelling(arguments, choices[learner_of(arguments, choices)].network.hidden_sizes)
    for old, new in changes.items():
        note(f"{old} is now {'--vectorization native or sync' if 'gymnasium' in old else new}")
    # Absolute from now on, since an environment may change the working folder.
    return replace(config, log_dir=os.path.abspath(config.log_dir)), checkpoint


def parse(arguments: list[str], choices: Mapping[str, ConfigType]) -> ConfigType:
    """The flags of a command line, over the defaults of its learner.

    Raises:
        SystemExit: Help was asked for, and has been printed.
        UserError: A flag is unknown or its value has the wrong type, or the program does not take that learner.
    """
    name = learner_of(arguments, choices)
    default, is_named = choices[name], arguments[:1] == [name]
    flags = list(flags_of(default))
    if help_wanted(arguments):
        usage = " ".join([Path(sys.argv[0]).name, *arguments[:is_named], *["[LEARNER]"] * (not is_named), "[FLAGS]"])
        print_help(arguments, usage, described(default, choices), flags, has_short=True)
        sys.exit(0)
    # `Config` leaves the learner's type, and so its flags, open.
    made: Any = Config[type(default.learner)] if type(default) is Config else type(default)  # type: ignore[misc]
    words, _ = in_new_spelling(arguments[is_named:], default.network.hidden_sizes)
    wrong = partial(unknown, learner=name, dashes="--")
    config = read_words(made, words, flags, wrong, default=default, config=(tyro.conf.OmitArgPrefixes,))
    return cast(ConfigType, replace(config, log_dir=os.path.expanduser(config.log_dir)))


def described(config: Config[Any], choices: Mapping[str, Config[Any]]) -> str:
    """What the program does, for its help."""
    if len(choices) == 1:
        return str(config.__doc__)
    first, *others = choices
    learners = f"Learners: {first} (the default), {', '.join(others)}. Name one before all flags, also for its help."
    return f"{config.learner.__doc__}\n\n{learners}"
