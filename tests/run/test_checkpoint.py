"""Checkpoints as files: complete or absent, damage is detected, and nothing in one is executed."""

import hashlib
import io
import math
import os
import resource
import shutil
import signal
import struct
import sys
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import rl
import rl.run.checkpoint
import rl.run.folder
import train_torch
from rl.cli import command_line, parse
from rl.config import CONFIGS
from rl.envs.actions import BoxActions, DiscreteActions
from rl.envs.observations import vector
from rl.envs.spaces import Spaces
from rl.errors import CheckpointError, FolderError, StopError
from rl.models.agent import Agent
from rl.reporting import ExitFile, how_ended
from rl.run.checkpoint import FORMAT, from_bytes, packed, read_checkpoint, write_checkpoint
from rl.run.evaluation import act

FLAGS = ["--hidden-sizes", "8", "--no-shared-encoder", "--activation-function", "relu"]


def content_of(agent: Agent, *flags: str, update: int = 1) -> dict[str, Any]:
    """The content of a checkpoint of a run with these flags."""
    return {
        "format": FORMAT,
        "agent": agent.state_dict(),
        "spaces": asdict(agent.spaces),
        "config": parse([*FLAGS, *flags], CONFIGS).to_dict(),
        "learner": "ppo",
        "num_players": 1,
        "torch": "2.13",
        "run": {"update": update, "step": 8, "fraction": 0.0, "complete": False, "best_return": 1.0},
        "ranks": [torch.zeros(2000, dtype=torch.uint8)],
    }


def fresh_agent(spaces: Spaces, *flags: str) -> Agent:
    return Agent(spaces, parse([*FLAGS, *flags], CONFIGS).network)


AGENT = fresh_agent(Spaces(vector(3), DiscreteActions(4)))
OLD, NEW = (content_of(AGENT, update=number) for number in (1, 2))


def saved(tmp_path: Path, spaces: Spaces) -> tuple[Path, Agent]:
    agent = fresh_agent(spaces)
    write_checkpoint(tmp_path / "last.ckpt", content_of(agent))
    return tmp_path / "last.ckpt", agent


BOUNDS = (-(2.0**-7), -9.0), (2.0**-7, 9.0)


@pytest.mark.parametrize(
    "spaces",
    [
        Spaces(vector(3), DiscreteActions(4, start=2)),
        Spaces(vector(3), BoxActions(*BOUNDS)),
        Spaces(vector(3), BoxActions(*BOUNDS, shape=(1, 2), squash=True)),
    ],
)
def test_a_loaded_policy_acts_as_the_saved_one(tmp_path: Path, spaces: Spaces) -> None:
    path, agent = saved(tmp_path, spaces)
    policy = rl.load_policy(path)
    obs = np.random.default_rng(0).normal(size=(20, 3))
    assert np.array_equal(policy(obs), act(agent, obs))
    assert np.allclose(policy(obs[0]), policy(obs)[0])
    if isinstance(spaces.actions, DiscreteActions):
        assert set(policy(obs)) <= {2, 3, 4, 5}
    else:
        assert (abs(policy(obs)) <= [2.0**-7, 9.0]).all()


def test_a_policy_that_an_earlier_version_saved_acts_as_it_did(tmp_path: Path) -> None:
    agent = fresh_agent(Spaces(vector(3), BoxActions(*BOUNDS)))
    content = content_of(agent)
    for name in ("shape", "squash"):
        del content["spaces"]["actions"][name]
    del content["config"]["network"]["log_std_init"]
    write_checkpoint(tmp_path / "last.ckpt", content)
    assert np.array_equal(rl.load_policy(tmp_path / "last.ckpt")(np.ones(3)), act(agent, np.ones(3)))


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-true", torch.bfloat16), ("bf16-mixed", torch.float32)])
def test_a_loaded_policy_computes_as_the_evaluation_of_its_run(
    precision: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    spaces = Spaces(vector(3), DiscreteActions(4))
    agent = fresh_agent(spaces, "--no-ortho-init").to(dtype)  # a mixed run's is in float32
    write_checkpoint(tmp_path / "last.ckpt", content_of(agent, "--precision", precision))
    obs = np.random.default_rng(0).normal(size=(20_000, 3))
    assert np.array_equal(rl.load_policy(tmp_path / "last.ckpt")(obs), act(agent, obs))
    assert not np.array_equal(act(agent.double(), obs), act(agent.to(torch.bfloat16), obs))


def test_torch_alone_reads_the_file_too_and_it_is_all_that_is_written(tmp_path: Path) -> None:
    path, agent = saved(tmp_path, Spaces(vector(3), DiscreteActions(4)))
    assert list(tmp_path.iterdir()) == [path]
    content = torch.load(path, weights_only=True)
    assert content["agent"].keys() == agent.state_dict().keys()
    assert content["config"]["network"]["hidden_sizes"] == (8,)


def test_an_environment_takes_the_loaded_policys_action(tmp_path: Path) -> None:
    path, _ = saved(tmp_path, Spaces(vector(2), DiscreteActions(2)))
    env = gym.make("CustomEnv-v0")
    obs, _ = env.reset()
    env.step(rl.load_policy(path)(obs))
    for shape in ((), (obs.size + 1,), (obs.size, 2, obs.size)):
        with pytest.raises(ValueError, match=rf"must be \[{obs.size}\] or \[N, {obs.size}\]"):
            rl.load_policy(path)(np.zeros(shape))


def damaged(data: bytes, how: str, generator: np.random.Generator) -> bytes:
    if how == "truncated":
        return data[: generator.integers(len(data))]
    place, bit = generator.integers(len(data)), generator.integers(8)
    return data[:place] + bytes([data[place] ^ (1 << bit)]) + data[place + 1 :]


@pytest.mark.parametrize("how", ["truncated", "one bit flipped"])
def test_of_a_thousand_damaged_files_none_is_accepted(how: str, tmp_path: Path) -> None:
    path, generator = tmp_path / "x.ckpt", np.random.default_rng(0)
    whole = packed(OLD)
    path.write_bytes(whole)
    assert read_checkpoint(path)["run"]["update"] == 1
    for _ in range(1000):
        path.write_bytes(damaged(whole, how, generator))
        with pytest.raises(CheckpointError, match=r"x\.ckpt: is (damaged|incomplete)"):
            read_checkpoint(path)


class Malicious:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch executed",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"format": FORMAT, "agent": Malicious()}, "holds more than tensors and numbers, among them posix.system"),
        ({"format": FORMAT + 1}, f"has format {FORMAT + 1}; this version of the program reads formats 2 and {FORMAT}"),
        ({"agent": {}}, "has format None"),
        (OLD | {"agent": {"w": torch.zeros((), device="meta").expand(10**6)}}, "agent/w is larger than the file"),
        (OLD | {"agent": {"w": torch.zeros(1).expand(10**6)}}, "agent/w is larger than the file"),
    ],
)
def test_a_foreign_file_is_named_as_such_and_executes_nothing(
    content: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "x.ckpt").write_bytes(packed(content))
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "x.ckpt")
    assert not Path("executed").exists()


