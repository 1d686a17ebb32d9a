"""Environments whose observations are everything but one vector."""

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

S = gym.spaces


class Seeing(gym.Env[Any, Any]):
    """Episodes of about ten steps of random observations; the reward is for the action that the first number names."""

    action_space: gym.Space[Any] = S.Discrete(2)
    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"]}
    render_mode = "rgb_array"

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.draw()
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = float((action == 1) == (self.numbers[0] > 0))
        self.draw()
        return self.observe(), reward, bool(self.np_random.random() < 0.1), False, {}

    def draw(self) -> None:
        self.numbers = self.np_random.uniform(-1, 1, 5).astype(np.float32)

    def observe(self) -> Any:
        raise NotImplementedError

    def render(self) -> Any:
        return np.zeros((32, 32, 3), np.uint8)


class Whole(Seeing):
    """One vector."""

    observation_space = S.Box(-1, 1, (5,))

    def observe(self) -> Any:
        return self.numbers


class Parts(Seeing):
    """The same numbers in a Dict, with a text that nobody reads."""

    observation_space = S.Dict(
        {"a": S.Box(-1, 1, (2,)), "b": S.Tuple([S.Box(-1, 1, (1, 2)), S.Box(-1, 1, ())]), "text": S.Text(5)}
    )

    def observe(self) -> Any:
        numbers = self.numbers
        return {"a": numbers[:2], "b": (numbers[2:4].reshape(1, 2), numbers[4:].reshape(())), "text": "look"}


class Frames(Seeing):
    """An image in bytes, channels first."""

    observation_space = S.Box(0, 255, (2, 36, 40), np.uint8)

    def observe(self) -> Any:
        frame = np.zeros((2, 36, 40), np.uint8)
        frame[0], frame[1, 0, :5] = 255 * (self.numbers[0] > 0), (100 * self.numbers).astype(np.uint8)
        return frame


class Everything(Seeing):
    """A small image, channels last, and each other kind of space."""

    observation_space = S.Dict(
        {
            "image": S.Box(0, 1, (6, 6, 3), np.bool_),
            "inner": S.Dict({"count": S.Discrete(3, start=2), "bits": S.MultiBinary(4)}),
            "numbers": S.Box(-1, 1, (5,)),
            "several": S.MultiDiscrete([[2, 3], [4, 2]]),
        }
    )

    def observe(self) -> Any:
        first = int(self.numbers[0] > 0)
        image = np.zeros((6, 6, 3), np.bool_)
        image[:, :, 1] = self.numbers[1] > 0
        inner = {"count": np.int64(2 + first), "bits": np.array([first, 0, 1, 0], np.int8)}
        several = np.array([[first, 2], [3, 1]])
        return {"image": image, "inner": inner, "numbers": self.numbers, "several": several}


for kind in (Whole, Parts, Frames, Everything):
    gym.register(f"{kind.__name__}-v0", kind, disable_env_checker=True)
