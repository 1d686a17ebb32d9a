"""Actions of several parts, as the agent has them and as the environment has them."""

from dataclasses import asdict
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from gymnasium.vector.utils import batch_space

from rl.envs.action_spaces import RowSpace
from rl.envs.actions import CompositeActions
from rl.envs.spaces import Spaces
from rl.errors import UserError
from rl.models.agent import Agent, Network
from rl.run.checkpoint import check_types, from_bytes, to_bytes

OBSERVATION = Box(0, 1, (3,))
NESTED = Dict(
    {
        "arm": Tuple((Box(-1, 1, (2, 1), np.float64), Box(0, 7, (), np.uint8))),
        "grip": Discrete(3, start=5),
        "keys": MultiBinary((2, 2)),
        "gear": MultiDiscrete([[2], [1000]], dtype=np.int32, start=[[-1], [10]]),
    }
)
SPACES = [
    MultiDiscrete([3, 2, 4], start=[1, -2, 0]),
    MultiDiscrete([[3, 3], [3, 3]], dtype=np.uint8),
    MultiBinary(5),
    MultiBinary((2, 3)),
    Dict({"a": Discrete(2), "b": MultiDiscrete([2, 3])}),
    Tuple((Box(-1, 1, (2,)), Box(0, np.inf, (1, 1)))),
    NESTED,
]


def agent_of(spaces: Spaces) -> Agent:
    torch.manual_seed(1)
    return Agent(spaces, Network())


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_actions_reach_an_environment_in_its_own_structure_and_types(space: gym.Space[Any]) -> None:
    spaces = Spaces.of("id", OBSERVATION, space)
    actions, (distribution, _) = spaces.actions, agent_of(spaces)(torch.rand(50, 3))
    noise = torch.rand(50, actions.noise_size, generator=torch.Generator().manual_seed(3))
    action = distribution.sample(noise).detach()
    real = any(isinstance(leaf, Box) for leaf in leaves(space))
    assert action.shape == (50, actions.noise_size) and action.dtype == (torch.float32 if real else torch.int64)
    batch = actions.to_env(action.numpy())
    assert batch_space(space, 50).contains(batch)
    for n in (0, 49):
        one = actions.to_env(action[n].numpy())
        assert space.contains(one)
        assert np.array_equal(actions.flattened(one), actions.flattened(batch)[n])
    assert distribution.log_prob(action).shape == distribution.entropy().shape == (50,)


def leaves(space: gym.Space[Any]) -> list[gym.Space[Any]]:
    parts = space.spaces if isinstance(space, Tuple) else space.spaces.values() if isinstance(space, Dict) else None
    return [space] if parts is None else [leaf for part in parts for leaf in leaves(part)]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_an_action_is_restored_from_its_row_and_spaces_from_a_checkpoint(space: gym.Space[Any]) -> None:
    spaces = Spaces.of("id", OBSERVATION, space)
    stored = from_bytes(to_bytes({"spaces": asdict(spaces)}))["spaces"]
    assert Spaces.from_dict(stored) == spaces
    check_types(spaces)
    space.seed(0)
    for _ in range(10):
        action = space.sample()
        row = spaces.actions.flattened(action)
        again = spaces.actions.structured(row)
        assert space.contains(again) and np.array_equal(spaces.actions.flattened(again), row)


def test_rows_stand_for_a_composite_space() -> None:
    spaces = Spaces.of("id", OBSERVATION, NESTED)
    assert isinstance(spaces.actions, CompositeActions)
    rows = RowSpace(spaces.actions, NESTED)
    assert Spaces.of("id", OBSERVATION, rows) == spaces
    rows.seed(3)
    row = rows.sample()
    NESTED.seed(3)
    assert rows.contains(row) and np.array_equal(row, spaces.actions.flattened(NESTED.sample()))


def test_tensor_environments_get_the_structure_in_tensors() -> None:
    actions = Spaces.of("id", OBSERVATION, NESTED).actions
    row = torch.tensor([[0.5, -9.0, 3.2, 1.0, 999.0, 2.0, 1.0, 0.0, 0.0, 1.0]])
    given = actions.within_bounds(row)
    assert {name: value.tolist() for name, value in given.items() if name != "arm"} == {
        "grip": [2],
        "gear": [[[1], [999]]],
        "keys": [[[1, 0], [0, 1]]],
    }
    assert [part.tolist() for part in given["arm"]] == [[[[0.5], [-1.0]]], [3.0]]
    assert given["grip"].dtype == given["gear"].dtype == torch.int64


def test_squashing_takes_the_boxes_among_the_parts() -> None:
    spaces = Spaces.of("id", OBSERVATION, Tuple((Discrete(2), Box(-4, 4, (1,))))).squashed("id")
    assert spaces.actions.to_env(np.float32([[1, 0.5]]))[1].tolist() == [[pytest.approx(4 * np.tanh(0.5))]]
    assert type(agent_of(spaces)(torch.rand(2, 3))[0].parts[1]).__name__ == "SquashedGaussian"
    with pytest.raises(UserError, match=r"--squash: the actions of id are discrete; must be a Box"):
        Spaces.of("id", OBSERVATION, Dict({"a": MultiBinary(2)})).squashed("id")


OTHERS = [Dict({}), Tuple((Discrete(2), gym.spaces.Text(3))), MultiDiscrete([2**20, 2]), Dict({"a": Tuple(())})]


@pytest.mark.parametrize("space", OTHERS, ids=str)
def test_what_an_agent_cannot_do_is_named(space: gym.Space[Any]) -> None:
    with pytest.raises(UserError, match=r"--env-id id: its action space is .*supported"):
        Spaces.of("id", OBSERVATION, space)
