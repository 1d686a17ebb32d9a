"""What launchers print when ranks of this package end."""

import logging
import os
import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import DistNetworkError
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

import rl_launcher
from rl.reporting import note_end

ROOT = Path(__file__).parent.parent


def failed(error_file: Path | str, exit_code: int = 2) -> ChildFailedError:
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=exit_code, error_file=str(error_file))
    return ChildFailedError("path/train_torch.py", {3: failure})


def ends(error: BaseException) -> object:
    with pytest.raises(SystemExit) as exit_:
        rl_launcher.ending_briefly(lambda *_: pytest.fail("left to others"))(type(error), error, None)
    return exit_.value.code


def test_a_launcher_ends_in_a_line_with_the_exit_code_of_the_rank_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    note_end(71, "the environment has failed")
    assert ends(failed(tmp_path / "error.json", 71)) == 71
    assert capsys.readouterr().err == "rank 3 of train_torch.py has ended with exit code 71\n"


def test_of_a_rank_that_a_signal_has_killed_torch_says_all_that_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert ends(failed("<N/A>", -9)) == 137
    said = capsys.readouterr().err
    assert "Signal 9 (SIGKILL) received by PID 1" in said and "Traceback" not in said


def test_a_launcher_that_a_signal_stops_has_the_conventional_exit_code() -> None:
    assert ends(SignalException("got it", 2)) == 130  # type: ignore[arg-type]


def test_other_errors_of_a_launcher_keep_their_traceback() -> None:
    seen: list[Any] = []
    rl_launcher.ending_briefly(lambda *error: seen.append(error))(ValueError, error := ValueError(), None)
    assert seen == [(ValueError, error, None)]


def test_launchers_of_other_programs_are_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text("from rl.config import Config")
    for words, ours in ((["--devices=2", "other.py"], False), (["run", str(ROOT / "train_fabric.py")], True)):
        monkeypatch.setattr(sys, "argv", ["fabric", *words])
        monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
        monkeypatch.setattr(logging.Logger, "addFilter", lambda *_: None)
        monkeypatch.setattr(os, "environ", {})
        rl_launcher.plug_in()
        assert (sys.excepthook is not sys.__excepthook__) == ours
        assert ("GLIBC_TUNABLES" in os.environ) == ours
    assert rl_launcher.launches_ours(["--nproc_per_node=2", "-m", "train_torch", "--seed", "1"])
    assert not rl_launcher.launches_ours(["-m", "no_such_module", "nowhere.py"])
    (tmp_path / "other.py").write_text("print('from rl.cli import command_line')  # from rl.cli import")
    for words in (["other.py"], ["other.py", str(ROOT / "train_torch.py")], ["other.py", f"{'a' * 300}.py"]):
        assert not rl_launcher.launches_ours([str(tmp_path / word) if word == "other.py" else word for word in words])


def test_a_taken_port_is_said_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert ends(DistNetworkError("port: 29400, error: EADDRINUSE: address already in use")) == 1
    assert re.fullmatch("error: .*--main-port.*\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("logger", "message", "arguments", "says_nothing_new"),
    [
        ("multiprocessing.api", "Sending process %s closing signal %s", (5, "SIGTERM"), True),
        ("multiprocessing.api", "failed (exitcode: %s) local_rank: %s (pid: %s) of binary: %s", (2, 0, 5, "x"), True),
        ("multiprocessing.api", "failed (exitcode: %s) local_rank: %s (pid: %s) of binary: %s", (-9, 0, 5, "x"), False),
        ("multiprocessing.api", "Unable to shutdown process %s", (5,), False),
        ("agent.server.api", "Received %s death signal, shutting down workers", (2,), True),
    ],
)
def test_messages_that_say_nothing_new_are_left_out(
    logger: str, message: str, arguments: tuple[object, ...], says_nothing_new: bool
) -> None:
    record = logging.LogRecord("x", logging.ERROR, "", 0, message, arguments, None)
    assert rl_launcher.is_noise(record, rl_launcher.NOISE[f"{rl_launcher.ELASTIC}.{logger}"]) == says_nothing_new


def test_torch_is_told_of_the_plug_in_when_the_package_is_installed() -> None:
    configured = re.search(r'"torchrun.handlers"\]\nrl = "(.*)"', (ROOT / "pyproject.toml").read_text())
    assert configured and EntryPoint("rl", configured[1], "torchrun.handlers").load() is rl_launcher.plug_in
