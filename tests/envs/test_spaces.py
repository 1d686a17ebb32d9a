"""The spaces that an agent can act on, and the actions that reach an environment."""

import math
from contextlib import closing
from dataclasses import asdict
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec

import rl
from rl.envs.actions import BoxActions, DiscreteActions
from rl.envs.config import EnvConfig
from rl.envs.make import make_envs
from rl.envs.observations import vector
from rl.envs.spaces import Spaces
from rl.envs.tensor_envs import TENSOR_ENVS
from rl.errors import UserError
from rl.run.checkpoint import from_bytes, to_bytes

BOXES = [
    *(gym.spaces.Box(np.full(2, -0.1, dtype), np.full(2, 2 / 3, dtype), dtype=dtype) for dtype in (np.float32, float)),
    gym.spaces.Box(-0.1, 0.7, (2,), np.float16),
    *(
        gym.spaces.Box(*bounds, (2,), dtype)
        for bounds in ((-np.inf, 0.3), (-2, np.inf))
        for dtype in (np.float16, float)
    ),
    gym.spaces.Box(-np.inf, np.inf, (2,), np.float16),
    *(
        gym.spaces.Box(np.iinfo(dtype).min, np.iinfo(dtype).max, (2,), dtype)
        for dtype in (np.int8, np.uint8, np.uint16, np.int32, np.uint32, np.int64, np.uint64)
    ),
    gym.spaces.Box(-1, 2**62 + 1, (2,), np.int64),
    gym.spaces.Box(2**62 + 1, 2**63 - 2, (2,), np.int64),
    gym.spaces.Box(0, 1, (2,), bool),
    gym.spaces.Box(-np.inf, 0.1, (1, 2, 1), np.float16),
    gym.spaces.Box(np.float32([[-1, 0.1]]), np.float32([[0.3, 0.7]])),
]


@pytest.mark.parametrize("squash", [False, True], ids=["clipped", "squashed"])
@pytest.mark.parametrize("space", BOXES, ids=str)
def test_every_action_that_reaches_an_environment_lies_in_its_space(space: gym.spaces.Box, squash: bool) -> None:
    spaces = Spaces.of("id", gym.spaces.Box(0, 1, (1,)), space)
    if squash and not (np.isfinite(space.low) & np.isfinite(space.high)).all():
        with pytest.raises(UserError, match=r"--squash: component 0 of the actions of id is bounded by .* finite"):
            spaces.squashed("id")
        return
    spaces = spaces.squashed("id") if squash else spaces
    stored = to_bytes({"spaces": asdict(spaces)})
    assert Spaces.from_dict(from_bytes(stored)["spaces"]) == spaces
    numbers = [*(scale * 10.0**power for power in range(-9, 39) for scale in (-3, 3, 1 / 3)), 0.5, 0.1, 0.0, np.inf]
    for action in np.array([numbers, numbers[::-1]], np.float32).T:
        in_env = spaces.actions.to_env(action)
        assert in_env.dtype == space.dtype and space.contains(in_env), action
        assert np.isfinite(in_env).all()
        recorded = from_bytes(to_bytes({"action": torch.from_numpy(in_env)}))["action"]
        assert np.array_equal(recorded.numpy(), in_env)


def test_squashed_actions_are_the_bounds_middle_and_tanh_of_the_way_to_a_bound() -> None:
    spaces = Spaces(vector(1), BoxActions((-1.0, 0.0), (3.0, 10.0), shape=(2, 1))).squashed("id")
    in_env = spaces.actions.to_env(np.float32([[0, 0], [0.5, -0.5], [99, -99]]))
    expected = [[[1], [5]], [[1 + 2 * math.tanh(0.5)], [5 - 5 * math.tanh(0.5)]], [[3], [0]]]
    assert in_env.shape == (3, 2, 1) and np.allclose(in_env, expected)
    in_tensors = spaces.actions.within_bounds(torch.tensor([[0, 0], [0.5, -0.5], [99, -99]]))
    assert np.allclose(in_tensors, in_env)
    with pytest.raises(UserError, match=r"--squash: the actions of id are discrete; must be a Box, or leave the flag"):
        Spaces(vector(1), DiscreteActions(2)).squashed("id")


