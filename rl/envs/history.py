"""The actions of the current episodes, from which a resumed run replays them."""

import sys
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rl.dist.launch import rank


class History:
    """The last actions [N, ...] of N environments, back to the start of the longest episode to be replayed.

    An episode of more than `max_steps` steps is not replayed, and its actions are dropped.
    """

    def __init__(self, env_id: str, num_envs: int, max_steps: int) -> None:
        self.env_id = env_id
        self.max_steps = max_steps
        self.told = rank() != 0
        self.actions: deque[NDArray[Any]] = deque(maxlen=max_steps)
        self.num_steps = 0
        self.began = np.zeros(num_envs, np.int64)  # [N] `num_steps` when each episode began

    def clear(self) -> None:
        """Begins an episode in every environment."""
        self.actions.clear()
        self.num_steps = 0
        self.began[:] = 0

    def add(self, actions: NDArray[Any]) -> None:
        """Records one step of all environments."""
        self.actions.append(actions.copy())  # an environment may change its action in place
        self.num_steps += 1
        if not self.told and len(self.actions) == self.max_steps < self.num_steps - self.began.min():
            self.told = True
            print(
                f"note: --env-id {self.env_id}: an episode is longer than --max-replay-steps {self.max_steps}: a"
                " resumed run starts a new episode instead and is not bit-exact",
                file=sys.stderr,
            )
        # Drops the actions that no episode needs, so rarely that it costs nothing.
        if self.num_steps % 1024 == 0:
            lengths = self.num_steps - self.began
            for _ in range(len(self.actions) - int(lengths[lengths <= self.max_steps].max(initial=0))):
                self.actions.popleft()

    def end(self, ended: NDArray[np.bool_]) -> None:
        """Begins an episode where one ended."""
        self.began[ended] = self.num_steps

    def of_each(self) -> list[NDArray[Any]]:
        """The actions [T, ...] of each environment's episode, or none if it is too long."""
        lengths = (self.num_steps - self.began).tolist()
        rows = np.stack(self.actions) if self.actions else np.zeros((0, len(lengths)))
        return [
            rows[len(rows) - length :, n] if 0 < length <= self.max_steps else np.zeros(0)
            for n, length in enumerate(lengths)
        ]

    def restore(self, histories: Sequence[NDArray[Any]]) -> None:
        """Restores what `of_each` returned."""
        self.clear()
        self.num_steps = max(map(len, histories))
        self.began[:] = [self.num_steps - len(history) for history in histories]
        longest = max(histories, key=len)
        rows = np.zeros((self.num_steps, len(histories), *longest.shape[1:]), longest.dtype)
        for n, history in enumerate(histories):
            if len(history):
                rows[self.began[n] :, n] = history
        self.actions.extend(rows)
