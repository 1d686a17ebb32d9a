"""The folder of a run: made or opened again, locked, and the checkpoints in it.

Rank 0 alone writes to it. Its checkpoints/ hold a single history, of which the highest number is the newest: when a run
resumes from an older checkpoint, the later ones are moved to abandoned_<time>/ first.
"""

import contextlib
import fcntl
import json
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rl.config import LEARNER_NAME, Config
from rl.dist.launch import meet, rank, world_size
from rl.errors import CheckpointError, CrashLoopError, EnvError, FolderError, NumericError, RanksError
from rl.reporting import exit_file, how_ended, note
from rl.run.checkpoint import read_checkpoint, read_once, write_checkpoint, write_whole

LAST, BEST, CONFIG, RESULT = "last.ckpt", "best.ckpt", "config.json", "result.json"
PERIODIC = "checkpoints/update_{:010}.ckpt"


class RunFolder:
    """The folder of a run, and the checkpoint that the run resumes from, if any."""

    def __init__(self, file: Path | None) -> None:
        """`file` is the checkpoint to resume from; the folder that it is in goes on, unless that is not a run's."""
        self.file = file
        self.checkpoint = None if file is None else read_once(file)
        own = None if file is None else run_of(file)
        self.is_new = own is None
        self.path = own or Path()
        self.lock: int | None = None

    @property
    def purge_step(self) -> int | None:
        """The step from which TensorBoard hides what was logged before: those updates are done again."""
        return None if self.checkpoint is None else self.checkpoint["run"]["step"] + 1

    def begin(self, config: Config[Any]) -> None:
        """Writes the flags, and moves away the checkpoints that are later than the one the run resumes from.

        Raises:
            FolderError: The folder cannot be written.
        """
        try:
            if self.file is not None and self.checkpoint is not None and not self.is_new:
                _set_aside_later(self.path, self.file, self.checkpoint["run"]["update"])
                _wait_for_later_second(self.path)
            (self.path / RESULT).unlink(missing_ok=True)  # of an earlier part of the run
            flags = {LEARNER_NAME: config.learner_name(), **config.to_dict()}
            write_whole(self.path / CONFIG, json.dumps(flags, indent=2).encode())
        except OSError as error:
            raise FolderError(f"{self.path}: cannot be written: {error.strerror}") from error

    def write(self, name: str, content: Mapping[str, Any]) -> Path:
        """Writes a checkpoint; raises `OSError` if it cannot, and leaves the ones before it as they are."""
        path = self.path / name
        path.parent.mkdir(exist_ok=True)
        write_checkpoint(path, content)
        return path

    def forget(self, num_kept: int) -> None:
        """Deletes all but the newest periodic checkpoints."""
        for old in _periodic(self.path)[num_kept:]:
            old.unlink(missing_ok=True)

    def release(self) -> None:
        """Unlocks the folder."""
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None

    def remove(self) -> None:
        """Deletes a new folder, on rank 0, since its run never began."""
        self.release()
        if self.is_new and rank() == 0:
            for name in (".lock", CONFIG):
                (self.path / name).unlink(missing_ok=True)
            self.path.rmdir()


def open_folder(config: Config[Any], program: str) -> RunFolder:
    """The folder of the run to resume, or of a new one below that of `program`; rank 0 makes and locks it.

    The other ranks are told its path by `join_ranks`.

    Raises:
        FolderError: It cannot be made or written, contains links, or another process uses it.
        CrashLoopError: A launcher restarts a run that would fail again.
    """
    file = None if config.keep.resume is None else Path(config.keep.resume).absolute()
    folder = RunFolder(file)
    if not folder.is_new:
        check_no_links(folder.path)
        check_worth_restarting(folder.path)
    if rank() != 0:
        return folder
    if folder.is_new:
        folder.path = _new_folder(config, program)
        if file is not None:
            note(f"--resume {file}: is in no run's folder; continues in {folder.path}")
    try:
        folder.lock = _lock(folder.path)
        if folder.is_new:
            folder.begin(config)
    except FolderError:
        folder.remove()
        raise
    return folder


def join_ranks(config: Config[Any], backend: str, folder: RunFolder) -> None:
    """Joins the process group, if there are several ranks, and makes rank 0's folder that of all ranks.

    Raises:
        RanksError: A rank is missing, or has other flags; a new folder is deleted.
    """
    if world_size() > 1:
        try:
            folder.path = Path(meet(backend, config.flags(), config.rank_timeout, str(folder.path)))
        except RanksError:
            folder.remove()
            raise
    exit_file.keep_in(folder.path)


