"""The folder of a run: made, or found again; its lock, its checkpoints, and which of them are kept."""

import contextlib
import fcntl
import json
import os
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rl.config import Config
from rl.dist.launch import folder_of_rank_0, join_ranks, rank, world_size
from rl.errors import (
    CheckpointError,
    CrashLoopError,
    EnvError,
    FolderError,
    NumericError,
    RanksError,
    exit_file,
    how_ended,
)
from rl.run.checkpoint import read_checkpoint, write_checkpoint, write_whole

LAST, BEST, CONFIG = "last.ckpt", "best.ckpt", "config.json"
PERIODIC = "checkpoints/update_{:010}.ckpt"


class RunFolder:
    """A run's folder, the same one for all ranks; rank 0 writes there."""

    def __init__(self, file: Path | None, checkpoint: dict[str, Any] | None) -> None:
        """`checkpoint` is what the run goes on from, read from `file`."""
        self.file = file
        self.checkpoint = checkpoint
        own = None if file is None else run_of(file)
        self.is_new = own is None
        self.path = own or Path()
        self.lock: int | None = None

    @property
    def purge_step(self) -> int | None:
        """From which step on TensorBoard forgets what it was told: of updates that are done again."""
        return None if self.checkpoint is None else int(self.checkpoint["run"]["step"]) + 1

    def go_on(self, config: Config[Any]) -> None:
        """Keeps the flags; in a folder that was there before, what is newer than the run goes on from is set aside.

        All that stands in checkpoints/ is then of one history, of which the highest number is the newest.

        Raises:
            FolderError: It cannot be written.
        """
        try:
            if self.file is not None and self.checkpoint is not None and not self.is_new:
                _set_aside_later(self.path, self.file, self.checkpoint["run"]["update"])
                _let_a_second_pass(self.path)
            write_whole(self.path / CONFIG, json.dumps(config.to_dict(), indent=2).encode())
        except OSError as error:
            raise FolderError(f"{self.path}: cannot be written: {error.strerror}") from error

    def write(self, name: str, content: Mapping[str, Any]) -> Path:
        """Writes a checkpoint; raises `OSError` if it cannot, with those before it untouched."""
        path = self.path / name
        path.parent.mkdir(exist_ok=True)
        write_checkpoint(path, content)
        return path

    def release(self) -> None:
        """Lets others go on with the run."""
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None

    def remove(self) -> None:
        """Leaves nothing of a run that never began."""
        self.release()
        for name in (".lock", CONFIG):
            (self.path / name).unlink(missing_ok=True)
        self.path.rmdir()

    def forget(self, num_kept: int) -> None:
        """Deletes all but the newest periodic checkpoints."""
        for old in _periodic(self.path)[num_kept:]:
            old.unlink(missing_ok=True)


def open_folder(config: Config[Any], program: str) -> RunFolder:
    """The folder of a new run below `program`'s in the log folder, or that of the run that `--resume` goes on with.

    Raises:
        FolderError: It cannot be made, or another process writes there.
    """
    resume = config.keep.resume
    file = None if resume is None else Path(resume).absolute()
    folder = RunFolder(file, None if file is None else read_checkpoint(file))
    if not folder.is_new:
        check_plain(folder.path)
        check_worth_restarting(folder.path)
    elif rank() == 0:
        folder.path = _new_folder(config, program)
        if file is not None:
            print(f"note: --resume {file}: is in no run's folder; goes on in {folder.path}", file=sys.stderr)
    try:
        if rank() == 0:
            folder.lock = _lock(folder.path)
        if rank() == 0 and folder.is_new:
            folder.go_on(config)
    except FolderError:
        if rank() == 0 and folder.is_new:
            folder.remove()
        raise
    return folder


def join_all(config: Config[Any], backend: str, folder: RunFolder) -> None:
    """Joins all ranks in a process group of this backend, and tells them rank 0's folder."""
    try:
        if world_size() > 1:
            folder.path = _meet(config, backend, folder.path)
    except RanksError:
        if rank() == 0 and folder.is_new:
            folder.remove()
        raise
    exit_file.keep_in(folder.path)


