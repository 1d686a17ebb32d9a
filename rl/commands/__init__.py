"""Commands on what runs have left: each is a module of this package, imported when it is asked for."""

import importlib
import sys
from collections.abc import Sequence

from rl.errors import UserError

COMMANDS = {
    "play": "watch a trained policy in a window, or film it",
    "evaluate": "mean return of a trained policy, with its confidence interval",
    "export": "write a policy for other programs: .onnx, .pt2 or .safetensors",
    "resume": "go on with a run that was stopped, or for longer",
    "runs": "list the runs in a folder",
    "plot": "draw learning curves",
    "envs": "list the environments that can be trained here",
    "where": "print the path of a program, for launchers: fabric run $(rl where train_fabric)",
}
HELP = "\n".join(
    (
        "usage: rl COMMAND …, or python -m rl COMMAND …",
        "",
        *(f"  {name:<10}{does}" for name, does in COMMANDS.items()),
        "",
        "RUN is a run's folder, a checkpoint in it, or --last: the run that changed last below --log-dir.",
        "rl COMMAND --help has the flags of a command. Training itself: python -m train_fabric --help",
    )
)


def main(words: Sequence[str] | None = None) -> None:
    """Runs the command that the words, those of the command line by default, begin with."""
    name, *rest = (sys.argv[1:] if words is None else words) or ["--help"]
    if name in ("-h", "--help"):
        print(HELP)
        return
    try:
        if name not in COMMANDS:
            raise UserError(f"{name!a}: is no command; must be one of {', '.join(COMMANDS)}")
        if name == "where":  # a part of other commands, so that it should not wait for torch
            importlib.import_module("rl.commands.where").command(rest)
            return
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    from rl.cli import mend_streams
    from rl.parsing import for_any_reader
    from rl.reporting import reported

    mend_streams()
    with reported(), for_any_reader():
        importlib.import_module(f"rl.commands.{name}").command(rest)
