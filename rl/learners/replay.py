"""The memory of a learner that learns more than once, and late, from what was collected."""

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Rows = TypeVar("Rows", bound=tuple[Tensor, ...])  # a NamedTuple of tensors [B, ...]


class Replay(Generic[Rows]):
    """The rows added last, in tensors allocated once, on the device of the first ones."""

    def __init__(self, capacity: int) -> None:
        """Keeps at most `capacity` rows."""
        self.capacity = capacity
        self.num_added = 0
        self.kept: Rows | None = None

    def __len__(self) -> int:
        """Number of rows to sample from."""
        return min(self.num_added, self.capacity)

    def add(self, rows: Rows) -> None:
        """Keeps rows [B, ...] in the place of the oldest ones."""
        if self.kept is None:
            fields = (field.new_zeros(self.capacity, *field.shape[1:]) for field in rows)
            self.kept = type(rows)(*fields)
        elif self.kept[0].device != rows[0].device:  # it has been read from a checkpoint
            self.kept = type(rows)(*(field.to(rows[0].device) for field in self.kept))
        num_rows, device = len(rows[0]), rows[0].device
        # Of more rows than there is room for, the last ones: no place is written twice.
        first = max(0, num_rows - self.capacity)
        place = torch.arange(self.num_added + first, self.num_added + num_rows, device=device) % self.capacity
        for kept, field in zip(self.kept, rows, strict=True):
            kept[place] = field[first:]
        self.num_added += num_rows

    def sample(self, num_rows: int, generator: torch.Generator) -> Rows:
        """Rows [num_rows, ...] drawn with replacement, each kept one as likely as any other."""
        assert self.kept is not None
        place = torch.randint(len(self), (num_rows,), generator=generator, device=generator.device)
        return type(self.kept)(*(field[place] for field in self.kept))

    def state_dict(self) -> dict[str, Any]:
        """All that the next sample depends on but the generator, for `torch.save`."""
        return {"num_added": self.num_added, "kept": None if self.kept is None else self.kept._asdict()}  # type: ignore[attr-defined]

    def load_state_dict(self, state: Mapping[str, Any], rows_type: type[Rows]) -> None:
        """Puts back what `state_dict` gave.

        Raises:
            ValueError: That buffer had another size.
        """
        kept = state["kept"]
        if kept is not None and len(kept["weight"]) != self.capacity:
            raise ValueError(f"a replay buffer of {len(kept['weight'])} rows; must have {self.capacity}")
        self.num_added, self.kept = state["num_added"], None if kept is None else rows_type(**kept)
