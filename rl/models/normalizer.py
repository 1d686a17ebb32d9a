"""Running means and standard deviations of what all ranks have seen, in float64."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from typing_extensions import Self

EPSILON = 1e-8  # added to variances: a feature that never changes is 0, not NaN
CLIP = 10.0  # standard deviations


class Normalizer(nn.Module):
    """Shifts and scales D features to mean 0 and standard deviation 1 over all rows measured so far.

    It measures deviations from the mean so far: sums of these can be added up over ranks, and lose no digits where the
    mean is large. Buffers change in `update` only, in place, so that compiled functions see it.
    """

    count: Tensor  # [] float64
    mean: Tensor  # [D] float64
    squares: Tensor  # [D] float64, the sum of squared deviations from the mean
    shift: Tensor  # [D] float32, the mean
    scale: Tensor  # [D] float32, 1 / standard deviation

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        for name in ("mean", "squares"):
            self.register_buffer(name, torch.zeros(size, dtype=torch.float64))
        self.register_buffer("shift", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    def forward(self, values: Tensor) -> Tensor:
        """Values [..., D] (float32), normalized and clipped to ±10."""
        return ((values - self.shift) * self.scale).clamp(-CLIP, CLIP)

    def sums(self, values: Tensor, weight: Tensor) -> Tensor:
        """One rank's part [1 + 2D] (float64) of `totals`, from values [..., D], except those with weight 0 [...]."""
        rows = weight.flatten().double()
        deviations = (values.double() - self.mean).flatten(0, -2)
        # A product with weights would turn a value that is not finite into NaN, also where its weight is 0.
        deviations = deviations.where(rows[:, None] > 0, 0.0)
        return torch.cat([rows.sum()[None], deviations.sum(0), deviations.square().sum(0)])

    def update(self, totals: Tensor) -> None:
        """Adds what all ranks measured since the last update: the sum of their `sums`.

        Chan, Golub & LeVeque 1983, eq. 2.1, with the mean so far as the origin of both parts.
        """
        number, deviation, squares = self._parts(totals)
        self.count += number
        step = deviation / self.count.clamp(min=1)
        self.mean += step
        self.squares += squares - deviation * step
        self._derive()

    def center(self, totals: Tensor) -> None:
        """Takes the mean of a first measurement, which is then repeated: far from the mean its squares lose digits."""
        number, deviation, _ = self._parts(totals)
        self.mean += deviation / number.clamp(min=1)

    def _parts(self, totals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        deviation, squares = totals[1:].chunk(2)
        return totals[0], deviation, squares

    def _derive(self) -> None:
        self.shift.copy_(self.mean)
        self.scale.copy_((self.squares / self.count.clamp(min=1) + EPSILON).rsqrt())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves to another device; dtypes stay, since bf16 would have 8 of the 53 bits of these numbers."""
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in before.items():
            self._buffers[name] = buffer.to(self.get_buffer(name).device)
        return self