def check_worth_restarting(folder: Path) -> None:
    """Raises `CrashLoopError` if a launcher restarts a run whose environment or numbers would end it again."""
    code, message = how_ended(folder) or (0, "")
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if restarted and code in (EnvError.exit_code, NumericError.exit_code):
        raise CrashLoopError(f"not restarted, since it would fail in the same way: {message}")


def check_no_links(folder: Path) -> None:
    """Raises `FolderError` if a file of a run's folder is a link, through which a run would write elsewhere."""
    for path in folder.rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise FolderError(f"--resume: {path} is a link, and nothing is written through one; put a file there")


def run_of(file: Path) -> Path | None:
    """The run's folder that a checkpoint is in, if it is in one: then the run's flags are there too."""
    folder = file.parent.parent if file.parent.name == "checkpoints" else file.parent
    try:
        flags = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return folder if isinstance(flags, dict) and flags.keys() >= {"env", "network", "keep", "learner"} else None


def kept_checkpoints(folder: Path) -> list[Path]:
    """A run's checkpoints to resume from, the newest first: a resumed run moves `LAST` away before it writes others."""
    return [*folder.glob(LAST), *_periodic(folder)]


def _periodic(folder: Path) -> list[Path]:
    """The periodic checkpoints, the newest first."""
    return sorted((folder / "checkpoints").glob(f"update_{10 * '[0-9]'}.ckpt"), reverse=True)


def _set_aside_later(folder: Path, file: Path, update: int) -> None:
    """Moves checkpoints of later updates to a folder of their own; makes `file`, of this update, a periodic one."""
    later = [path for path in _periodic(folder) if path.name > Path(PERIODIC.format(update)).name]
    if file == folder / LAST:
        (folder / "checkpoints").mkdir(exist_ok=True)
        file.replace(folder / PERIODIC.format(update))
    elif (folder / LAST).exists():
        later.append(folder / LAST)
    if not later:
        return
    with contextlib.suppress(CheckpointError, OSError):
        if read_checkpoint(folder / BEST)["run"]["update"] > update:
            later.append(folder / BEST)
    aside = _numbered(folder / f"abandoned_{_now()}")
    for path in later:
        path.replace(aside / path.name)
    note(f"resumes after update {update:,}; later checkpoints are now in {aside}")


def _wait_for_later_second(folder: Path) -> None:
    """Waits until a new event file sorts after the others: names begin with a second and end with a number (10 < 9)."""
    names = (re.match(r"events\.out\.tfevents\.(\d{10})\.", path.name) for path in folder.glob("events.*"))
    newest = max((int(name[1]) for name in names if name), default=0)
    time.sleep(max(0.0, min(newest + 1 - time.time(), 10.0)))


def folder_stem(config: Config[Any]) -> str:
    """The name of a run's folder without the time."""
    env_name = config.env.env_id.replace(":", "_").replace("/", "_")
    return f"{env_name}_{config.exp_name}_seed{config.seed}"


def _now() -> str:
    """The time for names of folders: UTC, so that their order is that of the times."""
    return time.strftime("%Y-%m-%d_%H-%M-%SZ", time.gmtime())


def _new_folder(config: Config[Any], program: str) -> Path:
    folder = Path(config.log_dir).absolute() / program / f"{folder_stem(config)}_{_now()}"
    try:
        return _numbered(folder)
    except OSError as error:
        raise FolderError(f"--log-dir {config.log_dir}: no folder can be made there: {error.strerror}") from error


def _numbered(folder: Path) -> Path:
    """Makes a folder, with a number after its name if there is one of that second already."""
    for suffix in ("", *(f"_{number}" for number in range(2, 100))):
        with contextlib.suppress(FileExistsError):
            numbered = folder.with_name(folder.name + suffix)
            numbered.mkdir(parents=True)
            return numbered
    raise FolderError(f"{folder}: this name and {folder.name}_2 to _99 are taken; remove some of these folders")


def _lock(folder: Path) -> int:
    """Locks a folder for as long as the returned file descriptor is open, hence at most as long as this process."""
    try:
        file = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        os.set_inheritable(file, False)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.read(file, 32).strip(b"0123456789"):
            raise FolderError(f"{folder / '.lock'}: holds more than a process's number; remove it")
        os.ftruncate(file, 0)
        os.pwrite(file, str(os.getpid()).encode(), 0)
    except BlockingIOError:
        owner = (folder / ".lock").read_text().strip()
        raise FolderError(f"--resume: {folder} is in use by process {owner}; stop that first") from None
    except OSError as error:
        raise FolderError(f"{folder}: cannot be written: {error.strerror}") from error
    return file
