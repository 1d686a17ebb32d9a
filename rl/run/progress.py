"""What a run shows while it trains: a progress bar, or lines of text."""

import os
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from rl.reporting import has_colors, is_screen, silence


class Episodes:
    """Counts episodes, and keeps the returns and lengths of the last hundred or so."""

    def __init__(self) -> None:
        self.number = 0
        self.recent: deque[tuple[int, float, float]] = deque()  # how many ended together, their means

    def add(self, number: int, mean_return: float, mean_length: float) -> None:
        """Counts episodes that ended together; drops the oldest ones while a hundred remain without them."""
        self.number += number
        self.recent.append((number, mean_return, mean_length))
        while self.num_recent() - self.recent[0][0] >= 100:
            self.recent.popleft()

    def state_dict(self) -> dict[str, Any]:
        return {"number": self.number, "recent": [list(entry) for entry in self.recent]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.number, self.recent = state["number"], deque((n, value, length) for n, value, length in state["recent"])

    def mean_return(self) -> float:
        """The mean return of the last `num_recent` episodes; NaN before the first."""
        return self._mean([value for _, value, _ in self.recent])

    def mean_length(self) -> float:
        """The mean length of the last `num_recent` episodes; NaN before the first."""
        return self._mean([length for _, _, length in self.recent])

    def num_recent(self) -> int:
        """A hundred, or a few more: episodes of one update are kept together."""
        return sum(number for number, *_ in self.recent)

    def _mean(self, values: Sequence[float]) -> float:
        total = sum(number * value for (number, *_), value in zip(self.recent, values, strict=True))
        return total / number if (number := self.num_recent()) else float("nan")


def say(text: str) -> None:
    """Prints a line, unless --quiet is given; a closed or full stdout does not end the run."""
    try:
        if not silence.is_on:
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
        self.began_at, self.done_before = time.monotonic(), first_step / total_steps
        self.bar = None
        if is_screen(sys.stderr) and not silence.is_on:
            self.bar = tqdm(
                total=total_steps,
                initial=first_step,
                unit_scale=True,
                dynamic_ncols=True,
                bar_format="{percentage:3.0f}% |{bar}| {n_fmt} of {total_fmt} steps{postfix}",
                colour="green" if has_colors(sys.stderr) else None,
            )

    def show(self, step: int, episodes: Episodes, steps_per_second: float, done: float | None = None) -> None:
        """Shows how far the run is, return and length of recent episodes, the speed, and the time that is left.

        `done` is the fraction of the run that is done, where it does not end after `total_steps`.
        """
        text = "no episode has ended yet"
        if episodes.number:
            text = f"return {episodes.mean_return():.2f}, length {episodes.mean_length():.0f}"
        text = f"{text}, {steps_per_second:,.0f} steps/s, {self.time_left(done or step / self.total_steps)}"
        # Where some steps only reset, the last update may end a little later.
        every, now = self.report_episodes, f"{step:,} of {max(step, self.total_steps):,} steps"
        num_lines = episodes.number // every if every else 10 * step // self.total_steps
        if num_lines > self.num_lines and (every or self.bar is None):
            self.num_lines = num_lines
            line = f"{episodes.number:,} episodes, {now}, {text}" if every else f"{now}, {text}"
            if self.bar is None:
                say(line)
            else:
                self.bar.write(line)
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(step - self.bar.n)

    def time_left(self, done: float) -> str:
        """How long the rest takes if it goes on as it went so far; of a run that has ended, how long it took."""
        seconds = time.monotonic() - self.began_at
        if done >= 1:
            return f"{clock(seconds)} in all"
        return f"{clock(seconds * (1 - done) / max(done - self.done_before, 1e-9))} left"

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def clock(seconds: float) -> str:
    """A duration as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
