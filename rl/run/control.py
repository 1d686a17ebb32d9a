"""What all ranks must agree on before any of them acts: stops and checkpoints that signals request, and failures.

If a rank acted on a signal alone, the others would wait in the next collective forever. So the requests of each rank
travel with a sum over ranks that every update takes anyway (`Control.sum`), and all ranks read the same result at the
end of the update (`Control.read`). A checksum of the tensors that must be equal on all ranks (weights, Adam's moments)
travels along, so that ranks that differ are detected before the next update.
"""

import functools
import signal
import time
import zlib
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from rl.collector import AnyCollector
from rl.dist.interrupts import is_second
from rl.dist.ranks import Ranks
from rl.errors import DiskError, RanksError, StopError
from rl.seeding import split_mix

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SAVE = signal.SIGUSR1
MAX_FAILED_WRITES = 3  # in a row, before the run gives up
ASKED = ("Asked/stop", "Asked/save", "Asked/diverged")
PIECE_BITS = 20  # of a checksum's two numbers, so that sums of their squares are exact in float64


class Signals:
    """Notes signals until the end of an update; outside of the updates a stop takes effect at once."""

    def __init__(self) -> None:
        self.stop = 0  # the number of the signal that asked for it
        self.stop_at = 0.0
        self.save = False
        self.failed = False  # set by the run: checkpoints cannot be written
        self.in_loop = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Installs handlers; a signal that this process was started to ignore stays ignored, except SIGINT."""
        for number in (*STOPS, SAVE):
            before = signal.getsignal(number)
            if before is not signal.SIG_IGN or number == signal.SIGINT:
                self.before[number] = before
                signal.signal(number, self._note)
        return self

    def __exit__(self, error: type[BaseException] | None = None, *_: object) -> None:
        """Restores the handlers; after an error signals are ignored, so that none interrupts the error message."""
        for number, handler in self.before.items():
            signal.signal(number, handler if error is None else signal.SIG_IGN)
        self.before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == SAVE:
            self.save = True
        elif not self.in_loop:
            raise StopError(number, f"{signal.Signals(number).name}, outside of the updates: nothing is lost")
        elif is_second(self.stop, self.stop_at, number):
            raise KeyboardInterrupt
        elif not self.stop:
            self.stop, self.stop_at = number, time.monotonic()


class Control:
    """What all ranks know at the end of an update."""

    def __init__(
        self,
        ranks: Ranks,
        signals: Signals,
        replicas: Sequence[Tensor] = (),
        collector: AnyCollector | None = None,
        num_steps: int = 0,
    ) -> None:
        """`replicas` are tensors that must be equal on all ranks.

        `collector` counts this rank's environment steps, if it plays; `num_steps` is the number that all ranks take in
        an update without resets.
        """
        self.ranks = ranks
        self.signals = signals
        self.collector, self.num_played, self.num_steps = collector, 0, num_steps
        self.replicas = replicas
        self.memory = [memory(tensor) for tensor in replicas if tensor.device.type == "cpu"]
        self.stop, self.save, self.failed, self.diverged = 0, False, False, False
        # This rank's part of the last sum: a flag for each of STOPS, save, failed, and its environment steps.
        self.sent = [0.0] * (len(STOPS) + 2) + [num_steps / ranks.size]
        self.received: Tensor | None = None

    def sum(self, values: Tensor) -> Tensor:
        """The elementwise sum of all ranks' values, on every rank; requests and checksums travel along."""
        asked = self.signals
        before, self.num_played = self.num_played, self.collector.num_played if self.collector else 0
        self.sent = [*(float(asked.stop == number) for number in STOPS), float(asked.save), float(asked.failed)]
        self.sent.append(float(self.num_played - before))
        if self.ranks.size == 1:
            self.received = None
            return values
        sent = torch.tensor(self.sent, dtype=torch.float64, device=values.device)
        total = self.ranks.sum(torch.cat([values.double(), sent, self._checksum(values.device)]))
        self.received = total[len(values) :]
        return total[: len(values)].to(values.dtype)

    def read(self) -> None:
        """Reads what came with the last sum; waits for its device."""
        received = self.sent if self.received is None else self.received.tolist()
        flags, checksums = received[: len(self.sent)], received[len(self.sent) :]
        self.stop = next((number for number, count in zip(STOPS, flags, strict=False) if count), 0)
        self.save, self.failed = flags[len(STOPS)] > 0, flags[len(STOPS) + 1] > 0
        self.num_steps = int(flags[-1])
        sums, squares = checksums[:2], checksums[2:]
        # W equal numbers x, and no others, have W·Σx² = (Σx)² (Cauchy-Schwarz).
        self.diverged |= any(self.ranks.size * int(q) != int(s) ** 2 for s, q in zip(sums, squares, strict=True))

    def saved(self) -> None:
        """Clears a request to save, unless the other ranks have not received it yet."""
        self.save = False
        if self.sent[len(STOPS)]:
            self.signals.save = False
            self.sent[len(STOPS)] = 0.0

    def for_player(self) -> dict[str, float]:
        """What trainers agreed on, as metrics for the player, which takes no part in their sum."""
        asked = dict(zip(ASKED, (float(self.stop), float(self.save), float(self.diverged)), strict=True))
        self.saved()
        return asked

    def from_trainers(self, asked: Mapping[str, float]) -> None:
        """Adopts what `for_player` returned on the trainers."""
        self.diverged = asked["Asked/diverged"] > 0
        self.signals.save |= asked["Asked/save"] > 0
        self.signals.stop = self.signals.stop or int(asked["Asked/stop"])

    def check(self, update: int) -> None:
        """Stops all ranks if one cannot continue.

        Raises:
            DiskError: Checkpoints cannot be written.
            RanksError: Weights or Adam's moments differed between ranks before this update.
        """
        if self.failed:
            raise DiskError(
                f"no checkpoint could be written {MAX_FAILED_WRITES} times in a row; the last one is intact"
            )
        if self.diverged:
            raise RanksError(
                f"replicas diverged before update {update:,}: a rank computed or stored a wrong value (bad memory, or"
                " an operation that is not deterministic?); --resume auto continues from the last checkpoint"
            )

    def _checksum(self, device: torch.device) -> Tensor:
        """Two numbers that depend on every bit and its position, and their squares, as float64 [4]."""
        if device.type == "cpu":
            total = crc(self.memory)
            pieces = [(total >> shift) % 2**PIECE_BITS for shift in (0, PIECE_BITS)]
            return torch.tensor([*pieces, *(piece**2 for piece in pieces)], dtype=torch.float64)
        sums = weighted_sum(self.replicas, device)
        numbers = [(sums >> shift) % 2**PIECE_BITS for shift in (64 - PIECE_BITS, 64 - 2 * PIECE_BITS)]
        return torch.stack([*numbers, *(number**2 for number in numbers)]).double()


def memory(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU: a view, which follows later changes."""
    return tensor.detach().view(-1).view(torch.uint8).numpy().data


def crc(memories: Sequence[memoryview]) -> int:
    """The CRC-32 of all bytes: on a CPU the fastest checksum that depends on their order."""
    value = 0
    for part in memories:
        value = zlib.crc32(part, value)
    return value


def weighted_sum(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """A checksum (int64 []) without waiting for a GPU: the sum of every word times an odd constant for its position."""
    total = torch.zeros((), dtype=torch.int64, device=device)
    for tensor in tensors:
        words = tensor.detach().flatten().view({8: torch.int64, 4: torch.int32, 2: torch.int16}[tensor.element_size()])
        total = split_mix(total) + (words * _constants(len(words), device)).sum()
    return total


@functools.cache
def _constants(number: int, device: torch.device) -> Tensor:
    return split_mix(torch.arange(number, device=device)) | 1
