"""What is collected: the experience of N environments over T steps."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from rl.agent import Agent
from rl.envs.stepping import Stepper
from rl.seeding import ActionNoise

Fields = TypeVar("Fields", bound=tuple[Tensor, ...])  # a NamedTuple of tensors


class Rollout(NamedTuple):
    """T steps of N environments; every field is [T, N, ...], or [N, ...] for a single step."""

    obs: Tensor  # [T, N, D] float32
    next_obs: Tensor  # [T, N, D] float32, where the action truly led: an ended episode's last observation
    action: Tensor  # [T, N] int64 or [T, N, A] float32, as sampled, before any clipping to the environment's bounds
    log_prob: Tensor  # [T, N] float32, of the action under the policy that took it
    value: Tensor  # [T, N] float32, of obs
    reward: Tensor  # [T, N] float32
    terminated: Tensor  # [T, N] bool
    truncated: Tensor  # [T, N] bool
    weight: Tensor  # [T, N] float32, 0 for a row that no loss may see, else 1
    episode_return: Tensor  # [T, N] float32, of the episode that ended here, else 0
    episode_length: Tensor  # [T, N] float32, likewise


def map_tensors(function: Callable[[Tensor], Tensor], fields: Fields) -> Fields:
    """The NamedTuple with the function applied to every tensor of it."""
    return type(fields)(*map(function, fields))


class Collector:
    """Plays N environments with a policy, on from where the last rollout ended."""

    def __init__(self, envs: Stepper, policy: Agent, *, seed: int, first_env: int) -> None:
        """Starts an episode in every environment; `first_env` counts environments over all ranks."""
        self.envs = envs
        self.policy = policy
        self.noise = ActionNoise(seed, first_env, envs.num_envs, envs.spaces.actions.noise_size, envs.device)
        self.obs = envs.reset(seed, first_env)

    def collect(self, num_steps: int) -> Rollout:
        """The rollout [T, N, ...] of the next T steps."""
        steps = []
        for noise in self.noise.draw(num_steps):
            distribution, value = self.policy(self.obs)
            action = distribution.sample(noise)
            step = self.envs.step(action)
            given = step._asdict() | {"obs": self.obs}
            steps.append(Rollout(action=action, log_prob=distribution.log_prob(action), value=value, **given))
            self.obs = step.obs
        return Rollout(*map(torch.stack, zip(*steps, strict=True)))
