"""Errors: reported once for all ranks, with the right exit code."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

import train_fabric
from rl.cli import command_line
from rl.config import CONFIGS
from rl.dist import interrupts
from rl.dist.interrupts import impatience
from rl.errors import StopError, UserError, one_line
from rl.reporting import exit_file, how_ended, reported


def outcome(error: BaseException) -> object:
    with pytest.raises(SystemExit) as exit_, reported():
        raise error
    return exit_.value.code


def replace_sleep(monkeypatch: pytest.MonkeyPatch, sleep: Callable[[float], object]) -> None:
    """Replaces `time.sleep` on this thread only; threads of other tests, such as the watchdog, still sleep."""
    own, real = threading.current_thread(), time.sleep
    monkeypatch.setattr("time.sleep", lambda s: (sleep if threading.current_thread() is own else real)(s))


def test_an_interrupted_run_says_so_and_has_the_conventional_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_other_ranks_let_rank_0_report_and_report_themselves_if_it_does_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waits: list[float] = []
    replace_sleep(monkeypatch, waits.append)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    for rank, message in ((0, "error: no\n"), (1, "error on rank 1: no\n")):
        monkeypatch.setenv("RANK", str(rank))
        assert outcome(UserError("no")) == 2
        assert capsys.readouterr().err == message
    assert sum(waits) == pytest.approx(10)


def test_a_mistake_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), reported():
        _ = 1 / 0


def test_a_long_text_becomes_one_short_line() -> None:
    assert one_line("one\n  two\r\nthree") == "one two three"
    assert len(one_line("x" * 300_000)) == 300 and one_line("x" * 300) == "x" * 300


def test_the_launcher_shows_the_line_as_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    assert outcome(UserError("--gamma 2: too large")) == 2
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=2, error_file=str(tmp_path / "error.json"))
    assert "traceback : --gamma 2: too large\n" in str(ChildFailedError("x", {0: failure}))


def test_a_rank_that_lets_rank_0_report_is_no_failure_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr("os._exit", left.append)
    replace_sleep(monkeypatch, lambda _: None if left else os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("RANK", "1")
    assert outcome(UserError("no")) == 2
    assert left == [0]


@pytest.mark.parametrize("code", [0, None, 3, "licence expired"])
def test_a_process_that_something_ends_before_the_run_has_failed(
    code: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exit_file.keep_in(tmp_path)
    assert outcome(SystemExit(code)) == 1
    message = f"something called sys.exit({code!r}) before the end of the run"
    assert how_ended(tmp_path) == (1, message)
    assert capsys.readouterr().err == f"error: {message}\n"


@pytest.mark.parametrize("content", ["", "[]", "{}", "5", "null", "[" * 200_000, '{"exit_code": null, "message": 1}'])
def test_a_file_that_does_not_say_how_a_run_ended_says_nothing(content: str, tmp_path: Path) -> None:
    (tmp_path / "exit.json").write_text(content)
    assert how_ended(tmp_path) is None


def test_after_the_end_of_a_run_its_exit_code_stays(tmp_path: Path) -> None:
    exit_file.keep_in(tmp_path)
    exit_file.write(0, "complete")
    assert outcome(SystemExit(0)) == 0


def test_what_catches_errors_does_not_catch_a_stop() -> None:
    with pytest.raises(StopError):
        try:
            raise StopError(signal.SIGTERM, "asked")
        except Exception:
            pytest.fail("caught")


@pytest.mark.parametrize(
    "variables",
    [
        "RANK=abc",
        "RANK=2",
        "RANK=-1",
        "LOCAL_RANK=2",
        "LOCAL_WORLD_SIZE=0",
        "LOCAL_WORLD_SIZE=abc",
        "LOCAL_WORLD_SIZE=3",
        "WORLD_SIZE=-1",
        "WORLD_SIZE=",
        "MASTER_PORT=abc",
        "MASTER_PORT=0",
        "MASTER_PORT=99999",
        "SLURM_NTASKS=abc SLURM_PROCID=0",
        "SLURM_NTASKS=2 SLURM_PROCID=0 SLURM_JOB_ID=x",
        "SLURM_NTASKS=2 SLURM_PROCID=x",
        "LT_PRECISION=16-true",
        "LT_PRECISION=64",
    ],
)
def test_what_a_launcher_cannot_have_set_is_answered_in_one_line(
    variables: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    launched = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    launched |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "LT_CLI_USED": "1"}
    given = dict(variable.split("=") for variable in variables.split())
    monkeypatch.setattr(os, "environ", os.environ | ({} if "SLURM" in variables else launched) | given)
    monkeypatch.setattr("sys.argv", ["train_fabric.py"])
    with pytest.raises(SystemExit) as exit_:
        command_line(train_fabric.main, CONFIGS, train_fabric.PROGRAM, train_fabric.told_to_fabric)
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    (name, value), *_ = [(name, value) for name, value in given.items() if value in line]
    assert f"{name.replace('LT_PRECISION', '--precision').replace('SLURM_PROCID', 'RANK')} {value}: must be " in line
    assert list(tmp_path.iterdir()) == []


def test_a_second_interrupt_ends_a_process_that_ignores_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "SECOND_TIME_SECONDS", 0.05)
    monkeypatch.setattr(interrupts, "PATIENCE_SECONDS", 0.05)
    signal.signal(signal.SIGINT, lambda *_: None)
    left = threading.Event()
    with impatience(left.set):
        for wait in (0.0, 0.01, 0.1):  # the second is a launcher that hands the first one on
            assert not left.wait(wait)
            os.kill(os.getpid(), signal.SIGINT)
        assert left.wait(10)


def test_a_block_that_ends_by_itself_after_a_second_interrupt_is_left_in_peace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "SECOND_TIME_SECONDS", 0.0)
    signal.signal(signal.SIGINT, lambda *_: None)
    left = threading.Event()
    with impatience(left.set):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.02)
    assert not left.is_set()
