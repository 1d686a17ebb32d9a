"""The learning curves of runs, read from the logs in their folders."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rl.run.loggers import LINES

Vector = NDArray[np.float64]
RETURN = "Rewards/last_100_episodes"
SPEED = "Time/step_per_second"  # of the updates between two points


class Curve(NamedTuple):
    """A scalar over a run; each field is [P]."""

    steps: Vector
    seconds: Vector  # of training, without evaluations, compiling, and the time between a stop and its resume
    values: Vector


def read_curve(folder: Path, tag: str = RETURN) -> Curve:
    """The curve of a scalar, which has no points if the run has not logged it."""
    (steps, values), (at, speeds) = scalars(folder, tag, SPEED)
    if not len(at):
        return Curve(steps, np.zeros(len(steps)), values)
    seconds = np.cumsum(np.diff(at, prepend=0) / speeds)
    return Curve(steps, np.interp(steps, at, seconds), values)


def scalars(folder: Path, *tags: str) -> list[tuple[Vector, Vector]]:
    """Steps and values of scalars: from metrics.jsonl where a run has it, which is read faster than TensorBoard's."""
    if (folder / LINES).exists():
        points = [json.loads(line) for line in (folder / LINES).read_text().splitlines()]
        found = {tag: [(point["step"], point[tag]) for point in points if tag in point] for tag in tags}
    else:
        from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

        events = EventAccumulator(str(folder), size_guidance={SCALARS: 0}).Reload()
        known = {*events.Tags()[SCALARS]} & {*tags}
        found = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in known}
    tables = (np.array(found.get(tag, []), np.float64).reshape(-1, 2) for tag in tags)
    return [(table[:, 0], table[:, 1]) for table in tables]


def mean_curve(curves: Sequence[Curve], axis: str, num_points: int = 200) -> tuple[Vector, Vector, Vector]:
    """Where on the axis (steps or seconds), mean, and standard deviation of curves at the same steps.

    Over seconds, a point lies where the mean of all runs' seconds at its step is, so that no run ends before others.
    """
    grid = np.linspace(max(c.steps[0] for c in curves), min(c.steps[-1] for c in curves), num_points)
    seconds, values = (np.array([np.interp(grid, c[0], c[i]) for c in curves]) for i in (1, 2))
    return grid if axis == "steps" else seconds.mean(axis=0), values.mean(axis=0), values.std(axis=0)
