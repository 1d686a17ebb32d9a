"""What signals ask of a run, and how its ranks agree on it before any of them acts."""

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

from rl.dist.interrupts import is_second
from rl.dist.ranks import Ranks
from rl.errors import DiskError, RanksError, StopError
from rl.rollout import AnyCollector
from rl.seeding import split_mix

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SAVE = signal.SIGUSR1
MAX_FAILED_WRITES = 3  # in a row, before the run gives up
SAID = ("Asked/stop", "Asked/save", "Asked/drifted")
PIECE_BITS = 20  # of a checksum: sums of squares of such numbers are exact in float64


class Requests:
    """Notes signals until the end of an update; without a loop to end, a stop is at once."""

    def __init__(self) -> None:
        """Nothing is asked so far."""
        self.stop = 0  # the number of the signal that asked for it
        self.stop_at = 0.0
        self.save = False
        self.failed = False
        self.in_loop = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Takes the signals over; one that whoever started this process has it ignore stays ignored, but SIGINT."""
        for number in (*STOPS, SAVE):
            before = signal.getsignal(number)
            if before is not signal.SIG_IGN or number == signal.SIGINT:
                self.before[number] = before
                signal.signal(number, self._note)
        return self

    def __exit__(self, error: type[BaseException] | None = None, *_: object) -> None:
        """Gives the signals back; after an error they are ignored, so that a launcher's do not cut off what it says."""
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


class Agreement:
    """What all ranks know at the end of an update: it travels with a sum that they take anyway.

    Beside what was asked of any of them, a checksum of what they have alike tells whether it still is.
    """

    def __init__(
        self,
        ranks: Ranks,
        requests: Requests,
        alike: Sequence[Tensor] = (),
        collector: AnyCollector | None = None,
        num_steps: int = 0,
    ) -> None:
        """`alike` are the tensors that must be the same on all ranks; a single rank needs none.

        `collector` counts this rank's environment steps; `num_steps` is what all ranks take in an update, if none only
        resets.
        """
        self.ranks = ranks
        self.collector, self.num_played, self.num_steps = collector, 0, num_steps
        self.requests = requests
        self.alike = alike
        self.memory = [memory(tensor) for tensor in alike if tensor.device.type == "cpu"]
        self.stop, self.save, self.failed, self.drifted = 0, False, False, False
        self.told = [0.0] * (len(STOPS) + 2) + [num_steps / ranks.size]
        self.word: Tensor | None = None

    def sum(self, values: Tensor) -> Tensor:
        """The elementwise sum of every rank's values, on every rank."""
        asked = self.requests
        before, self.num_played = self.num_played, self.collector.num_played if self.collector else 0
        self.told = [*(float(asked.stop == number) for number in STOPS), float(asked.save), float(asked.failed)]
        self.told.append(float(self.num_played - before))
        if self.ranks.size == 1:
            self.word = None
            return values
        told = torch.tensor(self.told, dtype=torch.float64, device=values.device)
        total = self.ranks.sum(torch.cat([values.double(), told, self._checksum(values.device)]))
        self.word = total[len(values) :]
        return total[: len(values)].to(values.dtype)

    def look(self) -> None:
        """Reads what was agreed; waits for the device that it was summed on."""
        word = self.told if self.word is None else self.word.tolist()
        flags, checksums = word[: len(self.told)], word[len(self.told) :]
        self.stop = next((number for number, count in zip(STOPS, flags, strict=False) if count), 0)
        self.save, self.failed = flags[len(STOPS)] > 0, flags[len(STOPS) + 1] > 0
        self.num_steps = int(flags[-1])
        sums, squares = checksums[:2], checksums[2:]
        self.drifted |= any(self.ranks.size * int(q) != int(s) ** 2 for s, q in zip(sums, squares, strict=True))

    def saved(self) -> None:
        """Forgets that this rank was asked to save, if the others have heard it."""
        self.save = False
        if self.told[len(STOPS)]:
            self.requests.save = False

    def said(self) -> dict[str, float]:
        """What was agreed, as metrics for a player that was not asked; this rank need not say it again."""
        said = dict(zip(SAID, (float(self.stop), float(self.save), float(self.drifted)), strict=True))
        self.saved()
        return said

    def hear(self, said: Mapping[str, float]) -> None:
        """Takes over what the trainers have `said`."""
        self.drifted = said["Asked/drifted"] > 0
        self.requests.save |= said["Asked/save"] > 0
        self.requests.stop = self.requests.stop or int(said["Asked/stop"])

    def check(self, update: int) -> None:
        """Stops all ranks where one cannot go on.

        Raises:
            DiskError: Checkpoints cannot be written.
            RanksError: The weights of two ranks, or Adam's moments, were not the same any more before this update.
        """
        if self.failed:
            raise DiskError(
                f"no checkpoint could be written {MAX_FAILED_WRITES} times in a row; the last one that could is there"
            )
        if self.drifted:
            raise RanksError(
                f"the weights of ranks differ before update {update:,}: one of them computed or stored a wrong"
                " value. --resume auto goes on from the last checkpoint"
            )

    def _checksum(self, device: torch.device) -> Tensor:
        """Two numbers that depend on every bit and its place, and their squares: alike everywhere if W·Σx² = (Σx)²."""
        if device.type == "cpu":
            total = crc(self.memory)
            pieces = [(total >> shift) % 2**PIECE_BITS for shift in (0, PIECE_BITS)]
            return torch.tensor([*pieces, *(piece**2 for piece in pieces)], dtype=torch.float64)
        sums = weighted_sum(self.alike, device)
        numbers = [(sums >> shift) % 2**PIECE_BITS for shift in (64 - PIECE_BITS, 64 - 2 * PIECE_BITS)]
        return torch.stack([*numbers, *(number**2 for number in numbers)]).double()


def memory(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, as they are whenever they are read."""
    return tensor.detach().view(-1).view(torch.uint8).numpy().data


def crc(memories: Sequence[memoryview]) -> int:
    """A checksum of all bytes, by the CRC-32 of zlib: on a CPU nothing that minds their places is faster."""
    value = 0
    for part in memories:
        value = zlib.crc32(part, value)
    return value


def weighted_sum(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """A checksum of all bits (int64 []), without waiting for a GPU: every word times an odd constant of its place."""
    total = torch.zeros((), dtype=torch.int64, device=device)
    for tensor in tensors:
        words = tensor.detach().flatten().view({4: torch.int32, 2: torch.int16}[tensor.element_size()])
        total = split_mix(total) + (words * _constants(len(words), device)).sum()
    return total


@functools.cache
def _constants(number: int, device: torch.device) -> Tensor:
    return split_mix(torch.arange(number, device=device)) | 1
