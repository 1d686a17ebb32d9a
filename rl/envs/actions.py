"""The kinds of actions that an agent can take, and their form in the environment."""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from rl.errors import UserError

MAX_ACTIONS = 2**20


@dataclass(frozen=True)
class DiscreteActions:
    """`num_actions` actions, which the environment counts from `start`."""

    num_actions: int
    start: int = 0

    @property
    def noise_size(self) -> int:
        """Number of uniform numbers that sampling an action takes."""
        return 1

    def to_env(self, action: NDArray[Any]) -> NDArray[Any]:
        """The agent's actions [...], counted from 0, as the environment counts them."""
        return action + self.start

    def within_bounds(self, action: Tensor) -> Tensor:
        """The agent's actions [...] unchanged: a tensor environment counts them from 0 too."""
        return action


@dataclass(frozen=True)
class BoxActions:
    """Numbers between bounds, which the agent has as a vector [A], whatever shape the environment gives them."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    dtype: str = "float32"
    """The environment's type of actions, by NumPy's name."""
    shape: tuple[int, ...] | None = None
    """The environment's shape of an action; None for a vector."""
    squash: bool = False
    """Whether tanh maps the agent's unbounded actions into the bounds; otherwise they are clipped."""

    @classmethod
    def of(cls, space: spaces.Box) -> "BoxActions":
        """The actions of a space; a bound that float64 cannot hold (a large integer) becomes the next number inside."""
        low, high = (
            [(bound, float(bound)) for bound in bounds.tolist()] for bounds in (space.low.ravel(), space.high.ravel())
        )
        return cls(
            tuple(near if near >= bound else math.nextafter(near, math.inf) for bound, near in low),
            tuple(near if near <= bound else math.nextafter(near, -math.inf) for bound, near in high),
            np.dtype(space.dtype).name,
            None if len(space.shape) == 1 else tuple(space.shape),
        )

    @property
    def noise_size(self) -> int:
        return len(self.low)

    @functools.cached_property
    def limits(self) -> NDArray[Any]:
        """The bounds [2, A] (float64), finite in the environment's dtype."""
        bounds = np.array([self.low, self.high])
        if np.dtype(self.dtype).kind != "f":
            return bounds
        info = np.finfo(self.dtype)
        finite: NDArray[Any] = np.clip(bounds, float(info.min), float(info.max))
        return finite

    def to_env(self, action: NDArray[Any]) -> NDArray[Any]:
        """The agent's unbounded actions [..., A] within the environment's bounds, in its shape and dtype."""
        # Clipped in float64: a number between two numbers of a narrower type stays between them when it is cast.
        exact = action.astype(np.float64)
        if self.squash:
            low, high = self.limits / 2
            exact = low + high + (high - low) * np.tanh(exact)
        exact = exact if np.dtype(self.dtype).kind == "f" else np.rint(exact)
        in_env: NDArray[Any] = np.clip(exact, *self.limits).astype(self.dtype)
        return in_env if self.shape is None else in_env.reshape(*action.shape[:-1], *self.shape)

    def within_bounds(self, action: Tensor) -> Tensor:
        """The agent's unbounded actions [..., A] within the environment's bounds, in its shape."""
        columns = zip(action.unbind(-1), self.low, self.high, strict=True)
        bounded = torch.stack([self._bounded(column, low, high) for column, low, high in columns], dim=-1)
        return bounded if self.shape is None else bounded.reshape(*action.shape[:-1], *self.shape)

    def _bounded(self, column: Tensor, low: float, high: float) -> Tensor:
        if self.squash:
            column = (low / 2 + high / 2) + (high / 2 - low / 2) * column.tanh()
        return (column if np.dtype(self.dtype).kind == "f" else column.round()).clamp(low, high)


Actions = DiscreteActions | BoxActions


def actions_of(env_id: str, space: spaces.Space[Any]) -> Actions:
    """The actions of a space; raises `UserError` for a space that is not supported."""
    if isinstance(space, spaces.Discrete) and space.n <= MAX_ACTIONS:
        return DiscreteActions(int(space.n), int(space.start))
    if (
        isinstance(space, spaces.Box)
        and math.prod(space.shape) > 0
        and space.dtype.itemsize <= 8  # torch has no wider numbers
        and (space.low <= space.high).all()  # false for NaN
    ):
        return BoxActions.of(space)
    raise UserError(
        f"--env-id {env_id}: its action space is {space}; supported are Discrete with at most {MAX_ACTIONS:,}"
        " actions, and a Box of numbers of at most 64 bits"
    )


def actions_from_dict(fields: Mapping[str, Any]) -> Actions:
    """The inverse of `dataclasses.asdict`."""
    return (DiscreteActions if "num_actions" in fields else BoxActions)(**fields)


def squashed(env_id: str, actions: Actions) -> Actions:
    """The actions, which tanh maps into their bounds; raises `UserError` if there are none."""
    if isinstance(actions, DiscreteActions):
        raise UserError(f"--squash: the actions of {env_id} are discrete; must be a Box, or leave the flag out")
    for number, bounds in enumerate(zip(actions.low, actions.high, strict=True)):
        if not all(map(math.isfinite, bounds)):
            low, high = bounds
            raise UserError(
                f"--squash: component {number} of the actions of {env_id} is bounded by {low:g} and {high:g}; must"
                " have finite bounds, or leave the flag out"
            )
    return replace(actions, squash=True)
