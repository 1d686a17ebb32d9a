"""Plays the greedy policy: in the episodes that evaluate it, in videos of them, and for a user of a checkpoint."""

import importlib.util
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from rl import tree
from rl.config import Config
from rl.envs.config import EnvConfig, make_single
from rl.envs.gym_envs import GymEnvs
from rl.envs.make import make_envs, making
from rl.envs.masks import KEY, Mask, allows_one, checked
from rl.envs.observations import Obs, as_arrays, part_of
from rl.envs.types import Envs
from rl.errors import EnvError, UserError, install
from rl.models.agent import Agent
from rl.models.memory import Memory, forgotten, given
from rl.run.checkpoint import agent_of, read_checkpoint
from rl.seeding import ACTION, Noise, evaluation_seed


class Evaluation(NamedTuple):
    """The first episodes of N environments."""

    total_return: Tensor  # [N] float64
    unfinished: Tensor  # [N] bool, cut at `max_steps`
    length: Tensor  # [N] int64
    given_up: bool = False  # there was no time, so the returns say nothing about the policy

    def metrics(self) -> dict[str, float]:
        """Means and standard deviation over the episodes."""
        return {
            "Test/cumulative_reward": self.total_return.mean().item(),
            "Test/return_std": self.total_return.std(correction=0).item(),
            "Test/ep_len_avg": self.length.double().mean().item(),
        }


@torch.no_grad()
def evaluate(
    policy: Agent,
    envs: Envs,
    *,
    seed: int,
    max_steps: int,
    gives_up: Callable[[], bool] = lambda: False,
    first_env: int = 0,
    sampled: bool = False,
) -> Evaluation:
    """Plays an episode of at most `max_steps` steps in each environment, unless `gives_up`, asked each step, says so.

    Actions are the most likely ones, or `sampled`. Environment i plays episode `first_env` + i of those with this seed.
    """
    obs = envs.reset(seed, first_env)
    noise = Noise(seed, ACTION, first_env, envs.num_envs, envs.spaces.actions.noise_size, envs.device)
    total_return = torch.zeros(envs.num_envs, dtype=torch.float64, device=envs.device)
    length = torch.zeros(envs.num_envs, dtype=torch.int64, device=envs.device)
    running = torch.ones(envs.num_envs, dtype=torch.bool, device=envs.device)
    past = given(policy.initial_memory(envs.num_envs))  # never reset, since only the first episodes count
    for t in range(max_steps):
        distribution, _, *past = policy(obs, envs.mask, *past)
        step = envs.step(distribution.sample(noise.at(torch.tensor(t), 1)[0]) if sampled else distribution.mode())
        total_return += running * step.reward
        length += running
        running &= ~(step.terminated | step.truncated)
        obs = step.obs
        if not running.any():
            break
        if gives_up():
            return Evaluation(total_return, running, length, given_up=True)
    return Evaluation(total_return, running, length)


def evaluate_run(config: Config[Any], policy: Agent, gives_up: Callable[[], bool] = lambda: False) -> Evaluation:
    """Evaluates a run's agent as its flags say, on the device that the agent is on."""
    with closing(make_envs(config.env.for_evaluation(config.eval_episodes))) as envs:
        return evaluate(
            policy,
            envs.to(policy.critic.weight.device),
            seed=evaluation_seed(config.seed),
            max_steps=config.max_eval_steps,
            gives_up=gives_up,
        )


class Actor:
    """A policy as its user calls it: from an observation, or a batch of N, to the most likely actions.

    Where the agent has memory, it remembers what it was called with: `reset` it when an episode begins.
    """

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.memory: Memory = ()

    def reset(self, ended: Any = None) -> None:
        """Forgets everything or, of a batch, the environments whose episodes have `ended` [N] (bool)."""
        if ended is None:
            self.memory = ()
        elif isinstance(self.memory, Tensor):
            self.memory = forgotten(self.memory, torch.as_tensor(ended, device=self.agent.critic.weight.device))

    @torch.no_grad()
    def __call__(self, obs: Any, mask: Any = None, noise: Tensor | None = None) -> Any:
        """The actions, as the environment takes them.

        With a mask, as an environment gives it in `info["action_mask"]`, it is the most likely legal one. With uniform
        noise [..., noise_size] it is sampled instead.

        Raises:
            ValueError: The observation has another shape, or lacks a key; or the mask has, or allows nothing; or the
                agent has memory, and was called with another number of observations before.
        """
        agent = self.agent
        tensors, legal, lead = as_asked(agent, obs, mask)
        if not isinstance(self.memory, Tensor):
            self.memory = agent.initial_memory(*lead)
        elif self.memory.shape[:-1] != lead:
            had, has = (list(shape) or "one" for shape in (self.memory.shape[:-1], lead))
            raise ValueError(f"observations {has}: the policy remembers {had}; call its reset() first")
        distribution, _, *after = agent(tensors, legal, *given(self.memory))
        self.memory = after[0] if after else ()
        action = distribution.mode() if noise is None else distribution.sample(noise)
        return agent.spaces.actions.to_env(action.cpu().numpy())


