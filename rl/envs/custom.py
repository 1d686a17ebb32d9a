"""CustomEnv: push a mass left or right to keep it at a target; as a single environment, a batch, and in tensors."""

from collections.abc import Sequence
from typing import Any, TypeVar, cast

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from rl.envs.tensor_envs import TensorEnv

PUSH = 0.1
DAMPING = 0.95
POSITION_LIMIT = 2.0
# A push a step and damping hold the speed below PUSH / (1 - DAMPING) = 2, so the position below 4.
OBSERVATION_SPACE = gym.spaces.Box(np.array([-4, -2], np.float32), np.array([4, 2], np.float32))
RENDER_MODES = ["human", "rgb_array"]
FPS = 30
FRAME_HEIGHT, FRAME_WIDTH = 120, 480

Numbers = TypeVar("Numbers", bound=Any)  # floats, arrays or tensors: anything with elementwise arithmetic


def pushed(position: Numbers, velocity: Numbers, action: Numbers) -> tuple[Numbers, Numbers]:
    """Position and velocity of any number of masses after a push."""
    velocity = velocity + PUSH * (2 * action - 1)
    return position + velocity, velocity * DAMPING


def reward_at(position: Numbers, target: float) -> Numbers:
    """The reward of a push that leads to a position."""
    return cast(Numbers, 1.0 - 0.1 * abs(position - target))


def off_track(position: Numbers) -> Numbers:
    """Whether a mass has left the track."""
    return cast(Numbers, abs(position) > POSITION_LIMIT)


def start_position(generator: np.random.Generator, spread: float) -> float:
    """The first position of an episode: the center, or uniform up to `spread` from it."""
    return generator.uniform(-spread, spread) if spread > 0 else 0.0


def checked_spread(spread: float) -> float:
    """The spread; raises `ValueError` if masses could start off the track."""
    if not 0 <= spread <= POSITION_LIMIT:
        raise ValueError(f"start_spread {spread}: must lie between 0 and {POSITION_LIMIT}")
    return float(spread)


