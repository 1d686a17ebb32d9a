"""A rollout, the experience of N environments over T steps, and how the policy decides on a step of it."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from rl.envs.masks import Mask
from rl.envs.observations import Obs
from rl.envs.types import Step, is_reset
from rl.models.agent import Policy
from rl.models.memory import Memory, Past, given


class Rollout(NamedTuple):
    """T steps of N environments; every field is [T, N, ...], or [N, ...] for a single step."""

    obs: Obs  # [T, N, ...], a tensor or a dict of them
    next_obs: Obs | None  # [T, N, ...], where the action led; None where nobody needs them, since they may be large
    action: Tensor  # [T, N] int64, or [T, N, C] int64 or float32, as sampled, before the environment's bounds
    log_prob: Tensor  # [T, N] float32, of the action under the policy that took it
    value: Tensor  # [T, N] float32, of obs
    next_value: Tensor  # [T, N] float32, of next_obs
    reward: Tensor  # [T, N] float32
    terminated: Tensor  # [T, N] bool
    truncated: Tensor  # [T, N] bool
    weight: Tensor  # [T, N] float32, 0 for a row that no loss may see, else 1
    episode_return: Tensor  # [T, N] float32, of the episode that ended here, else 0
    episode_length: Tensor  # [T, N] float32, likewise
    mask: Mask = ()  # [T, N, ΣA] bool, the legal actions at obs; () if all are, in all states
    memory: Memory = ()  # [T, N, M] float32, what the policy remembers before obs; () if it has no memory

    @property
    def past(self) -> Past:
        """Memory before each step, and the steps [T, N] at which an episode begins; () without memory.

        At the first step none is said to begin: the memory before it has already been reset.
        """
        if not isinstance(self.memory, Tensor):
            return ()
        reset = is_reset(self.weight, self.episode_length)
        return self.memory, torch.cat([torch.zeros_like(reset[:1]), reset[:-1]])


class Taken(NamedTuple):
    """What is kept of a step [N, ...] for a rollout while it is collected, as in `Rollout`."""

    obs: Obs
    next_obs: Obs | None
    action: Tensor
    log_prob: Tensor
    value: Tensor
    mask: Mask
    memory: Memory


class Decision(NamedTuple):
    """What the policy decides at observations [N, ...]."""

    action: Tensor  # [N] int64, or [N, C] int64 or float32
    log_prob: Tensor  # [N] float32
    value: Tensor  # [N] float32
    memory: Memory  # [N, M] float32, with these observations in it


def decide(
    policy: Policy, obs: Obs, mask: Mask, noise: Tensor, memory: Memory = (), action: Tensor | None = None
) -> Decision:
    """Samples legal actions at observations [N, ...] from uniform noise [N, ...], unless they are given."""
    distribution, value, *after = policy(obs, mask, *given(memory))
    action = distribution.sample(noise) if action is None else action
    return Decision(action, distribution.log_prob(action), value, after[0] if after else ())


def row(obs: Obs, mask: Mask, memory: Memory, decision: Decision, step: Step) -> Rollout:
    """One step [N, ...] of a rollout; `next_value` is a placeholder until the rollout is complete."""
    seen = {"obs": obs, "mask": mask, "memory": memory, "next_value": decision.value}
    return Rollout(**(step._asdict() | decision._asdict() | seen))


def value_of(policy: Policy, obs: Any, memory: Memory) -> Tensor:
    """The values [...] of observations [..., *shape], given what the policy remembers before them."""
    return policy(obs, (), *given(memory))[1]
