"""The learning curves of runs, read from TensorBoard's files in their folders."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
RETURN = "Rewards/last_100_episodes"
STEPS, SPEED = "Count/steps", "Time/step_per_second"  # of the updates between two points


class Curve(NamedTuple):
    """A scalar over a run; each field is [P]."""

    steps: Vector
    seconds: Vector  # of training, without evaluations, compiling, and the time between a stop and its resume
    values: Vector


def read_curve(folder: Path, tag: str = RETURN) -> Curve:
    """The curve of a scalar, which has no points if the run has not logged it."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={SCALARS: 0}).Reload()
    known = events.Tags()[SCALARS]
    steps, values, counts, speeds = (
        np.array([getattr(event, field) for event in events.Scalars(name)] if name in known else [], np.float64)
        for name, field in ((tag, "step"), (tag, "value"), (STEPS, "value"), (SPEED, "value"))
    )
    if not len(steps):
        return Curve(steps, steps, values)
    at = np.array([event.step for event in events.Scalars(STEPS)], np.float64)
    return Curve(steps, np.interp(steps, at, np.cumsum(counts / speeds)), values)


def mean_curve(curves: Sequence[Curve], axis: str, num_points: int = 200) -> tuple[Vector, Vector, Vector]:
    """Where on the axis (steps or seconds), mean, and standard deviation of curves at the same steps.

    Over seconds, a point lies where the mean of all runs' seconds at its step is, so that no run ends before others.
    """
    grid = np.linspace(max(c.steps[0] for c in curves), min(c.steps[-1] for c in curves), num_points)
    seconds, values = (np.array([np.interp(grid, c[0], c[i]) for c in curves]) for i in (1, 2))
    return grid if axis == "steps" else seconds.mean(axis=0), values.mean(axis=0), values.std(axis=0)
