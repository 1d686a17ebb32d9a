"""How good a policy is: greedy episodes, and videos of them."""

import importlib.util
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium.wrappers import RecordVideo
from numpy.typing import NDArray
from torch import Tensor

from rl.agent import Agent
from rl.config import Config
from rl.envs.step import Envs
from rl.envs.stepping import EnvConfig, make_envs
from rl.errors import UserError
from rl.learners.learner import AnyLearner
from rl.seeding import evaluation_seed


class Evaluation(NamedTuple):
    """The first episode of each of N environments."""

    total_return: Tensor  # [N] float64
    unfinished: Tensor  # [N] bool, cut by our own limit
    given_up: bool = False  # for want of time, so that nothing is said of the policy


@torch.no_grad()
def evaluate(policy: Agent, envs: Envs, *, seed: int, max_steps: int, max_seconds: float = math.inf) -> Evaluation:
    """Plays one greedy episode of at most `max_steps` steps in each environment, all within `max_seconds`."""
    gives_up_at = time.monotonic() + max_seconds
    obs = envs.reset(seed)
    total_return = torch.zeros(envs.num_envs, dtype=torch.float64, device=envs.device)
    running = torch.ones(envs.num_envs, dtype=torch.bool, device=envs.device)
    for _ in range(max_steps):
        distribution, _ = policy(obs)
        step = envs.step(distribution.mode())
        total_return += running * step.reward
        running &= ~(step.terminated | step.truncated)
        obs = step.obs
        if not running.any():
            break
        if time.monotonic() > gives_up_at:
            return Evaluation(total_return, running, given_up=True)
    return Evaluation(total_return, running)


def evaluate_run(config: Config[AnyLearner], policy: Agent, max_seconds: float = math.inf) -> Evaluation:
    """The evaluation that a run's flags ask for, on the device that its agent is on."""
    envs = make_envs(replace(config.env, num_envs=config.eval_episodes, vectorization="sync"))
    evaluation = evaluate(
        policy,
        envs.to(policy.critic.weight.device),
        seed=evaluation_seed(config.seed),
        max_steps=config.max_eval_steps,
        max_seconds=max_seconds,
    )
    envs.close()
    return evaluation


@torch.no_grad()
def act(policy: Agent, obs: NDArray[Any]) -> NDArray[Any]:
    """The likeliest action at an observation [D], or at several [N, D], in the environment's own terms.

    Raises:
        ValueError: The observation is of another shape.
    """
    size = policy.spaces.obs_size
    if np.ndim(obs) not in (1, 2) or np.shape(obs)[-1] != size:
        raise ValueError(f"observation of shape {np.shape(obs)}: must be [D] or [N, D] with D={size}")
    distribution, _ = policy(torch.as_tensor(obs, dtype=torch.float32, device=policy.critic.weight.device))
    return policy.spaces.actions.to_env(distribution.mode().cpu().numpy())


def record_video(policy: Agent, config: EnvConfig, path: Path, *, seed: int, max_steps: int) -> None:
    """Films one greedy episode into `path`, an .mp4 file."""
    env = RecordVideo(
        gym.make(config.env_id, render_mode="rgb_array"),
        str(path.parent),
        episode_trigger=lambda _: True,
        name_prefix=path.stem,
        disable_logger=True,
    )
    obs, _ = env.reset(seed=seed)
    for _ in range(max_steps):
        obs, _, terminated, truncated, _ = env.step(act(policy, np.asarray(obs)))
        if terminated or truncated:
            break
    env.close()  # type: ignore[no-untyped-call]
    # RecordVideo names the file after the episode's number, which is always 0 here.
    path.with_name(f"{path.stem}-episode-0.mp4").rename(path)


def film_run(config: Config[AnyLearner], policy: Agent, path: Path) -> None:
    """Films one greedy episode of those that evaluate a run."""
    seed, max_steps = evaluation_seed(config.seed), config.max_eval_steps
    record_video(policy, config.env, path, seed=seed, max_steps=max_steps)


def check_video(config: EnvConfig) -> None:
    """Raises `UserError` where no episode could be filmed."""
    if importlib.util.find_spec("moviepy") is None:
        raise UserError("--capture-video: needs moviepy; install it with: pip install -e '.[video]'")
    try:
        if "rgb_array" not in gym.make(config.env_id).metadata.get("render_modes", []):
            raise UserError(f"--capture-video: {config.env_id} cannot draw itself (render_mode rgb_array)")
        env = gym.make(config.env_id, render_mode="rgb_array")
        env.reset()
        env.render()
        env.close()
    except gym.error.Error as error:
        raise UserError(f"--capture-video with --env-id {config.env_id}: {error}") from error
