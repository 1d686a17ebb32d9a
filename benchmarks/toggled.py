"""Runs a program with the checks removed in every second update, for benchmarks/overhead.py.

python benchmarks/toggled.py train_torch.py <flags> prints the median seconds of an update with and without, as JSON.
"""

import json
import os
import runpy
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rl.dist.launch import rank
from rl.envs.guard import Guard
from rl.envs.history import History
from rl.envs.seeded import SeededEpisodes
from rl.run.control import Control
from rl.run.metrics import Finite
from rl.run.run import Run

IN_NAME_ONLY = "TOGGLED_IN_NAME_ONLY" in os.environ  # a control: all updates keep their checks
SKIPPED = 6  # first updates, which compile and allocate


def nothing(*_: Any, **__: Any) -> None:
    """Replaces a check."""


def bare_sum(control: Control, values: Tensor) -> Tensor:
    """The plain sum over ranks, without the requests and checksums that usually travel with it."""
    before, control.num_played = control.num_played, control.collector.num_played if control.collector else 0
    control.sent[-1], control.received = float(control.num_played - before), None
    return control.ranks.sum(values)


BARE = {
    (SeededEpisodes, "step"): lambda self, action: self.env.step(action),
    (Guard, "call"): lambda self, function: function(),
    (Guard, "check_types"): nothing,
    (Guard, "check_numbers"): nothing,
    (History, "add"): nothing,
    (Finite, "look"): lambda self, rollout: {"Count/bad_rows": torch.zeros((), device=rollout.reward.device)},
    (Control, "sum"): bare_sum,
    (Control, "check"): nothing,
}
ORIGINALS = {place: getattr(*place) for place in BARE}
updates = Run.updates


def toggled(run: Run) -> Iterator[float]:
    """The run's updates, every second one without checks."""
    seconds: tuple[list[float], list[float]] = ([], [])
    began_at = time.perf_counter()
    for number, done in enumerate(updates(run)):
        if number > SKIPPED:
            seconds[(number - 1) % 2].append(time.perf_counter() - began_at)
        for (owner, name), original in ORIGINALS.items():
            setattr(owner, name, BARE[owner, name] if number % 2 and not IN_NAME_ONLY else original)
        began_at = time.perf_counter()
        yield done
    if rank() == 0:
        print(json.dumps([statistics.median(part) for part in seconds]))


Run.updates = toggled
program = sys.argv.pop(1)
runpy.run_path(str(Path(__file__).parent.parent / program), run_name="__main__")
