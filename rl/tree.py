"""Trees of tensors (or of arrays): a tensor, or NamedTuples, tuples, lists and dicts of trees."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan as compiled_scan

TreeType = TypeVar("TreeType")
Carry = TypeVar("Carry", bound=tuple[Any, ...])  # a NamedTuple of trees
Output = TypeVar("Output", bound=tuple[Any, ...])  # a NamedTuple of trees
LEAVES = (Tensor, np.ndarray)


def map(function: Callable[..., Any], tree: TreeType, *others: TreeType) -> TreeType:
    """The tree with every tensor replaced by `function(tensor, *the tensors of the others in its place)`.

    What is neither a container nor a tensor stays as it is.
    """
    result: Any = tree
    if isinstance(tree, LEAVES):
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
    if isinstance(tree, LEAVES):
        yield tree  # type: ignore[misc]
    elif isinstance(tree, tuple | list | dict):
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from leaves(part)


def stack(trees: list[TreeType]) -> TreeType:
    """Trees of tensors [...] as one of tensors [len(trees), ...]."""
    return map(lambda *tensors: torch.stack(tensors), *trees)


def space_for(tree: TreeType, num_trees: int) -> TreeType:
    """New tensors [num_trees, ...] to `put` trees of tensors [...] such as this one into."""
    return map(lambda tensor: tensor.new_empty(num_trees, *tensor.shape), tree)


def put(trees: TreeType, number: int, tree: TreeType) -> None:
    """Copies a tree of tensors [...] to a place in one of tensors [num_trees, ...]."""
    for place, tensor in zip(leaves(trees), leaves(tree), strict=True):
        place[number] = tensor


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
        yield rebuilt(tree, part)


def rebuilt(tree: TreeType, tensors: Iterable[Tensor]) -> TreeType:
    """A tree of the same form, with these tensors in place of its own."""
    given = iter(tensors)
    return map(lambda _: next(given), tree)


def scan(
    step: Callable[..., tuple[Carry, Output]],
    carry: Carry,
    inputs: tuple[Tensor, ...],
    output_type: type[Output],
    *,
    reverse: bool = False,
    num_at_once: int = 1,
) -> tuple[Carry, Output]:
    """Applies `step(carry, *inputs[t])` to inputs [T, ...] in turn; returns the last carry and the outputs [T, ...].

    With `reverse` it goes from the last input to the first, and outputs keep their places. No two tensors of a carry
    may be the same, which Inductor's loop in C++ would free twice. Compiled, it takes up to `num_at_once` steps in
    each pass of its loop, as many as divide T: small ones are faster together, but take longer to compile.
    """
    # A loop of one pass is none; Inductor 2.13 writes C++ for it that may declare a variable twice.
    if torch.compiler.is_compiling() and len(inputs[0]) > 1:
        return _compiled_scan(step, carry, inputs, output_type, reverse=reverse, num_at_once=num_at_once)
    order = range(len(inputs[0]))
    steps = []
    for t in reversed(order) if reverse else order:
        carry, output = step(carry, *(field[t] for field in inputs))
        steps.append(output)
    return carry, stack(steps[::-1] if reverse else steps)


def _compiled_scan(
    step: Callable[..., tuple[Carry, Output]],
    carry: Carry,
    inputs: tuple[Tensor, ...],
    output_type: type[Output],
    *,
    reverse: bool,
    num_at_once: int,
) -> tuple[Carry, Output]:
    """`scan` as a loop that Inductor writes in C++."""
    num_steps = len(inputs[0])
    size = max(number for number in range(1, max(1, min(num_at_once, num_steps // 2)) + 1) if num_steps % number == 0)

    def steps(plain: tuple[Tensor, ...], now: tuple[Tensor, ...]) -> tuple[Any, Any]:
        inner, outputs = rebuilt(carry, plain), []
        for t in reversed(range(size)) if reverse else range(size):
            inner, output = step(inner, *(field[t] for field in now))
            outputs.append(tuple(output))
        # The compiled loop takes plain tuples only, and no tensor may be both carry and output.
        return tuple(map(torch.clone, list(leaves(inner)))), stack(outputs[::-1] if reverse else outputs)

    parts = tuple(field.view(num_steps // size, size, *field.shape[1:]) for field in inputs)
    after, outputs = compiled_scan(steps, tuple(leaves(carry)), parts, reverse=reverse)
    return rebuilt(carry, after), output_type(*map(lambda field: field.flatten(0, 1), outputs))
