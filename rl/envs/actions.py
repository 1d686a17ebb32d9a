"""The kinds of actions that an agent can take, and their form in the environment.

Whatever the environment's form, the agent's actions are one tensor: the choice [...] (int64) of a Discrete space, or a
row [..., C] of choices (int64), of numbers (float32), or of both (float32, which holds every choice exactly, as there
are at most 2^20). So nothing between the policy and the environment needs to know the form.
"""

import functools
import math
from collections.abc import Iterator, Mapping
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

    @property
    def num_outputs(self) -> int:
        """Number of the policy's outputs."""
        return self.num_actions

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of alternatives of each choice; a mask has one number for each of all these."""
        return (self.num_actions,)

    def to_env(self, action: NDArray[Any]) -> NDArray[Any]:
        """The agent's actions [...], counted from 0, as the environment counts them."""
        return action + self.start

    def within_bounds(self, action: Tensor) -> Tensor:
        """The agent's actions [...] unchanged: a tensor environment counts them from 0 too."""
        return action

    def of_row(self, row: Any) -> Any:
        """The agent's actions [...], as an array or a tensor, from the columns [..., 1] of a row."""
        return _whole(row)[..., 0]

    def flattened(self, in_env: Any) -> NDArray[Any]:
        """The environment's actions as rows [..., C]."""
        return np.asarray(in_env)[..., None]

    def structured(self, row: NDArray[Any]) -> Any:
        """The environment's actions, from what `flattened` returned."""
        return row[..., 0].astype(np.int64)[()]  # a number, not an array without dimensions, if there is one row


@dataclass(frozen=True)
class MultiDiscreteActions:
    """Several choices [K], of `sizes` alternatives each, which the environment counts from `starts`."""

    sizes: tuple[int, ...]
    starts: tuple[int, ...]
    shape: tuple[int, ...]
    """The environment's shape of an action."""
    dtype: str = "int64"
    """The environment's type of actions, by NumPy's name."""

    @property
    def noise_size(self) -> int:
        return len(self.sizes)

    @property
    def num_outputs(self) -> int:
        return sum(self.sizes)

    def to_env(self, action: NDArray[Any]) -> NDArray[Any]:
        """The agent's choices [..., K], counted from 0, as the environment counts and shapes them."""
        return self.structured(action + np.array(self.starts))

    def within_bounds(self, action: Tensor) -> Tensor:
        """The agent's choices [..., K] in the environment's shape; a tensor environment counts them from 0 too."""
        return action.reshape((*action.shape[:-1], *self.shape))

    def of_row(self, row: Any) -> Any:
        return _whole(row)

    def flattened(self, in_env: Any) -> NDArray[Any]:
        return _flattened(in_env, self.shape)

    def structured(self, row: NDArray[Any]) -> NDArray[Any]:
        return row.astype(self.dtype).reshape((*row.shape[:-1], *self.shape))


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

    @property
    def num_outputs(self) -> int:
        return len(self.low)

    @property
    def sizes(self) -> tuple[int, ...]:
        return ()

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
        return self.structured(np.clip(exact, *self.limits))

    def within_bounds(self, action: Tensor) -> Tensor:
        """The agent's unbounded actions [..., A] within the environment's bounds, in its shape."""
        columns = zip(action.unbind(-1), self.low, self.high, strict=True)
        bounded = torch.stack([self._bounded(column, low, high) for column, low, high in columns], dim=-1)
        return bounded if self.shape is None else bounded.reshape((*action.shape[:-1], *self.shape))

    def _bounded(self, column: Tensor, low: float, high: float) -> Tensor:
        if self.squash:
            column = (low / 2 + high / 2) + (high / 2 - low / 2) * column.tanh()
        return (column if np.dtype(self.dtype).kind == "f" else column.round()).clamp(low, high)

    def of_row(self, row: Any) -> Any:
        return row

    def flattened(self, in_env: Any) -> NDArray[Any]:
        return _flattened(in_env, (len(self.low),) if self.shape is None else self.shape)

    def structured(self, row: NDArray[Any]) -> NDArray[Any]:
        in_env: NDArray[Any] = row.astype(self.dtype)
        return in_env if self.shape is None else in_env.reshape((*row.shape[:-1], *self.shape))


