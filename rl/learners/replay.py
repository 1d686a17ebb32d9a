"""A replay buffer, for a learner that learns from old rows, and from a row more than once."""

from collections.abc import Mapping
from typing import Any, Generic

import torch

from rl import tree
from rl.learners.learner import SamplesType


class Replay(Generic[SamplesType]):
    """The newest `capacity` rows, in tensors allocated once, on the device of the first ones."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.num_added = 0
        self.kept: SamplesType | None = None

    def __len__(self) -> int:
        return min(self.num_added, self.capacity)

    def add(self, rows: SamplesType) -> None:
        """Writes rows [B, ...] over the oldest ones."""
        num_rows, device = len(rows.weight), rows.weight.device
        if self.kept is None:
            self.kept = tree.map(lambda field: field.new_zeros(self.capacity, *field.shape[1:]), rows)
        elif self.kept.weight.device != device:  # restored from a checkpoint, on the CPU
            self.kept = tree.map(lambda field: field.to(device), self.kept)
        # Only the last rows if more come than fit: an index must not occur twice.
        first = max(0, num_rows - self.capacity)
        place = torch.arange(self.num_added + first, self.num_added + num_rows, device=device) % self.capacity
        for kept, field in zip(tree.leaves(self.kept), tree.leaves(rows), strict=True):
            kept[place] = field[first:]
        self.num_added += num_rows

    def sample(self, num_rows: int, generator: torch.Generator) -> SamplesType:
        """Rows [num_rows, ...] drawn with replacement, all with the same probability."""
        assert self.kept is not None
        return tree.index(
            self.kept, torch.randint(len(self), (num_rows,), generator=generator, device=generator.device)
        )

    def state_dict(self) -> dict[str, Any]:
        kept = None if self.kept is None else self.kept._asdict()  # type: ignore[attr-defined]
        return {"num_added": self.num_added, "kept": kept}

    def load_state_dict(self, state: Mapping[str, Any], rows_type: type[SamplesType]) -> None:
        """Restores what `state_dict` returned, as rows of this type.

        Raises:
            ValueError: The saved buffer has another size.
        """
        kept = state["kept"]
        if kept is not None and len(kept["weight"]) != self.capacity:
            raise ValueError(f"a replay buffer of {len(kept['weight'])} rows; must have {self.capacity}")
        self.num_added, self.kept = state["num_added"], None if kept is None else rows_type(**kept)
