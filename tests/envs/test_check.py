"""The messages of `rl.check_env` for environments with mistakes, and none for correct ones."""

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from torch import Tensor

import rl
from rl.envs.classic import CartPole, Pendulum
from rl.envs.tensor_envs import TENSOR_ENVS
from rl.errors import UserError

PAGE = Path(__file__).parent.parent.parent / "docs/your_environment.md"


def with_first_sign_of_all(state: Tensor) -> Tensor:
    return state if state[0, 0] > 0 else -state


def in_place(self: Any, state: Tensor, action: Tensor, noise: Tensor) -> Tensor:
    state += 0.01
    return state.clone()


def drifting(self: Any, state: Tensor, action: Tensor, noise: Tensor) -> Tensor:
    return state + 1e3


def no_number(self: Any, state: Tensor, action: Tensor, noise: Tensor) -> Tensor:
    return (state - 10).sqrt()


def with_numpy(self: Any, state: Tensor) -> Tensor:
    return torch.from_numpy(state.numpy().copy())


def raising(self: Any, state: Tensor) -> Tensor:
    raise KeyError("a\nb")


WRONG: list[tuple[str, Any, str]] = [
    ("terminal", lambda self, state: state[:, 0] * 0, r"terminal: gives torch.float32; must be torch.bool"),
    ("terminal", lambda self, state: state > 9, r"terminal: gives shape \(5, 4\); must be \(5,\) with 5 environments"),
    ("terminal", lambda self, state: False, "terminal: gives bool; must be a tensor"),
    ("reward", lambda self, state, action, after: state[:, :1], r"reward: gives shape \(5, 1\); must be \(5,\) with 5"),
    ("reward", lambda self, state, action, after: action, "reward: gives torch.int64; must be floating-point"),
    ("reward", lambda self, state, action, after: state[:, 0] / 0, "reward: gives -?inf; must be finite"),
    ("initial", lambda self, noise: noise.double(), "initial: gives torch.float64; must be torch.float32"),
    ("initial", lambda self, noise: noise[:1], r"initial: gives shape \(1, 4\); must be \(5, 4\) with 5 environments"),
    ("initial", lambda self, noise: torch.randn_like(noise), "initial: draws from torch's generator; what is random"),
    ("initial", lambda self, noise: noise * random.random(), "initial: gives something else the second time"),
    (
        "transition",
        lambda self, state, action, noise: state[:, :3],
        r"transition: gives shape \(5, 3\); must be \(5, 4",
    ),
    ("transition", in_place, "transition: changes its argument 1 in place; must leave it as it is"),
    ("transition", drifting, "observation: gives 1000.* as number 0; must be finite and within -4.8 and 4.8"),
    ("transition", no_number, "observation: gives nan as number 0; must be finite"),
    ("observation", lambda self, state: state[:, :3], r"observation: gives shape \(5, 3\); must be \(5, 4\)"),
    (
        "observation",
        lambda self, state: state - state.mean(0),
        "observation: gives .* alone and .* among 5; must treat",
    ),
    ("observation", lambda self, state: with_first_sign_of_all(state), r"observation: reads values \(__bool__\)"),
    ("observation", lambda self, state: state * state[0, 0].item(), r"observation: reads values \(item\);"),
    ("observation", lambda self, state: state[state > -9].view(-1, 4), r"observation: reads values \(__getitem__"),
    ("observation", with_numpy, r"observation: reads values \(numpy\); use torch.where instead of if, at .*py:\d+"),
    ("observation", raising, r"observation: raised KeyError: 'a\\nb', at .*test_check.py:\d+"),
    ("max_episode_steps", 0, "max_episode_steps: is 0; must be a whole number, at least 1"),
    ("initial_noise_size", 1.5, "initial_noise_size: is 1.5; must be a whole number, at least 0"),
    ("transition_noise_size", -1, "transition_noise_size: is -1; must be a whole number, at least 0"),
    ("action_space", None, "action_space: is None; must be a space of Gymnasium's"),
    ("observation_space", gym.spaces.Text(3), r"its observation space has Text\(.*\); supported are Box, Discrete"),
    ("__init__", raising, "cannot be made: TypeError"),
]


@pytest.mark.parametrize(("part", "wrong", "message"), WRONG, ids=[message[:40] for _, _, message in WRONG])
def test_what_is_wrong_is_said_in_one_line(part: str, wrong: Any, message: str) -> None:
    env = type("Wrong", (CartPole,), {part: wrong})
    with pytest.raises(UserError) as error:
        rl.check_env(env)
    assert re.match(rf"Wrong(\.|: ){message}", str(error.value)), error.value
    assert "\n" not in str(error.value)


def test_a_tensor_on_another_device_is_found_without_a_gpu() -> None:
    elsewhere: Callable[..., Tensor] = lambda self, state: torch.zeros(len(state), dtype=torch.bool)  # noqa: E731
    with pytest.raises(UserError, match=r"Wrong\.terminal: gives a tensor on cpu; must be on "):
        rl.check_env(type("Wrong", (Pendulum,), {"terminal": elsewhere}), "cuda")


@pytest.mark.parametrize("env_id", sorted(TENSOR_ENVS))
def test_the_environments_that_come_along_are_right(env_id: str) -> None:
    before = torch.get_rng_state()
    rl.check_env(TENSOR_ENVS[env_id])
    assert torch.equal(torch.get_rng_state(), before)


def test_the_environment_of_the_docs_is_right() -> None:
    names: dict[str, Any] = {}
    (source,) = re.findall(r"```python\n(import gymnasium as gym\nimport torch.*?)```", PAGE.read_text(), re.DOTALL)
    try:
        exec(source, names)
        rl.check_env(names["Hover"])
        rl.check_env(names["Hover"]())
    finally:
        TENSOR_ENVS.pop("Hover-v0")


def test_gymnasiums_environments_are_left_to_gymnasiums_checker() -> None:
    rl.check_env(gym.make("CustomEnv-v0"))
    rl.check_env(gym.make("FrozenLake-v1").unwrapped)
    with pytest.raises(UserError, match=r"^Env: gymnasium.utils.env_checker finds: AttributeError: The environment"):
        rl.check_env(gym.Env())
    with pytest.raises(UserError, match=r"^str: is str; must be an rl\.TensorEnv or a gymnasium\.Env"):
        rl.check_env("CartPole-v1")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^int: is int; must be an rl\.TensorEnv or a gymnasium\.Env"):
        rl.check_env(int)  # type: ignore[type-var]
