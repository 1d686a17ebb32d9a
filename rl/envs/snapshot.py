"""Saves and restores a batched environment: its attributes, as far as they are numbers, arrays and generators.

A batched class of the environment's own takes one seed for all, so its episodes cannot be replayed one by one. Whether
its attributes hold all of its state is tried before the run (`snapshots_suffice`).
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rl.envs.action_spaces import actions_of
from rl.envs.failures import AnyVectorEnv, progress
from rl.envs.masks import KEY, legal_actions
from rl.envs.observations import keys_of, part_of

PROBE_STEPS = 30


def snapshot(envs: AnyVectorEnv) -> dict[str, Any]:
    """What `restore` takes, of types that `torch.load(weights_only=True)` reads."""
    kept = {name: _kept(value) for name, value in vars(envs.unwrapped).items()}
    return {name: value for name, value in kept.items() if value is not None}


def restore(envs: AnyVectorEnv, state: Mapping[str, Any]) -> None:
    """Sets the attributes that `snapshot` saved."""
    attributes = vars(envs.unwrapped)
    for name in state.keys() & attributes.keys():
        attributes[name] = _restored(state[name], attributes[name])


def snapshots_suffice(envs: AnyVectorEnv) -> bool:
    """Whether the environments repeat themselves after a restore; tried on them, so they must be reset afterwards."""
    _, at_reset = envs.reset(seed=0)
    envs.action_space.seed(0)
    _, _, info = _played(envs, at_reset)
    before = snapshot(envs)
    actions, first, _ = _played(envs, info)
    try:
        restore(envs, before)
        _, again, _ = _played(envs, info, actions)
    except Exception:  # restored in part, an environment may fail in any way
        return False
    return same(first, again)


def same(first: list[NDArray[Any]], second: list[NDArray[Any]]) -> bool:
    """Whether the arrays are equal, NaN included."""
    return len(first) == len(second) and all(
        np.array_equal(a, b, equal_nan=True) for a, b in zip(first, second, strict=True)
    )


def _played(
    envs: AnyVectorEnv, info: Mapping[str, Any], given: list[Any] | None = None
) -> tuple[list[Any], list[NDArray[Any]], Mapping[str, Any]]:
    """The actions of some steps (those given, or random and legal ones), what came of them, and the last info."""
    actions, seen = [], []
    keys, kinds = keys_of(envs.single_observation_space), actions_of("", envs.single_action_space)
    generator = np.random.default_rng(0)
    for step in range(PROBE_STEPS):
        if given is not None:
            action = given[step]
        elif KEY in info:
            action = legal_actions(kinds, info[KEY], generator)
        else:
            action = envs.action_space.sample()
        obs, *numbers, info = envs.step(action)
        actions.append(action)
        seen += [np.array(part) for part in (*(part_of(obs, key) for key in keys), *numbers)]
        progress()
    return actions, seen, info


def _kept(value: Any) -> Any:
    """The value as a pair (tag, value), or None for a type that is not kept."""
    if isinstance(value, np.random.Generator):
        return "generator", _converted(
            value.bit_generator.state, np.ndarray, lambda array: torch.from_numpy(array.copy())
        )
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return "array", torch.from_numpy(value.copy())
    if isinstance(value, torch.Tensor):
        return "tensor", value.detach().cpu().clone()
    if isinstance(value, np.generic):
        return "number", (value.item(), value.dtype.str)
    if isinstance(value, bool | int | float | str):
        return "value", value
    if type(value) in (list, tuple):
        parts = [_kept(part) for part in value]
        return None if None in parts else (type(value).__name__, parts)
    return None


def _restored(kept: tuple[str, Any], present: Any) -> Any:
    tag, value = kept
    if tag == "generator":
        present = present if isinstance(present, np.random.Generator) else np.random.default_rng()
        present.bit_generator.state = _converted(
            value, torch.Tensor, torch.Tensor.numpy
        )  # raises for a generator of another kind
        return present
    if tag == "array":
        return value.numpy().copy()
    if tag == "tensor":
        return value.to(present.device) if isinstance(present, torch.Tensor) else value.clone()
    if tag == "number":
        return np.dtype(value[1]).type(value[0])
    if tag in ("list", "tuple"):
        known = present if isinstance(present, list | tuple) and len(present) == len(value) else [None] * len(value)
        parts = [_restored(part, old) for part, old in zip(value, known, strict=True)]
        return parts if tag == "list" else tuple(parts)
    return value


def _converted(state: Any, kind: type, convert: Callable[[Any], Any]) -> Any:
    """A nested dictionary in which all values of one type are converted."""
    if isinstance(state, dict):
        return {name: _converted(value, kind, convert) for name, value in state.items()}
    return convert(state) if isinstance(state, kind) else state
