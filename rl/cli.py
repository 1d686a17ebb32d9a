"""From a command line to a program's body: what happens before any of them starts to work."""

import contextlib
import io
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_type_hints

import torch
import tyro

from rl.compilers import keep_caches_private
from rl.config import CONFIGS, Config
from rl.dist.launch import check_variables, end_with_launcher, rank, take_slurm_ranks
from rl.dist.ranks import choose_threads
from rl.errors import USAGE_ERROR, CheckpointError, UserError, require
from rl.reporting import let_rank_0_speak, note_end, reported
from rl.run.checkpoint import Content
from rl.run.evaluation import check_video
from rl.run.resume import check_goes_on, config_of, find_checkpoint, is_complete

ConfigType = TypeVar("ConfigType", bound=Config[Any])


def command_line(main: Callable[[ConfigType], None], choices: Mapping[str, ConfigType], program: str) -> None:
    """Runs a program: reads and checks the flags, settles what holds for the whole process, and calls `main`.

    `program` is the folder that its runs are in, below the log folder.
    """
    mend_streams()
    with reported():
        if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # as programs have it while they import
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL:
            signal.signal(signal.SIGUSR1, lambda *_: None)  # before the first update there is nothing to keep
        end_with_launcher()
        take_slurm_ranks()
        check_variables()
        check_versions()
        note_repeated(sys.argv[1:])
        os.umask(os.umask(0o022) | 0o022)  # others may read what a run leaves at the most
        config, going_on = read_flags(sys.argv[1:], choices, program)
        config.check()
        if going_on is not None:
            check_goes_on(going_on, config)
            if is_complete(going_on, config):
                return
        if config.env.allow_import:
            sys.path.append(os.getcwd())  # launchers put the program's folder there alone
        if config.capture_video:
            # Frames are drawn to be kept: SDL need not look for a screen, and say "error: …" where there is none.
            os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
            check_video(config.env)
        if config.execution != "eager":
            keep_caches_private()
        choose_threads()
        if config.torch_deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        main(config)


def mend_streams() -> None:
    """Has printing raise nothing where a stream is closed, or cannot encode what is said."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (as long as the process)
        elif isinstance(getattr(sys, name), io.TextIOWrapper):
            getattr(sys, name).reconfigure(errors="backslashreplace")


def check_versions() -> None:
    """Raises `UserError` where a library is older than what this program was written for."""
    for name, least in (("torch", "2.11"), ("gymnasium", "1.4")):
        found = version(name)
        require(
            [int(part) for part in found.split(".")[:2]] >= [int(part) for part in least.split(".")],
            name,
            found,
            f"is too old; must be {least} or later: pip install -r requirements.txt",
        )


def note_repeated(arguments: list[str]) -> None:
    """Says which flags are given more than once."""
    flags = Counter(argument.partition("=")[0] for argument in arguments if argument.startswith("--"))
    for flag in (flag for flag, number in flags.items() if number > 1 and rank() == 0):
        print(f"note: {flag} is given more than once; the last one holds", file=sys.stderr)


def read_flags(
    arguments: list[str], choices: Mapping[str, ConfigType], program: str
) -> tuple[ConfigType, Content | None]:
    """The flags of a command line; with `--resume`, over those of the run, of which the checkpoint comes with them."""
    config, checkpoint = parse(arguments, choices), None
    if config.keep.resume is not None:
        config.check_names()
        resume = None
        if found := find_checkpoint(config, program):
            resume, checkpoint = str(found[0]), found[1]
            name, own = config_of(checkpoint, choices)
            if arguments and arguments[0] in choices.keys() - {name}:
                raise CheckpointError(f"--resume: the run is one of {name}, not of {arguments[0]}")
            config = parse(arguments, {name: own, **{other: choices[other] for other in choices if other != name}})
        config = replace(config, keep=replace(config.keep, resume=resume))
    # At once, since an environment may change the working folder.
    resume = config.keep.resume and os.path.abspath(config.keep.resume)
    config = replace(config, log_dir=os.path.abspath(config.log_dir), keep=replace(config.keep, resume=resume))
    if (precision := os.environ.get("LT_PRECISION")) is not None:  # `fabric run` takes the flag as its own
        known = get_args(get_type_hints(Config)["precision"])
        precision = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}.get(precision, precision)
        require(precision in known, "--precision", precision, f"must be one of {', '.join(known)}")
        config = replace(config, precision=cast(Any, precision))
    return config, checkpoint


def parse(arguments: list[str], choices: Mapping[str, ConfigType]) -> ConfigType:
    """The flags of a command line, over the defaults of one of the learners; the first needs no name.

    Raises:
        SystemExit: A flag is unknown, or its value of the wrong type; rank 0 has said so.
        UserError: Another program takes that learner.
    """
    if arguments and arguments[0] in CONFIGS.keys() - choices.keys():
        raise UserError(f"{arguments[0]}: this program takes only {', '.join(choices)}; the others take that learner")
    types = (
        Annotated[flags_of(config), tyro.conf.subcommand(name, default=config, description=config.learner.__doc__)]
        for name, config in choices.items()
    )
    union: Any = Union[tuple(types)]  # noqa: UP007 (a tuple of types)
    columns = os.environ.get("COLUMNS")
    with contextlib.ExitStack() as stack:
        if rank() != 0:
            silence = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(silence))
            stack.enter_context(contextlib.redirect_stderr(silence))
        try:
            settings = (tyro.conf.OmitArgPrefixes, tyro.conf.CascadeSubcommandArgs)
            default = next(iter(choices.values()))
            # Help that is a few letters wide takes tyro a minute.
            os.environ["COLUMNS"] = str(max(40, shutil.get_terminal_size().columns))
            config = cast(ConfigType, tyro.cli(union, args=arguments, default=default, config=settings))
            return replace(config, log_dir=os.path.expanduser(config.log_dir))
        except SystemExit as exit_:
            if exit_.code == USAGE_ERROR:
                let_rank_0_speak()
                note_end(USAGE_ERROR, "a flag is unknown, or its value is; the program has said which")
            raise
        finally:
            if columns is None:
                del os.environ["COLUMNS"]
            else:
                os.environ["COLUMNS"] = columns


def flags_of(config: Config[Any]) -> Any:
    """The type whose fields are the flags: that of the configuration, which leaves the learner open, with it."""
    return Config[type(config.learner)] if type(config) is Config else type(config)  # type: ignore[misc]
