"""What a run shows while it trains: a progress bar, or lines of text."""

import functools
import os
import sys
from collections import deque
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm


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
