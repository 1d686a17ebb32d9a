"""`rl runs`, `rl plot`, `rl resume` and `rl envs`, on the folders that runs leave."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

import rl.commands.resume
import train_torch
from rl.cli import command_line
from rl.commands.resume import command_for
from rl.commands.text import duration, number
from rl.config import CONFIGS
from rl.envs import families
from rl.envs.families import Family
from rl.envs.tensor_envs import TENSOR_ENVS
from rl.run.checkpoint import read_checkpoint
from rl.run.curves import Curve, mean_curve, read_curve
from tests.programs.launch import ROOT, scalars

Run = Callable[..., str]


def copied(run: Path, name: str = "x", program: str = "torch_logs") -> Path:
    return Path(shutil.copytree(run, Path("logs", program, name)))


def test_runs_are_listed_with_how_they_ended(run: Path, rl_: Run) -> None:
    for name in ("complete", "failed", "running", "killed"):
        copied(run, name)
    failed, running, killed = (Path("logs/torch_logs", name) for name in ("failed", "running", "killed"))
    (failed / "exit.json").write_text(json.dumps({"exit_code": 71, "rank": 0, "message": "a wall\x1b fell over"}))
    for folder in (running, killed):
        (folder / "exit.json").unlink()
    (running / ".lock").write_text(str(os.getpid()))
    (killed / ".lock").write_text(str(2**22 + 1))  # more than any process has
    rows = {Path(row["path"]).name: row for row in json.loads(rl_("runs", "--json"))}
    assert {name: row["ended"] for name, row in rows.items()} == {
        "complete": "complete",
        "failed": "a wall fell over (71)",
        "running": "running",
        "killed": "killed",
    }
    logged, row = scalars(run), rows["complete"]
    assert row["steps"] == logged["Rewards/last_100_episodes"][-1][0]
    assert row["last_return"] == pytest.approx(logged["Rewards/last_100_episodes"][-1][1])
    assert row["best"] == pytest.approx(logged["Test/cumulative_reward"][-1][1])
    assert (row["task"], row["program"], row["learner"], row["seed"]) == ("CartPole-v1", "torch", "ppo", "1")
    header, *lines = rl_("runs", "logs").splitlines()
    assert header.split() == [
        "task",
        "program",
        "learner",
        "seed",
        "steps",
        "return",
        "best",
        "ended",
        "changed",
        "run",
    ]
    assert len(lines) == 4 and "s ago" in lines[0]


def test_a_run_of_another_version_does_not_hide_the_others(run: Path, rl_: Run) -> None:
    copied(run)
    old = Path("logs/torch_logs/old")
    old.mkdir()
    (old / "config.json").write_text('{"env": 1, "network": {}, "keep": {}, "learner": {"unknown": 1}}')
    assert [row["learner"] for row in json.loads(rl_("runs", "--json"))] == ["–", "ppo"]


def test_seconds_are_those_of_the_logged_speed(run: Path) -> None:
    logged, curve = scalars(run), read_curve(run)
    at, speeds = np.array(logged["Time/step_per_second"]).T
    assert curve.seconds[-1] == pytest.approx((np.diff(at, prepend=0) / speeds).sum())
    assert curve.steps.tolist() == [step for step, _ in logged["Rewards/last_100_episodes"]]


def test_a_mean_curve_averages_values_at_equal_steps() -> None:
    curves = [[[0, 0.0, 0.0], [100, 10.0, 50.0]], [[0, 0.0, 20.0], [50, 15.0, 70.0], [100, 30.0, 120.0]]]
    both = [Curve(*np.array(curve).T) for curve in curves]
    steps, mean, spread = mean_curve(both, "steps")
    np.testing.assert_allclose(mean, (0.5 * steps + 20 + steps) / 2)
    np.testing.assert_allclose(spread, (20 + 0.5 * steps) / 2)
    seconds, *_ = mean_curve(both, "seconds")
    np.testing.assert_allclose(seconds, 0.2 * steps)


@pytest.mark.parametrize("flags", [["curves.png"], ["curves.svg", "--x", "seconds", "--tag", "Loss/value_loss"]])
def test_curves_are_drawn(flags: list[str], run: Path, rl_: Run) -> None:
    copied(run, "one")
    other = copied(run, "two")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"seed": 2}))
    assert rl_("plot", "logs", run, "--out", *flags) == f"{flags[0]}: 3 runs of CartPole-v1\n"
    assert Path(flags[0]).stat().st_size > 5000
    if flags[0].endswith("svg"):
        assert "Loss/value_loss" in Path(flags[0]).read_text() and "3 seeds" in Path(flags[0]).read_text()


def test_a_run_goes_on_for_longer(run: Path, rl_: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copied(run)
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda program, words: started.append(words))
    said = rl_("resume", "--last", "--total-timesteps", "1536")
    command = f"{ROOT / 'train_torch.py'} --resume {folder.absolute()} --total-timesteps 1536"
    assert said == f"{sys.executable} {command}\n" and started == [said.split()]
    monkeypatch.setattr("sys.argv", started[0][1:])
    command_line(train_torch.main, CONFIGS, train_torch.PROGRAM)
    assert (
        read_checkpoint(folder / "last.ckpt")["run"]["step"] >= 1536 > read_checkpoint(run / "last.ckpt")["run"]["step"]
    )


@pytest.mark.parametrize(
    ("program", "num_ranks", "learner", "cuda", "expected"),
    [
        ("fabric_logs", 1, "ppo", False, "PYTHON ROOT/train_fabric.py --resume RUN --seed 1"),
        (
            "fabric_logs",
            2,
            "reinforce",
            True,
            "FABRIC run --devices=2 --accelerator=cuda ROOT/train_fabric.py reinforce --resume RUN --seed 1",
        ),
        (
            "fabric_decoupled_logs",
            3,
            "ppo",
            True,
            "FABRIC run --devices=3 --accelerator=cpu ROOT/train_fabric_decoupled.py --resume RUN --seed 1",
        ),
        (
            "torch_logs",
            2,
            "ppo",
            False,
            "PYTHON -m torch.distributed.run --standalone --nproc_per_node=2 ROOT/train_torch.py --resume RUN --seed 1",
        ),
    ],
)
def test_a_run_is_resumed_under_its_launcher(
    program: str, num_ranks: int, learner: str, cuda: bool, expected: str, run: Path
) -> None:
    content = read_checkpoint(run / "last.ckpt")
    content["ranks"] = [torch.zeros(1)] * num_ranks
    content["learner"], content["config"]["cuda"] = learner, cuda
    words = command_for(content, Path("logs", program, "x"), "RUN", ["--seed", "1"])
    names = {sys.executable: "PYTHON", str(Path(sys.executable).parent / "fabric"): "FABRIC"}
    said = [names.get(word, word) for word in words if not word.startswith("--main-port=")]
    assert " ".join(said).replace(str(ROOT), "ROOT") == expected
    assert any(word.startswith("--main-port=") for word in words) == expected.startswith("FABRIC")


def test_the_command_of_another_program_is_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copied(run, program="my_logs").absolute()
    with pytest.raises(SystemExit):
        rl.commands.main(["resume", str(folder)])
    by_hand = f"add --resume {folder} to the command that started it"
    assert f"is not in the folder of a program that comes along; {by_hand}" in capsys.readouterr().err


def test_environments_are_listed_with_their_forms(rl_: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {row["env_id"]: row for row in json.loads(rl_("envs", "--json"))}
    assert known["CartPole-v1"] == {
        "env_id": "CartPole-v1",
        "family": "classic_control",
        "single": True,
        "batched": True,
        "tensor": True,
        "recipe": "cartpole",
        "missing": None,
    }
    found = {env_id for env_id, row in known.items() if row["missing"] is None}
    assert "CartPole-v0" not in known and found <= {*gym.registry, *TENSOR_ENVS}
    with monkeypatch.context() as patched:
        patched.setattr("importlib.util.find_spec", lambda name: None)
        assert "\nbox2d (missing: pip install 'gymnasium[box2d]')\n  BipedalWalker-v3" in rl_("envs", "box2d")


def test_a_package_that_is_not_installed_is_listed(rl_: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl.envs.families.FAMILIES", {"Nowhere/": Family(partial(import_module, "nowhere"), "far")})
    monkeypatch.setattr("rl.commands.envs.FAMILIES", families.FAMILIES)
    assert "\nNowhere (missing: pip install 'fabric-rl[far]')\n  Nowhere/…\n" in rl_("envs", "nowhere")


@pytest.mark.parametrize(("seconds", "text"), [(-1, "0 s"), (59, "59 s"), (3599, "59 min"), (90000, "1 d")])
def test_durations_are_in_their_largest_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("value", "text"), [(None, "–"), (float("nan"), "–"), (1234.5, "1,234"), (-3.14159, "-3.14")])
def test_returns_have_about_four_digits(value: float | None, text: str) -> None:
    assert number(value) == text
