"""From a command line to a program's body: what happens before any of them starts to work."""

import contextlib
import os
import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar, Union, cast

import torch
import tyro

from rl.config import CONFIGS, Config
from rl.distributed import choose_threads, rank
from rl.errors import USAGE_ERROR, UserError, let_rank_0_speak, reported
from rl.run.evaluation import check_video

ConfigType = TypeVar("ConfigType", bound=Config[Any])


def command_line(main: Callable[[ConfigType], None], choices: Mapping[str, ConfigType]) -> None:
    """Runs a program: reads and checks the flags, settles what holds for the whole process, and calls `main`."""
    with reported():
        config = parse(sys.argv[1:], choices)
        config.check()
        if config.capture_video:
            check_video(config.env)
        choose_threads()
        if config.torch_deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        main(config)


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
    with contextlib.ExitStack() as stack:
        if rank() != 0:
            silence = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(silence))
            stack.enter_context(contextlib.redirect_stderr(silence))
        try:
            settings = (tyro.conf.OmitArgPrefixes, tyro.conf.CascadeSubcommandArgs)
            default = next(iter(choices.values()))
            return cast(ConfigType, tyro.cli(union, args=arguments, default=default, config=settings))
        except SystemExit as exit_:
            if exit_.code == USAGE_ERROR:
                let_rank_0_speak()
            raise


def flags_of(config: Config[Any]) -> Any:
    """The type whose fields are the flags: that of the configuration, which leaves the learner open, with it."""
    return Config[type(config.learner)] if type(config) is Config else type(config)  # type: ignore[misc]
