"""The door between environments and everything else: what a step of N of them gives, as tensors, and who gives it."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Self

from rl.envs.spaces import Spaces
from rl.errors import one_line


class Step(NamedTuple):
    """What one step of N environments gave. Every field but the observations is [N]."""

    obs: Tensor  # [N, D], what the policy sees next
    next_obs: Tensor  # [N, D], where the action truly led: an ended episode's last observation
    reward: Tensor  # float32
    terminated: Tensor  # bool
    truncated: Tensor  # bool
    weight: Tensor  # float32, 0 where the action was ignored because the environment was resetting, else 1
    episode_return: Tensor  # float32, of the episode that ended here, else 0
    episode_length: Tensor  # float32, likewise


QUIET = np.errstate(over="ignore", invalid="ignore")  # what is not finite is said in a line of our own


@QUIET
def as_float32(values: Any) -> NDArray[np.float32]:
    """A copy in float32, in which a larger number is infinite."""
    return np.array(values, np.float32)


class Envs(Protocol):
    """N environments stepped together; an ended episode is reset by itself."""

    spaces: Spaces
    num_envs: int
    device: torch.device
    resets_in_next_step: bool
    """Whether the step after the one that ends an episode resets, and takes no action."""
    num_ignored: int
    """How many actions were not taken so far, for that reason."""

    def reset(self, seed: int, first_env: int = 0) -> Tensor:
        """The first observations [N, D] (float32); `first_env` counts environments over all ranks."""

    def restart(self) -> Tensor:
        """The first observations [N, D] of further episodes, one in every environment, whatever became of the last."""

    def step(self, action: Tensor) -> Step:
        """Acts once: actions [N] or [N, A] as the policy sampled them, put into the environment's terms here."""

    def to(self, device: torch.device) -> Self:
        """Has the tensors made on this device from now on."""

    def state_dict(self) -> dict[str, Any]:
        """What brings the environments back to where they are, for `torch.save`: values [N, ...], or a snapshot."""

    def load_state_dict(self, state: Mapping[str, Any], num_steps: int) -> Tensor | None:
        """Brings the environments back, after `num_steps` of the run: their observations [N, D], if they say them."""

    def close(self) -> None:
        """Ends what the environments keep running."""


def wrong_types(result: Any, num_envs: int) -> str:
    """What is wrong with what a batched class gave as a step of N environments; nothing if all is well."""
    if not isinstance(result, tuple) or len(result) != 5 or not isinstance(result[4], dict):
        return f"{one_line(repr(result))} instead of four arrays and a dictionary"
    for name, part in zip(("observation", "reward", "terminated", "truncated"), result, strict=False):
        array = np.asarray(part)
        shape = array.shape[:1] if name == "observation" else array.shape
        if array.dtype.kind not in "biuf" or shape != (num_envs,):
            return f"numbers of type {array.dtype} and shape {array.shape} for {name}"
    return ""
