"""Measures the layers of the network for Atari (Mnih et al. 2015), forward and backward, and how fast they compute.

OMP_NUM_THREADS=1 python benchmarks/layers.py
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

NUM_ROWS, ROUNDS = 256, 15
LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "32 filters of 8 × 8, stride 4": (nn.Conv2d(4, 32, 8, 4), (4, 84, 84)),
    "64 filters of 4 × 4, stride 2": (nn.Conv2d(32, 64, 4, 2), (32, 20, 20)),
    "64 filters of 3 × 3": (nn.Conv2d(64, 64, 3), (64, 9, 9)),
    "512 units": (nn.Linear(3136, 512), (3136,)),
}


def microseconds(function: Callable[[], object]) -> float:
    """Of this process, for each row; the median of some calls."""
    seconds = []
    for _ in range(ROUNDS + 3):
        began_at = time.process_time()
        function()
        seconds.append(time.process_time() - began_at)
    return statistics.median(seconds[3:]) / NUM_ROWS * 1e6


def row_of(layer: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> list[str]:
    """Microseconds and GFlop/s, forward alone and with backward; the first layer needs no gradient of its input."""
    layer, is_first = layer.to(dtype), shape[0] == 4
    inputs = torch.randn(NUM_ROWS, *shape).to(dtype)
    if len(shape) == 3:
        layer, inputs = layer.to(memory_format=torch.channels_last), inputs.to(memory_format=torch.channels_last)
    inputs.requires_grad_(not is_first)
    output: Tensor = layer(inputs)
    weight = next(layer.parameters())
    flops = 2 * weight.numel() * output[0].numel() / weight.shape[0]
    gradient, wanted = torch.randn_like(output), [*layer.parameters(), *([] if is_first else [inputs])]
    with torch.no_grad():
        forward = microseconds(lambda: layer(inputs))
    both = microseconds(lambda: torch.autograd.grad(layer(inputs), wanted, gradient))
    rates = (flops / forward / 1e3, (2 if is_first else 3) * flops / both / 1e3)
    return [f"{forward:.0f}", f"{rates[0]:.0f}", f"{both:.0f}", f"{rates[1]:.0f}"]


def main() -> None:
    """Prints a row for each layer and type."""
    torch.set_num_threads(1)
    print("| layer | type | forward, µs a row | GFlop/s | with backward, µs | GFlop/s |\n|---|---|---|---|---|---|")
    for dtype in (torch.float32, torch.bfloat16):
        for name, (layer, shape) in LAYERS.items():
            print(f"| {name} | {dtype} | {' | '.join(row_of(layer, shape, dtype))} |", flush=True)


if __name__ == "__main__":
    main()
