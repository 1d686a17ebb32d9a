"""The learning rate of a rank: annealed before each update, or adapted by the learner after it."""

from typing import Any

import torch
from torch import Tensor

from rl.dist.ranks import Ranks
from rl.learners.learner import Learner, Metrics


class LearningRate:
    """Changes the optimizer's learning rate, a tensor, in place: compiled and recorded gradient steps read it there.

    A rate that has been adapted after an update is in that update's checkpoint, beside Adam's moments.
    """

    def __init__(self, learner: Learner[Any, Any], optimizer: torch.optim.Optimizer | None, ranks: Ranks) -> None:
        """A rank that does not learn has no optimizer."""
        self.learner = learner
        self.rate: Tensor | None = optimizer.param_groups[0]["lr"] if optimizer else None
        self.ranks = ranks
        self.steps: list[Metrics] = []  # of this update

    def anneal(self, done: float) -> dict[str, Tensor | float]:
        """Sets the rate after this fraction of the run, unless the learner adapts it; a metric, if it changes."""
        if self.rate is None:
            return {}
        scheduled = self.learner.config.learning_rate_at(done)
        if scheduled is None:
            return {"Info/learning_rate": self.rate.clone()}
        self.rate.fill_(scheduled)
        return {"Info/learning_rate": scheduled} if self.learner.config.schedule != "constant" else {}

    def adapt(self) -> None:
        """Lets the learner change the rate after an update, by the metrics of its gradient steps."""
        steps, self.steps = self.steps, []
        if self.rate is not None:
            self.learner.adapt(self.rate, steps, self.ranks.mean)
