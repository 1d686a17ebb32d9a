"""Tasks that an agent without memory cannot solve, in tensors and in Gymnasium's form.

How well one without memory can do is known by arithmetic or by measurement, so that more than that proves memory.
"""

import math
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rl.envs.classic import CartPole, Pendulum, box
from rl.envs.tensor_envs import TensorEnv


class CartPoleNoVel(CartPole):
    """CartPole whose observation is position and angle, without their velocities."""

    observation_space = box(2 * CartPole.X_LIMIT, 2 * CartPole.ANGLE_LIMIT)

    def observation(self, state: Tensor) -> Tensor:
        return state[..., ::2]


class PendulumNoVel(Pendulum):
    """Pendulum whose observation is cosine and sine of its angle, without its velocity."""

    observation_space = box(1.0, 1.0)

    def observation(self, state: Tensor) -> Tensor:
        return super().observation(state)[..., :2]


class WithoutVelocities(gym.ObservationWrapper[Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Hides those numbers of an observation that are velocities: all but the ones to `keep`."""

    def __init__(self, env: gym.Env[Any, Any], keep: tuple[int, ...]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, keep=keep)
        super().__init__(env)
        self.keep = list(keep)
        space: Any = env.observation_space
        self.observation_space = gym.spaces.Box(space.low[self.keep], space.high[self.keep], dtype=space.dtype)

    def observation(self, observation: NDArray[Any]) -> NDArray[Any]:
        return observation[self.keep]


class Recall(TensorEnv):
    """Say the symbol of `delay` steps ago: a right answer gives 1, a wrong one -1.

    Whoever remembers nothing gets 2 / num_symbols - 1 a step on average, whatever it does. So does everybody in the
    first `delay` steps, whose symbols were never shown: the best policy has a mean return of 48 - delay / 2 with four
    symbols, one without memory of -(48 + delay) / 2.
    """

    ASKED = 48  # steps with an answer that can be known

    def __init__(self, delay: int = 4, num_symbols: int = 4) -> None:
        if delay < 1 or num_symbols < 2:
            raise ValueError(f"delay {delay}, num_symbols {num_symbols}: must be at least 1 and 2")
        self.num_symbols = num_symbols
        self.observation_space = gym.spaces.Discrete(num_symbols)
        self.action_space = gym.spaces.Discrete(num_symbols)
        self.max_episode_steps = self.ASKED + delay
        self.initial_noise_size = delay + 1
        self.transition_noise_size = 1

    def initial(self, noise: Tensor) -> Tensor:
        """The symbols [N, delay + 1], from the one to say to the one to see."""
        return (noise * self.num_symbols).floor()

    def transition(self, state: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        return torch.cat([state[:, 1:], self.initial(noise)], dim=-1)

    def observation(self, state: Tensor) -> Tensor:
        return state[:, -1]

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        return 2.0 * (action == state[:, 0]) - 1

    def terminal(self, state: Tensor) -> Tensor:
        return torch.zeros_like(state[:, 0], dtype=torch.bool)


class TMaze(TensorEnv):
    """Walk along a corridor, and turn at its end to the side that was shown at its beginning (Bakker 2001).

    Actions are ahead, left and right. The right turn at the end gives 4, a wrong one, or a turn on the way, which does
    not move, -0.1. The best return is 4; without memory it is 1.95 on average. Observations are the side to turn to
    (-1 or 1 at the beginning, then 0), and whether this is the end.
    """

    RIGHT, WRONG = 4.0, -0.1

    observation_space = box(1.0, 1.0)
    action_space = gym.spaces.Discrete(3)
    initial_noise_size = 1

    def __init__(self, length: int = 50) -> None:
        if length < 1:
            raise ValueError(f"length {length}: must be at least 1")
        self.length = length
        self.max_episode_steps = 3 * length + 10

    def initial(self, noise: Tensor) -> Tensor:
        """The position, which is beyond `length` after a turn there, and the side."""
        return torch.cat([torch.zeros_like(noise), 2 * (2 * noise).floor() - 1], dim=-1)

    def transition(self, state: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        position, side = state.unbind(-1)
        at_end = position == self.length
        moves = (action == 0) ^ at_end
        return torch.stack([position + moves, side], dim=-1)

    def observation(self, state: Tensor) -> Tensor:
        position, side = state.unbind(-1)
        return torch.stack([side * (position == 0), (position == self.length).to(state.dtype)], dim=-1)

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        position, side = state.unbind(-1)
        turns = action != 0
        is_right = turns & (position == self.length) & (2.0 * action - 3.0 == side)
        return self.RIGHT * is_right + self.WRONG * (turns & ~is_right)

    def terminal(self, state: Tensor) -> Tensor:
        return state[..., 0] > self.length


class AsGymnasium(gym.Env[Any, Any]):
    """A tensor environment as a single environment of Gymnasium's: its functions, with NumPy's generator."""

    def __init__(self, env: TensorEnv) -> None:
        self.env = env
        self.observation_space, self.action_space = env.observation_space, env.action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = self.env.initial(self._noise(self.env.initial_noise_size))
        self.num_steps = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        before, chosen = self.state, torch.as_tensor(np.asarray(action)).reshape(1, *self.action_space.shape)  # type: ignore[misc]
        self.state = self.env.transition(before, chosen, self._noise(self.env.transition_noise_size))
        self.num_steps += 1
        reward = self.env.reward(before, chosen, self.state).item()
        truncated = self.num_steps >= (self.env.max_episode_steps or math.inf)
        return self._observation(), reward, bool(self.env.terminal(self.state)), truncated, {}

    def _noise(self, size: int) -> Tensor:
        return torch.from_numpy(self.np_random.random((1, size), np.float32))

    def _observation(self) -> Any:
        array = self.env.observation(self.state)[0].numpy()
        space: Any = self.observation_space
        return space.start + np.int64(array) if isinstance(space, gym.spaces.Discrete) else array.astype(space.dtype)


def recall(**kwargs: Any) -> AsGymnasium:
    """`Recall` as Gymnasium makes it."""
    return AsGymnasium(Recall(**kwargs))


def t_maze(**kwargs: Any) -> AsGymnasium:
    """`TMaze` as Gymnasium makes it."""
    return AsGymnasium(TMaze(**kwargs))
