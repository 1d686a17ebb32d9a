"""Where the metrics of a run go: its loggers, by their names for --logger, and those that need no service."""

import contextlib
import functools
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from rl.config import Config
from rl.dist.launch import rank
from rl.errors import one_line
from rl.run.checkpoint import write_whole
from rl.run.folder import RunFolder
from rl.run.trackers import MLflowTracker, WandbTracker

LINES = "metrics.jsonl"


class Logger(Protocol):
    """What a run needs of a logger; Lightning's loggers have it."""

    def log_metrics(self, metrics: Any, step: int) -> None: ...

    def log_hyperparams(self, params: Any, metrics: Any, step: int) -> None: ...

    def save(self) -> None: ...

    def finalize(self, status: str) -> None: ...


def make_loggers(config: Config[Any], folder: RunFolder) -> list[Logger]:
    """The loggers that --logger names, on rank 0, which alone logs.

    Raises:
        UserError: A service cannot be used.
    """
    if rank() != 0:
        return []
    makers: dict[str, Callable[[RunFolder], Logger]] = {
        "tensorboard": TensorBoardWriter,
        "jsonl": JsonLines,
        "wandb": functools.partial(WandbTracker, config),
        "mlflow": functools.partial(MLflowTracker, config),
    }
    return [makers[name](folder) for name in dict.fromkeys(config.keep.logger)]


class Guarded:
    """Several loggers as one, each of which is left out after its first error, so that the run goes on."""

    def __init__(self, loggers: Sequence[Logger]) -> None:
        self.loggers = list(loggers)

    def log_metrics(self, metrics: Any, step: int) -> None:
        self._attempt(lambda logger: logger.log_metrics(metrics, step))

    def log_hyperparams(self, params: Any, metrics: Any, step: int) -> None:
        self._attempt(lambda logger: logger.log_hyperparams(params, metrics, step))

    def save(self) -> None:
        self._attempt(lambda logger: logger.save())

    def finalize(self, status: str) -> None:
        self._attempt(lambda logger: logger.finalize(status))

    def _attempt(self, write: Callable[[Logger], None]) -> None:
        for logger in list(self.loggers):
            try:
                write(logger)
            except Exception as error:  # noqa: PERF203 (a full disk, or whatever a service's client raises)
                self.loggers.remove(logger)
                with contextlib.suppress(Exception):
                    logger.finalize("failed")
                what = f"{one_line(str(error))} ({type(logger).__name__})"
                print(f"note: logging stops here, the run goes on: {what}", file=sys.stderr)


class TensorBoardWriter:
    """TensorBoard's own writer as a `Logger`, which writes all metrics of a point as one event.

    It opens its event file at the first write; TensorBoard then hides what was logged from `purge_step` on before.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    @functools.cached_property
    def writer(self) -> SummaryWriter:
        return SummaryWriter(str(self.folder.path), purge_step=self.folder.purge_step)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        # An event of its own for each, as Lightning's logger and `add_scalar` write them, takes five times as long.
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in metrics.items()]
        self.writer._get_file_writer().add_summary(Summary(value=values), step)  # type: ignore[no-untyped-call]

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


class JsonLines:
    """metrics.jsonl in the run's folder: a line for each point, with its step; null for what is not finite.

    It is opened at the first write. A resumed run then deletes the lines of the updates that it does again.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    @functools.cached_property
    def file(self) -> TextIO:
        path = self.folder.path / LINES
        if self.folder.purge_step is not None and path.exists():
            write_whole(path, "".join(lines_before(path, self.folder.purge_step)).encode())
        return path.open("a", buffering=1)  # whole lines, for those who read along

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        finite = {tag: value if math.isfinite(value) else None for tag, value in metrics.items()}
        self.file.write(json.dumps({"step": step} | finite) + "\n")

    def log_hyperparams(self, params: Mapping[str, Any], metrics: Mapping[str, float], step: int) -> None:
        self.log_metrics(metrics, step)  # config.json has the flags

    def save(self) -> None:
        self.file.flush()

    def finalize(self, status: str) -> None:
        self.file.close()


def lines_before(path: Path, step: int) -> list[str]:
    """The lines of points before a step; of a line that was not written to its end nothing is left."""
    lines = path.read_text().splitlines(keepends=True)
    return [line for line in lines if line.endswith("\n") and json.loads(line)["step"] < step]
