"""Environments of other packages: their ids register themselves, and what they return is understood."""

import re
import sys
from contextlib import closing
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import train_torch
from rl.cli import command_line
from rl.config import CONFIGS
from rl.envs.config import EnvConfig, make_single
from rl.envs.families import FAMILIES
from rl.envs.make import make_envs
from rl.errors import UserError, install

S = gym.spaces


class Goals(gym.Env[Any, Any]):
    """One step towards a goal, with the observations of Gymnasium-Robotics, whose tasks do not run with MuJoCo 4."""

    observation_space = S.Dict(
        {name: S.Box(-np.inf, np.inf, (2,), np.float64) for name in ("observation", "achieved_goal", "desired_goal")}
    )
    action_space = S.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.goal = self.np_random.uniform(-0.5, 0.5, (2, 2))
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place = self.place + action
        return self.observe(), self.compute_reward(self.place, self.goal, {}), False, True, {}

    def compute_reward(self, achieved: Any, desired: Any, info: dict[str, Any]) -> float:
        return -float(np.linalg.norm(achieved - desired))

    def observe(self) -> dict[str, Any]:
        return {"observation": self.place.copy(), "achieved_goal": self.place.copy(), "desired_goal": self.goal.copy()}


gym.register("Goals-v0", Goals)


def test_a_dict_of_goals_is_learned_from(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--env-id Goals-v0 --total-timesteps 6400 --num-envs 8 --num-steps 100 --learning-rate 5e-3 --gamma 0"
    more = "--log-std-init -1 --update-epochs 4 --eval-episodes 50 --actor-keys achieved_goal desired_goal"
    monkeypatch.setattr("sys.argv", ["train_torch.py", *flags.split(), *more.split()])
    command_line(train_torch.main, CONFIGS, "torch_logs")
    words = capsys.readouterr().out.split("greedy policy")[1].split()
    assert words[0] == "return" and float(words[1].rstrip(",")) > -0.15  # no step at all: -0.52


def test_minigrid_is_seen_without_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("minigrid", reason="MiniGrid is not installed")
    with closing(make_envs(EnvConfig("MiniGrid-Empty-8x8-v0", num_envs=2, vectorization="sync"))) as envs:
        obs = envs.reset(1)
        step = envs.step(torch.tensor([2, 1]))
    assert {name: (part.dtype, part.shape) for name, part in obs.items()} == {
        "direction": (torch.int64, (2,)),
        "image": (torch.uint8, (2, 7, 7, 3)),
    }
    assert step.obs["direction"].tolist() == [0, 1]
    assert "mission" in capsys.readouterr().err


@pytest.mark.parametrize("env_id", ["ALE/Pong-v5", "MinAtar/Breakout-v1", "MiniGrid-Empty-8x8-v0"])
def test_a_package_that_is_missing_is_named_with_what_installs_it(env_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    start = next(start for start in FAMILIES if env_id.startswith(start))
    monkeypatch.setattr(gym.envs.registration, "registry", {})
    monkeypatch.setattr(gym, "registry", {})
    for name in ("ale_py", "minatar", "minatar.gym", "minigrid"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"^--env-id {env_id}: .*; {re.escape(install(FAMILIES[start].extra))}$"):
        make_envs(EnvConfig(env_id))


def test_a_film_of_minatar_shows_its_cells(recwarn: pytest.WarningsRecorder) -> None:
    pytest.importorskip("minatar", reason="MinAtar is not installed")
    with closing(make_single(EnvConfig("MinAtar/Breakout-v1"), render_mode="rgb_array")) as env:
        obs, _ = env.reset(seed=1)
        frame = env.render()
    assert (frame.dtype, frame.shape, env.metadata["render_fps"]) == (np.uint8, (160, 160, 3), 20) and not recwarn.list
    # What is not black is where something is.
    assert np.array_equal(frame.reshape(10, 16, 10, 16, 3).any((1, 3, 4)), obs.any(-1))
