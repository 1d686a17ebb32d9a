"""One loop over time for every way of running: in Python, or inside the compiled program."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan as compiled_scan

Carry = TypeVar("Carry", bound=tuple[Tensor, ...])  # a NamedTuple of tensors
Output = TypeVar("Output", bound=tuple[Tensor, ...])  # likewise


def scan(
    step: Callable[..., tuple[Carry, Output]],
    carry: Carry,
    inputs: tuple[Tensor, ...],
    output_type: type[Output],
    *,
    reverse: bool = False,
) -> tuple[Carry, Output]:
    """Steps through inputs [T, ...] by `step(carry, *now)`: the last carry, and all outputs stacked [T, ...].

    With `reverse` it goes from the last to the first; outputs keep their places. No two fields of a carry may be the
    same tensor: Inductor's loop in C++ would free it twice.
    """
    if torch.compiler.is_compiling():

        def plain_step(plain: tuple[Tensor, ...], now: tuple[Tensor, ...]) -> tuple[Any, Any]:
            after, output = step(type(carry)(*plain), *now)
            # The compiled loop knows plain tuples only, and no tensor may be carry and output at once.
            return tuple(after), tuple(field.clone() for field in output)

        after, outputs = compiled_scan(plain_step, tuple(carry), inputs, reverse=reverse)
        return type(carry)(*after), output_type(*outputs)

    order = range(len(inputs[0]))
    steps = []
    for t in reversed(order) if reverse else order:
        carry, output = step(carry, *(field[t] for field in inputs))
        steps.append(output)
    return carry, output_type(*map(torch.stack, zip(*(steps[::-1] if reverse else steps), strict=True)))
