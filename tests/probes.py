"""Environments whose values and best actions are known (after Andy Jones, "Debugging RL, Without the Agonizing Pain").

Each isolates one possible mistake of an implementation; the last two concern the ends of episodes.
"""

import os
import signal
import sys
import time
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor

from rl.envs.classic import CartPole
from rl.seeding import environment_seed, evaluation_seed

Obs = np.ndarray


class Probe(gym.Env[Obs, Any]):
    """By default, one observation of one number, and episodes of a single step."""

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space: gym.Space[Any] = gym.spaces.Discrete(2)
    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}
    length = 1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Obs, dict[str, Any]]:
        super().reset(seed=seed)
        self.elapsed = 0
        self.obs = self.observe()
        return self.obs, {}

    def step(self, action: Any) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        reward = self.reward(action)
        self.elapsed += 1
        self.obs = self.observe()
        return self.obs, reward, self.elapsed == self.length, False, {}

    def observe(self) -> Obs:
        return np.zeros(1, np.float32)

    def reward(self, action: Any) -> float:
        return 1.0


class ConstantReward(Probe):
    """The critic learns a constant."""


class RewardByObservation(Probe):
    """The critic learns a function of the observation."""

    def observe(self) -> Obs:
        return np.float32([self.np_random.choice([-1, 1])])

    def reward(self, action: Any) -> float:
        return float(self.obs[0])


class DelayedReward(Probe):
    """A reward is discounted back to the step before."""

    length = 2

    def observe(self) -> Obs:
        return np.float32([self.elapsed % 2])

    def reward(self, action: Any) -> float:
        return float(self.elapsed == 1)


class RewardByAction(Probe):
    """The actor learns an action."""

    def reward(self, action: Any) -> float:
        return 1.0 if action == 1 else -1.0


class RewardByActionAndObservation(RewardByObservation):
    """The actor learns an action for each observation."""

    def reward(self, action: Any) -> float:
        return 1.0 if (action == 1) == (self.obs[0] > 0) else -1.0


class RewardByContinuousAction(Probe):
    """The actor learns a real number: 0.5."""

    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reward(self, action: Any) -> float:
        return 1 - float((action[0] - 0.5) ** 2)


class NotANumber(Probe):
    """Environment 3 over all ranks observes NaN at its third step."""

    length = 10

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Obs, dict[str, Any]]:
        self.bad = seed == environment_seed(1, 3)
        return super().reset(seed=seed, options=options)

    def observe(self) -> Obs:
        return np.float32([np.nan if self.bad and self.elapsed == 3 else 0.0])


class HugeReward(Probe):
    """Finite rewards, for which the square of the value error overflows."""

    def reward(self, action: Any) -> float:
        return 1e30


class Unseeded(Probe):
    """Random, independently of its seed."""

    length = 7

    def observe(self) -> Obs:
        return np.random.default_rng().uniform(-1, 1, 1).astype(np.float32)


class Failing(Probe):
    """The second of two environments of a rank fails at its seventieth step."""

    length = 1_000_000

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Obs, dict[str, Any]]:
        self.bad = seed == environment_seed(1, 1)
        return super().reset(seed=seed, options=options)

    def observe(self) -> Obs:
        return self.fail() if self.bad and self.elapsed == 70 else np.zeros(1, np.float32)

    def fail(self) -> Obs:
        raise NotImplementedError


class Raising(Failing):
    """Raises an exception."""

    def fail(self) -> Obs:
        return np.float32([1 // 0])


class WrongShape(Failing):
    """Returns observations of another shape than its space."""

    def fail(self) -> Obs:
        return np.zeros(2, np.float32)


class Hanging(Failing):
    """Hangs."""

    def fail(self) -> Obs:
        time.sleep(1000)
        return np.zeros(1, np.float32)


class Dying(Failing):
    """Kills its process."""

    def fail(self) -> Obs:
        os.kill(os.getpid(), signal.SIGKILL)
        return np.zeros(1, np.float32)


class Exiting(Failing):
    """Calls `sys.exit`."""

    def fail(self) -> Obs:
        sys.exit(0)


class Leaving(Failing):
    """Ends its process with exit code 0."""

    def fail(self) -> Obs:
        os._exit(0)


class Breaking(Probe):
    """Cannot be replayed once it is broken."""

    length = 1_000_000
    broken = False

    def observe(self) -> Obs:
        if Breaking.broken and self.elapsed == 5:
            raise ConnectionError("the simulator is gone")
        return np.zeros(1, np.float32)


class Stopped(Probe):
    """Sends SIGTERM to its process during the evaluation."""

    length = 1_000_000

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Obs, dict[str, Any]]:
        if seed == environment_seed(evaluation_seed(1), 0):
            os.kill(os.getpid(), signal.SIGTERM)
        return super().reset(seed=seed, options=options)


class TextObs(Probe):
    """Has Text observations."""

    observation_space = gym.spaces.Text(5)


class TextAction(Probe):
    """Has Text actions."""

    action_space = gym.spaces.Text(5)


class DiscHuge(Probe):
    """Has more actions than a network can have outputs."""

    action_space = gym.spaces.Discrete(10**10)


class Askew(CartPole):
    """Returns rewards of a shape that broadcasts."""

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        return super().reward(state, action, next_state)[:, None]


class Broken(Probe):
    """Cannot be made."""

    def __init__(self) -> None:
        raise RuntimeError("no licence")


class EndlessReward(Probe):
    """Truncation is not termination: the value is that of an endless sequence of rewards."""

    length = 1_000_000


class StopOrGo(Probe):
    """Stopping pays 1 and ends the episode; continuing pays 0.5, and is better in the long run."""

    def observe(self) -> Obs:
        return np.ones(1, np.float32)

    def reward(self, action: Any) -> float:
        self.length = self.elapsed + 1 if action == 0 else 0
        return 1.0 if action == 0 else 0.5


def reset_in_the_next_step(num_envs: int) -> SyncVectorEnv:
    """`ConstantReward` with autoreset mode NEXT_STEP: every second row only resets, and has reward 0.

    An implementation that learns from those rows sees steps without reward in the middle of an episode: the value
    falls below 1, and the mean return is halved.
    """
    return SyncVectorEnv([ConstantReward] * num_envs, autoreset_mode=AutoresetMode.NEXT_STEP)


for probe, limit in (
    (ConstantReward, None),
    (RewardByObservation, None),
    (DelayedReward, None),
    (RewardByAction, None),
    (RewardByActionAndObservation, None),
    (RewardByContinuousAction, None),
    (NotANumber, None),
    (HugeReward, None),
    (Unseeded, None),
    (TextObs, None),
    (TextAction, None),
    (DiscHuge, None),
    (Broken, None),
    (Raising, None),
    (WrongShape, None),
    (Hanging, None),
    (Dying, None),
    (Exiting, None),
    (Leaving, None),
    (Breaking, None),
    (Stopped, None),
    (EndlessReward, 5),
    (StopOrGo, 50),
):
    gym.register(f"{probe.__name__}-v0", entry_point=probe, max_episode_steps=limit)
gym.register("ResetInNextStep-v0", entry_point=ConstantReward, vector_entry_point=reset_in_the_next_step)
