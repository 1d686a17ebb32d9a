"""What an agent remembers of its episode: recurrent layers behind its encoders, over one step or over pieces of many.

Pieces have a static shape [B, L]: an episode that begins inside a piece resets the memory there, in place of cutting
the piece in two, so that shapes never depend on data and a gradient step can be compiled. All that is remembered is one
tensor [N, M] of float32, whatever the layers are and whatever they compute in: it is the same number at the border of
two pieces as within one, and it is saved, sent and cut like any row.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

Memory = Tensor | tuple[()]
"""What agents remember [..., M] (float32); () if they have no memory."""
Past = tuple[Tensor, Tensor] | tuple[()]
"""What pieces need besides observations: memory before them [B, M], and where episodes begin in them [B, L] (bool)."""

MOST_COMPILED = 32  # steps of a piece: they are compiled one after the other, which takes two seconds for each
CELLS: dict[str, type[nn.GRUCell] | type[nn.LSTMCell]] = {"gru": nn.GRUCell, "lstm": nn.LSTMCell}


class Recurrent(nn.Module):
    """A GRU (Cho et al. 2014) or LSTM (Hochreiter & Schmidhuber 1997) of `size` units behind each encoder."""

    def __init__(self, kind: str, num_features: int, size: int, *, num_encoders: int) -> None:
        super().__init__()
        self.cells = nn.ModuleList(CELLS[kind](num_features, size) for _ in range(num_encoders))
        self.size = size
        self.parts = 2 if kind == "lstm" else 1  # of a cell's memory; the first is its output
        self.num_numbers = num_encoders * self.parts * size

    def forward(
        self, features: Sequence[Tensor], memory: Tensor, start: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """The layers' outputs [..., size], one for each encoder's features [..., F], and the memory [..., M] after.

        Features of one step have the dimensions of the memory before it. Those of pieces [B, L, F] have one more;
        `start` [B, L] says where in them an episode begins, at which the memory before it is forgotten.
        """
        if features[0].dim() == memory.dim():
            after = self._step(torch.cat(list(features), dim=-1), memory)
            return self._outputs(after), after
        assert start is not None
        each, remembered = [], memory
        for now, begins in zip(torch.cat(list(features), dim=-1).unbind(1), start.unbind(1), strict=True):
            remembered = self._step(now, forgotten(remembered, begins))
            each.append(remembered)
        return self._outputs(torch.stack(each, dim=1)), remembered

    def _step(self, features: Tensor, memory: Tensor) -> Tensor:
        """The memory [..., M] after a step, given that before it and features [..., K·F] of all encoders."""
        lead = memory.shape[:-1]
        inputs = features.reshape(-1, features.shape[-1]).chunk(len(self.cells), dim=-1)
        befores = torch.split(memory.reshape(-1, self.num_numbers).to(self.dtype()), self.size, dim=-1)
        after: list[Tensor] = []
        for number, cell in enumerate(self.cells):
            before = befores[number * self.parts : (number + 1) * self.parts]
            if isinstance(cell, nn.LSTMCell):
                after += cell(inputs[number], (before[0], before[1]))
            else:
                after.append(cell(inputs[number], before[0]))
        return torch.cat(after, dim=-1).float().reshape(*lead, self.num_numbers)

    def init_orthogonally(self) -> None:
        """Orthogonal weights and zero biases."""
        for cell in self.cells:
            for name, parameter in cell.named_parameters():
                nn.init.zeros_(parameter) if name.startswith("bias") else nn.init.orthogonal_(parameter)

    def dtype(self) -> torch.dtype:
        """That of the weights."""
        return cast(Tensor, self.cells[0].weight_hh).dtype

    def _outputs(self, memory: Tensor) -> list[Tensor]:
        """The parts of the memory that heads see, in the dtype of the weights."""
        return list(torch.split(memory.to(self.dtype()), self.size, dim=-1))[:: self.parts]


def forgotten(memory: Tensor, where: Tensor) -> Tensor:
    """Memory [N, M] with zeros where an episode has ended, or begins [N] (bool)."""
    return memory.masked_fill(where.unsqueeze(-1), 0)


def given(memory: Memory) -> tuple[Tensor, ...]:
    """The arguments by which a policy is given its memory: none if it has none."""
    return (memory,) if isinstance(memory, Tensor) else ()
