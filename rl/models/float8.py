"""Linear layers with 8-bit matrix products: torchao's float8 training."""

import functools
import importlib.util
import sys
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from rl.dist.launch import rank
from rl.errors import UserError, install

MULTIPLE = 16  # what float8 instructions want both sizes of a weight matrix to be a multiple of
FLOAT8_CAPABILITY = (8, 9)  # the first compute capability with float8 instructions


def check_float8() -> None:
    """Raises `UserError` if torchao is missing."""
    if importlib.util.find_spec("torchao") is None:
        raise UserError(f"--fp8: needs torchao; {install('fp8')}")


def to_float8(policy: nn.Module, device: torch.device) -> None:
    """Converts the policy's linear layers to float8 in place; rank 0 prints which.

    The forward pass multiplies e4m3 numbers, the backward pass e5m2 gradients with e4m3 numbers, each tensor scaled by
    its largest element (Micikevicius et al. 2022). Parameters keep their names, types and values.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    emulate = device.type != "cuda" or torch.cuda.get_device_capability(device) < FLOAT8_CAPABILITY
    linear = {name: module for name, module in policy.named_modules() if isinstance(module, nn.Linear)}
    fits = {name for name, m in linear.items() if m.in_features % MULTIPLE == 0 and m.out_features % MULTIPLE == 0}
    # The number of rows may be any: products over rows are padded.
    config = Float8LinearConfig(emulate=emulate, pad_inner_dim=True)
    convert_to_float8_training(policy, module_filter_fn=lambda _, name: name in fits, config=config)
    if emulate:
        for layer in map(policy.get_submodule, fits):
            layer.forward = functools.partial(_without_autocast, layer, layer.forward, device.type)
    if rank() == 0:
        sizes = {name: f"{name} ({m.in_features} to {m.out_features})" for name, m in linear.items()}
        others = ", ".join(sizes[name] for name in linear if name not in fits)
        how = " (emulated: the same numbers, but slow; an H100 or a later GPU is fast)" if emulate else ""
        print(
            f"note: --fp8: in float8{how}: {', '.join(sorted(fits)) or 'no layer'};"
            f" unchanged, since a size is not a multiple of {MULTIPLE}: {others}",
            file=sys.stderr,
        )


def _without_autocast(layer: nn.Module, forward: Callable[[Tensor], Tensor], device_type: str, rows: Tensor) -> Tensor:
    """A layer's output in the type of its weights: autocast on a CPU cannot cast the operands of emulated products."""
    with torch.autocast(device_type, enabled=False):
        return forward(rows.to(cast(Tensor, layer.weight).dtype))
