"""What an agent remembers of its episode: recurrent layers behind its encoders, over one step or over pieces of many.

Pieces have a static shape [B, L]: an episode that begins inside a piece resets the memory there, in place of cutting
the piece in two, so that shapes never depend on data and a gradient step can be compiled. All that is remembered is one
tensor [N, M] of float32, whatever the layers are and whatever they compute in: it is the same number at the border of
two pieces as within one, and it is saved, sent and cut like any row.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

Memory = Tensor | tuple[()]
"""What agents remember [..., M] (float32); () if they have no memory."""
Past = tuple[Tensor, Tensor] | tuple[()]
"""What pieces need besides observations: memory before them [B, M], and where episodes begin in them [B, L] (bool)."""

MOST_COMPILED = 32  # steps of a piece: they are compiled one after the other, which takes a second for each and layer
CELLS: dict[str, type[nn.GRUCell] | type[nn.LSTMCell]] = {"gru": nn.GRUCell, "lstm": nn.LSTMCell}


class Recurrent(nn.Module):
    """A GRU (Cho et al. 2014) or LSTM (Hochreiter & Schmidhuber 1997) of `size` units behind each encoder."""

    def __init__(self, kind: str, num_features: int, size: int, *, num_encoders: int, span: int = 1) -> None:
        """`span` is for how many steps the units remember at first, each for another number of them."""
        super().__init__()
        self.span = span
        self.cells = nn.ModuleList(CELLS[kind](num_features, size) for _ in range(num_encoders))
        self.size = size
        self.parts = 2 if kind == "lstm" else 1  # of a cell's memory; the first is its output
        self.num_numbers = num_encoders * self.parts * size

    def forward(
        self, features: Sequence[Tensor], memory: Tensor, start: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """The layers' outputs, one for each encoder's features, and the memory afterwards.

        Without `start`, features [..., F] are those of one step, before which the memory [..., M] was. With it they are
        those of pieces [B, L, F], in which `start` [B, L] says where an episode begins: it forgets what was before it.
        """
        outputs: list[Tensor] = []
        after: list[Tensor] = []
        befores = torch.split(memory, self.size, dim=-1)
        for number, (cell, seen) in enumerate(zip(self.cells, features, strict=True)):
            parts = befores[number * self.parts : (number + 1) * self.parts]
            if start is None:
                parts = stepped(cell, seen, parts)
                output = parts[0]
            else:
                each = []
                for now, begins in zip(seen.unbind(1), start.unbind(1), strict=True):
                    parts = stepped(cell, now, [forgotten(part, begins) for part in parts])
                    each.append(parts[0])
                output = torch.stack(each, dim=1)
            outputs.append(output.to(seen.dtype))
            after += parts
        return outputs, torch.cat(after, dim=-1)

    def init(self, *, orthogonal: bool) -> None:
        """Orthogonal weights and zero biases, where these are asked for, and the biases of gates that hold on.

        Where a unit's forget gate f (LSTM) or update gate z (GRU) is 1 - 1/t, it remembers for about t steps, so their
        biases are log(t - 1) with t from 2 to the span: "Can recurrent neural networks warp time?" (Tallec & Ollivier
        2018, eq. 16). With biases of 0 a memory halves at each step, and no gradient tells of what it has lost.
        """
        for cell in self.cells:
            for name, parameter in cell.named_parameters() if orthogonal else ():
                nn.init.zeros_(parameter) if name.startswith("bias") else nn.init.orthogonal_(parameter)
            if self.span > 1:
                self._hold_on(cell)

    @torch.no_grad()
    def _hold_on(self, cell: Any) -> None:
        held = torch.empty(self.size).uniform_(1, self.span - 1).log()
        first, second = slice(0, self.size), slice(self.size, 2 * self.size)
        cell.bias_ih[second], cell.bias_hh[second] = held, 0  # the second gate of both kinds holds on
        if isinstance(cell, nn.LSTMCell):  # whose first one lets in
            cell.bias_ih[first], cell.bias_hh[first] = -held, 0


def stepped(cell: nn.Module, features: Tensor, parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The parts [..., H] of a cell's memory after a step, the first of which is its output."""
    before = tuple(part.to(cell.weight_hh.dtype) for part in parts)  # type: ignore[arg-type]  # weights may be bf16
    after = cell(features, before if len(before) > 1 else before[0])
    return tuple(part.float() for part in (after if len(before) > 1 else (after,)))


def forgotten(memory: Tensor, where: Tensor) -> Tensor:
    """Memory [N, M] with zeros where an episode has ended, or begins [N] (bool)."""
    return memory.masked_fill(where.unsqueeze(-1), 0)


def given(memory: Memory) -> tuple[Tensor, ...]:
    """The arguments by which a policy is given its memory: none if it has none."""
    return (memory,) if isinstance(memory, Tensor) else ()
