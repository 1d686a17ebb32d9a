"""From a command line to a program's body: what happens before any of them starts to work."""

import contextlib
import os
import sys
from collections.abc import Callable
from typing import TypeVar

import torch
import tyro

from rl.config import Config
from rl.distributed import choose_threads, rank
from rl.errors import USAGE_ERROR, let_rank_0_speak, reported
from rl.run.evaluation import check_video

ConfigType = TypeVar("ConfigType", bound=Config)


def command_line(main: Callable[[ConfigType], None], config_type: type[ConfigType]) -> None:
    """Runs a program: reads and checks the flags, settles what holds for the whole process, and calls `main`."""
    with reported():
        config = parse(sys.argv[1:], config_type)
        config.check()
        if config.capture_video:
            check_video(config.env)
        choose_threads()
        if config.torch_deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        main(config)


def parse(arguments: list[str], config_type: type[ConfigType]) -> ConfigType:
    """The flags of a command line. The default learner's stand flat among the others, further ones' in subcommands.

    Raises:
        SystemExit: A flag is unknown, or its value of the wrong type; rank 0 has said so.
    """
    with contextlib.ExitStack() as stack:
        if rank() != 0:
            silence = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(silence))
            stack.enter_context(contextlib.redirect_stderr(silence))
        try:
            return tyro.cli(
                config_type, args=arguments, config=(tyro.conf.OmitArgPrefixes, tyro.conf.CascadeSubcommandArgs)
            )
        except SystemExit as exit_:
            if exit_.code == USAGE_ERROR:
                let_rank_0_speak()
            raise
