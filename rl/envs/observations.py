"""What observations are made of: a tensor, or a flat dict of tensors, each of which an `ObsKey` describes.

A Dict or Tuple space, nested or not, becomes a dict by path, such as "arm/0"; any other space is a bare tensor. Numbers
are float32, and discrete ones int64, counted from 0. Images, and whatever else is in bytes, stay in bytes, so that a
stored frame takes no more memory than the environment's own.
"""

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from rl import tree
from rl.envs.failures import QUIET

Obs = Tensor | dict[str, Tensor]
Arrays = NDArray[Any] | dict[str, NDArray[Any]]
MAX_VALUES = 2**20  # of discrete observations: their one-hots are as long
SMALLEST_FRAME = 36  # of height and width: what the Nature network needs


class UnsupportedSpaceError(ValueError):
    """A space of observations that no tensor can hold; the message says which."""


@dataclass(frozen=True)
class ObsKey:
    """One tensor of an observation."""

    path: tuple[str | int, ...]  # in the environment's Dicts and Tuples; empty for a bare tensor
    shape: tuple[int, ...]
    dtype: str  # float32, uint8 or int64
    num_values: tuple[int, ...] = ()  # int64: how many values each number has
    start: tuple[int, ...] = ()  # int64: from where the environment counts them
    largest: float = 1.0  # uint8: the largest value

    @functools.cached_property
    def name(self) -> str:
        """The path as a dict of tensors has it."""
        return "/".join(map(str, self.path))

    @property
    def num_features(self) -> int:
        """Number of floats that the agent sees; a number with n values is a one-hot vector of n."""
        return sum(self.num_values) if self.num_values else math.prod(self.shape)

    @property
    def is_image(self) -> bool:
        """Whether convolutions can see it: [C, H, W] or [H, W, C], or a large picture [H, W] in bytes."""
        if len(self.shape) == 2:
            return self.dtype == "uint8" and min(self.shape) >= SMALLEST_FRAME
        return len(self.shape) == 3 and not self.num_values and min(self.planes[1:]) >= 3

    @property
    def planes(self) -> tuple[int, ...]:
        """An image's shape [C, H, W]: there are fewer channels than columns, and equally many mean [H, W, C]."""
        if len(self.shape) == 2:
            return (1, *self.shape)
        return self.shape if self.channels_first else (self.shape[2], *self.shape[:2])

    @property
    def channels_first(self) -> bool:
        return self.shape[0] < self.shape[-1]

    @functools.cached_property
    def torch_dtype(self) -> torch.dtype:
        return {"float32": torch.float32, "uint8": torch.uint8, "int64": torch.int64}[self.dtype]

    def sound(self, array: NDArray[Any]) -> NDArray[np.bool_]:
        """Whether each row [N] of an array [N, ...] is finite, or has values that there are."""
        rows = array.reshape(len(array), -1)
        fits = (rows >= 0) & (rows < np.array(self.num_values)) if self.num_values else np.isfinite(rows)
        sound: NDArray[np.bool_] = np.all(fits, axis=-1)
        return sound


Keys = tuple[ObsKey, ...]


def vector(size: int) -> Keys:
    """The keys of observations that are vectors of numbers."""
    return (ObsKey((), (size,), "float32"),)


def keys_of(space: spaces.Space[Any]) -> Keys:
    """The tensors of a space's observations; without texts, which no network here reads.

    Raises:
        UnsupportedSpaceError: The space, or a part of it, is of another kind.
    """
    keys = tuple(_keys(space, ()))
    if not keys:
        raise UnsupportedSpaceError(f"no numbers: {space}")
    names = [key.name for key in keys]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UnsupportedSpaceError(f"{space}, of which two parts are both called {min(twice)}")
    return keys