def frame(position: float, target: float) -> NDArray[np.uint8]:
    """A picture (uint8 [height, width, 3]) of the track, its ends, the target and the mass."""
    picture = np.full((FRAME_HEIGHT, FRAME_WIDTH, 3), 255, np.uint8)
    pixels_per_unit = FRAME_WIDTH / (2 * POSITION_LIMIT * 1.1)
    column, row = np.arange(FRAME_WIDTH), np.arange(FRAME_HEIGHT)

    def near(x: float, pixels: float) -> NDArray[np.bool_]:
        return abs(column - FRAME_WIDTH / 2 - x * pixels_per_unit) <= pixels

    picture[-FRAME_HEIGHT // 4] = 0
    for x, color in ((-POSITION_LIMIT, (200, 60, 60)), (POSITION_LIMIT, (200, 60, 60)), (target, (60, 160, 60))):
        picture[:, near(x, 1)] = color
    body = (row > FRAME_HEIGHT // 2) & (row < FRAME_HEIGHT * 3 // 4)
    picture[np.ix_(body, near(position, FRAME_HEIGHT // 8))] = (50, 90, 200)
    return picture


class CustomEnv(gym.Env[NDArray[np.float32], np.int64]):
    """A mass on a track, pushed left (action 0) or right (action 1) at every step.

    Observation: position and velocity (float32). Reward: 1 - 0.1·|position - target|. The episode terminates when
    |position| > 2; the registered environment truncates it after 200 steps. It starts at rest in the center, or up to
    `start_spread` from it; `reset(options={"start_spread": …})` overrides that for one episode.
    """

    metadata = {"render_modes": RENDER_MODES, "render_fps": FPS}  # noqa: RUF012 (Gymnasium's own declaration)

    def __init__(self, target: float = 0.0, start_spread: float = 0.0, render_mode: str | None = None) -> None:
        self.target = target
        self.start_spread = checked_spread(start_spread)
        self.render_mode = render_mode
        self.observation_space = OBSERVATION_SPACE
        self.action_space = gym.spaces.Discrete(2)
        self.position = self.velocity = 0.0
        self.window: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        spread = checked_spread((options or {}).get("start_spread", self.start_spread))
        self.position, self.velocity = start_position(self.np_random, spread), 0.0
        if self.render_mode == "human":
            self.render()
        return np.array([self.position, self.velocity], np.float32), {}

    def step(self, action: np.int64 | int) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        if not self.action_space.contains(action):
            raise gym.error.InvalidAction(f"action {action!r}: CustomEnv takes 0 (push left) or 1 (push right)")
        self.position, self.velocity = pushed(self.position, self.velocity, int(action))
        reward, terminated = reward_at(self.position, self.target), off_track(self.position)
        if self.render_mode == "human":
            self.render()
        return np.array([self.position, self.velocity], np.float32), reward, bool(terminated), False, {}

    def render(self) -> NDArray[np.uint8] | None:
        """A frame (uint8 [120, 480, 3]); in mode human, shows it in a window instead."""
        picture = frame(self.position, self.target)
        if self.render_mode != "human":
            return picture
        import pygame  # an optional dependency

        if self.window is None:
            pygame.init()
            self.window = pygame.display.set_mode((FRAME_WIDTH, FRAME_HEIGHT)), pygame.time.Clock()
        surface, clock = self.window
        surface.blit(pygame.surfarray.make_surface(picture.swapaxes(0, 1)), (0, 0))
        pygame.event.pump()
        pygame.display.flip()
        clock.tick(FPS)
        return None

    def close(self) -> None:
        if self.window is not None:
            import pygame

            pygame.quit()
            self.window = None


class CustomVectorEnv(gym.vector.VectorEnv[NDArray[np.float32], NDArray[np.int64], NDArray[Any]]):
    """N masses stepped together: exactly the trajectories of N `CustomEnv`s, reset in the step that ends an episode."""

    metadata = {  # noqa: RUF012 (Gymnasium's own declaration)
        "render_modes": ["rgb_array"],
        "render_fps": FPS,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        num_envs: int,
        max_episode_steps: int = 200,
        target: float = 0.0,
        start_spread: float = 0.0,
        render_mode: str | None = None,
    ) -> None:
        self.num_envs = num_envs
        self.max_episode_steps = max_episode_steps
        self.target = target
        self.start_spread = checked_spread(start_spread)
        self.render_mode = render_mode
        self.single_observation_space = OBSERVATION_SPACE
        self.single_action_space = gym.spaces.Discrete(2)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.generators = [np.random.default_rng() for _ in range(num_envs)]
        self.position: NDArray[Any] = np.zeros(num_envs)
        self.velocity: NDArray[Any] = np.zeros(num_envs)
        self.elapsed_steps = np.zeros(num_envs, np.int64)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Starts an episode everywhere; a single seed s seeds environment i with s + i, as `SyncVectorEnv` does."""
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed
        for i, env_seed in enumerate(seeds or []):
            if env_seed is not None:
                self.generators[i], _ = gym.utils.seeding.np_random(env_seed)
        spread = checked_spread((options or {}).get("start_spread", self.start_spread))
        self._start(np.ones(self.num_envs, np.bool_), spread)
        return self._observation(), {}

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        if not ((actions == 0) | (actions == 1)).all():
            raise gym.error.InvalidAction(f"actions {actions}: CustomEnv takes 0 (push left) or 1 (push right)")
        self.position, self.velocity = pushed(self.position, self.velocity, actions)
        reward, terminated = reward_at(self.position, self.target), off_track(self.position)
        self.elapsed_steps += 1
        truncated = self.elapsed_steps >= self.max_episode_steps
        ended = terminated | truncated
        obs = self._observation()
        if not ended.any():
            return obs, reward, terminated, truncated, {}
        self._start(ended, self.start_spread)
        return self._observation(), reward, terminated, truncated, {"final_obs": obs, "_final_obs": ended}

    def render(self) -> tuple[NDArray[np.uint8], ...]:
        return tuple(frame(position, self.target) for position in self.position)

    def _start(self, where: NDArray[np.bool_], spread: float) -> None:
        self.position[where] = [start_position(self.generators[i], spread) for i in np.flatnonzero(where)]
        self.velocity[where] = 0.0
        self.elapsed_steps[where] = 0

    def _observation(self) -> NDArray[np.float32]:
        return np.stack([self.position, self.velocity], axis=-1).astype(np.float32)


class CustomTensorEnv(TensorEnv):
    """`CustomEnv` as functions of batched tensors; its state is its observation."""

    observation_space = OBSERVATION_SPACE
    action_space = gym.spaces.Discrete(2)

    def __init__(self, max_episode_steps: int = 200, target: float = 0.0, start_spread: float = 0.0) -> None:
        self.max_episode_steps = max_episode_steps
        self.target = target
        self.start_spread = checked_spread(start_spread)
        self.initial_noise_size = 1

    def initial(self, noise: Tensor) -> Tensor:
        return torch.cat([self.start_spread * (2 * noise - 1), torch.zeros_like(noise)], dim=-1)

    def transition(self, state: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        position, velocity = state.unbind(-1)
        return torch.stack(pushed(position, velocity, action), dim=-1)

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        return reward_at(next_state[..., 0], self.target)

    def terminal(self, state: Tensor) -> Tensor:
        return off_track(state[..., 0])
