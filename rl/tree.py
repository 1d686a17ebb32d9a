"""Trees of tensors: a tensor, or NamedTuples, tuples, lists and dicts of trees."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

TreeType = TypeVar("TreeType")


def map(function: Callable[..., Any], tree: TreeType, *others: TreeType) -> TreeType:
    """The tree with every tensor replaced by `function(tensor, *the tensors of the others in its place)`.

    What is neither a container nor a tensor stays as it is.
    """
    result: Any = tree
    if isinstance(tree, Tensor):
        result = function(tree, *others)
    elif isinstance(tree, dict):
        parts = [map(function, *values) for values in zip(*(other.values() for other in (tree, *others)), strict=True)]  # type: ignore[attr-defined]
        result = dict(zip(tree, parts, strict=True))
    elif isinstance(tree, tuple | list):
        parts = [map(function, *values) for values in zip(tree, *others, strict=True)]
        result = type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return result  # type: ignore[no-any-return]


def leaves(tree: Any) -> Iterator[Tensor]:
    """The tensors of a tree, in order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, tuple | list | dict):
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from leaves(part)


def stack(trees: list[TreeType]) -> TreeType:
    """Trees of tensors [...] as one of tensors [len(trees), ...]."""
    return map(lambda *tensors: torch.stack(tensors), *trees)


def cat(trees: list[TreeType]) -> TreeType:
    """Trees of tensors [B_i, ...] as one of tensors [ΣB_i, ...]."""
    return map(lambda *tensors: torch.cat(tensors), *trees)


def index(tree: TreeType, rows: Any) -> TreeType:
    """The rows of every tensor [B, ...] that an index, a mask or a slice selects."""
    return map(lambda tensor: tensor[rows], tree)


def split(tree: TreeType, num_parts: int) -> Iterator[TreeType]:
    """Cuts tensors [B, ...] along dimension 0 into parts of almost equal size."""
    parts = [tensor.tensor_split(num_parts) for tensor in leaves(tree)]
    for part in zip(*parts, strict=True):
        tensors = iter(part)
        yield map(lambda _, tensors=tensors: next(tensors), tree)
