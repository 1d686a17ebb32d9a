"""The saved agent: acts as the trained one did, and is whole or absent."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

import rl
from rl.agent import Agent, Network
from rl.command_line import parse
from rl.config import CONFIGS
from rl.envs.spaces import BoxActions, DiscreteActions, Spaces
from rl.run.checkpoint import save_checkpoint
from rl.run.evaluation import act

FLAGS = ["--hidden-size", "8", "--hidden-layers", "1", "--no-shared-encoder", "--activation-function", "relu"]


def saved(tmp_path: Path, spaces: Spaces) -> tuple[Path, Agent]:
    config = parse(FLAGS, CONFIGS)
    agent = Agent(spaces, config.network)
    save_checkpoint(tmp_path / "last.ckpt", agent, config.to_dict())
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


def test_the_file_is_a_plain_dictionary_with_the_agents_state(tmp_path: Path) -> None:
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


def test_a_write_that_fails_leaves_the_file_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, agent = saved(tmp_path, Spaces(3, DiscreteActions(4)))
    before = path.read_bytes()

    def full_disk(content: object, file: object) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(path, Agent(agent.spaces, Network()), {})
    assert path.read_bytes() == before
