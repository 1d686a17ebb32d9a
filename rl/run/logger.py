"""What a run shows while it trains: averages over ranks, TensorBoard scalars, a progress bar."""

import contextlib
import functools
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from tqdm import tqdm


class Logger(Protocol):
    """What a run asks of a logger; Lightning's TensorBoardLogger is one."""

    def log_metrics(self, metrics: Any, step: int) -> None:
        """Writes scalars."""

    def log_hyperparams(self, params: Any, metrics: Any, step: int) -> None:
        """Writes the flags of the run and the scalars that they led to."""

    def save(self) -> None:
        """Writes what is pending."""

    def finalize(self, status: str) -> None:
        """Writes what is pending and closes the files."""


class Guarded:
    """A `Logger` whose trouble with the disk ends the log, and not the run."""

    def __init__(self, logger: Logger) -> None:
        """The one that may have trouble."""
        self.logger: Logger | None = logger

    def log_metrics(self, metrics: Any, step: int) -> None:
        """Writes scalars."""
        self._attempt(lambda logger: logger.log_metrics(metrics, step))

    def log_hyperparams(self, params: Any, metrics: Any, step: int) -> None:
        """Writes the flags of the run and the scalars that they led to."""
        self._attempt(lambda logger: logger.log_hyperparams(params, metrics, step))

    def save(self) -> None:
        """Writes what is pending."""
        self._attempt(lambda logger: logger.save())

    def finalize(self, status: str) -> None:
        """Writes what is pending and closes the files."""
        self._attempt(lambda logger: logger.finalize(status))

    def _attempt(self, write: Callable[[Logger], None]) -> None:
        if self.logger is None:
            return
        try:
            write(self.logger)
        except OSError as error:
            with contextlib.suppress(OSError):
                self.logger.finalize("failed")
            self.logger = None
            print(f"note: the log ends here, the run does not: {error}", file=sys.stderr)


class TensorBoardWriter:
    """TensorBoard's own writer as a `Logger`, for the program that does without Lightning."""

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        """Opens an event file in the folder when there is something to write; it hides what came after `purge_step`."""
        self.folder = folder
        self.purge_step = purge_step

    @functools.cached_property
    def writer(self) -> SummaryWriter:
        """TensorBoard's writer."""
        return SummaryWriter(str(self.folder), purge_step=self.purge_step)

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

    def save(self) -> None:
        """Writes what is pending."""
        self.writer.flush()

    def finalize(self, status: str) -> None:
        """Writes what is pending and closes the file."""
        self.writer.close()


class Averages:
    """Means over the records of an update and over all ranks; the tensors stay on their device until they are asked."""

    def __init__(self, device: torch.device, sum_over_ranks: Callable[[Tensor], Tensor]) -> None:
        """`device` is one that the ranks can reduce over."""
        self.device = device
        self.sum_over_ranks = sum_over_ranks
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
        values = iter(self.sum_over_ranks(totals).tolist())
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

    def state_dict(self) -> dict[str, Any]:
        """What was recorded since the last `take`, as it is, so that its mean is the same to the bit."""
        return {
            "names": [list(names) for names in self.records],
            "records": [[_columns(column) for column in zip(*rows, strict=True)] for rows in self.records.values()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Has been recorded here."""
        self.records = {
            tuple(names): list(zip(*(self._column(column) for column in columns), strict=True))
            for names, columns in zip(state["names"], state["records"], strict=True)
        }

    def _column(self, column: Tensor | list[float]) -> list[Tensor] | list[float]:
        return list(column.to(self.device).unbind()) if isinstance(column, Tensor) else column

    def _total(self, records: list[tuple[Tensor | float, ...]]) -> Tensor:
        """The sum of records of one kind (float64), with one operation for all tensors of a name: there are many."""
        columns = (
            torch.stack([value for value in column if isinstance(value, Tensor)])
            if isinstance(column[0], Tensor)
            else torch.tensor(column, device=self.device)
            for column in zip(*records, strict=True)
        )
        return torch.stack([column.double().sum() for column in columns])


def _columns(column: tuple[Tensor | float, ...]) -> Tensor | list[Tensor | float]:
    """One name's values in a form that can be kept: all are tensors, or all are numbers."""
    tensors = [value for value in column if isinstance(value, Tensor)]
    return torch.stack(tensors).cpu() if tensors else list(column)


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
        while self.num_recent() - self.recent[0][0] >= 100:
            self.recent.popleft()

    def state_dict(self) -> dict[str, Any]:
        """The number and the last hundred."""
        return {"number": self.number, "recent": [list(pair) for pair in self.recent]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on counting from there."""
        self.number, self.recent = state["number"], deque((n, value) for n, value in state["recent"])

    def mean_return(self) -> float:
        """Of the last hundred, or a few more that ended together with them; not a number if there was none."""
        total = sum(number * value for number, value in self.recent)
        return total / number if (number := self.num_recent()) else float("nan")

    def num_recent(self) -> int:
        """How many those are: all that ended in the update of the hundredth are among them."""
        return sum(number for number, _ in self.recent)


def say(text: str) -> None:
    """Prints for people; that nobody listens any more is no reason to end a run."""
    try:
        print(text, flush=True)
    except OSError:  # nobody reads any more, or the disk is full
        # Python's own end flushes again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Progress:
    """A progress bar in a terminal, some ten plain lines elsewhere, or in either a line after so many episodes."""

    def __init__(self, total_steps: int, report_episodes: int | None = None, first_step: int = 0) -> None:
        """`total_steps` of all ranks, of which `first_step` are behind a resumed run."""
        self.total_steps = total_steps
        self.report_episodes = report_episodes
        self.num_lines = 0 if report_episodes else 10 * first_step // total_steps
        bar = functools.partial(tqdm, total=total_steps, initial=first_step, unit=" steps", unit_scale=True)
        self.bar = bar() if sys.stderr.isatty() else None

    def show(self, step: int, episodes: Episodes, steps_per_second: float) -> None:
        """Shows how far the run is, the mean return of the episodes that ended last, and the speed."""
        text = f"return {episodes.mean_return():.2f}" if episodes.number else "no episode has ended yet"
        # Where some steps only reset, the last update may end a little later.
        every, now = self.report_episodes, f"{step:,} of {max(step, self.total_steps):,} steps"
        num_lines = episodes.number // every if every else 10 * step // self.total_steps
        if num_lines > self.num_lines and (every or self.bar is None):
            self.num_lines = num_lines
            now = f"{episodes.number:,} episodes, {now}" if every else now
            line = f"{now}, {text}, {steps_per_second:,.0f} steps/s"
            if self.bar is None:
                say(line)
            else:
                tqdm.write(line)
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(step - self.bar.n)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self.bar is not None:
            self.bar.close()
