"""The memory that a rank and its workers share: one record an environment."""

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from rl.envs.observations import ObsKey, keys_of, part_of


def record_of(observation_space: gym.Space[Any], action_space: gym.Space[Any], mask_size: int) -> np.dtype[Any]:
    """What is shared of an environment, with a field for each key of an observation; without masks their size is 0."""
    fields: dict[str, tuple[Any, Any]] = {"action": (action_space.dtype, action_space.shape)}
    for key in keys_of(observation_space):
        obs = (part_of(observation_space, key).dtype, key.shape)
        fields |= {field_of("obs", key): obs, field_of("final_obs", key): obs}
    fields |= {"reward": (np.float64, ()), "terminated": (np.bool_, ()), "truncated": (np.bool_, ())}
    fields |= {"num_calls": (np.int64, ())} | ({"mask": (np.bool_, (mask_size,))} if mask_size else {})
    return np.dtype([(name, *field) for name, field in fields.items()], align=True)


def field_of(name: str, key: ObsKey) -> str:
    """The field of one key of `obs` or `final_obs`."""
    return f"{name}:{key.name}" if key.name else name


def columns(memory: Any, record: np.dtype[Any], span: range) -> dict[str, NDArray[Any]]:
    """The fields of the records of some environments, as arrays."""
    records: NDArray[Any] = np.frombuffer(memory, record)[span.start : span.stop]
    return {name: records[name] for name in record.names or ()}