@dataclass(frozen=True)
class CompositeActions:
    """A Dict or a Tuple of actions, nested or not; the agent's rows [..., C] hold the parts' one after the other."""

    keys: tuple[str, ...] | None
    """Those of a Dict; None for a Tuple."""
    parts: tuple["Actions", ...]

    def leaves(self) -> Iterator["DiscreteActions | MultiDiscreteActions | BoxActions"]:
        """The parts that are no Dict or Tuple, in the order of their columns."""
        for part in self.parts:
            yield from part.leaves() if isinstance(part, CompositeActions) else [part]

    @property
    def noise_size(self) -> int:
        return sum(part.noise_size for part in self.parts)

    @property
    def num_outputs(self) -> int:
        return sum(part.num_outputs for part in self.parts)

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(size for part in self.parts for size in part.sizes)

    def to_env(self, action: NDArray[Any]) -> Any:
        """The agent's rows [..., C] in the environment's structure, types and bounds."""
        return self.together([part.to_env(part.of_row(row)) for part, row in self.rows(action)])

    def within_bounds(self, action: Tensor) -> Any:
        """The agent's rows [..., C] in the environment's structure and bounds; choices are counted from 0."""
        return self.together([part.within_bounds(part.of_row(row)) for part, row in self.rows(action)])

    def of_row(self, row: Any) -> Any:
        return row

    def flattened(self, in_env: Any) -> NDArray[Any]:
        """The environment's actions as rows [..., C] (float64)."""
        values = in_env if self.keys is None else [in_env[key] for key in self.keys]
        rows = [part.flattened(value) for part, value in zip(self.parts, values, strict=True)]
        return np.concatenate(rows, axis=-1, dtype=np.float64)

    def structured(self, row: NDArray[Any]) -> Any:
        return self.together([part.structured(columns) for part, columns in self.rows(row)])

    def rows(self, row: Any) -> Iterator[tuple["Actions", Any]]:
        """The parts, and their columns of rows [..., C]."""
        begin = 0
        for part in self.parts:
            yield part, row[..., begin : begin + part.noise_size]
            begin += part.noise_size

    def together(self, values: list[Any]) -> Any:
        """The parts' actions as a Dict or a Tuple has them."""
        return tuple(values) if self.keys is None else dict(zip(self.keys, values, strict=True))


Actions = DiscreteActions | MultiDiscreteActions | BoxActions | CompositeActions


def tensors_for_env(actions: Actions, action: Tensor) -> Any:
    """What `to_env` returns, in new tensors on the device of the agent's actions [...]; no number is looked at."""
    if isinstance(actions, CompositeActions):
        return actions.together([tensors_for_env(part, part.of_row(row)) for part, row in actions.rows(action)])
    if isinstance(actions, DiscreteActions):
        return action + actions.start
    dtype = getattr(torch, actions.dtype)
    if isinstance(actions, BoxActions):
        # Other types are clipped in float64, so that no bound is rounded.
        return actions.within_bounds(action if dtype == torch.float32 else action.double()).to(dtype)
    columns = zip(action.unbind(-1), actions.starts, strict=True)
    return actions.within_bounds(torch.stack([column + start for column, start in columns], dim=-1).to(dtype))


def actions_from_dict(fields: Mapping[str, Any]) -> Actions:
    """The inverse of `dataclasses.asdict`."""
    if "parts" in fields:
        return CompositeActions(fields["keys"], tuple(map(actions_from_dict, fields["parts"])))
    kinds = {"num_actions": DiscreteActions, "sizes": MultiDiscreteActions, "low": BoxActions}
    kind: Any = next(kind for name, kind in kinds.items() if name in fields)
    actions: Actions = kind(**fields)
    return actions


def squashed(env_id: str, actions: Actions) -> Actions:
    """The actions, with those of a Box mapped into their bounds by tanh; raises `UserError` if that is impossible."""
    if len(actions.sizes) == actions.noise_size:
        raise UserError(f"--squash: the actions of {env_id} are discrete; must be a Box, or leave the flag out")
    if isinstance(actions, CompositeActions):
        has_box = [len(part.sizes) < part.noise_size for part in actions.parts]
        parts = zip(actions.parts, has_box, strict=True)
        return replace(actions, parts=tuple(squashed(env_id, part) if box else part for part, box in parts))
    assert isinstance(actions, BoxActions)
    for number, bounds in enumerate(zip(actions.low, actions.high, strict=True)):
        if not all(map(math.isfinite, bounds)):
            low, high = bounds
            raise UserError(
                f"--squash: component {number} of the actions of {env_id} is bounded by {low:g} and {high:g}; must"
                " have finite bounds, or leave the flag out"
            )
    return replace(actions, squash=True)


def _whole(row: Any) -> Any:
    """An array or a tensor of choices as int64."""
    return row.long() if isinstance(row, Tensor) else row.astype(np.int64)


def _flattened(in_env: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    array = np.asarray(in_env)
    return array.reshape(*array.shape[: array.ndim - len(shape)], -1)
