"""Environments written as five functions of batched tensors, and what steps N of them on any device."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from torch import Tensor
from typing_extensions import Self

from rl.envs.spaces import Spaces
from rl.envs.types import Step
from rl.seeding import INITIAL, TRANSITION, Noise


class TensorEnv(ABC):
    """An environment as functions without side effects, each of N environments at once.

    They are the functions of Gymnasium's `FuncEnv`, on tensors. A state is one tensor [N, ...] of floating-point
    numbers; randomness is uniform noise in (0, 1) that comes in as an argument, so that a step gives the same result
    wherever and however it runs. To be compiled and captured, a function may not look at the numbers: `torch.where`
    instead of `if`, and no tensor made from Python numbers.
    """

    observation_space: gym.spaces.Box
    action_space: gym.Space[Any]
    max_episode_steps: int
    initial_noise_size: int
    """How many uniform numbers it takes to start an episode."""
    transition_noise_size: int = 0
    """How many uniform numbers it takes to step."""

    @abstractmethod
    def initial(self, noise: Tensor) -> Tensor:
        """First states [N, ...], of the noise's dtype, from noise [N, initial_noise_size]."""

    @abstractmethod
    def transition(self, state: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        """The states that actions (int64 [N] counted from 0, or float32 [N, A] within bounds) lead to."""

    @abstractmethod
    def observation(self, state: Tensor) -> Tensor:
        """What is seen [N, D] of states."""

    @abstractmethod
    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """Rewards [N] of steps."""

    @abstractmethod
    def terminal(self, state: Tensor) -> Tensor:
        """Whether states end the episode [N] (bool); the time limit is not asked here."""


TENSOR_ENVS: dict[str, Callable[[], TensorEnv]] = {}


def register_tensor_env(env_id: str, make: Callable[[], TensorEnv]) -> None:
    """Has `--env-backend tensor --env-id <env_id>` play what `make` returns; a class will do."""
    TENSOR_ENVS[env_id] = make


class EnvState(NamedTuple):
    """All that N environments remember from one step to the next."""

    state: Tensor  # [N, ...]
    elapsed_steps: Tensor  # [N] float32
    episode_return: Tensor  # [N] float32


class TensorEnvs:
    """Steps N tensor environments: time limit, reset in the step that ends an episode, statistics of episodes.

    `advance` touches neither the host nor this object, so that a whole rollout can be one compiled function.
    """

    resets_in_next_step, num_ignored = False, 0

    def __init__(self, env: TensorEnv, num_envs: int, env_id: str = "(a TensorEnv)") -> None:
        """Raises `UserError` where an agent cannot act on the spaces."""
        self.env = env
        self.spaces = Spaces.of(env_id, env.observation_space, env.action_space)
        self.num_envs = num_envs
        self.device = torch.device("cpu")

    def reset(self, seed: int, first_env: int = 0) -> Tensor:
        """The first observations [N, D] (float32); `first_env` counts environments over all ranks."""
        sizes = {INITIAL: self.env.initial_noise_size, TRANSITION: self.env.transition_noise_size}
        self.noise = [
            Noise(seed, stream, first_env, self.num_envs, size, self.device) for stream, size in sizes.items()
        ]
        self.num_steps = torch.zeros((), dtype=torch.int64, device=self.device)
        return self.restart()

    def restart(self) -> Tensor:
        """The first observations [N, D] of further episodes, one in every environment, whatever became of the last."""
        self.state = self.start(self.num_steps)
        return self.observe(self.state)

    def start(self, step: Tensor) -> EnvState:
        """Episodes that all start before a step, as those would that end with the step before it."""
        initial_noise, _ = self.draw(step - 1, 1)
        return EnvState(
            self.env.initial(initial_noise[0]),
            elapsed_steps=torch.zeros(self.num_envs, device=self.device),
            episode_return=torch.zeros(self.num_envs, device=self.device),
        )

    def observe(self, state: EnvState) -> Tensor:
        """What the policy sees next [N, D] (float32)."""
        return self.env.observation(state.state).float()

    def draw(self, step: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
        """The noise of T steps from `step` on: [T, N, ...] to start episodes with, [T, N, ...] for transitions.

        Episodes that start when a step ends the ones before take that step's noise; the first ones take step -1's.
        """
        initial_noise, transition_noise = (noise.at(step, num_steps) for noise in self.noise)
        return initial_noise, transition_noise

    def advance(
        self, before: EnvState, action: Tensor, initial_noise: Tensor, transition_noise: Tensor
    ) -> tuple[EnvState, Step]:
        """One step of all environments as a function of tensors: actions as the policy sampled them, noise [N, ...]."""
        action = self.spaces.actions.within_bounds(action)
        state = self.env.transition(before.state, action, transition_noise)
        reward = self.env.reward(before.state, action, state).float()
        terminated = self.env.terminal(state)
        elapsed_steps, episode_return = before.elapsed_steps + 1, before.episode_return + reward
        truncated = elapsed_steps >= self.env.max_episode_steps
        ended = terminated | truncated
        fresh = ended.view(-1, *(1 for _ in state.shape[1:]))
        after = EnvState(
            torch.where(fresh, self.env.initial(initial_noise), state), elapsed_steps * ~ended, episode_return * ~ended
        )
        step = Step(
            obs=self.observe(after),
            next_obs=self.env.observation(state).float(),
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            weight=torch.ones_like(reward),
            episode_return=episode_return * ended,
            episode_length=elapsed_steps * ended,
        )
        return after, step

    def step(self, action: Tensor) -> Step:
        """Acts once: actions [N] or [N, A] as the policy sampled them."""
        initial_noise, transition_noise = self.draw(self.num_steps, 1)
        self.num_steps = self.num_steps + 1
        self.state, step = self.advance(self.state, action, initial_noise[0], transition_noise[0])
        return step

    def to(self, device: torch.device) -> Self:
        """Has the tensors made on this device from the next reset on."""
        self.device = device
        return self

    def state_dict(self) -> dict[str, Any]:
        """What brings the environments back to where they are, for `torch.save`; every value is [N, ...]."""
        return {name: value.cpu() for name, value in self.state._asdict().items()}

    def load_state_dict(self, state: Mapping[str, Any], num_steps: int) -> Tensor | None:
        """Brings the environments back, after `num_steps` of the run: their observations [N, D]."""
        self.num_steps = torch.full((), num_steps, dtype=torch.int64, device=self.device)
        saved = EnvState(*(state[name].to(self.device) for name in EnvState._fields))
        if [field.shape for field in saved] != [field.shape for field in self.state]:
            raise ValueError(f"a state of shapes {[tuple(field.shape) for field in saved]}")
        self.state = saved
        return self.observe(self.state)

    def close(self) -> None:
        """Nothing runs on."""


class TensorVectorEnv(gym.vector.VectorEnv[Tensor, Tensor, Tensor]):
    """N tensor environments as Gymnasium's vector environment, whose arrays are tensors on one device.

    An ended episode is reset in the step that ends it (SAME_STEP); `final_obs` and `episode` (return r and length l) of
    the information hold for the environments of the masks `_final_obs` and `_episode`.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012 (Gymnasium's own declaration)

    def __init__(self, env: TensorEnv, num_envs: int, device: torch.device | str = "cpu") -> None:
        """Raises `UserError` where an agent could not act on the spaces."""
        self.envs = TensorEnvs(env, num_envs).to(torch.device(device))
        self.num_envs = num_envs
        self.single_observation_space = env.observation_space
        self.single_action_space = env.action_space
        self.observation_space = batch_space(env.observation_space, num_envs)
        self.action_space = batch_space(env.action_space, num_envs)
        self.last_seed = int.from_bytes(os.urandom(4), "big")

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Starts an episode everywhere: without a seed other ones than before.

        Raises:
            ValueError: There are several seeds; noise depends on one seed and the environment's index.
        """
        if isinstance(seed, Sequence):
            raise ValueError(f"seed {seed}: must be one number; every environment derives its own randomness from it")
        self.last_seed = self.last_seed + 1 if seed is None else seed
        return self.envs.reset(self.last_seed), {}

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Acts once in every environment, by actions as its space has them; real ones are clipped to their bounds.

        Raises:
            gymnasium.error.InvalidAction: Shape, type or value is another.
        """
        given, space = torch.as_tensor(actions, device=self.envs.device), self.single_action_space
        must = (self.num_envs, *(space.shape or ()))
        if isinstance(space, gym.spaces.Discrete):
            action = given.long() - int(space.start)
            what = f"whole numbers from {space.start} to {space.start + space.n - 1}"
            right = not given.is_floating_point() and bool(((action >= 0) & (action < int(space.n))).all())
        else:
            action, what, right = given.float(), "numbers", not bool(given.isnan().any())
        if given.shape != must or not right:
            raise gym.error.InvalidAction(f"actions {given.tolist()}: must be {what} of shape {must}")
        step = self.envs.step(action)
        ended = step.terminated | step.truncated
        info = {
            "final_obs": step.next_obs,
            "_final_obs": ended,
            "episode": {"r": step.episode_return, "l": step.episode_length},
            "_episode": ended,
        }
        return step.obs, step.reward, step.terminated, step.truncated, info
