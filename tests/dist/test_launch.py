"""Ranks and their processes, for every launcher."""

import _ctypes
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rl.dist import launch
from rl.dist.launch import end_with_launcher, rank, take_slurm_ranks, world_size

SLURM = {
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_NNODES": "2",
    "SLURM_NODELIST": "gpu[07-08,11],cpu3",
    "SLURM_JOB_ID": "123456",
    "SLURM_JOB_NAME": "train",
}
TAKEN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
TAKEN += ("LT_CLI_USED", "LT_DEVICES", "LT_NUM_NODES")


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TAKEN:  # so that they are gone after the test
        monkeypatch.setenv(name, "x")
        del os.environ[name]
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)


def test_a_task_of_slurm_knows_its_place(slurm: None) -> None:
    take_slurm_ranks()
    assert (rank(), world_size()) == (5, 8)
    assert (os.environ["LOCAL_RANK"], os.environ["LOCAL_WORLD_SIZE"]) == ("1", "4")
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("gpu07", "18456")
    assert (os.environ["LT_DEVICES"], os.environ["LT_NUM_NODES"]) == ("4", "2")


@pytest.mark.parametrize(
    ("name", "value"),
    [("RANK", "0"), ("SLURM_NTASKS", "1"), ("SLURM_JOB_NAME", "bash"), ("SLURM_JOB_NAME", "interactive")],
)
def test_where_a_launcher_or_a_shell_stands_between_slurm_says_nothing(
    slurm: None, name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    take_slurm_ranks()
    assert "WORLD_SIZE" not in os.environ


@pytest.mark.parametrize(
    ("nodes", "first"), [("n1", "n1"), ("n1,n2", "n1"), ("n[3]", "n3"), ("a-[05-09]", "a-05"), ("x[1,4-7]", "x1")]
)
def test_the_first_node_is_found_in_slurms_list(
    slurm: None, nodes: str, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_NODELIST", nodes)
    take_slurm_ranks()
    assert os.environ["MASTER_ADDR"] == first


@contextlib.contextmanager
def process(command: str, **variables: str) -> Iterator[int]:
    """A process of bash that has printed that it is ready."""
    started = subprocess.Popen(
        ["bash", "-c", f"{command}; echo; read"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=variables
    )
    with started:
        assert started.stdout is not None
        started.stdout.readline()
        try:
            yield started.pid
        finally:
            started.kill()


def test_the_launcher_is_found_behind_wrapper_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    with process(":", TORCHELASTIC_RUN_ID="x") as wrapper:
        monkeypatch.setattr("os.getppid", lambda: wrapper)
        assert launch._launcher() == os.getpid()


def test_a_rank_whose_launcher_died_before_it_looked_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with process(":") as heir:  # of the processes that a launcher left: init, or what systemd or a container has for it
        for parent in (heir, 2**22):
            monkeypatch.setattr("os.getppid", lambda parent=parent: parent)
            with pytest.raises(SystemExit) as exit_:
                end_with_launcher()
            assert exit_.value.code == 143


def test_a_rank_is_asked_to_stop_when_its_launcher_dies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    library = tmp_path / "libtorch.so"
    shutil.copy(_ctypes.__file__, library)
    with process(
        f"exec {sys.executable} -c 'import ctypes; ctypes.CDLL(\"{library}\"); print(flush=True); input()'"
    ) as pid:
        monkeypatch.setattr("os.getppid", lambda: pid)
        end_with_launcher()
        assert not asked.is_set()
    assert asked.wait(10)


def met(monkeypatch: pytest.MonkeyPatch, *processes: int) -> None:
    """Registers these processes as the ranks that have met."""
    identities = [
        {"pid": pid, "started_at": launch.status_of(pid).started_at, "host": socket.gethostname(), "timeout": 0.2}
        for pid in processes
    ]
    monkeypatch.setattr(launch, "_identities", identities)


def leave_together() -> None:
    name = Path("/proc/self/comm").read_text()
    try:
        launch.leave_together()
    finally:
        Path("/proc/self/comm").write_text(name)


def test_the_first_rank_ends_one_that_is_stopped_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with process(":") as pid:
        met(monkeypatch, os.getpid(), pid)
        os.kill(pid, signal.SIGSTOP)
        leave_together()
        assert launch.absent_ranks() == [f"rank 1 (process {pid}) has died"]
    assert capsys.readouterr().err == f"note: the run has ended, and rank 1 (process {pid}) is stopped: killed\n"


def test_other_ranks_wait_for_the_first_to_leave_and_end_it_if_it_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with process("printf rl-leaving > /proc/$$/comm") as pid:
        met(monkeypatch, pid, os.getpid())
        leave_together()
        assert launch.absent_ranks() == []
    with process(":") as pid:
        met(monkeypatch, pid, os.getpid())
        os.kill(pid, signal.SIGSTOP)
        leave_together()
        assert launch.absent_ranks() == [f"rank 0 (process {pid}) has died"]


def test_a_process_that_has_a_dead_ranks_number_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with process(":") as pid:
        met(monkeypatch, os.getpid(), pid)
        launch._identities[1]["started_at"] = "1"
        os.kill(pid, signal.SIGSTOP)
        while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
            time.sleep(0.01)
        launch.kill_stopped_ranks()
        with pytest.raises(psutil.TimeoutExpired):
            psutil.Process(pid).wait(0.2)
