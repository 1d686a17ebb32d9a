"""The flags that say which checkpoints a run writes and which it resumes from."""

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
        interval = self._interval()
        require(
            interval is not None and 0 < interval[0] <= 2**53,
            "--checkpoint-every",
            repr(self.checkpoint_every),
            "must be a time above 0 such as 90s, 10min or 2h, or a number of updates such as 50",
        )
        require(self.keep_checkpoints >= 1, "--keep-checkpoints", self.keep_checkpoints, "must be at least 1")

    def due(self, num_updates: int, seconds: float) -> bool:
        """Whether to write a checkpoint after `num_updates` of the run, `seconds` after the last checkpoint."""
        number, unit = self._interval() or (0.0, "")
        return seconds >= number * UNITS[unit] if unit else num_updates % int(number) == 0

    def _interval(self) -> tuple[float, str] | None:
        match = re.fullmatch(r"(\d+)|(\d+(?:\.\d+)?)(s|min|h)", self.checkpoint_every)
        return (float(match[1] or match[2]), match[3] or "") if match else None
