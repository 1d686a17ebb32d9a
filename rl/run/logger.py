"""What a run shows while it trains: TensorBoard scalars, a progress bar, lines of text."""

import contextlib
import functools
import os
import sys
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from tqdm import tqdm


class Logger(Protocol):
    """What a run needs of a logger; Lightning's TensorBoardLogger has it."""

    def log_metrics(self, metrics: Any, step: int) -> None: ...

    def log_hyperparams(self, params: Any, metrics: Any, step: int) -> None: ...

    def save(self) -> None: ...

    def finalize(self, status: str) -> None: ...


class Guarded:
    """A `Logger` that stops logging at the first error of the disk, so that the run goes on."""

    def __init__(self, logger: Logger | None) -> None:
        self.logger = logger

    def log_metrics(self, metrics: Any, step: int) -> None:
        self._attempt(lambda logger: logger.log_metrics(metrics, step))

    def log_hyperparams(self, params: Any, metrics: Any, step: int) -> None:
        self._attempt(lambda logger: logger.log_hyperparams(params, metrics, step))

    def save(self) -> None:
        self._attempt(lambda logger: logger.save())

    def finalize(self, status: str) -> None:
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
            print(f"note: logging stops here, the run goes on: {error}", file=sys.stderr)


class TensorBoardWriter:
    """TensorBoard's own writer as a `Logger`, for the program without Lightning.

    It opens its event file at the first write; TensorBoard then hides what was logged from `purge_step` on before.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        self.folder = folder
        self.purge_step = purge_step

    @functools.cached_property
    def writer(self) -> SummaryWriter:
        return SummaryWriter(str(self.folder), purge_step=self.purge_step)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        for tag, value in metrics.items():
            self.writer.add_scalar(tag, value, step)

    def log_hyperparams(self, params: Mapping[str, Any], metrics: Mapping[str, float], step: int) -> None:
        self.log_metrics(metrics, step)
        plain = {name: str(value) if value is None else value for name, value in params.items()}
        # SummaryWriter.add_hparams would open a second run in a folder of its own.
        for summary in hparams(plain, metrics):  # type: ignore[no-untyped-call]
            self.writer._get_file_writer().add_summary(summary)  # type: ignore[no-untyped-call]

    def save(self) -> None:
        self.writer.flush()

    def finalize(self, status: str) -> None:
        self.writer.close()


class Episodes:
    """Counts episodes, and keeps the returns of the last hundred or so."""

    def __init__(self) -> None:
        self.number = 0
        self.recent: deque[tuple[int, float]] = deque()

    def add(self, number: int, mean_return: float) -> None:
        """Counts episodes that ended together; drops the oldest ones while a hundred remain without them."""
        self.number += number
        self.recent.append((number, mean_return))
        while self.num_recent() - self.recent[0][0] >= 100:
            self.recent.popleft()

    def state_dict(self) -> dict[str, Any]:
        return {"number": self.number, "recent": [list(pair) for pair in self.recent]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.number, self.recent = state["number"], deque((n, value) for n, value in state["recent"])

    def mean_return(self) -> float:
        """The mean return of the last `num_recent` episodes; NaN before the first."""
        total = sum(number * value for number, value in self.recent)
        return total / number if (number := self.num_recent()) else float("nan")

    def num_recent(self) -> int:
        """A hundred, or a few more: episodes of one update are kept together."""
        return sum(number for number, _ in self.recent)


def say(text: str) -> None:
    """Prints a line; a closed or full stdout does not end the run."""
    try:
        print(text, flush=True)
    except OSError:
        # Python flushes again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Progress:
    """A progress bar in a terminal, ten plain lines elsewhere, or in either a line every `report_episodes`."""

    def __init__(self, total_steps: int, report_episodes: int | None = None, first_step: int = 0) -> None:
        """`total_steps` are those of all ranks, `first_step` of which a resumed run has done."""
        self.total_steps = total_steps
        self.report_episodes = report_episodes
        self.num_lines = 0 if report_episodes else 10 * first_step // total_steps
        bar = functools.partial(tqdm, total=total_steps, initial=first_step, unit=" steps", unit_scale=True)
        self.bar = bar() if sys.stderr.isatty() else None

    def show(self, step: int, episodes: Episodes, steps_per_second: float) -> None:
        """Shows how far the run is, the mean return of recent episodes, and the speed."""
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
        if self.bar is not None:
            self.bar.close()
