"""`rl resume`: starts the program of a run again, under its launcher and with as many ranks as it had."""

import os
import shlex
import shutil
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from rl.commands.of_run import checkpoint_of, folder_of, read_known
from rl.commands.where import PROGRAMS, path_of
from rl.config import CONFIGS
from rl.errors import UserError
from rl.run.checkpoint import Content, read_checkpoint


@dataclass(frozen=True)
class Resume:
    """Goes on with a run, from its last checkpoint or the given one. All other flags are handed to its program."""

    run: tyro.conf.Positional[Path]
    """The run's folder, or a checkpoint in it; or --last, the run that changed last below --log-dir."""
    print: bool = False
    """Print the command and do not run it, to change it or to start it on several machines."""
    log_dir: Path = field(default=Path("logs"), kw_only=True)
    """Folder that holds the folders of all runs."""


def command(words: Sequence[str]) -> None:
    """Replaces this process by the program."""
    flags, others = read_known(Resume, "resume", words)
    file, folder = checkpoint_of(flags.run), folder_of(flags.run)
    started = command_for(read_checkpoint(file), folder, os.path.abspath(flags.run.expanduser()), others)
    print(shlex.join(started), flush=True)
    if not flags.print:
        os.execv(started[0], started)


def command_for(content: Content, folder: Path, resumed: str, others: Sequence[str]) -> list[str]:
    """The command that resumes a run.

    Raises:
        UserError: The program or its learner is not of this package.
    """
    by_hand = f"add --resume {shlex.quote(resumed)} to the command that started it"
    name, learner = PROGRAMS.get(folder.parent.name), content["learner"]
    if name is None or learner not in CONFIGS:
        what = f"of a learner of your own ({learner})" if name else "not in the folder of a program that comes along"
        raise UserError(f"{folder}: is {what}; {by_hand}")
    # Only a learner that is named before all flags has flags of its own.
    named = [learner] if learner != "ppo" else []
    launched = launcher(name, len(content["ranks"]), on_gpus=bool(content["config"]["cuda"]))
    return [*launched, str(path_of(name)), *named, "--resume", resumed, *others]


def launcher(program: str, num_ranks: int, *, on_gpus: bool) -> list[str]:
    """What starts that many ranks of a program on this machine."""
    if num_ranks == 1:
        return [sys.executable]
    if program == "train_torch":
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_ranks}"]
    beside = Path(sys.executable).parent / "fabric"
    fabric = str(beside) if beside.is_file() else shutil.which("fabric")
    if fabric is None:
        raise UserError("fabric: is not installed; pip install lightning")
    # On CPUs, also the decoupled program may have more ranks than there are GPUs; --cuda holds all the same.
    accelerator = "cuda" if on_gpus and program != "train_fabric_decoupled" else "cpu"
    # Of its own port, Fabric takes the same one for every run of a machine.
    return [fabric, "run", f"--devices={num_ranks}", f"--accelerator={accelerator}", f"--main-port={free_port()}"]


def free_port() -> int:
    """A port on which nothing listens at this moment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
