"""Opening a file or joining a run executes nothing, and no name leads outside the log folder."""

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import train_torch
from rl.cli import command_line
from rl.config import CONFIGS, Config
from rl.envs.config import EnvConfig
from rl.errors import UserError
from rl.reporting import how_ended
from rl.run.folder import folder_stem, run_of
from tests import probes  # noqa: F401 (registers them)

ROOT = Path(__file__).parent.parent
SOURCES = [*(ROOT / "rl").rglob("*.py"), *ROOT.glob("train_*.py")]


def test_no_pickle_is_read_from_a_file_or_from_the_network() -> None:
    assert len(SOURCES) > 30
    for path in SOURCES:
        source = path.read_text()
        assert not re.search(r"\b(pickle|cloudpickle|dill|marshal|shelve)\b|_object(s|_list)?\(", source), path
        for call in re.findall(r"torch\.load\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)", source):
            assert "weights_only=True" in call, (path, call)
        assert "weights_only=False" not in source and "add_safe_globals" not in source


FLAGS = "--num-envs 2 --num-steps 8 --total-timesteps 32 --hidden-sizes 8 8 --eval-episodes 1 --execution eager"


def train(monkeypatch: pytest.MonkeyPatch, *flags: str) -> int:
    """The exit code of a small run."""
    monkeypatch.setattr("sys.argv", ["x", *FLAGS.split(), "--no-keep-best", "--checkpoint-every", "1", *flags])
    try:
        command_line(train_torch.main, CONFIGS, train_torch.PROGRAM)
    except SystemExit as exit_:
        return int(exit_.code)
    return 0


def test_a_checkpoint_does_not_give_itself_leave_to_import(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(monkeypatch, "--env-id", "tests.probes:Unseeded-v0", "--allow-import") == 0
    (checkpoint,) = Path("logs").glob("*/*/checkpoints/*01.ckpt")
    assert train(monkeypatch, "--resume", str(checkpoint)) == 2
    assert "error: --env-id tests.probes:Unseeded-v0: imports, and so runs, the module" in capsys.readouterr().err
    assert train(monkeypatch, "--resume", str(checkpoint), "--allow-import") == 0


@pytest.mark.parametrize(
    "name", [".lock", "config.json", "exit.json", ".last.ckpt.tmp", "last.ckpt", "checkpoints", "videos/x.mp4"]
)
def test_a_run_is_not_resumed_in_a_folder_whose_links_lead_elsewhere(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train(monkeypatch)
    (folder,) = Path("logs/torch_logs").iterdir()
    link = folder / name
    link.parent.mkdir(exist_ok=True)
    if link.exists():
        link.rename("elsewhere")
    else:
        Path("elsewhere").write_text("mine")
    link.symlink_to(Path("elsewhere").absolute())
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    assert train(monkeypatch, "--resume", str(folder), "--total-timesteps", "64") == 73
    assert f"{link.absolute()} is a link, and nothing is written through one" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before


def test_nobody_else_may_write_what_a_run_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.umask(0)
    try:
        train(monkeypatch)
    finally:
        os.umask(before)
    left = list(Path("logs").rglob("*"))
    assert len(left) > 5 and [path for path in left if path.stat().st_mode & 0o022] == []


@pytest.mark.parametrize(
    "said",
    ["[]", "{}", "5", "null", "", 200_000 * "[", '{"exit_code": 1e999, "message": 1}', "\xff"],
    ids=lambda s: s[:9],
)
def test_whatever_stands_in_exit_json_is_no_error(said: str, tmp_path: Path) -> None:
    (tmp_path / "exit.json").write_text(said, "latin-1")
    assert how_ended(tmp_path) is None
    for name in ("config.json", "last.ckpt"):
        (tmp_path / name).write_text(said, "latin-1")
    assert run_of(tmp_path / "last.ckpt") is None


names = st.text(max_size=90) | st.from_regex(r"[\w./:$~ -]*", fullmatch=True) | st.just("..") | st.just("../x")


@given(exp_name=names, env_id=names)
def test_whatever_is_accepted_as_a_name_stays_inside_the_log_folder(exp_name: str, env_id: str) -> None:
    config = Config(exp_name=exp_name, env=EnvConfig(env_id=env_id))
    try:
        config.check_names()
    except UserError:
        return
    folder = Path("/logs/program") / f"{folder_stem(config)}_x"
    assert folder.resolve().parent == Path("/logs/program") and "\n" not in str(folder)


@given(env_id=st.from_regex(r"[\w./-]*:[\w.:/-]*", fullmatch=True))
def test_no_environments_name_imports_anything_unless_a_flag_says_so(env_id: str) -> None:
    with pytest.raises(UserError):
        EnvConfig(env_id=env_id).check()
