"""What a run shows while it trains: averages over ranks, TensorBoard scalars, a progress bar."""

import contextlib
import functools
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from tqdm import tqdm

from rl.distributed import Ranks


class Logger(Protocol):
    """What a run asks of a logger; Lightning's TensorBoardLogger is one."""

    def log_metrics(self, metrics: Any, step: int) -> None:
        """Writes scalars."""

    def log_hyperparams(self, params: Any, metrics: Any, step: int) -> None:
        """Writes the flags of the run and the scalars that they led to."""

    def finalize(self, status: str) -> None:
        """Writes what is pending and closes the files."""


class TensorBoardWriter:
    """TensorBoard's own writer as a `Logger`, for the program that does without Lightning."""

    def __init__(self, folder: Path) -> None:
        """Opens an event file in the folder when there is something to write."""
        self.folder = folder

    @functools.cached_property
    def writer(self) -> SummaryWriter:
        """TensorBoard's writer."""
        return SummaryWriter(str(self.folder))

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Writes scalars."""
        for tag, value in metrics.items():
            self.writer.add_scalar(tag, value, step)

    def log_hyperparams(self, params: Mapping[str, Any], metrics: Mapping[str, float], step: int) -> None:
        """Writes the flags of the run and the scalars that they led to."""
        self.log_metrics(metrics, step)
        plain = {name: str(value) if value is None else value for name, value in params.items()}
        # SummaryWriter.add_hparams would open a second run in a folder of its own.
        for summary in hparams(plain, metrics):  # type: ignore[no-untyped-call]
            self.writer._get_file_writer().add_summary(summary)  # type: ignore[no-untyped-call]

    def finalize(self, status: str) -> None:
        """Writes what is pending and closes the file."""
        self.writer.close()


class Averages:
    """Means over the records of an update and over all ranks; the tensors stay on their device until they are asked."""

    def __init__(self, device: torch.device, ranks: Ranks) -> None:
        """`device` is one that the ranks can reduce over."""
        self.device = device
        self.ranks = ranks
        self.records: dict[tuple[str, ...], list[tuple[Tensor | float, ...]]] = {}

    def add(self, metrics: Mapping[str, Tensor | float], count: Tensor | float = 1.0) -> None:
        """Adds sums over `count` things each; every rank must add the same names. A `Count/…` is not averaged."""
        self.records.setdefault(tuple(metrics), []).append((count, *metrics.values()))

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the seconds that the block takes."""
        began_at = time.perf_counter()
        yield
        self.add({f"Time/{name}_seconds": time.perf_counter() - began_at})

    def take(self) -> dict[str, float]:
        """The means since the last call, without those of nothing; one reduction and one transfer to the host."""
        totals = torch.cat([self._total(records) for records in self.records.values()])
        values = iter(self.ranks.sum(totals).tolist())
        means: dict[str, float] = {}
        for names in self.records:
            count = next(values)
            sums = {name: next(values) for name in names}
            counts = {name: total for name, total in sums.items() if name.startswith("Count/")}
            means |= counts
            if count > 0:
                means |= {name: total / count for name, total in sums.items() if name not in counts}
        self.records = {}
        return means

    def _total(self, records: list[tuple[Tensor | float, ...]]) -> Tensor:
        """The sum of records of one kind (float64), with one operation for all tensors of a name: there are many."""
        columns = (
            torch.stack([value for value in column if isinstance(value, Tensor)])
            if isinstance(column[0], Tensor)
            else torch.tensor(column, device=self.device)
            for column in zip(*records, strict=True)
        )
        return torch.stack([column.double().sum() for column in columns])


class Episodes:
    """How many episodes have ended, and what the last hundred or so returned."""

    def __init__(self) -> None:
        """None so far."""
        self.number = 0
        self.recent: deque[tuple[int, float]] = deque()

    def add(self, number: int, mean_return: float) -> None:
        """Counts further episodes, and forgets old ones where a hundred are left without them."""
        self.number += number
        self.recent.append((number, mean_return))
        while sum(n for n, _ in self.recent) - self.recent[0][0] >= 100:
            self.recent.popleft()

    def mean_return(self) -> float:
        """Of the last hundred, or a few more that ended together with them; not a number if there was none."""
        total = sum(number * value for number, value in self.recent)
        return total / number if (number := sum(n for n, _ in self.recent)) else float("nan")


class Progress:
    """A progress bar in a terminal, some ten plain lines elsewhere, or in either a line after so many episodes."""

    def __init__(self, total_steps: int, report_episodes: int | None = None) -> None:
        """`total_steps` of all ranks."""
        self.total_steps = total_steps
        self.report_episodes = report_episodes
        self.num_lines = 0
        self.bar = tqdm(total=total_steps, unit=" steps", unit_scale=True) if sys.stderr.isatty() else None

    def show(self, step: int, episodes: Episodes, steps_per_second: float) -> None:
        """Shows how far the run is, the mean return of the episodes that ended last, and the speed."""
        text = f"return {episodes.mean_return():.2f}"
        every, now = self.report_episodes, f"{step:,} of {self.total_steps:,} steps"
        num_lines = episodes.number // every if every else 10 * step // self.total_steps
        if num_lines > self.num_lines and (every or self.bar is None):
            self.num_lines = num_lines
            now = f"{episodes.number:,} episodes, {now}" if every else now
            line = f"{now}, {text}, {steps_per_second:,.0f} steps/s"
            if self.bar is None:
                print(line, flush=True)
            else:
                tqdm.write(line)
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(step - self.bar.n)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self.bar is not None:
            self.bar.close()
