"""The flags that say what a run leaves in its folder, and what it resumes from."""

import importlib.util
import math
import re
from dataclasses import dataclass
from typing import Literal

from rl.errors import require

LoggerName = Literal["tensorboard", "jsonl", "wandb", "mlflow"]
UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}  # seconds


@dataclass(frozen=True)
class Keep:
    """What a run leaves in its folder: checkpoints, the best agent, and logs."""

    resume: str | None = None
    """Run to resume: its folder, a checkpoint, or auto for the newest of this --env-id, --exp-name and --seed."""
    checkpoint_every: str = "10min"
    """Time between checkpoints (90s, 10min, 2h), or number of updates (50)."""
    keep_checkpoints: int = 3
    """Number of periodic checkpoints to keep, the newest ones."""
    keep_best: bool = True
    """Keep the agent of the best evaluation in best.ckpt; without it only --eval-every evaluates during training."""
    eval_every: int | None = None
    """Environment steps between evaluations in training; by default a tenth of a run, in at most 5% of its time."""
    logger: tuple[LoggerName, ...] = ("tensorboard",)
    """Where metrics go, one or several: TensorBoard, metrics.jsonl in the run's folder, Weights & Biases, MLflow."""

    def check(self) -> None:
        """Raises `UserError` for a value that cannot work."""
        require(
            0 < min(self.interval()) <= 2**53,
            "--checkpoint-every",
            repr(self.checkpoint_every),
            "must be a time above 0 such as 90s, 10min or 2h, or a number of updates such as 50",
        )
        require(self.keep_checkpoints >= 1, "--keep-checkpoints", self.keep_checkpoints, "must be at least 1")
        every = self.eval_every
        require(every is None or every >= 1, "--eval-every", every, "must be at least 1")
        for name in {"wandb", "mlflow"} & {*self.logger}:
            installed = importlib.util.find_spec(name) is not None
            require(installed, "--logger", name, f"is not installed; pip install {name}")

    def evaluates(self) -> bool:
        """Whether the agent is evaluated during training."""
        return self.keep_best or self.eval_every is not None

    def interval(self) -> tuple[float, float]:
        """Updates and seconds between two checkpoints, of which one is infinite; 0 where the flag cannot be read."""
        match = re.fullmatch(r"(\d+)|(\d+(?:\.\d+)?)(s|min|h)", self.checkpoint_every)
        if match is None:
            return 0.0, 0.0
        return (float(match[1]), math.inf) if match[1] else (math.inf, float(match[2]) * UNITS[match[3]])
