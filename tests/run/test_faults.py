"""Faults inside a process: one line, the right exit code, and an intact last checkpoint."""

import errno
import json
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.tensorboard import FileWriter

import rl.run.folder
import train_torch
from rl.cli import command_line
from rl.config import CONFIGS
from rl.dist.ranks import Ranks
from rl.errors import RanksError, StopError
from rl.run.checkpoint import read_checkpoint, write_checkpoint
from rl.run.control import Control, Signals, crc, memory, weighted_sum
from tests import probes
from tests.ranks import in_ranks

FLAGS = ["--num-envs", "2", "--num-steps", "32", "--hidden-sizes", "16", "16", "--eval-episodes", "1"]
FLAGS += ["--execution", "eager", "--no-keep-best"]


def train(monkeypatch: pytest.MonkeyPatch, *flags: str) -> int:
    """The exit code of the program."""
    monkeypatch.setattr("sys.argv", ["train_torch.py", *FLAGS, *flags])
    try:
        command_line(train_torch.main, CONFIGS, train_torch.PROGRAM)
    except SystemExit as exit_:
        return int(exit_.code)
    return 0


def errors(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize(
    ("env_id", "flags", "message"),
    [
        ("Raising-v0", "", "environment 1 raised ZeroDivisionError: integer division or modulo by zero at "),
        ("Raising-v0", "--vectorization async", "environment 1 raised ZeroDivisionError: integer division or modulo "),
        ("WrongShape-v0", "", "environment 1 gave an observation of shape (2,); its space says (1,), at step 70 of"),
        ("Exiting-v0", "", "environment 1 raised SystemExit: 0 at "),
        ("Exiting-v0", "--vectorization async", "environment 1 raised SystemExit: 0 at "),
        ("Leaving-v0", "--vectorization async", "the process of environment 1 ended with code 0, at step 70 of"),
        ("Dying-v0", "--vectorization async", "the process of environment 1 was killed by signal 9 (out of memory?)"),
    ],
)
def test_an_environment_that_fails_is_named_and_the_last_checkpoint_stays(
    env_id: str, flags: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = ("--total-timesteps", "100000", "--checkpoint-every", "1")
    assert train(monkeypatch, *steps, "--env-id", env_id, *flags.split()) == 71
    (line,) = errors(capsys)
    assert message in line
    assert "at step 70 of the episode that reset(seed=" in line and "(rank 0, step 70 of the run)" in line
    assert read_checkpoint(max(Path().glob("logs/*/*/checkpoints/*")))["run"]["update"] == 2


def test_an_environment_that_cannot_be_made_keeps_its_own_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert train(monkeypatch, "--env-id", "Broken-v0", "--vectorization", "async") == 71
    assert errors(capsys) == ["error: --env-id Broken-v0: cannot be made: RuntimeError: no licence"]
    assert list(tmp_path.iterdir()) == []


def test_an_episode_that_cannot_be_played_again_ends_the_resume_with_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(monkeypatch, "--env-id", "Breaking-v0", "--total-timesteps", "128") == 0
    (folder,) = Path("logs/torch_logs").iterdir()
    monkeypatch.setattr(probes.Breaking, "broken", True)
    monkeypatch.setattr("rl.envs.make.probed", lambda config: ("episodes", False))
    assert train(monkeypatch, "--resume", str(folder), "--total-timesteps", "256") == 71
    (line,) = errors(capsys)
    assert "environment 0 raised ConnectionError: the simulator is gone at " in line
    assert ", at step 5 of the episode that reset(seed=" in line
    assert json.loads((folder / "exit.json").read_text())["exit_code"] == 71


def test_a_stop_in_the_final_evaluation_is_no_failure_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(monkeypatch, "--env-id", "Stopped-v0", "--vectorization", "sync", "--total-timesteps", "128") == 143
    assert "stopped: SIGTERM, outside of the updates" in capsys.readouterr().err
    (folder,) = Path("logs/torch_logs").iterdir()
    assert json.loads((folder / "exit.json").read_text())["exit_code"] == 143
    assert read_checkpoint(folder / "last.ckpt")["run"]["update"] == 2


def failing_writes(monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
    """Makes these writes of checkpoints, counted from 1, fail with a full disk."""
    written = 0

    def write(path: Path, content: Any) -> None:
        nonlocal written
        written += 1
        if written in numbers:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_checkpoint(path, content)

    monkeypatch.setattr(rl.run.folder, "write_checkpoint", write)


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing_writes(monkeypatch, 2, 3, 5)
    assert train(monkeypatch, "--total-timesteps", "384", "--checkpoint-every", "1", "--keep-checkpoints", "9") == 0
    output = capsys.readouterr().out
    assert output.count("cannot be written: No space left on device; the one before it is kept") == 3
    updates = {read_checkpoint(path)["run"]["update"] for path in Path().glob("logs/*/*/checkpoints/*")}
    assert updates == {1, 4, 6}


def test_a_disk_that_stays_full_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing_writes(monkeypatch, 2, 3, 4, 5)
    assert train(monkeypatch, "--total-timesteps", "640", "--checkpoint-every", "1") == 74
    (line,) = errors(capsys)
    assert "no checkpoint could be written 3 times in a row; the last one is intact" in line
    assert [path.name for path in Path().glob("logs/*/*/checkpoints/*")] == ["update_0000000001.ckpt"]


def test_trouble_with_the_log_ends_the_log_and_not_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def add_summary(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(FileWriter, "add_summary", add_summary)
    assert train(monkeypatch, "--total-timesteps", "384") == 0
    printed = capsys.readouterr()
    assert printed.err.count("note: logging stops here, the run goes on: [Errno 28] No space left on device") == 1
    assert "greedy policy" in printed.out


CASES = {
    "nothing": (0.0, 0, False),
    "a stop": (0.0, int(signal.SIGINT), False),
    "a save": (0.0, 0, True),
    "one weight by its last bit": (6e-8, 0, False),
    "one moment": (1e-3, 0, False),
}


def _agreed() -> dict[str, tuple[Tensor, int, bool, bool]]:
    """What a rank knows after a sum, if rank 1 received a request or changed a weight."""
    ranks = Ranks.of()
    known = {}
    for name, (change, stop, save) in CASES.items():
        requests, weights, moment = Signals(), torch.linspace(-1, 1, 5001), torch.zeros(5001)
        if ranks.rank == 1:
            (moment if name == "one moment" else weights)[7] += change
            requests.stop, requests.save = stop, save
        control = Control(ranks, requests, (weights, moment, torch.tensor(3.0)))
        total = control.sum(torch.tensor([1.5, ranks.rank], dtype=torch.float64))
        control.read()
        known[name] = total, control.stop, control.save, control.diverged
    return known


def test_all_ranks_know_what_one_of_three_was_asked_and_whether_its_weights_are_the_same(tmp_path: Path) -> None:
    for known in in_ranks(_agreed, 3, tmp_path):
        for name, (change, stop, save) in CASES.items():
            total, *rest = known[name]
            assert total.tolist() == [4.5, 3.0]
            assert rest == [stop, save, change != 0], name


def changed_in_place(numbers: Tensor, how: str) -> None:
    bits = numbers.view(torch.int16 if numbers.dtype == torch.bfloat16 else torch.int32)
    if how == "two swapped":
        numbers[[3, 900]] = numbers[[900, 3]]
    elif how == "reversed":
        numbers.copy_(numbers.flip(0))
    elif how == "two compensate each other":
        bits[3] += 5
        bits[900] -= 5
    elif how == "two signs":
        numbers[[3, 900]] *= -1
    elif how == "three in a row":
        bits[7:10] += torch.tensor([1, -2, 1], dtype=bits.dtype)


@pytest.mark.parametrize(
    "checksum",
    [lambda alike: crc([*map(memory, alike)]), partial(weighted_sum, device=torch.device("cpu"))],
    ids=["CPU", "GPU"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", ["two swapped", "reversed", "two compensate each other", "two signs", "three in a row"])
def test_a_change_that_a_sum_would_miss_is_noticed(checksum: Callable[..., Any], dtype: torch.dtype, how: str) -> None:
    numbers = torch.linspace(-1, 1.1, 1001).to(dtype)
    alike = (numbers, torch.zeros(1001), torch.tensor(3.0))
    before = int(checksum(alike))
    assert int(checksum(alike)) == before
    changed_in_place(numbers, how)
    assert int(checksum(alike)) != before


def test_weights_that_differ_stop_the_run() -> None:
    control = Control(Ranks(), Signals())
    control.check(5)
    control.diverged = True
    with pytest.raises(RanksError, match="replicas diverged before update 5") as raised:
        control.check(5)
    assert raised.value.exit_code == 69


def test_what_is_asked_after_the_sum_is_heard_at_the_next() -> None:
    requests = Signals()
    control = Control(Ranks(), requests)
    control.sum(torch.zeros(1))
    requests.save = True
    control.read()
    control.saved()
    assert not control.save and requests.save
    control.sum(torch.zeros(1))
    control.read()
    assert control.save
    control.saved()
    assert not control.save and not requests.save


def test_a_second_interrupt_leaves_at_once_but_not_one_that_a_launcher_hands_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Signals() as requests:
        requests.in_loop = True
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert requests.stop == signal.SIGINT
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now + 3)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_outside_of_the_updates_a_stop_is_at_once_and_hang_ups_that_are_ignored_stay_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Signals():
        os.kill(os.getpid(), signal.SIGHUP)
        with pytest.raises(StopError, match="SIGTERM, outside of the updates") as raised:
            os.kill(os.getpid(), signal.SIGTERM)
    assert raised.value.exit_code == 143
    assert signal.signal(signal.SIGHUP, before) == signal.SIG_IGN