def test_a_small_file_that_would_fill_the_memory_is_not_unpacked(tmp_path: Path) -> None:
    plain, small = io.BytesIO(packed(OLD | {"ranks": [torch.zeros(10**7, dtype=torch.uint8)]})), io.BytesIO()
    with zipfile.ZipFile(plain) as whole, zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as compressed:
        for record in whole.infolist():
            compressed.writestr(record.filename, whole.read(record))
    data = small.getvalue()[:-2] + struct.pack("<H", 71)
    (tmp_path / "x.ckpt").write_bytes(data + b"sha256 " + hashlib.sha256(data).hexdigest().encode())
    assert len(data) < 10**5
    with pytest.raises(CheckpointError, match=r"x\.ckpt: is compressed, which no checkpoint of this program is"):
        read_checkpoint(tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match="is compressed"):  # the state of a rank
        from_bytes(torch.frombuffer(bytearray(small.getvalue()), dtype=torch.uint8))


def change(content: dict[str, Any], place: str, value: object) -> dict[str, Any]:
    """The content with another value at a path such as config.network.hidden_sizes."""
    name, _, rest = place.partition(".")
    if rest:
        value = change(content[name], rest, value)
    return {key: old for key, old in content.items() if key != name} | ({} if value is GONE else {name: value})


GONE = object()
CHANGES = [
    *((name, GONE) for name in ("agent", "spaces", "config", "learner", "num_players", "run", "ranks")),
    *(("ranks", wrong) for wrong in ([], ["x"], None, [torch.zeros(3, dtype=torch.uint8)], [torch.tensor(math.nan)])),
    *((f"run.{name}", wrong) for name in ("step", "update") for wrong in (math.nan, "x", GONE)),
    *(("run.best_return", "x"), ("run.complete", None), ("run.update", -1), ("run.fraction", "x")),
    *(("num_players", wrong) for wrong in (0, "1", math.nan, 10**30)),
    *(("learner", wrong) for wrong in (None, "a2c", [])),
    *(("config", wrong) for wrong in ({}, [], None)),
    *((f"config.{name}", wrong) for name in ("env", "network", "keep", "learner") for wrong in (GONE, None, {}, "x")),
    *(("config.env.num_envs", wrong) for wrong in ("2", 0, None)),
    *(("config.env.env_id", wrong) for wrong in (3, "../x")),
    *(("config.learner.learning_rate", wrong) for wrong in ("x", math.nan, None)),
    *(("config.network.hidden_sizes", (wrong,)) for wrong in (None, 60_000, 0, 10**30, 8.0, (8,))),
    *(("config.network.hidden_sizes", wrong) for wrong in (None, 8, (), (8, 8), 1001 * (8,), [8])),
    *(("config.network.activation_function", wrong) for wrong in ("exp", None)),
    *((f"config.{name}", wrong) for name in ("exp_name", "seed", "precision") for wrong in (None, "../x", [])),
    *(("config.keep.checkpoint_every", wrong) for wrong in ("often", 3)),
    *((f"spaces.{name}", wrong) for name in ("obs", "actions") for wrong in (GONE, None, "3", 4, {})),
    *(("agent", wrong) for wrong in ({}, [], {"x": 3}, {"x": torch.zeros(3)})),
    *(("agent", AGENT.state_dict() | {"critic.bias": torch.tensor(wrong)}) for wrong in ([math.nan], [1], 1.0)),
]