def act(policy: Agent, obs: Any, mask: Any = None) -> Any:
    """An `Actor`'s first actions."""
    return Actor(policy)(obs, mask)


def as_asked(policy: Agent, obs: Any, mask: Any) -> tuple[Obs, Mask, tuple[int, ...]]:
    """An environment's observations and masks as tensors, and how many there are: [N], or [] for a single one.

    Raises:
        ValueError: The observation has another shape, or lacks a key; or the mask has, or allows nothing.
    """
    keys, device, actions = policy.spaces.obs, policy.critic.weight.device, policy.spaces.actions
    for key in keys:
        try:
            shape = np.shape(part_of(obs, key))
        except (LookupError, TypeError):
            raise ValueError(f"observation without {key.name}") from None
        if shape not in (key.shape, (*shape[:1], *key.shape)):
            must = f"{list(key.shape)} or [N{''.join(f', {size}' for size in key.shape)}]"
            raise ValueError(f"observation{f' {key.name}' if key.name else ''} of shape {shape}: must be {must}")
    lead = shape[: len(shape) - len(key.shape)]
    legal: Mask = ()
    if mask is not None:
        rows = checked(mask, actions.sizes)
        if rows.shape[:-1] != lead or not allows_one(rows, actions.sizes).all():
            raise ValueError(f"{KEY} of shape {rows.shape}: must have a row for each observation, and allow an action")
        legal = torch.from_numpy(rows).to(device)
    tensors: Any = tree.map(lambda array: torch.from_numpy(array).to(device), as_arrays(keys, obs))
    return tensors, legal, lead


def load_policy(path: str | Path, *, allow_import: bool = False) -> Actor:
    """The trained policy of a checkpoint: maps an observation, or a batch of them, to the most likely action.

    If it has memory, call its `reset()` at the beginning of each episode, or `reset(ended)` for a batch.

    An encoder of your own is imported, and so run, only if `allow_import` permits it.

    Where the environment has action masks, pass its own: `policy(obs, info["action_mask"])`.

    Raises:
        CheckpointError: The file is damaged, is not a checkpoint of this program, or needs a module to be imported.
        OSError: There is no such file, or it cannot be read.
    """
    return Actor(agent_of(read_checkpoint(path), allow_import=allow_import))


def record_video(policy: Agent, config: EnvConfig, path: Path, *, seed: int, max_steps: int) -> float:
    """Films the first of the episodes that `evaluate` plays with this seed into `path`, an .mp4; returns its return."""
    one = config.for_evaluation(1)
    if not config.is_atari():
        one = replace(one, vectorization="sync")
    with closing(make_envs(one, film=path)) as envs:
        evaluation = evaluate(policy, envs.to(policy.critic.weight.device), seed=seed, max_steps=max_steps)
        cast(GymEnvs, envs).envs.call("stop_recording")  # type: ignore[attr-defined]
    # RecordVideo adds the episode's number to the name.
    path.with_name(f"{path.stem}-episode-0.mp4").rename(path)
    return evaluation.total_return.item()


def film_run(config: Config[Any], policy: Agent, path: Path) -> None:
    """Films the first of the episodes that evaluate a run; for tensor environments, in Gymnasium's form of the same."""
    seed, max_steps = evaluation_seed(config.seed), config.max_eval_steps
    record_video(policy, config.env, path, seed=seed, max_steps=max_steps)


def check_video(config: EnvConfig) -> None:
    """Raises `UserError` if no episode can be filmed."""
    if importlib.util.find_spec("moviepy") is None:
        raise UserError(f"--capture-video: needs moviepy; {install('video')}")
    try:
        with making(config):
            if config.is_atari():  # whose frames show the game
                make_envs(replace(config, num_envs=1)).close()
                return
            if "rgb_array" not in make_single(config).metadata.get("render_modes", []):
                raise UserError(f"--capture-video: {config.env_id} has no render_mode rgb_array")
            env = make_single(config, render_mode="rgb_array")
            env.reset()
            env.render()
            env.close()
    except EnvError as error:
        raise EnvError(f"--capture-video with {error}") from error
