"""The folder of a run: made, or found again; its lock, its checkpoints, and which of them are kept."""

import contextlib
import fcntl
import os
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rl.config import Config
from rl.errors import (
    CheckpointError,
    CrashLoopError,
    EnvError,
    FolderError,
    NothingToResumeError,
    NumericError,
    RanksError,
    exit_file,
    how_ended,
)
from rl.joining import folder_of_rank_0, join_ranks, rank, world_size
from rl.learners.learner import AnyLearner
from rl.run.checkpoint import read_checkpoint, write_checkpoint

LAST, BEST = "last.ckpt", "best.ckpt"


class RunFolder:
    """A run's folder, the same one for all ranks; rank 0 writes there."""

    def __init__(self, path: Path, checkpoint: dict[str, Any] | None, lock: int | None = None) -> None:
        """`checkpoint` is what the run goes on from; `lock` an open file."""
        self.path = path
        self.checkpoint = checkpoint
        self.lock = lock

    @property
    def purge_step(self) -> int | None:
        """From which step on TensorBoard forgets what it was told: of updates that are done again."""
        return None if self.checkpoint is None else int(self.checkpoint["run"]["step"]) + 1

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
        (self.path / ".lock").unlink()
        self.path.rmdir()

    def forget(self, num_kept: int) -> None:
        """Deletes all but the newest periodic checkpoints."""
        for old in sorted((self.path / "checkpoints").glob("update_*.ckpt"))[:-num_kept]:
            old.unlink(missing_ok=True)


def open_run(config: Config[AnyLearner], program: str, backend: str) -> RunFolder:
    """The folder of a new run below `program`'s in the log folder, or that of the run that `--resume` goes on with.

    Ranks meet here, since they have to agree on it.

    Raises:
        FolderError: It cannot be made, or another process writes there.
        RanksError: A rank is missing, or has other flags.
    """
    checkpoint = None
    path = None
    if config.keep.resume is not None:
        file = Path(config.keep.resume)
        checkpoint, path = read_checkpoint(file), run_of(file)
        check_worth_restarting(path)
    elif rank() == 0:
        path = _new_folder(config, program)
    lock = _lock(path) if rank() == 0 and path is not None else None
    folder = RunFolder(path or Path(), checkpoint, lock)
    if world_size() > 1:
        try:
            folder.path = _meet(config, backend, folder.path)
        except RanksError:
            if checkpoint is None and lock is not None:
                folder.remove()
            raise
    exit_file.keep_in(folder.path)
    return folder


def _meet(config: Config[AnyLearner], backend: str, path: Path) -> Path:
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


def run_of(file: Path) -> Path:
    """The folder of the run that a checkpoint is of."""
    return file.parent.parent if file.parent.name == "checkpoints" else file.parent


def _new_folder(config: Config[AnyLearner], program: str) -> Path:
    started_at = time.strftime("%Y-%m-%d_%H-%M-%S")
    folder = Path(config.log_dir) / program / f"{folder_stem(config)}_{started_at}"
    try:
        # Runs that start in the same second are told apart by a number.
        for suffix in ("", *(f"_{number}" for number in range(2, 100))):
            with contextlib.suppress(FileExistsError):
                numbered = folder.with_name(folder.name + suffix)
                numbered.mkdir(parents=True)
                return numbered
    except OSError as error:
        raise FolderError(f"--log-dir {config.log_dir}: no folder can be made there: {error.strerror}") from error
    raise FolderError(f"--log-dir {config.log_dir}: {folder} and 98 more of its name are there already")


def folder_stem(config: Config[AnyLearner]) -> str:
    """How the names of the folders of such runs begin."""
    env_name = config.env.env_id.replace(":", "_").replace("/", "_")
    return f"{env_name}_{config.exp_name}_seed{config.seed}"


def _lock(folder: Path) -> int:
    """Keeps other processes from going on with the same run; the lock goes with this process."""
    try:
        file = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        os.set_inheritable(file, False)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = (folder / ".lock").read_text().strip()
        raise FolderError(f"--resume: {folder} is in use by process {owner}; stop that first") from None
    except OSError as error:
        raise FolderError(f"{folder}: cannot be written: {error.strerror}") from error
    os.ftruncate(file, 0)
    os.write(file, str(os.getpid()).encode())
    return file


def find_checkpoint(config: Config[AnyLearner], program: str) -> tuple[Path, dict[str, Any]] | None:
    """What `--resume` goes on from: the newest whole checkpoint of the run, or of the newest run there is for `auto`.

    Nothing for `auto` where no such run has a checkpoint.

    Raises:
        NothingToResumeError: The path leads to no checkpoint.
        CheckpointError: There are checkpoints, and all of them are damaged or foreign.
    """
    wanted = config.keep.resume
    assert wanted is not None
    if wanted != "auto":
        path = Path(wanted)
        files = [path] if path.is_file() else _checkpoints(path)
        if not files:
            what = "holds no checkpoint" if path.is_dir() else "is not there"
            raise NothingToResumeError(f"--resume {wanted}: {what}; must be a run's folder, a checkpoint, or auto")
        return newest_whole(files)
    # Names end with the time at which the run began; several of one second with a number, longer ones with more digits.
    began = re.compile(re.escape(folder_stem(config)) + r"_(\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d)(?:_(\d+))?")
    runs = [
        (match, folder) for folder in _folders(Path(config.log_dir, program)) if (match := began.fullmatch(folder.name))
    ]
    runs.sort(key=lambda run: (run[0][1], int(run[0][2] or 1)), reverse=True)
    for _, folder in runs:
        if files := _checkpoints(folder):
            return newest_whole(files)
    if rank() == 0:
        print(
            f"note: --resume auto: there is no run to go on with in {config.log_dir}; a new one starts", file=sys.stderr
        )
    return None


def _folders(parent: Path) -> list[Path]:
    return [path for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []


def _checkpoints(folder: Path) -> list[Path]:
    """A run's checkpoints, the newest first."""
    return [*folder.glob(LAST), *sorted((folder / "checkpoints").glob("update_*.ckpt"), reverse=True)]


def newest_whole(files: list[Path]) -> tuple[Path, dict[str, Any]]:
    """The first of the files that can be read, and its content; rank 0 says of the others why not.

    Raises:
        CheckpointError: None can.
    """
    newest, *older = files
    try:
        return newest, read_checkpoint(newest)
    except (CheckpointError, OSError) as error:
        if not older:
            raise CheckpointError(f"--resume: no checkpoint can be read: {error}") from None
        if rank() == 0:
            print(f"note: {error}; trying the one before it", file=sys.stderr)
        return newest_whole(older)