@pytest.mark.parametrize(("place", "value"), CHANGES, ids=lambda value: "gone" if value is GONE else str(value)[:40])
def test_a_field_that_no_run_would_have_written_is_refused_in_one_line(
    place: str, value: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The digest is correct, since a forger can compute it."""
    write_checkpoint(Path("x.ckpt"), change(OLD, place, value))
    monkeypatch.setattr("sys.argv", ["x", "--resume", "x.ckpt"])
    with pytest.raises(SystemExit) as exit_:
        command_line(train_torch.main, CONFIGS, train_torch.PROGRAM)
    (line,) = capsys.readouterr().err.splitlines()
    assert exit_.value.code == 65 and line.startswith("error: ") and len(line) < 500
    assert os.listdir() == ["x.ckpt"]


def in_child(action: Callable[[], None]) -> int:
    """The exit code of a forked process that performs the action."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        action()
    except OSError as error:
        os._exit(100 + error.errno)
    except BaseException:
        os._exit(1)
    os._exit(0)


def dying_at(moment: int, path: Path) -> Callable[[], None]:
    """Writes a checkpoint, and dies before the line with this number."""
    lines = 0

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal lines
        if frame.f_code.co_filename != rl.run.checkpoint.__file__:
            return None
        if event == "line":
            lines += 1
            if lines == moment:
                os._exit(9)
        return trace

    def write() -> None:
        sys.settrace(trace)
        write_checkpoint(path, NEW)

    return write


def test_whenever_the_writer_dies_the_file_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    found = []
    for moment in range(1, 100):
        write_checkpoint(path, OLD)
        code = in_child(dying_at(moment, path))
        found.append(read_checkpoint(path)["run"]["update"])
        if code == 0:
            break
        assert code == 9
    assert code == 0 and len(found) > 10
    assert found == sorted(found) and set(found) == {1, 2}
    # What a dead writer left does not block the next one.
    write_checkpoint(path, OLD)
    assert [file.name for file in tmp_path.iterdir()] == ["x.ckpt"]


def test_a_full_disk_is_an_error_and_leaves_the_file_before_it_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    write_checkpoint(path, OLD)

    def write() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        write_checkpoint(path, NEW)

    assert in_child(write) == 100 + 27  # file too large
    assert read_checkpoint(path)["run"]["update"] == 1
    assert list(tmp_path.iterdir()) == [path]


def test_no_link_is_followed_where_a_file_is_written(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("mine")
    (tmp_path / "x").mkdir()
    for name in ("x.ckpt", ".x.ckpt.tmp", "exit.json", ".exit0.tmp", ".lock"):
        (tmp_path / "x" / name).symlink_to(other)
    write_checkpoint(tmp_path / "x/x.ckpt", NEW)
    exit_file = ExitFile()
    exit_file.keep_in(tmp_path / "x")
    exit_file.write(0, "complete")
    with pytest.raises(FolderError, match="cannot be written"):
        rl.run.folder._lock(tmp_path / "x")
    (tmp_path / "x/.lock").unlink()
    (tmp_path / "x/.lock").write_text("4711 is my number")
    with pytest.raises(FolderError, match="holds more than a process's number; remove it"):
        rl.run.folder._lock(tmp_path / "x")
    assert other.read_text() == "mine" and (tmp_path / "x/.lock").read_text() == "4711 is my number"
    assert read_checkpoint(tmp_path / "x/x.ckpt")["run"]["update"] == 2 and how_ended(tmp_path / "x") == (0, "complete")
    assert not any(path.is_symlink() for path in (tmp_path / "x").iterdir())


def test_a_stop_in_the_middle_of_writing_leaves_the_file_before_it_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.ckpt"
    write_checkpoint(path, OLD)

    def stopped(file: int) -> None:
        raise StopError(signal.SIGTERM, "now")

    with monkeypatch.context() as patched, pytest.raises(StopError):
        patched.setattr(os, "fsync", stopped)
        write_checkpoint(path, NEW)
    assert list(tmp_path.iterdir()) == [path] and read_checkpoint(path)["run"]["update"] == 1


def test_what_cannot_be_written_is_never_a_silent_success(tmp_path: Path) -> None:
    for folder in (tmp_path / "absent", Path("/proc")):
        with pytest.raises(OSError, match=r"\[Errno"):
            write_checkpoint(folder / "x.ckpt", NEW)


def test_it_is_written_beside_where_it_will_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Renaming does not copy, wherever the folder for temporary files is."""
    replaced: list[tuple[Path, Path]] = []
    monkeypatch.setattr(Path, "replace", lambda path, other: replaced.append((path, other)))
    write_checkpoint(tmp_path / "x.ckpt", NEW)
    ((unfinished, path),) = replaced
    assert unfinished.parent == path.parent == tmp_path
    shutil.copy(unfinished, path)
    assert read_checkpoint(path)["run"]["update"] == 2
