"""Linear layers whose matrix products are in 8 bits: torchao's float8 training."""

import functools
import importlib.util
import sys
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from rl.dist.launch import rank
from rl.errors import UserError

MULTIPLE = 16  # of rows and columns of weights, which the instructions want
FLOAT8_CAPABILITY = (8, 9)  # the first compute capability with float8 products


def check_float8() -> None:
    """Raises `UserError` if torchao is missing."""
    if importlib.util.find_spec("torchao") is None:
        raise UserError("--fp8: needs torchao; install it with: pip install -e '.[fp8]'")


def to_float8(policy: nn.Module, device: torch.device) -> None:
    """Turns the policy's linear layers into float8 ones, in place; rank 0 says which.

    Products are of e4m3 numbers going forward, and of e5m2 gradients with those going back, each tensor scaled by its
    largest element (Micikevicius et al. 2022). Parameters and their names stay what they were.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    emulate = device.type != "cuda" or torch.cuda.get_device_capability(device) < FLOAT8_CAPABILITY
    linear = {name: module for name, module in policy.named_modules() if isinstance(module, nn.Linear)}
    fits = {name for name, m in linear.items() if m.in_features % MULTIPLE == 0 and m.out_features % MULTIPLE == 0}
    # The number of rows need not be a multiple, since products over them are padded.
    config = Float8LinearConfig(emulate=emulate, pad_inner_dim=True)
    convert_to_float8_training(policy, module_filter_fn=lambda _, name: name in fits, config=config)
    if emulate:
        for layer in map(policy.get_submodule, fits):
            layer.forward = functools.partial(_without_autocast, layer, layer.forward, device.type)
    others = ", ".join(
        f"{name} ({m.in_features} to {m.out_features})" for name, m in linear.items() if name not in fits
    )
    how = "" if not emulate else " (emulated: the same numbers, but slow; real ones need a GPU like the H100)"
    if rank() == 0:
        print(
            f"note: in float8{how}: {', '.join(sorted(fits)) or 'no layer'}; as before: {others}, whose sizes are no"
            f" multiples of {MULTIPLE}",
            file=sys.stderr,
        )


def _without_autocast(layer: nn.Module, forward: Callable[[Tensor], Tensor], device_type: str, rows: Tensor) -> Tensor:
    """A layer's output as precise as its weights: autocast on a CPU cannot cast what emulated products are of."""
    with torch.autocast(device_type, enabled=False):
        return forward(rows.to(cast(Tensor, layer.weight).dtype))
