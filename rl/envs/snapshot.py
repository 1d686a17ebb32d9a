"""The state of a natively batched environment: its attributes, as far as they are numbers, arrays and generators."""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

from rl.envs.watchdog import progress

AnyVectorEnv = gym.vector.VectorEnv[Any, Any, Any]
PROBE_STEPS = 30


def snapshot(envs: AnyVectorEnv) -> dict[str, Any]:
    """What `restore` takes, of types that `torch.load` reads without executing anything."""
    kept = {name: _kept(value) for name, value in vars(envs.unwrapped).items()}
    return {name: value for name, value in kept.items() if value is not None}


def restore(envs: AnyVectorEnv, state: Mapping[str, Any]) -> None:
    """Puts the attributes back."""
    attributes = vars(envs.unwrapped)
    for name in state.keys() & attributes.keys():
        attributes[name] = _restored(state[name], attributes[name])


def snapshots_suffice(envs: AnyVectorEnv) -> bool:
    """Whether the environments do the same again after they were put back; tried, and they need a reset after it."""
    envs.reset(seed=0)
    envs.action_space.seed(0)
    actions = [envs.action_space.sample() for _ in range(2 * PROBE_STEPS)]
    _played(envs, actions[:PROBE_STEPS])
    before = snapshot(envs)
    first = _played(envs, actions[PROBE_STEPS:])
    try:
        restore(envs, before)
        again = _played(envs, actions[PROBE_STEPS:])
    except Exception:  # whatever becomes of an object of which a part is missing
        return False
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(first, again, strict=True))


def _played(envs: AnyVectorEnv, actions: list[Any]) -> list[NDArray[Any]]:
    """All that the environments give at these actions."""
    seen = []
    for action in actions:
        seen += [np.array(part) for part in envs.step(action)[:4]]
        progress()
    return seen


def _kept(value: Any) -> Any:
    """A value as a tagged pair, or None if it is of no kind that can be kept."""
    if isinstance(value, np.random.Generator):
        return "generator", _tensors(value.bit_generator.state)
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
        state = _arrays(value)
        if not isinstance(present, np.random.Generator):
            present = np.random.default_rng()
        present.bit_generator.state = state  # of the same kind, else numpy refuses
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


def _tensors(state: Any) -> Any:
    if isinstance(state, dict):
        return {name: _tensors(value) for name, value in state.items()}
    return torch.from_numpy(state.copy()) if isinstance(state, np.ndarray) else state


def _arrays(state: Any) -> Any:
    if isinstance(state, dict):
        return {name: _arrays(value) for name, value in state.items()}
    return state.numpy() if isinstance(state, torch.Tensor) else state
