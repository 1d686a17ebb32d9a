"""A trained run for the tests of commands, which must not change it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import train_torch
from rl.cli import command_line
from rl.commands import main
from rl.config import CONFIGS

FLAGS = "--env-id CartPole-v1 --config none --total-timesteps 1024 --num-envs 8 --num-steps 64 --learning-rate 3e-3"
FLAGS += " --normalize-obs --hidden-sizes 16 16 --execution eager"


def train(log_dir: Path, *flags: str) -> Path:
    """The folder of a new run."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("sys.argv", ["train_torch.py", *FLAGS.split(), "--log-dir", str(log_dir), *flags])
        patched.setenv("OMP_NUM_THREADS", "1")
        before = set(log_dir.rglob("config.json"))
        command_line(train_torch.main, CONFIGS, train_torch.PROGRAM)
        (config,) = set(log_dir.rglob("config.json")) - before
    return config.parent


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield train(tmp_path_factory.mktemp("logs"))


@pytest.fixture
def rl_(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command in this process: what it prints."""

    def run_command(*words: object) -> str:
        capsys.readouterr()
        main([str(word) for word in words])
        return capsys.readouterr().out

    return run_command


@pytest.fixture
def evaluated(run: Path, rl_: Callable[..., str]) -> Callable[..., dict[str, Any]]:
    """What `rl evaluate --json` says of the run."""
    return lambda *flags: json.loads(rl_("evaluate", run, "--json", *flags))
