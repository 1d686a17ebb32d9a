"""Fixtures for all tests: each starts in an empty folder and must leave nothing behind."""

import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
import tqdm

import rl  # noqa: F401 (registers CustomEnv-v0)
from rl.compilers import keep_caches_private
from rl.envs.failures import watched
from rl.reporting import exit_file, silence

with watched(1, AssertionError):  # type: ignore[arg-type]
    pass  # its thread never ends either
tqdm.tqdm.monitor_interval = 0  # torch's compiler uses tqdm, whose monitor is a thread that never ends
ROOT = Path(__file__).parent.parent
CACHES = {"__pycache__", ".mypy_cache", ".ruff_cache"}


def variables() -> dict[str, str]:
    # torch's compiler leaves notes to itself there.
    set_by_others = {"PYTEST_CURRENT_TEST", "TORCHINDUCTOR_CACHE_DIR", "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"}
    set_by_others |= {"TRITON_CACHE_DIR", "SDL_VIDEODRIVER"}  # a setting of the whole process
    set_by_others |= {"PYTORCH_NVML_BASED_CUDA_CHECK"}  # Lightning writes there too
    return {name: value for name, value in os.environ.items() if name not in set_by_others}


@pytest.fixture(autouse=True)
def nothing_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    environment, files = variables(), set(os.listdir(ROOT)) - CACHES
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    threads = set(threading.enumerate())
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exit_file.path, silence.is_on = None, False
    # Ranks that a test starts, and threads that torch starts here, share the machine's cores.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    monkeypatch.undo()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    # Python keeps its resource tracker and its fork server, once it has started them, until it ends itself.
    children = psutil.Process().children(recursive=True)
    servers = [
        c for c in children if c.ppid() == os.getpid() and re.search("resource_tracker|forkserver", str(c.cmdline()))
    ]
    assert [child for child in children if child not in servers] == []
    for thread in set(threading.enumerate()) - threads:
        thread.join(5)  # one that reads what a finished ffmpeg has written needs a moment
    assert set(threading.enumerate()) <= threads
    assert set(os.listdir(ROOT)) - CACHES == files
    assert variables() == environment
    assert not torch.distributed.is_initialized()


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)
    keep_caches_private()  # as the programs do
