"""An agent as other programs call it, apart from this package: what an exported file computes."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rl import tree
from rl.envs.actions import Actions, BoxActions, CompositeActions, tensors_for_env
from rl.envs.masks import KEY
from rl.envs.observations import ObsKey, as_tensors
from rl.models.agent import Agent

Arrays = list[NDArray[Any]]


class Deployed(nn.Module):
    """From an environment's observations [N, ...] to greedy actions, in the environment's numbers and bounds.

    Makes the agent's parameters need no gradients.
    """

    def __init__(self, agent: Agent, *, masked: bool) -> None:
        super().__init__()
        self.agent = agent.requires_grad_(False)
        self.masked = masked
        actions = agent.spaces.actions
        leaves = actions.leaves() if isinstance(actions, CompositeActions) else [actions]
        for number, leaf in enumerate(leaves):
            if isinstance(leaf, BoxActions) and leaf.dtype == "float64":
                limits = torch.from_numpy(leaf.limits).reshape(2, *(leaf.shape or (-1,)))
                self.register_buffer(f"limits_{number}", limits)

    def forward(self, *inputs: Tensor) -> Any:
        keys = self.agent.spaces.obs
        named = dict(zip((key.name for key in keys), inputs, strict=False))
        obs = as_tensors(keys, named if keys[0].path else inputs[0])
        mask, *past = inputs[len(keys) :] if self.masked else ((), *inputs[len(keys) :])
        distribution, _, *after = self.agent(obs, mask, *past)
        in_env = tree.leaves(tensors_for_env(self.agent.spaces.actions, distribution.mode()))
        outputs = (*(self._within(number, action) for number, action in enumerate(in_env)), *after)
        return outputs if len(outputs) > 1 else outputs[0]

    def _within(self, number: int, action: Tensor) -> Tensor:
        """Clips once more what is in float64, since ONNX has bounds that are no tensors in float32."""
        limits = dict(self.named_buffers(recurse=False)).get(f"limits_{number}")
        return action if limits is None else torch.minimum(torch.maximum(action, limits[0]), limits[1])

    def input_names(self) -> list[str]:
        """One for each tensor of an observation, and those of the mask and the memory, if there are any."""
        return [*(key.name or "obs" for key in self.agent.spaces.obs), *([KEY] * self.masked), *self._memory("in")]

    def output_names(self) -> list[str]:
        """One for each part of the actions, and that of the memory, to be given with the next observation."""
        return [*_names(self.agent.spaces.actions, "actions"), *self._memory("out")]

    def _memory(self, way: str) -> list[str]:
        return [] if self.agent.memory is None else [f"memory_{way}"]

    def random_inputs(self, num_rows: int, generator: np.random.Generator) -> Arrays:
        """Observations as an environment might give them, with everything legal."""
        keys, sizes = self.agent.spaces.obs, self.agent.spaces.actions.sizes
        num_numbers = sum(key.num_features for key in keys if key.dtype == "float32")
        numbers = generator.normal(size=(num_rows, num_numbers))
        if (normalizer := self.agent.obs_normalizer) is not None:
            numbers = numbers / normalizer.scale.numpy() + normalizer.shift.numpy()
        arrays: Arrays = []
        for key in keys:
            if key.dtype != "float32":
                arrays.append(_random(key, num_rows, generator))
                continue
            mine, numbers = np.split(numbers, [key.num_features], axis=1)
            arrays.append(mine.reshape(-1, *key.shape).astype(np.float32))
        if self.masked:
            arrays.append(np.ones((num_rows, sum(sizes)), np.bool_))
        if (layers := self.agent.memory) is not None:
            arrays.append(generator.uniform(-1, 1, (num_rows, layers.num_numbers)).astype(np.float32))
        return arrays


def _names(actions: Actions, path: str) -> Iterator[str]:
    if isinstance(actions, CompositeActions):
        for key, part in zip(actions.keys or range(len(actions.parts)), actions.parts, strict=True):
            yield from _names(part, f"{path}/{key}")
    else:
        yield path


def _random(key: ObsKey, num_rows: int, generator: np.random.Generator) -> NDArray[Any]:
    """Choices or bytes, as an environment has them."""
    shape = (num_rows, *key.shape)
    if key.num_values:
        counts = np.array(key.num_values).reshape(key.shape)
        start = np.array(key.start or 0).reshape(key.shape if key.start else ())
        return np.asarray(generator.integers(0, counts, shape) + start, np.int64)
    return generator.integers(0, int(key.largest), shape, np.uint8, endpoint=True)