class Shaped(gym.Env[np.ndarray, Any]):
    """Accepts only arrays that lie in its space, and observes their mean."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float64)

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        self.action_space = gym.spaces.Box(-2, 3, shape, dtype)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(1), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert type(action) is np.ndarray and action.dtype == self.action_space.dtype
        assert self.action_space.contains(action)
        return action.mean(dtype=float, keepdims=True).reshape(1), 1.0, False, False, {}


@pytest.mark.parametrize("squash", [False, True], ids=["clipped", "squashed"])
@pytest.mark.parametrize(
    ("shape", "dtype", "vectorization"),
    [((), "float64", "sync"), ((2, 3), "float32", "sync"), ((1, 1), "int8", "sync"), ((), "float32", "async")],
)
def test_an_environment_gets_actions_in_its_own_shape_and_dtype_also_when_they_are_replayed(
    shape: tuple[int, ...], dtype: str, vectorization: Any, squash: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        gym.registry, "Shaped-v0", EnvSpec("Shaped-v0", Shaped, kwargs={"shape": shape, "dtype": dtype})
    )
    envs = make_envs(EnvConfig("Shaped-v0", 2, vectorization, squash=squash), training=True)
    with closing(envs):
        envs.reset(1)
        action = torch.tensor([[-9.0], [0.5]]).expand(2, math.prod(shape))
        middle = 0.5 + 2.5 * math.tanh(0.5) if squash else 0.5
        expected = [-2, round(middle) if dtype == "int8" else middle]
        assert torch.allclose(obs := envs.step(action).obs.flatten(), torch.tensor(expected).float())
        state = envs.state_dict()
        envs.reset(1)
        assert torch.equal(envs.load_state_dict(state, 1).flatten(), obs)


def test_an_action_of_whole_numbers_is_the_nearest() -> None:
    actions = BoxActions((0.0,), (3.0,), "int64")
    assert [int(actions.to_env(np.float32([a]))[0]) for a in (-2, 0.4, 0.6, 1.7, 2.9, 9)] == [0, 0, 1, 2, 3, 3]
    assert actions.within_bounds(torch.tensor([[0.6], [9.0]])).tolist() == [[1], [3]]


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (gym.spaces.Discrete(3, start=-1), DiscreteActions(3, -1)),
        (gym.spaces.Box(-1, 1, (2,)), BoxActions((-1.0, -1.0), (1.0, 1.0))),
        (gym.spaces.Box(0, 3, (1,), np.int64), BoxActions((0.0,), (3.0,), "int64")),
        (gym.spaces.Box(0, np.inf, ()), BoxActions((0.0,), (math.inf,), shape=())),
        (
            gym.spaces.Box(np.float32([[0], [1]]), np.float32([[2], [3]])),
            BoxActions((0.0, 1.0), (2.0, 3.0), shape=(2, 1)),
        ),
    ],
)
def test_spaces_that_an_agent_can_act_on(space: gym.Space, expected: DiscreteActions | BoxActions) -> None:
    assert Spaces.of("id", gym.spaces.Box(0, 255, (3,), np.uint8), space) == Spaces(vector(3), expected)


@pytest.mark.parametrize(
    ("observation", "action"),
    [
        (gym.spaces.Text(5), gym.spaces.Discrete(2)),
        (gym.spaces.Dict({"a": gym.spaces.Text(5)}), gym.spaces.Discrete(2)),
        (gym.spaces.Tuple([gym.spaces.Sequence(gym.spaces.Discrete(2))]), gym.spaces.Discrete(2)),
        (gym.spaces.Graph(gym.spaces.Box(0, 1, (2,)), None), gym.spaces.Discrete(2)),
        (gym.spaces.Discrete(2**21), gym.spaces.Discrete(2)),
        (gym.spaces.Box(0, 1, (2, 0)), gym.spaces.Discrete(2)),
        (gym.spaces.Box(0, 1, (1,)), gym.spaces.Box(0, 3, (2, 0))),
        (gym.spaces.Box(0, 1, (1,)), gym.spaces.Box(0, 3, (1,), np.longdouble)),
    ],
)
def test_other_spaces_are_named_in_a_clear_error(observation: gym.Space, action: gym.Space) -> None:
    with pytest.raises(UserError, match=r"--env-id id: its (observation|action) space (is|has) .*supported"):
        Spaces.of("id", observation, action)


class Grid(rl.TensorEnv):
    """Remembers the last action [2, 1], and observes it."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,))
    action_space = gym.spaces.Box(-np.inf, np.float32([[1], [5]]))
    max_episode_steps, initial_noise_size = 5, 2

    def initial(self, noise: torch.Tensor) -> torch.Tensor:
        return noise

    def transition(self, state: torch.Tensor, action: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        assert action.shape == (len(state), 2, 1)
        return action.squeeze(-1)

    def reward(self, state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> torch.Tensor:
        return next_state.sum(-1)

    def terminal(self, state: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(state[:, 0], dtype=torch.bool)


def test_a_tensor_environment_gets_actions_in_its_own_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    rl.check_env(Grid)
    envs = rl.TensorVectorEnv(Grid(), num_envs=3)
    envs.reset(seed=1)
    obs, *_ = envs.step(torch.tensor([[0.5], [9.0]]).expand(3, 2, 1))
    assert obs.tolist() == [[0.5, 5.0]] * 3
    monkeypatch.setitem(TENSOR_ENVS, "Grid-v0", Grid)
    with pytest.raises(
        UserError, match=r"--squash: component 0 of the actions of Grid-v0 is bounded by -inf and 1; must"
    ):
        make_envs(EnvConfig("Grid-v0", 2, "tensor", squash=True))
    monkeypatch.setattr(Grid, "action_space", gym.spaces.Box(-1, np.float32([[1], [5]])))
    squashed = make_envs(EnvConfig("Grid-v0", 2, "tensor", squash=True))
    squashed.reset(1)
    assert torch.allclose(squashed.step(torch.tensor([[0.5, 9.0]] * 2)).obs, torch.tensor([math.tanh(0.5), 5.0]))
