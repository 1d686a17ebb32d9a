"""The actions of the episodes that run now, from which they can be played again."""

import sys
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rl.dist.launch import rank


class History:
    """The last actions [N, ...] of N environments: back to where the longest episode began that is played again."""

    def __init__(self, env_id: str, num_envs: int, max_steps: int) -> None:
        """An episode of more than `max_steps` is not played again, and its actions are forgotten."""
        self.env_id = env_id
        self.max_steps = max_steps
        self.told = rank() != 0
        self.actions: deque[NDArray[Any]] = deque(maxlen=max_steps)
        self.num_steps = 0
        self.began = np.zeros(num_envs, np.int64)
        """After how many of the steps the episode of each environment began."""

    def clear(self) -> None:
        """Episodes begin in all environments."""
        self.actions.clear()
        self.num_steps = 0
        self.began[:] = 0

    def add(self, actions: NDArray[Any]) -> None:
        """A step of all environments."""
        self.actions.append(actions.copy())  # an environment may change its action in place
        self.num_steps += 1
        if not self.told and len(self.actions) == self.max_steps < self.num_steps - self.began.min():
            self.told = True
            print(
                f"note: --env-id {self.env_id}: an episode is longer than --max-replay-steps {self.max_steps}; a"
                " resumed run starts a new one in its place, so it is one like the uninterrupted run and not exactly"
                " that",
                file=sys.stderr,
            )
        # Now and then what no episode needs is forgotten: so rarely that it costs nothing.
        if self.num_steps % 1024 == 0:
            lengths = self.num_steps - self.began
            for _ in range(len(self.actions) - int(lengths[lengths <= self.max_steps].max(initial=0))):
                self.actions.popleft()

    def end(self, ended: NDArray[np.bool_]) -> None:
        """Episodes begin in some environments."""
        self.began[ended] = self.num_steps

    def of_each(self) -> list[NDArray[Any]]:
        """The actions [T, ...] of each environment's episode; none of one that is too long."""
        lengths = (self.num_steps - self.began).tolist()
        rows = np.stack(self.actions) if self.actions else np.zeros((0, len(lengths)))
        return [
            rows[len(rows) - length :, n] if 0 < length <= self.max_steps else np.zeros(0)
            for n, length in enumerate(lengths)
        ]

    def restore(self, histories: Sequence[NDArray[Any]]) -> None:
        """Takes over what `of_each` gave."""
        self.clear()
        self.num_steps = max(map(len, histories))
        self.began[:] = [self.num_steps - len(history) for history in histories]
        longest = max(histories, key=len)
        rows = np.zeros((self.num_steps, len(histories), *longest.shape[1:]), longest.dtype)
        for n, history in enumerate(histories):
            if len(history):
                rows[self.began[n] :, n] = history
        self.actions.extend(rows)
