"""What came of the steps of N environments on the host: written step by step, and read once a rollout.

A step of few environments costs little more than the Python around it. So a step writes rows of arrays and no more, and
the returns of episodes are summed for many steps at once, in the order in which single steps would add them.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rl.envs.failures import QUIET
from rl.envs.types import Outcomes


class Ledger:
    """The rewards and ends of the steps since they were read last, and the returns of the episodes under way."""

    def __init__(self, num_envs: int) -> None:
        self.running_return = np.zeros(num_envs)  # [N], up to the last step that was read
        self.num_steps = 0
        self.ends: list[tuple[int, NDArray[np.bool_], NDArray[Any]]] = []  # step, ended [N], and episodes' lengths [N]
        # [T, N], as are the others; T grows as it must.
        self.reward = np.zeros((1, num_envs), np.float32)
        self.terminated, self.truncated, self.resetting, self.lost_life = np.zeros((4, 1, num_envs), np.bool_)

    def begin(self) -> None:
        """Begins an episode everywhere; forgets what nobody has read."""
        self.running_return = np.zeros_like(self.running_return)
        self.num_steps = 0
        self.ends.clear()

    @QUIET
    def add(
        self, reward: Any, terminated: Any, truncated: Any, resetting: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]:
        """Writes what a step returned [N], and returns its rewards, terminated and truncated as they are kept.

        Rewards beyond float32's range become infinite; a step that only resets belongs to no episode, and gets none.
        """
        t = self.num_steps
        if t == len(self.reward):
            self._grow()
        self.num_steps += 1
        self.reward[t], self.terminated[t], self.truncated[t] = reward, terminated, truncated
        self.resetting[t], self.lost_life[t] = resetting, False
        self.reward[t] *= ~resetting
        return self.reward[t], self.terminated[t], self.truncated[t]

    def lose_life(self, lost: NDArray[np.bool_]) -> None:
        """Says of the last step where [N] it took a life."""
        self.lost_life[self.num_steps - 1] = lost

    def end(self, ended: NDArray[np.bool_], length: NDArray[Any]) -> None:
        """Says of the last step which episodes [N] it ended, of how many steps [N] each."""
        self.ends.append((self.num_steps - 1, ended, length * ended))

    def read(self, *, clip_rewards: bool) -> Outcomes:
        """What came of the steps since the last call, with the signs of rewards if they are to be clipped."""
        rows, self.num_steps = slice(self.num_steps), 0
        reward = self.reward[rows]
        episode_return, episode_length = np.zeros((2, *reward.shape), np.float32)
        begin = 0
        for t, ended, length in self.ends:
            self._sum(reward[begin : t + 1])
            episode_return[t], episode_length[t] = self.running_return * ended, length
            self.running_return *= ~ended
            begin = t + 1
        self._sum(reward[begin:])
        self.ends.clear()
        # Every one of them is a new array.
        arrays = (
            np.sign(reward) if clip_rewards else reward.copy(),
            self.terminated[rows] | self.lost_life[rows],
            self.truncated[rows].copy(),
            (~self.resetting[rows]).astype(np.float32),
            episode_return,
            episode_length,
        )
        return Outcomes(*map(torch.from_numpy, arrays))

    def settle(self) -> None:
        """Adds up the steps that nobody has read, such as those of a rollout that was cut short, and forgets them."""
        if self.num_steps > 0:
            self.read(clip_rewards=False)

    def _sum(self, reward: NDArray[np.float32]) -> None:
        """Adds the rewards [T, N] of further steps in turn; a sum over all at once would round differently."""
        self.running_return = np.add.accumulate(np.concatenate([self.running_return[None], reward]))[-1]

    def _grow(self) -> None:
        for name in ("reward", "terminated", "truncated", "resetting", "lost_life"):
            rows = getattr(self, name)
            setattr(self, name, np.concatenate([rows, np.zeros_like(rows)]))