def _meet(config: Config[Any], backend: str, path: Path) -> Path:
    """Joins the other ranks: rank 0's folder.

    Raises:
        RanksError: A rank is missing, or has other flags.
    """
    try:
        differences = join_ranks(backend, config.flags(), config.rank_timeout, str(path))
    except TimeoutError as error:
        raise RanksError(f"{error}; look at what the others say, or wait longer by --rank-timeout") from error
    except ConnectionError as error:
        raise RanksError(str(error)) from error
    if differences:
        raise RanksError(f"all ranks need the same flags: {'; '.join(differences)}")
    return Path(folder_of_rank_0())


def check_worth_restarting(folder: Path) -> None:
    """Raises `CrashLoopError` where a launcher starts a run again that would end as it has just ended."""
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) == 0:
        return
    code, message = how_ended(folder) or (0, "")
    if code in (EnvError.exit_code, NumericError.exit_code):
        raise CrashLoopError(f"not started again, since it would end in the same way: {message}")


def run_of(file: Path) -> Path | None:
    """The folder of the run that a checkpoint is of, if it is in one: the run's flags are there too."""
    folder = file.parent.parent if file.parent.name == "checkpoints" else file.parent
    try:
        flags = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return folder if isinstance(flags, dict) and flags.keys() >= {"env", "network", "keep", "learner"} else None


def check_plain(folder: Path) -> None:
    """Raises `FolderError` where what is written into a run's folder would land elsewhere."""
    for path in folder.rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise FolderError(f"--resume: {path} is a link, and nothing is written through one; put a file there")


def _periodic(folder: Path) -> list[Path]:
    """The checkpoints that a run writes now and then, the newest first."""
    return sorted((folder / "checkpoints").glob(f"update_{10 * '[0-9]'}.ckpt"), reverse=True)


def kept_checkpoints(folder: Path) -> list[Path]:
    """A run's checkpoints, the newest first: what follows the last one sets it aside."""
    return [*folder.glob(LAST), *_periodic(folder)]


def _set_aside_later(folder: Path, file: Path, update: int) -> None:
    """Moves the checkpoints after the one that the run goes on from out of its way; that itself is a periodic one."""
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
    print(f"note: goes on after update {update:,}; what was kept of later ones is now in {aside}", file=sys.stderr)


def _let_a_second_pass(folder: Path) -> None:
    """TensorBoard reads event files by their names, which begin with a second and end with a number: 10 before 9."""
    names = (re.match(r"events\.out\.tfevents\.(\d{10})\.", path.name) for path in folder.glob("events.*"))
    newest = max((int(name[1]) for name in names if name), default=0)
    time.sleep(max(0.0, min(newest + 1 - time.time(), 10.0)))


def _now() -> str:
    """The time as folders are called: in UTC, so that the order of names is that of times."""
    return time.strftime("%Y-%m-%d_%H-%M-%SZ", time.gmtime())


def _new_folder(config: Config[Any], program: str) -> Path:
    folder = Path(config.log_dir).absolute() / program / f"{folder_stem(config)}_{_now()}"
    try:
        return _numbered(folder)
    except OSError as error:
        raise FolderError(f"--log-dir {config.log_dir}: no folder can be made there: {error.strerror}") from error


def _numbered(folder: Path) -> Path:
    """Makes a folder; those of the same second are told apart by a number."""
    for suffix in ("", *(f"_{number}" for number in range(2, 100))):
        with contextlib.suppress(FileExistsError):
            numbered = folder.with_name(folder.name + suffix)
            numbered.mkdir(parents=True)
            return numbered
    raise FolderError(f"{folder} and 98 more of its name are there already")


def folder_stem(config: Config[Any]) -> str:
    """How the names of the folders of such runs begin."""
    env_name = config.env.env_id.replace(":", "_").replace("/", "_")
    return f"{env_name}_{config.exp_name}_seed{config.seed}"


def _lock(folder: Path) -> int:
    """Keeps other processes from going on with the same run; the lock goes with this process."""
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
