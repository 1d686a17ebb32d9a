"""EnvPool's environments, behind the same interface as Gymnasium's."""

import sys
from contextlib import closing
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

import train_torch
from rl.cli import command_line
from rl.config import CONFIGS
from rl.envs.actions import DiscreteActions
from rl.envs.config import EnvConfig
from rl.envs.make import make_envs
from rl.errors import UserError
from rl.run.checkpoint import read_checkpoint
from tests.envs.test_gym_envs import check_row, put_into_state

pytest.importorskip("envpool", reason="EnvPool is not installed")


def config_of(env_id: str, num_envs: int = 3) -> EnvConfig:
    return EnvConfig(env_id, num_envs=num_envs, vectorization="envpool", num_workers=2)


@pytest.mark.parametrize("env_id", ["CartPole-v1"])
def test_rows_are_transitions_of_gymnasiums_form(env_id: str) -> None:
    single = gym.make(env_id).unwrapped
    single.reset()
    generator = torch.Generator().manual_seed(0)
    num_ended = 0
    with closing(make_envs(config_of(env_id))) as envs:
        obs = envs.reset(seed=4)
        for _ in range(210):
            noise = torch.rand(3, 1, generator=generator)
            discrete = isinstance(envs.spaces.actions, DiscreteActions)
            action = (noise < 0.5).long().flatten() if discrete else 2 * noise - 1
            step = envs.step(action)
            for n in np.flatnonzero(step.weight):
                put_into_state(single, obs[n].numpy())
                check_row(step, n, single.step(envs.spaces.actions.to_env(action[n].numpy())))
            num_ended += int((step.terminated | step.truncated).sum())
            obs = step.obs
    assert num_ended >= 3


def test_episodes_depend_on_the_seed_alone() -> None:
    def rolled(seed: int) -> torch.Tensor:
        with closing(make_envs(config_of("CartPole-v1"))) as envs:
            return torch.stack([envs.reset(seed=seed), *(envs.step(torch.ones(3).long()).obs for _ in range(30))])

    assert torch.equal(rolled(1), rolled(1))
    assert not torch.equal(rolled(1)[0], rolled(2)[0])
    assert len(rolled(1)[0].unique(dim=0)) == 3


@pytest.mark.parametrize("env_id", ["HalfCheetah-v5", "LunarLander-v3"])
def test_what_is_evaluated_is_gymnasiums_form_with_the_same_spaces(env_id: str) -> None:
    pytest.importorskip("mujoco" if "Cheetah" in env_id else "Box2D")
    config = config_of(env_id)
    evaluation = config.for_evaluation(2)
    assert evaluation.vectorization == "sync" and evaluation.num_envs == 2
    with closing(make_envs(config)) as trained_in, closing(make_envs(evaluation)) as evaluated_in:
        assert trained_in.spaces == evaluated_in.spaces


def test_what_only_envpool_has_is_evaluated_there() -> None:
    assert config_of("CheetahRun-v1").for_evaluation(1).vectorization == "envpool"
    assert config_of("HalfCheetah-v3").for_evaluation(1).vectorization == "envpool"  # a name without code


def test_what_envpool_does_not_have_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^--vectorization envpool: EnvPool has no CustomEnv-v0; use sync or async$"):
        make_envs(config_of("CustomEnv-v0"))
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(UserError, match=r"^--vectorization envpool: needs EnvPool; pip install 'fabric-rl\[envpool\]'"):
        make_envs(config_of("CartPole-v1"))


def test_a_resumed_run_starts_new_episodes_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(*flags: str) -> str:
        monkeypatch.setattr("sys.argv", ["train_torch.py", *flags])
        command_line(train_torch.main, CONFIGS, train_torch.PROGRAM)
        return capsys.readouterr().err

    flags = ("--env-id", "CartPole-v1", "--vectorization", "envpool", "--num-envs", "3", "--num-steps", "32")
    said = train(*flags, "--total-timesteps", "192", "--eval-episodes", "1", "--execution", "eager")
    note = "EnvPool does not give the state of its environments: a resumed run starts new episodes and is not bit-exact"
    assert said.count(f"note: --env-id CartPole-v1: {note}") == 1
    (folder,) = Path("logs/torch_logs").iterdir()
    said = train("--resume", str(folder), "--total-timesteps", "384")
    assert "3 of 3 environments of rank 0 could not be restored" in said
    assert read_checkpoint(folder / "last.ckpt")["run"]["step"] >= 384
    with pytest.raises(SystemExit):
        train("--resume", str(folder), "--vectorization", "sync")
    assert "--resume: the run has --vectorization envpool, not sync; leave the flag out" in capsys.readouterr().err
