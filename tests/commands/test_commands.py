"""The commands as a whole: help, --last, and one line for each mistake."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rl.commands import COMMANDS, main
from rl.run.checkpoint import read_checkpoint, write_checkpoint
from tests.programs.launch import ROOT


def test_help_names_every_command_and_imports_no_torch_nor_does_where() -> None:
    code = "import sys; from rl.commands import main; main(['where', 'train_fabric']); main(['--help'])"
    code += "; print({'torch'} & {*sys.modules})"
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=variables,
    )
    path, *lines, imported = result.stdout.splitlines()
    assert (path, imported) == (str(ROOT / "train_fabric.py"), "set()")
    for name, does in COMMANDS.items():
        assert any(line.split() == [name, *does.split()] for line in lines)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_of_every_command_is_explained(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([name, "--help"])
    said = capsys.readouterr().out
    assert exit_.value.code == 0 and f"usage: rl {name}" in said
    assert "type: ignore" not in said and len(said) > 200


def test_last_is_the_run_that_changed_last(run: Path, rl_: Callable[..., str], tmp_path: Path) -> None:
    for number, name in enumerate(("b", "a", "c")):
        folder = tmp_path / "elsewhere" / "torch_logs" / name
        folder.mkdir(parents=True)
        for file in ("config.json", "last.ckpt"):
            (folder / file).write_bytes((run / file).read_bytes())
            os.utime(folder / file, (number % 2, number % 2))
    said = rl_("evaluate", "--log-dir", "elsewhere", "--episodes", 1, "--last")
    assert said.startswith("CartPole-v1, elsewhere/torch_logs/a/last.ckpt after ")


MISTAKES = [
    ("pley RUN", 2, "'pley': is no command; must be one of play, evaluate, export, resume, runs, plot, envs, where"),
    ("evaluate nowhere", 66, "nowhere: does not exist; must be a run's folder, a checkpoint, or --last"),
    ("evaluate .", 66, ".: has no checkpoint; must be a run's folder, a checkpoint, or --last"),
    ("play --last", 66, "--last: there is no run in logs; name another folder with --log-dir"),
    ("evaluate RUN --episodes 0", 2, "--episodes 0: must be at least 1"),
    ("evaluate RUN --seed -1", 2, "--seed -1: must lie between 0 and 4294967295"),
    ("play RUN --video film.avi", 2, "--video film.avi: must end with .mp4 or .gif"),
    ("export RUN policy.h5", 2, "policy.h5: must end with .onnx, .pt2, .safetensors"),
    ("export RUN no/folder.safetensors", 73, "no/folder.safetensors: cannot be written: No such file or directory"),
    ("runs nowhere", 66, "nowhere: has no run; must be a folder in which runs are, such as logs"),
    ("plot RUN --out curves.bmp", 2, "--out curves.bmp: must end with .png, .svg or .pdf"),
    ("plot RUN --tag Loss/nothing", 66, "--tag Loss/nothing: no run has logged it"),
    ("plot nowhere", 66, "nowhere: does not exist; must be a run's folder"),
    ("resume RUN/last.ckpt/x", 66, "does not exist; must be a run's folder, a checkpoint, or --last"),
    ("where train", 2, "'train': is no program; must be one of train_fabric, train_fabric_decoupled, train_torch"),
    ("envs Pong-v9", 2, "Pong-v9: is in no id that is registered; an id of your module is given as module:id"),
]


@pytest.mark.parametrize(("words", "code", "message"), MISTAKES)
def test_a_mistake_is_one_line(
    words: str, code: int, message: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(words.replace("RUN", str(run)).split())
    said = capsys.readouterr().err.splitlines()
    assert exit_.value.code == code
    assert len(said) == 1 and said[0].startswith("error: ") and message in said[0]


def failing(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        main(words)
    return capsys.readouterr().err


def test_a_checkpoint_that_is_damaged_or_would_import_is_not_played(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = read_checkpoint(run / "last.ckpt")
    content["config"]["env"]["env_id"] = "tests.probes:Unseeded-v0"
    write_checkpoint(Path("other.ckpt"), content)
    for command in (["evaluate", "other.ckpt"], ["export", "other.ckpt", "x.onnx"], ["play", "other.ckpt"]):
        assert "imports, and so runs, the module tests.probes; add --allow-import" in failing(command, capsys)
    data = bytearray((run / "last.ckpt").read_bytes())
    data[len(data) // 2] ^= 1
    Path("damaged.ckpt").write_bytes(data)
    assert "damaged.ckpt: is damaged" in failing(["evaluate", "damaged.ckpt"], capsys)


def test_what_is_not_installed_is_said_with_the_command_that_installs_it(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("importlib.util.find_spec", lambda name: None)
        said = failing(["export", str(run), "x.onnx"], capsys)
    assert "needs onnx, onnxscript, onnxruntime; pip install onnx onnxscript onnxruntime" in said
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "; pip install matplotlib" in failing(["plot", str(run)], capsys)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert "; pip install 'imageio[ffmpeg]'" in failing(["play", str(run), "--video", "x.mp4"], capsys)


def test_what_cannot_be_shown_is_said(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = read_checkpoint(run / "last.ckpt")
    content["config"]["env"]["env_id"] = "Acrobot-v1"
    write_checkpoint(Path("other.ckpt"), content)
    said = failing(["play", "other.ckpt", "--video", "x.gif"], capsys)
    assert said.startswith("error: --env-id Acrobot-v1: one alone has other observations than a batch; ")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    said = failing(["play", str(run)], capsys)
    assert said == "error: DISPLAY is not set: there is no screen for a window; film it with --video FILE.mp4\n"
    monkeypatch.setenv("SDL_VIDEODRIVER", "no_such_driver")
    said = failing(["play", str(run)], capsys)
    assert "CartPole-v1: cannot be shown: " in said and "; film it with --video FILE.mp4" in said


def test_what_reads_the_output_may_leave_before_its_end() -> None:
    command = f"{sys.executable} -m rl envs | head -n 1"
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, env=variables)
    assert (result.returncode, result.stderr) == (0, "")
