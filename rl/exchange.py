"""Sends samples from the player to the trainers, in a buffer allocated once, and weights and metrics back.

Each update, the player scatters (or broadcasts) the samples of its rollout, and in front of them the statistics that
observations were normalized with, and its order for the end of the update: whether to write a checkpoint, to stop, or
to end the run. The first trainer answers with its weights.
Everything passes through host memory (pinned where a GPU is at either end), over the process group of all ranks, so
that it works wherever player and trainers are, also on one GPU together.
"""

import io
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rl import tree
from rl.dist.ranks import pack, unpack
from rl.learners.learner import Samples
from rl.models.agent import weight_vector, weight_views

PLAYER, FIRST_TRAINER = 0, 1


class Order(NamedTuple):
    """What the player decides for all ranks at the end of an update."""

    save: int  # 1: give the player this rank's part of a checkpoint
    stop: int  # the signal that asked to stop, or 0: give that part of a checkpoint, then leave
    last: int  # 1: this update is the last of the run
    done: float  # the fraction of the run that was done before this update


ORDER = struct.Struct("<BBBd")


def padded(samples: Any, num_parts: int) -> Any:
    """Samples whose number of rows divides into equal parts: missing rows repeat the first with weight 0.

    The other weights grow so that their mean stays the same; with nothing missing, the samples come back as they are.
    """
    num_rows = len(samples.weight)
    num_missing = -num_rows % num_parts
    if num_missing == 0:
        return samples
    longer = tree.map(lambda field: torch.cat([field, field[:1].expand(num_missing, *field.shape[1:])]), samples)
    longer.weight[:num_rows] *= (num_rows + num_missing) / num_rows
    longer.weight[num_rows:] = 0
    return longer


def bytes_of(tensors: Iterable[Tensor]) -> bytes:
    """The bytes of some tensors, one after the other."""
    return b"".join(tensor.cpu().numpy().tobytes() for tensor in tensors)


class Exchange:
    """One end of the exchange, the player's or a trainer's; each update, every rank calls its half of it.

    Without `shared`, trainer i of n gets rows i, i + n, i + 2n, …: parts that differ by at most one row, made equal by
    a row of weight 0. With it, every trainer gets all rows.
    """

    def __init__(
        self,
        policy: nn.Module,
        like: Samples,
        metric_names: Sequence[str],
        *,
        num_rows: int,
        num_trainers: int,
        shared: bool,
        pinned: bool,
    ) -> None:
        """`like` is one row, on this end's device, for its dtypes and shapes; `num_rows` are those of a rollout."""
        self.like = like
        self.metric_names = metric_names
        self.num_trainers = num_trainers
        self.shared = shared
        rows_each, self.row_bytes = math.ceil(num_rows / num_trainers), pack(like).shape[1]
        self.num_bytes = rows_each * self.row_bytes * num_trainers * (num_trainers if shared else 1)
        # A scatter has a part for the player too, which nobody reads.
        num_parts = num_trainers if shared else num_trainers + 1 if dist.get_rank() == PLAYER else 1
        # In front of each part stand the player's order and the statistics; rows begin where every dtype may.
        header_bytes = math.ceil((ORDER.size + len(bytes_of(policy.buffers()))) / 64) * 64
        num_bytes = header_bytes + rows_each * self.row_bytes
        self.buffer = torch.zeros(num_parts, num_bytes, dtype=torch.uint8, pin_memory=pinned)
        self.header, self.rows = self.buffer[:, :header_bytes], self.buffer[:, header_bytes:]
        # The trainers' weights go to the player, the player's statistics to the trainers.
        self.policy = policy
        # On the player: whether weights are to be received or applied.
        self.outstanding = False
        self.received: tuple[Tensor, Tensor] | None = None

    def send_rows(self, rows: Samples, order: Order) -> None:
        """The player sends every trainer its part of a rollout's rows, and its order for the end of the update."""
        packed = pack(padded(rows, self.num_trainers))
        header = torch.frombuffer(bytearray(ORDER.pack(*order) + bytes_of(self.policy.buffers())), dtype=torch.uint8)
        self.header[:, : len(header)] = header
        if self.shared:
            self.rows.copy_(packed.view_as(self.rows))
            dist.broadcast(self.buffer, PLAYER)
        else:
            by_trainer = packed.view(-1, self.num_trainers, self.row_bytes).transpose(0, 1)
            self.rows[1:].view(by_trainer.shape).copy_(by_trainer)
            dist.scatter(self.buffer[0], list(self.buffer), PLAYER)
        self.outstanding = True

    def receive_rows(self) -> tuple[Any, Order]:
        """A trainer's part of a rollout's rows (all of them if they are shared), and the player's order."""
        if self.shared:
            dist.broadcast(self.buffer, PLAYER)
        else:
            dist.scatter(self.buffer[0], None, PLAYER)
        header = io.BytesIO(self.header[0].numpy().tobytes())
        order = Order(*ORDER.unpack(header.read(ORDER.size)))
        for statistics in self.policy.buffers():
            own = torch.frombuffer(bytearray(header.read(statistics.nbytes)), dtype=statistics.dtype)
            statistics.copy_(own.view_as(statistics))
        rows = self.rows.reshape(-1, self.row_bytes).to(self.like.weight.device)
        return unpack(rows, self.like), order

    def send_weights(self, metrics: Mapping[str, float]) -> None:
        """The first trainer sends the player its weights, and the metrics of the update that led to them."""
        if dist.get_rank() == FIRST_TRAINER:
            dist.send(torch.tensor([metrics[name] for name in self.metric_names], dtype=torch.float64), PLAYER)
            dist.send(weight_vector(self.policy).cpu(), PLAYER)

    def receive_weights(self) -> dict[str, float]:
        """The player applies the trainers' weights; returns the metrics of the update that led to them."""
        self._receive()
        assert self.received is not None
        values, vector = self.received
        self.received = None
        views = weight_views(self.policy, vector)
        with torch.no_grad():
            for name, parameter in self.policy.named_parameters():
                parameter.copy_(views[name])
        return dict(zip(self.metric_names, values.tolist(), strict=True))

    def awaits_weights(self) -> bool:
        """Whether the player has weights to receive or to apply."""
        return self.outstanding or self.received is not None

    def state_dict(self) -> dict[str, Any]:
        """Weights that are on their way to the player; waits for them."""
        if self.outstanding:
            self._receive()
        return {"received": self.received}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores weights that had arrived but were not yet applied; signals that came with them have been obeyed."""
        self.received = state["received"]
        if self.received is not None:
            values, vector = self.received
            if len(values) != len(self.metric_names):  # an earlier version sent others
                values = torch.zeros(len(self.metric_names), dtype=torch.float64)
            asked = torch.tensor([name.startswith("Asked/") for name in self.metric_names])
            self.received = values.masked_fill(asked, 0.0), vector

    def _receive(self) -> None:
        if self.received is None:
            values, vector = torch.empty(len(self.metric_names), dtype=torch.float64), weight_vector(self.policy).cpu()
            dist.recv(values, FIRST_TRAINER)
            dist.recv(vector, FIRST_TRAINER)
            self.received, self.outstanding = (values, vector), False
