"""Environments written as functions of batched tensors, and `TensorEnvs`, which steps N of them on any device."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from torch import Tensor
from typing_extensions import Self

from rl.envs.masks import KEY, Mask, without_halves
from rl.envs.observations import Obs, as_tensors
from rl.envs.spaces import Spaces
from rl.envs.types import Step
from rl.seeding import INITIAL, TRANSITION, Noise


class TensorEnv(ABC):
    """An environment as pure functions, each for N environments at once (Gymnasium's `FuncEnv`, on tensors).

    A state is one tensor [N, ...] of floating-point numbers. Randomness is uniform noise in (0, 1), passed as an
    argument, so that a step gives the same result wherever and however it runs. Functions are compiled and captured,
    so none may read a tensor's values: `torch.where` instead of `if`, and no tensor made from Python numbers.
    """

    observation_space: gym.spaces.Space[Any]
    action_space: gym.Space[Any]
    max_episode_steps: int | None
    """Steps after which an episode is truncated; None if it never is."""
    initial_noise_size: int
    """Number of uniform numbers that starting an episode takes."""
    transition_noise_size: int = 0
    """Number of uniform numbers that a step takes."""

    @abstractmethod
    def initial(self, noise: Tensor) -> Tensor:
        """First states [N, ...], of the noise's dtype, from noise [N, initial_noise_size]."""

    @abstractmethod
    def transition(self, state: Tensor, action: Any, noise: Tensor) -> Tensor:
        """The next states, given actions in the structure of the space: int64 counted from 0, float32 within bounds."""

    def observation(self, state: Tensor) -> Any:
        """Observations [N, ...] of states, or a dict of them; the states themselves, unless overridden."""
        return state

    @abstractmethod
    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """Rewards [N]."""

    @abstractmethod
    def terminal(self, state: Tensor) -> Tensor:
        """Whether states end the episode [N] (bool), apart from the time limit."""

    def mask(self, state: Tensor) -> Tensor | None:
        """Which actions are legal in states [N, ΣA] (bool); None, unless overridden, if all are."""
        return None


TENSOR_ENVS: dict[str, Callable[..., TensorEnv]] = {}


def register_tensor_env(env_id: str, make: Callable[..., TensorEnv]) -> None:
    """Registers what `make`, such as a class, returns for `--vectorization tensor --env-id <env_id>`.

    Its arguments, if it has any, are those of --env-kwargs.
    """
    TENSOR_ENVS[env_id] = make


class EnvState(NamedTuple):
    """Everything that N environments carry from one step to the next."""

    state: Tensor  # [N, ...]
    elapsed_steps: Tensor  # [N] float32
    episode_return: Tensor  # [N] float32


class TensorEnvs:
    """N tensor environments as `Envs`, with time limit, reset in the step that ends an episode, and its statistics.

    `advance` uses neither the host nor this object's state, so that a whole rollout can be one compiled function.
    """

    resets_in_next_step, num_ignored = False, 0

    def __init__(self, env: TensorEnv, num_envs: int, env_id: str = "(a TensorEnv)") -> None:
        self.env = env
        self.spaces = Spaces.of(env_id, env.observation_space, env.action_space)
        self.num_envs = num_envs
        self.clip_rewards = False  # in steps, but not in episodes' returns
        self.device = torch.device("cpu")

    def reset(self, seed: int, first_env: int = 0) -> Obs:
        sizes = {INITIAL: self.env.initial_noise_size, TRANSITION: self.env.transition_noise_size}
        self.noise = [
            Noise(seed, stream, first_env, self.num_envs, size, self.device) for stream, size in sizes.items()
        ]
        self.num_steps = torch.zeros((), dtype=torch.int64, device=self.device)
        return self.restart()

    def restart(self) -> Obs:
        self.state = self.start(self.num_steps)
        return self.observe(self.state)

    def start(self, step: Tensor) -> EnvState:
        """Starts an episode everywhere before a step, with the noise of episodes that follow the step before."""
        initial_noise, _ = self.draw(step - 1, 1)
        return EnvState(
            self.env.initial(initial_noise[0]),
            elapsed_steps=torch.zeros(self.num_envs, device=self.device),
            episode_return=torch.zeros(self.num_envs, device=self.device),
        )

    def observe(self, state: EnvState) -> Obs:
        """Observations [N, ...]."""
        return as_tensors(self.spaces.obs, self.env.observation(state.state))

    @property
    def mask(self) -> Mask:
        return self.legal(self.state)

    def legal(self, state: EnvState) -> Mask:
        """Which actions are legal in states."""
        mask = self.env.mask(state.state)
        return () if mask is None else without_halves(mask, self.spaces.actions.sizes)

    def draw(self, step: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
        """The noise of T steps from `step` on: [T, N, ...] to start episodes, and [T, N, ...] for transitions.

        An episode takes the noise of the step that ended the one before it; the first ones take that of step -1.
        """
        initial_noise, transition_noise = (noise.at(step, num_steps) for noise in self.noise)
        return initial_noise, transition_noise

    def advance(
        self, before: EnvState, action: Tensor, initial_noise: Tensor, transition_noise: Tensor
    ) -> tuple[EnvState, Step]:
        """A step as a function of tensors; actions as the policy sampled them, noise [N, ...]."""
        action = self.spaces.actions.within_bounds(action)
        state = self.env.transition(before.state, action, transition_noise)
        reward = self.env.reward(before.state, action, state).float()
        terminated = self.env.terminal(state)
        elapsed_steps, episode_return = before.elapsed_steps + 1, before.episode_return + reward
        limit = self.env.max_episode_steps
        truncated = torch.zeros_like(terminated) if limit is None else elapsed_steps >= limit
        ended = terminated | truncated
        fresh = ended.view(-1, *(1 for _ in state.shape[1:]))
        after = EnvState(
            torch.where(fresh, self.env.initial(initial_noise), state), elapsed_steps * ~ended, episode_return * ~ended
        )
        step = Step(
            obs=self.observe(after),
            next_obs=as_tensors(self.spaces.obs, self.env.observation(state)),
            reward=reward.sign() if self.clip_rewards else reward,
            terminated=terminated,
            truncated=truncated,
            weight=torch.ones_like(reward),
            episode_return=episode_return * ended,
            episode_length=elapsed_steps * ended,
        )
        return after, step

    def step(self, action: Tensor) -> Step:
        initial_noise, transition_noise = self.draw(self.num_steps, 1)
        self.num_steps = self.num_steps + 1
        self.state, step = self.advance(self.state, action, initial_noise[0], transition_noise[0])
        return step

    def to(self, device: torch.device) -> Self:
        """Sets the device from the next reset on."""
        self.device = device
        return self

    def state_dict(self) -> dict[str, Any]:
        return {name: value.cpu() for name, value in self.state._asdict().items()}

    def load_state_dict(self, state: Mapping[str, Any], num_steps: int) -> Obs | None:
        self.num_steps = torch.full((), num_steps, dtype=torch.int64, device=self.device)
        saved = EnvState(*(state[name].to(self.device) for name in EnvState._fields))
        if [field.shape for field in saved] != [field.shape for field in self.state]:
            raise ValueError(f"a state of shapes {[tuple(field.shape) for field in saved]}")
        self.state = saved
        return self.observe(self.state)

    def close(self) -> None:
        """Does nothing: there are no processes or windows."""


class TensorVectorEnv(gym.vector.VectorEnv[Any, Tensor, Tensor]):
    """N tensor environments as a vector environment of Gymnasium's, whose arrays are tensors on one device.

    The step that ends an episode resets it (SAME_STEP). In `info`, `final_obs` and `episode` (return r, length l) are
    valid for the environments in the masks `_final_obs` and `_episode`.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012 (Gymnasium's own declaration)

    def __init__(self, env: TensorEnv, num_envs: int, device: torch.device | str = "cpu") -> None:
        self.envs = TensorEnvs(env, num_envs).to(torch.device(device))
        self.num_envs = num_envs
        self.single_observation_space = env.observation_space
        self.single_action_space = env.action_space
        self.observation_space = batch_space(env.observation_space, num_envs)
        self.action_space = batch_space(env.action_space, num_envs)
        self.last_seed = int.from_bytes(os.urandom(4), "big")

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Starts an episode everywhere, new ones without a seed; raises `ValueError` for several seeds."""
        if isinstance(seed, Sequence):
            raise ValueError(f"seed {seed}: must be one number; every environment derives its own randomness from it")
        self.last_seed = self.last_seed + 1 if seed is None else seed
        return self.envs.reset(self.last_seed), self._mask()

    def step(self, actions: Any) -> tuple[Any, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Takes actions as the space has them; real ones are clipped to their bounds.

        Raises:
            gymnasium.error.InvalidAction: Their shape, type or value is invalid.
        """
        row = rows_of(self.single_action_space, actions, self.num_envs, self.envs.device)
        step = self.envs.step(row[:, 0] if isinstance(self.single_action_space, gym.spaces.Discrete) else row)
        ended = step.terminated | step.truncated
        info = {
            "final_obs": step.next_obs,
            "_final_obs": ended,
            "episode": {"r": step.episode_return, "l": step.episode_length},
            "_episode": ended,
            **self._mask(),
        }
        return step.obs, step.reward, step.terminated, step.truncated, info

    def _mask(self) -> dict[str, Any]:
        mask = self.envs.mask
        return {KEY: mask, f"_{KEY}": torch.ones_like(mask[:, 0])} if isinstance(mask, Tensor) else {}


def rows_of(space: gym.Space[Any], given: Any, num_envs: int, device: torch.device) -> Tensor:
    """The agent's rows [N, C] for a batch of actions as the space has them.

    Raises:
        gymnasium.error.InvalidAction: Their shape, type or value is invalid.
    """
    if isinstance(space, gym.spaces.Dict | gym.spaces.Tuple):
        names: Any = space.spaces if isinstance(space, gym.spaces.Dict) else range(len(space.spaces))
        return torch.cat([rows_of(space[name], given[name], num_envs, device) for name in names], dim=-1)
    action = torch.as_tensor(given, device=device)
    must = (num_envs, *(space.shape or ()))
    if isinstance(space, gym.spaces.Box):
        row, what, right = action.float(), "numbers", not bool(action.isnan().any())
    else:
        sizes = getattr(space, "nvec", space.n if isinstance(space, gym.spaces.Discrete) else 2)
        both = getattr(space, "start", 0), sizes
        start, end = (torch.as_tensor(np.array(numbers), device=device) for numbers in both)
        row, what = action - start, f"whole numbers of {space}"
        if isinstance(space, gym.spaces.Discrete):
            what = f"whole numbers from {space.start} to {space.start + space.n - 1}"
        right = not action.is_floating_point() and action.shape == must and bool(((row >= 0) & (row < end)).all())
    if action.shape != must or not right:
        raise gym.error.InvalidAction(f"actions {action.tolist()}: must be {what} of shape {must}")
    return row.reshape(num_envs, -1)
