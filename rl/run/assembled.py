"""What a run needs of the session that assembles it."""

from collections.abc import Callable
from typing import Any, Protocol

import torch

from rl.collector import AnyCollector
from rl.compile import Execution
from rl.config import Config
from rl.dist.ranks import Ranks
from rl.learners.learner import AnyLearner
from rl.models.agent import Agent
from rl.run.folder import RunFolder
from rl.run.state import State
from rl.statistics import Statistics


class Assembled(Protocol):
    """What a run needs of a `Session`."""

    config: Config[Any]
    folder: RunFolder
    agent: Agent
    learner: AnyLearner
    optimizer: torch.optim.Optimizer | None  # None on a rank that does not learn
    scaler: torch.amp.GradScaler | None
    plays: bool
    collector: AnyCollector  # of a rank that plays, as its statistics
    statistics: Statistics
    autocast: Callable[[], torch.autocast]
    execution: Execution
    ranks: Ranks
    state: State
