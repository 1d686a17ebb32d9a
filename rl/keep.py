"""The flags that say which checkpoints a run writes and which it resumes from."""

import math
import re
from dataclasses import dataclass

from rl.errors import require

UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}  # seconds


@dataclass(frozen=True)
class Keep:
    """Which checkpoints are kept."""

    resume: str | None = None
    """Run to resume: its folder, a checkpoint, or auto for the newest of this --env-id, --exp-name and --seed."""
    checkpoint_every: str = "10min"
    """Time between checkpoints (90s, 10min, 2h), or number of updates (50)."""
    keep_checkpoints: int = 3
    """Number of periodic checkpoints to keep, the newest ones."""
    keep_best: bool = True
    """Evaluate at checkpoints, in at most 1% of the time, and keep the best agent in best.ckpt."""

    def check(self) -> None:
        """Raises `UserError` for a value that cannot work."""
        require(
            0 < min(self.interval()) <= 2**53,
            "--checkpoint-every",
            repr(self.checkpoint_every),
            "must be a time above 0 such as 90s, 10min or 2h, or a number of updates such as 50",
        )
        require(self.keep_checkpoints >= 1, "--keep-checkpoints", self.keep_checkpoints, "must be at least 1")

    def interval(self) -> tuple[float, float]:
        """Updates and seconds between two checkpoints, of which one is infinite; 0 where the flag cannot be read."""
        match = re.fullmatch(r"(\d+)|(\d+(?:\.\d+)?)(s|min|h)", self.checkpoint_every)
        if match is None:
            return 0.0, 0.0
        return (float(match[1]), math.inf) if match[1] else (math.inf, float(match[2]) * UNITS[match[3]])
