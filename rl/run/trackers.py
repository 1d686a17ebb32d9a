"""Services that track experiments, as loggers: Weights & Biases, and MLflow.

Neither can take back what it has been sent. When a run is resumed, the points of the updates that are done again are
therefore not sent a second time. The last step that was sent, and the run's id at the service, are in a small file in
the run's folder, so that this also holds where the service is offline.
"""

import contextlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rl.config import Config
from rl.errors import UserError, one_line
from rl.run.folder import RunFolder

PROJECT = "rl"
MIN_SECONDS = 1.0  # between two requests to MLflow, each of which takes some 10 ms


class Sent:
    """The id of a run at a service, and the last step that it was sent; in the run's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.id: str | None = None
        self.before = -1  # the last step that an earlier part of the run sent
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):  # anyone may have written it
            said = json.loads(path.read_text())
            self.id, self.before = str(said["id"]), int(said["step"])

    def note(self, step: int) -> None:
        unfinished = self.path.with_name(f".{self.path.name}.tmp")
        unfinished.write_text(json.dumps({"id": self.id, "step": step}))
        unfinished.replace(self.path)


class WandbTracker:
    """Weights & Biases as a `Logger`. Its variables, such as WANDB_PROJECT and WANDB_MODE, hold."""

    def __init__(self, config: Config[Any], folder: RunFolder) -> None:
        import wandb

        self.sent = Sent(folder.path / "wandb.json")
        try:
            self.run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                id=self.sent.id,
                resume="allow" if self.sent.id else None,
                name=os.environ.get("WANDB_NAME", folder.path.name),
                # Not in the run's folder, where W&B would make links, through which no run writes.
                dir=os.environ.get("WANDB_DIR", config.log_dir),
                config=config.flags() | {"learner": config.learner_name()},
            )
        except Exception as error:
            right = "run wandb login, or set WANDB_MODE=offline"
            raise UserError(f"--logger wandb: {one_line(str(error))}; {right}") from error
        self.sent.id = self.run.id

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        if step > self.sent.before:
            self.run.log(dict(metrics), step=step)
            self.sent.note(step)

    def log_hyperparams(self, params: Mapping[str, Any], metrics: Mapping[str, float], step: int) -> None:
        self.log_metrics(metrics, step)  # W&B has the flags from the start

    def save(self) -> None:
        """Does nothing: W&B writes in a process of its own."""

    def finalize(self, status: str) -> None:
        self.run.finish(exit_code=0 if status == "success" else 1)


class MLflowTracker:
    """MLflow as a `Logger`. Its variables, such as MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME, hold.

    By default runs are in mlflow.db in the log folder.
    """

    def __init__(self, config: Config[Any], folder: RunFolder) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self.metric = Metric
        self.sent = Sent(folder.path / "mlflow.json")
        uri = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{config.log_dir}/mlflow.db")
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        try:
            self.client = MlflowClient(uri)
            if self.sent.id is None:
                experiment = self.client.get_experiment_by_name(name)
                of = experiment.experiment_id if experiment else self.client.create_experiment(name)
                self.sent.id = self.client.create_run(of, run_name=folder.path.name).info.run_id
                flags = config.flags() | {"learner": config.learner_name()}
                params = [Param(flag, str(value)) for flag, value in flags.items()]
                self.client.log_batch(self.sent.id, params=params)
            else:
                self.client.update_run(self.sent.id, status="RUNNING")
        except Exception as error:
            raise UserError(f"--logger mlflow: {uri} cannot be used: {one_line(str(error))}") from error
        self.waiting: list[Any] = []
        self.sent_at = time.monotonic()

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        if step <= self.sent.before:
            return
        now = int(time.time() * 1000)
        self.waiting += [self.metric(tag, value, now, step) for tag, value in metrics.items()]
        if time.monotonic() - self.sent_at > MIN_SECONDS:
            self.save()

    def log_hyperparams(self, params: Mapping[str, Any], metrics: Mapping[str, float], step: int) -> None:
        self.log_metrics(metrics, step)  # MLflow has the flags from the start

    def save(self) -> None:
        """Sends what is waiting."""
        waiting, self.waiting = self.waiting, []
        for first in range(0, len(waiting), 1000):  # the most that a request may hold
            self.client.log_batch(self.sent.id, metrics=waiting[first : first + 1000])
        if waiting:
            self.sent.note(waiting[-1].step)
        self.sent_at = time.monotonic()

    def finalize(self, status: str) -> None:
        self.save()
        self.client.set_terminated(self.sent.id, "FINISHED" if status == "success" else "FAILED")
