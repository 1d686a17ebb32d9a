"""The lives that games have left, where the loss of one is to end an episode for the learner alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rl.envs.failures import AnyVectorEnv
from rl.errors import UserError

KEY = "lives"


class Lives:
    """The lives [N] at the observations that were returned last, from `info["lives"]`."""

    def __init__(self, num_envs: int) -> None:
        self.left = np.zeros(num_envs, np.int64)

    @staticmethod
    def of(envs: AnyVectorEnv, env_id: str) -> "Lives":
        """Those of a batch, which must be reset afterwards; raises `UserError` if it has none."""
        if KEY not in envs.reset()[1]:
            right = "must be an environment that has them, such as ALE/Breakout-v5, and not in worker processes"
            raise UserError(f"--terminate-on-life-loss: {env_id} gives no info['{KEY}'] from its reset on; {right}")
        return Lives(envs.num_envs)

    def lost(self, info: Mapping[str, Any]) -> NDArray[np.bool_]:
        """Whether the step that this info is of took a life [N]; who begins an episode has lost none."""
        before = self.left
        left = np.array(info.get(KEY, before), np.int64)
        # Gymnasium's own batches leave out who says nothing.
        self.left = np.where(info.get(f"_{KEY}", True), left, before)
        return self.left < before