def texts_in(space: spaces.Space[Any], path: str = "") -> list[str]:
    """The paths of the texts in a space."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        return [text for name, part in _parts(space) for text in texts_in(part, f"{path}/{name}")]
    return [path.removeprefix("/")] if _is_text(space) else []


def _is_text(space: spaces.Space[Any]) -> bool:
    """Whether the space is of texts: Text, or one of another package's (MiniGrid's missions)."""
    return space.dtype is not None and space.dtype.kind == "U"


def _parts(space: "spaces.Dict | spaces.Tuple[Any]") -> Iterator[tuple[str | int, spaces.Space[Any]]]:
    yield from space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)


def _keys(space: spaces.Space[Any], path: tuple[str | int, ...]) -> Iterator[ObsKey]:
    if isinstance(space, spaces.Dict | spaces.Tuple):
        for name, part in _parts(space):
            yield from _keys(part, (*path, name))
    elif isinstance(space, spaces.Discrete) and space.n <= MAX_VALUES:
        yield ObsKey(path, (), "int64", (int(space.n),), (int(space.start),))
    elif isinstance(space, spaces.MultiDiscrete) and 0 < space.nvec.sum() <= MAX_VALUES:
        numbers, start = space.nvec.ravel().tolist(), space.start.ravel().tolist()
        yield ObsKey(path, tuple(space.nvec.shape), "int64", tuple(numbers), tuple(start))
    elif isinstance(space, spaces.MultiBinary) and math.prod(space.shape) > 0:
        yield ObsKey(path, tuple(space.shape), "uint8")
    elif isinstance(space, spaces.Box) and math.prod(space.shape) > 0 and space.dtype.kind in "biuf":
        if space.dtype in (np.uint8, np.bool_) and len(space.shape) > 1:
            yield ObsKey(path, tuple(space.shape), "uint8", largest=max(1.0, float(space.high.max())))
        else:
            yield ObsKey(path, tuple(space.shape), "float32")
    elif not (_is_text(space) and path):
        raise UnsupportedSpaceError(f"{space}{' under ' + '/'.join(map(str, path)) if path else ''}")


def part_of(whole: Any, key: ObsKey) -> Any:
    """A key's part of an observation, of a batch of them, or of a space, nested as the environment's or flat."""
    if not key.path:
        return whole
    if isinstance(whole, Mapping) and key.name in whole:
        return whole[key.name]
    for step in key.path:
        whole = whole[step]
    return whole


@QUIET
def as_arrays(keys: Keys, obs: Any, rows: Any = ...) -> Arrays:
    """Copies of an environment's observation, or of (some rows of) a batch of them, in the dtypes of tensors.

    Numbers beyond float32's range become infinite. The memory is PyTorch's, which is aligned to 64 bytes: NumPy's may
    begin anywhere, and the last bits of a matrix product depend on where its factors begin.
    """
    if not keys[0].path:
        return _as_array(keys[0], obs, rows)
    return {key.name: _as_array(key, part_of(obs, key), rows) for key in keys}


def _as_array(key: ObsKey, part: Any, rows: Any) -> NDArray[Any]:
    given = np.asarray(part if rows is ... else part[rows])
    array: NDArray[Any] = torch.empty(given.shape, dtype=key.torch_dtype).numpy()
    array[...] = given
    if any(key.start):
        array -= np.array(key.start).reshape(key.shape)
    return array


def final_arrays(keys: Keys, final_obs: Any, ended: NDArray[np.bool_]) -> Arrays:
    """The rows that ended of `info["final_obs"]`: a batch, or an array of single observations (Gymnasium's own)."""
    if isinstance(final_obs, np.ndarray) and final_obs.dtype.kind == "O":
        return tree.map(lambda *arrays: np.stack(arrays), *(as_arrays(keys, obs) for obs in final_obs[ended]))
    return as_arrays(keys, final_obs, ended)


def as_tensors(keys: Keys, obs: Any) -> Obs:
    """A tensor environment's observations [N, ...] in the dtypes that observations have here."""
    if not keys[0].path:
        return _as_tensor(keys[0], obs)
    return {key.name: _as_tensor(key, part_of(obs, key)) for key in keys}


def _as_tensor(key: ObsKey, part: Tensor) -> Tensor:
    if not any(key.start):
        return part.to(key.torch_dtype)
    columns = zip(part.flatten(1).unbind(1), key.start, strict=True) if key.shape else ((part, key.start[0]),)
    # Not len(part), which an exported policy would take for the only number of rows.
    return torch.stack([column.long() - start for column, start in columns], dim=-1).reshape(part.shape[0], *key.shape)


def parts_of(keys: Keys, obs: Obs) -> list[Tensor]:
    """The tensors of an observation, in the order of the keys."""
    return [obs] if isinstance(obs, Tensor) else [obs[key.name] for key in keys]


def numbers_of(keys: Keys, obs: Obs) -> Tensor:
    """The float32 numbers [..., D] of observations: what can be normalized."""
    parts = [
        part if len(key.shape) == 1 else part.reshape(*part.shape[: part.dim() - len(key.shape)], key.num_features)
        for key, part in zip(keys, parts_of(keys, obs), strict=True)
        if key.dtype == "float32"
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
