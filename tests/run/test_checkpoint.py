"""Checkpoints as files: whole or absent, damage is found, and nothing in one is executed."""

import os
import resource
import shutil
import signal
import sys
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
from rl.agent import Agent
from rl.command_line import parse
from rl.config import CONFIGS
from rl.envs.spaces import BoxActions, DiscreteActions, Spaces
from rl.errors import CheckpointError
from rl.run.checkpoint import FORMAT, packed, read_checkpoint, write_checkpoint
from rl.run.evaluation import act

FLAGS = ["--hidden-size", "8", "--hidden-layers", "1", "--no-shared-encoder", "--activation-function", "relu"]
OLD, NEW = ({"format": FORMAT, "number": number, "values": torch.arange(2000.0)} for number in (1, 2))


def saved(tmp_path: Path, spaces: Spaces) -> tuple[Path, Agent]:
    config = parse(FLAGS, CONFIGS)
    agent = Agent(spaces, config.network)
    content = {"format": FORMAT, "agent": agent.state_dict(), "spaces": asdict(spaces), "config": config.to_dict()}
    write_checkpoint(tmp_path / "last.ckpt", content)
    return tmp_path / "last.ckpt", agent


@pytest.mark.parametrize(
    "spaces", [Spaces(3, DiscreteActions(4, start=2)), Spaces(3, BoxActions((-(2.0**-7), -9.0), (2.0**-7, 9.0)))]
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


def test_torch_alone_reads_the_file_too_and_it_is_all_that_is_written(tmp_path: Path) -> None:
    path, agent = saved(tmp_path, Spaces(3, DiscreteActions(4)))
    assert list(tmp_path.iterdir()) == [path]
    content = torch.load(path, weights_only=True)
    assert content["agent"].keys() == agent.state_dict().keys()
    assert content["config"]["network"]["hidden_size"] == 8


def test_an_environment_takes_the_loaded_policys_action(tmp_path: Path) -> None:
    path, _ = saved(tmp_path, Spaces(2, DiscreteActions(2)))
    env = gym.make("CustomEnv-v0")
    obs, _ = env.reset()
    env.step(rl.load_policy(path)(obs))
    for shape in ((), (obs.size + 1,), (obs.size, 2, obs.size)):
        with pytest.raises(ValueError, match=rf"must be \[D\] or \[N, D\] with D={obs.size}"):
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
    assert read_checkpoint(path)["number"] == 1
    for _ in range(1000):
        path.write_bytes(damaged(whole, how, generator))
        with pytest.raises(CheckpointError, match=r"x\.ckpt: is (damaged|not whole)"):
            read_checkpoint(path)


class Malicious:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch executed",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"format": FORMAT, "agent": Malicious()}, "holds more than tensors and numbers, among them posix.system"),
        ({"format": FORMAT + 1}, f"has format {FORMAT + 1}; this version of the program reads format {FORMAT}"),
        ({"agent": {}}, "has format None"),
    ],
)
def test_a_foreign_file_is_named_as_such_and_executes_nothing(
    content: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "x.ckpt").write_bytes(packed(content))
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "x.ckpt")
    assert not Path("executed").exists()


def in_child(action: Callable[[], None]) -> int:
    """The exit code of a process that does this."""
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
    """Writes a checkpoint, and dies before a line of doing so."""
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
        found.append(read_checkpoint(path)["number"])
        if code == 0:
            break
        assert code == 9
    assert code == 0 and len(found) > 10
    assert found == sorted(found) and set(found) == {1, 2}
    # What a dead writer left does not hinder the next.
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
    assert read_checkpoint(path)["number"] == 1
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_never_a_silent_success(tmp_path: Path) -> None:
    for folder in (tmp_path / "absent", Path("/proc")):
        with pytest.raises(OSError, match=r"\[Errno"):
            write_checkpoint(folder / "x.ckpt", NEW)


def test_it_is_written_beside_where_it_will_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it is renamed and not copied, wherever the folder for temporary files is."""
    replaced: list[tuple[Path, Path]] = []
    monkeypatch.setattr(Path, "replace", lambda path, other: replaced.append((path, other)))
    write_checkpoint(tmp_path / "x.ckpt", NEW)
    ((unfinished, path),) = replaced
    assert unfinished.parent == path.parent == tmp_path
    shutil.copy(unfinished, path)
    assert read_checkpoint(path)["number"] == 2
