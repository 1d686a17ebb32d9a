"""How good a policy is: greedy episodes, and videos of them."""

import importlib.util
import math
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rl.config import Config
from rl.envs.gym_envs import GymEnvs
from rl.envs.make import EnvConfig, make_envs, making
from rl.envs.types import Envs
from rl.errors import EnvError, UserError
from rl.models.agent import Agent
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


def evaluate_run(config: Config[Any], policy: Agent, max_seconds: float = math.inf) -> Evaluation:
    """The evaluation that a run's flags ask for, on the device that its agent is on."""
    with closing(make_envs(config.env.for_evaluation(config.eval_episodes))) as envs:
        return evaluate(
            policy,
            envs.to(policy.critic.weight.device),
            seed=evaluation_seed(config.seed),
            max_steps=config.max_eval_steps,
            max_seconds=max_seconds,
        )


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


def record_video(policy: Agent, config: EnvConfig, path: Path, *, seed: int, max_steps: int) -> float:
    """Films the first of the greedy episodes that `evaluate` plays by this seed into `path`, an .mp4: its return."""
    one = replace(config, num_envs=1, vectorization="sync")
    with closing(make_envs(one, film=path)) as envs:
        evaluation = evaluate(policy, envs.to(policy.critic.weight.device), seed=seed, max_steps=max_steps)
        cast(GymEnvs, envs).envs.call("stop_recording")  # type: ignore[attr-defined]
    # RecordVideo names the file after the episode's number.
    path.with_name(f"{path.stem}-episode-0.mp4").rename(path)
    return evaluation.total_return.item()


def film_run(config: Config[Any], policy: Agent, path: Path) -> None:
    """Films the first of the greedy episodes that evaluate a run; of tensors, one of Gymnasium's by the same id."""
    seed, max_steps = evaluation_seed(config.seed), config.max_eval_steps
    record_video(policy, config.env, path, seed=seed, max_steps=max_steps)


def check_video(config: EnvConfig) -> None:
    """Raises `UserError` where no episode could be filmed."""
    if importlib.util.find_spec("moviepy") is None:
        raise UserError("--capture-video: needs moviepy; install it with: pip install -e '.[video]'")
    try:
        with making(config):
            if "rgb_array" not in gym.make(config.env_id).metadata.get("render_modes", []):
                raise UserError(f"--capture-video: {config.env_id} cannot draw itself (render_mode rgb_array)")
            env = gym.make(config.env_id, render_mode="rgb_array")
            env.reset()
            env.render()
            env.close()
    except EnvError as error:
        raise EnvError(f"--capture-video with {error}") from error
