"""Compilers that work, or are missing, and where compiled code is kept."""

import os
import subprocess
from pathlib import Path

import pytest
import torch
import torch._inductor.config  # reads CXX when it is imported, which must not be while a test has set it
from torch._inductor import codecache, cpp_builder
from torch._inductor.exc import CppCompileError
from torch._inductor.utils import fresh_cache

from rl.compile import Execution, compiled
from rl.compilers import compiler_missing, forget_headers, keep_caches_private
from rl.config import Config
from rl.errors import UserError

CPU = torch.device("cpu")


def test_without_a_compiler_the_run_is_eager_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for compiler, what in (
        ("no-such-compiler", "a C++ compiler (no-such-compiler)"),
        ("", "a C++ compiler (CXX is empty)"),
        ("false", "a C++ compiler that works (false does not)"),
        ("true", "a C++ compiler that works (true does not)"),
    ):
        monkeypatch.setenv("CXX", compiler)
        assert Config(execution="compile").make_execution(CPU).mode == "eager"
        note = f"note: {what} is missing, so nothing is compiled and the run takes longer\n"
        assert capsys.readouterr().err == note
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    assert Config(execution="compile").make_execution(CPU).mode == "eager"
    assert "torch's compiler (TORCH_COMPILE_DISABLE turns it off) is missing" in capsys.readouterr().err


def test_a_compiler_behind_a_cache_is_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "ccache g++ -m64")
    assert compiler_missing(CPU) is None
    options: list[dict[str, object]] = []
    monkeypatch.setattr("torch.compile", lambda function, **arguments: options.append(arguments["options"]))
    compiled(abs, CPU)
    assert options[0]["cpp.cxx"] == (None, "g++")


def test_on_a_gpu_too_a_compiler_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.delenv("CC", raising=False)
    assert compiler_missing(torch.device("cuda")) is None
    monkeypatch.setenv("PATH", "")
    assert compiler_missing(torch.device("cuda")) == "a C compiler (gcc)"


def test_what_was_compiled_is_kept_where_nobody_else_can_write(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/mine")
    monkeypatch.setenv("TRITON_CACHE_DIR", "")
    monkeypatch.delenv("TRITON_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    keep_caches_private()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/mine"
    triton = os.environ["TRITON_CACHE_DIR"]
    assert triton.startswith(str(tmp_path / "cache/rl/triton-"))
    monkeypatch.delenv("TRITON_CACHE_DIR")
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "OTHER")
    keep_caches_private()
    assert os.environ["TRITON_CACHE_DIR"].startswith(str(tmp_path / "cache/rl/triton-other-"))  # of another CPU
    assert (tmp_path / "cache/rl").stat().st_mode & 0o777 == 0o700
    for how in ("open to others", "a link"):
        monkeypatch.delenv("TRITON_CACHE_DIR")
        if how == "a link":
            (tmp_path / "cache/rl").rename(tmp_path / "elsewhere")
            (tmp_path / "cache/rl").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "cache/rl").chmod(0o700 if how == "a link" else 0o777)
        with pytest.raises(UserError, match=r"cache/rl: .* must be yours alone"):
            keep_caches_private()
        monkeypatch.setenv("TRITON_CACHE_DIR", "")
    with pytest.raises(UserError, match=r"cache/rl: .* must be yours alone"):
        keep_caches_private()  # also where both caches are elsewhere, since headers would be there
    monkeypatch.delenv("TRITON_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")  # no home to write to
    keep_caches_private()
    assert Path(os.environ["TRITON_CACHE_DIR"]).parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(("exit_code", "forgets"), [(-2, False), (1, True)])
def test_a_compiler_that_a_signal_has_ended_is_started_again_and_one_that_failed_without_old_headers(
    exit_code: int, forgets: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, exit_codes, forgotten = cpp_builder._run_compile_cmd, [exit_code], []

    def run_unless_ended(command: str, cwd: str) -> None:
        if ".main.cpp" in command and exit_codes:
            ended = subprocess.CalledProcessError(exit_codes.pop(), command)
            raise CppCompileError(command.split(), "interrupted") from ended
        run(command, cwd)

    monkeypatch.setattr(cpp_builder, "_run_compile_cmd", run_unless_ended)
    monkeypatch.setattr("rl.compile.forget_headers", lambda: forgotten.append(True))
    with fresh_cache():
        assert Execution("compile").step(lambda number: number + exit_code)(torch.ones(())) == 1 + exit_code
    assert exit_codes == [] and bool(forgotten) == forgets
    assert capsys.readouterr().err == ""  # no note that it is not compiled


def test_headers_that_may_be_broken_are_deleted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "headers").mkdir()
    (tmp_path / "headers" / "half.gch").write_bytes(b"gpch")
    monkeypatch.setattr(codecache, "_HEADER_DIR", str(tmp_path / "headers"))
    forget_headers()
    forget_headers()  # as another rank may
    assert not (tmp_path / "headers").exists()
