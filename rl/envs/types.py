"""What every kind of environment offers to everything else, as tensors: `Step`, and `Envs`, which are stepped.

A rollout needs only what N environments show (`Seen`) to go on; what came of its steps (`Outcomes`) it asks for once.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from typing_extensions import Self

from rl.envs.masks import Mask
from rl.envs.observations import Obs
from rl.envs.spaces import Spaces


class Step(NamedTuple):
    """One step of N environments. Every field but the observations is [N]."""

    obs: Obs  # [N, ...], what the policy sees next
    next_obs: Obs  # [N, ...], the successor of the action: the last observation of an episode that ended
    reward: Tensor  # float32
    terminated: Tensor  # bool
    truncated: Tensor  # bool
    weight: Tensor  # float32, 0 where the action was ignored because the environment was resetting, else 1
    episode_return: Tensor  # float32, of an episode that ended here, else 0
    episode_length: Tensor  # float32, likewise


class Seen(NamedTuple):
    """What N environments show after a step: what the next one depends on."""

    obs: Obs  # [N, ...]
    next_obs: Obs  # [N, ...], as in `Step`
    ended: Tensor | None  # [N] bool, terminated or truncated; None if it is known that none is
    reset: Tensor | None  # [N] bool, as `is_reset` has it; None likewise


class Outcomes(NamedTuple):
    """What came of T steps of N environments. Every field is [T, N], and as in `Step`."""

    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    weight: Tensor
    episode_return: Tensor
    episode_length: Tensor


def is_reset(weight: Tensor, episode_length: Tensor) -> Tensor:
    """Whether the next observation begins an episode; the loss of a life may be a termination, but ends none."""
    return (episode_length > 0) | (weight == 0)  # some environments end in one step, and reset in the next


class Envs(Protocol):
    """N environments stepped together; ended episodes are reset automatically."""

    spaces: Spaces
    num_envs: int
    device: torch.device
    resets_in_next_step: bool
    """Whether the step after the end of an episode resets, and ignores its action."""

    @property
    def num_ignored(self) -> int:
        """Number of actions ignored so far, for that reason; may wait for the device."""

    @property
    def mask(self) -> Mask:
        """Which actions are legal at the observations that were returned last."""

    def reset(self, seed: int, first_env: int = 0) -> Obs:
        """The first observations [N, ...]; `first_env` is the index of the first one over all ranks."""

    def restart(self) -> Obs:
        """Starts the next episode in every environment, wherever the current one is: observations [N, ...]."""

    def step(self, action: Tensor) -> Step:
        """Takes actions [N] or [N, C] as the policy sampled them; converts and clips them for the environment."""

    def to(self, device: torch.device) -> Self:
        """Sets the device of the tensors returned from now on."""

    def state_dict(self) -> dict[str, Any]:
        """The state that `load_state_dict` restores, for `torch.save`: values [N, ...], or a snapshot."""

    def load_state_dict(self, state: Mapping[str, Any], num_steps: int) -> Obs | None:
        """Restores the state after `num_steps` of the run: observations [N, ...], or None if they cannot be known."""

    def close(self) -> None:
        """Ends processes and closes windows."""


class SteppedEnvs(Envs, Protocol):
    """Environments whose rollouts are loops in Python: whatever is no function of tensors."""

    def act(self, action: Tensor) -> Seen:
        """Takes a step, as `step` does; what came of it is kept for `outcomes`."""

    def outcomes(self) -> Outcomes:
        """What came of the steps since the last call, at least one; also of those of a rollout that was cut short."""


def stepped(envs: SteppedEnvs, action: Tensor) -> Step:
    """A step, and what came of it."""
    seen = envs.act(action)
    return Step(seen.obs, seen.next_obs, *(field[-1] for field in envs.outcomes()))
