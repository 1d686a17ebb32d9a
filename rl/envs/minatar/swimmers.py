"""What swims or flies in Seaquest.

The original keeps lists, whose order decides who is hit first. Here all have places in tensors, and their order is the
step in which they were born.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from rl.envs.minatar.game import SIDE, at

BOMB_INTERVAL = 10  # steps, of submarines


class Swimmers(NamedTuple):
    """What swims or flies; every field is [N, K], in K places."""

    there: Tensor  # bool
    x: Tensor
    y: Tensor
    right: Tensor  # bool, whether it goes there
    to_move: Tensor  # steps
    born: Tensor  # step
    to_bomb: Tensor  # steps; of submarines
    is_sub: Tensor  # bool

    def at(self, x: Tensor, y: Tensor) -> Tensor:
        """Who is there at cells [N]: bool [N, K]."""
        return self.there & (self.x == x[:, None]) & (self.y == y[:, None])

    def joined(
        self, comes: Tensor, y: Tensor, right: Tensor, to_move: Tensor, born: Tensor, is_sub: Tensor
    ) -> "Swimmers":
        """With one more, in the first place that is free, where one comes [N] from the side in row y."""
        free = ~self.there
        new = free & (free.cumsum(-1) == 1) & comes[:, None]
        values: tuple[Any, ...] = (
            True,
            torch.where(right, 0, SIDE - 1),
            y,
            right,
            to_move,
            born,
            BOMB_INTERVAL,
            is_sub,
        )
        fields = zip(self, values, strict=True)
        return Swimmers(*(torch.where(new, _column(value), field).to(field.dtype) for field, value in fields))

    def seen(self, who: Tensor | None = None) -> Tensor:
        """Where someone is, or someone of these [N, K]: boards [N, 10, 10]."""
        in_row = at(self.y, SIDE) & (self.there if who is None else self.there & who)[..., None]
        # A product counts them; to look at each cell of each would take ten times as long.
        return in_row.to(self.x.dtype).mT @ at(self.x, SIDE).to(self.x.dtype) > 0

    def behind(self) -> "Swimmers":
        """As if each were one cell further back."""
        return self._replace(x=self.x - way(self.right))


def _column(value: Any) -> Any:
    return value[:, None] if isinstance(value, Tensor) else value


def way(right: Tensor) -> Tensor:
    """1 to the right, -1 to the left."""
    return torch.where(right, 1.0, -1.0)


def last_born(who: Tensor, born: Tensor) -> Tensor:
    """Of those in question [N, K] the one that was born last."""
    order = torch.where(who, born, -1.0)
    return who & (order == order.amax(-1, keepdim=True))
