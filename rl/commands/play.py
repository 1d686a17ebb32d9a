"""`rl play`: a trained policy in a window, or in a video."""

import contextlib
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch

from rl.commands.of_run import OfRun, Trained, described, read, trained
from rl.commands.text import number
from rl.envs.atari import OneGame
from rl.envs.config import EnvConfig, make_single
from rl.envs.make import has_gymnasium_form, has_tensor_form, making
from rl.envs.masks import KEY
from rl.envs.options import kwargs_of
from rl.envs.spaces import Spaces
from rl.errors import EnvError, UserError, one_line, require
from rl.run.evaluation import Actor
from rl.seeding import ACTION, Noise, environment_seed, evaluation_seed

Show = Callable[[], None]


@dataclass(frozen=True)
class Play(OfRun):
    """Shows episodes of a trained policy, and prints their returns: those that `rl evaluate` plays first."""

    video: Path | None = None
    """Film the episodes into this file, an .mp4 or .gif, instead of opening a window."""
    episodes: int = 3
    """Number of episodes."""
    seed: int | None = None
    """Seed of the episodes; by default the run's."""
    sampled: bool = False
    """Sample actions, as in training; otherwise take the most likely ones."""


def command(words: Sequence[str]) -> None:
    """Plays episodes, and prints return and length of each."""
    flags = read(Play, "play", words)
    require(flags.episodes >= 1, "--episodes", flags.episodes, "must be at least 1")
    require(flags.seed is None or 0 <= flags.seed < 2**32, "--seed", flags.seed, "must lie between 0 and 4294967295")
    if flags.video is not None:
        suffix = flags.video.suffix.lower()
        require(suffix in (".mp4", ".gif"), "--video", flags.video, "must end with .mp4 or .gif")
    policy = trained(flags)
    print(described(policy))
    seed = evaluation_seed(policy.seed if flags.seed is None else flags.seed)
    with shown(policy, flags.video) as (env, show):
        for episode in range(flags.episodes):
            total, length, ended = play(policy, env, show, seed=seed, episode=episode, sampled=flags.sampled)
            cut = "" if ended else ", cut"
            print(f"  episode {episode + 1}: return {number(total)}, {length:,} steps{cut}", flush=True)
    if flags.video is not None:
        print(f"  {flags.video}")


def play(
    policy: Trained, env: gym.Env[Any, Any], show: Show, *, seed: int, episode: int, sampled: bool
) -> tuple[float, int, bool]:
    """Plays an episode: its return, its length, and whether it has ended."""
    noise = Noise(seed, ACTION, episode, 1, policy.agent.spaces.actions.noise_size)
    obs, info = env.reset(seed=environment_seed(seed, episode))
    show()
    total, actor = 0.0, Actor(policy.agent)
    for t in range(policy.max_steps):
        drawn = noise.at(torch.tensor(t), 1)[0, 0] if sampled else None
        obs, reward, terminated, truncated, info = env.step(actor(obs, info.get(KEY), drawn))
        show()
        total += float(reward)
        if terminated or truncated:
            return total, t + 1, True
    return total, policy.max_steps, False


@contextlib.contextmanager
def shown(policy: Trained, video: Path | None) -> Iterator[tuple[gym.Env[Any, Any], Show]]:
    """An environment that shows itself in a window, or whose frames `show` writes to a video.

    Raises:
        UserError: It can do neither, or something needed for it is missing.
    """
    config, other = policy.env, "; film it with --video FILE.mp4" if video is None else ""
    no_screen = has_no_screen()
    if video is None and no_screen:  # MuJoCo would abort the process
        raise UserError(f"DISPLAY is not set: there is no screen for a window{other}")
    if video is not None:  # SDL must not look for a screen, and complain that there is none
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    with making(config):
        has_tensor_form(config)  # imports the module that registers the environment
        right = "exists in tensors only, which cannot be shown"
        require(has_gymnasium_form(config), "--env-id", config.env_id, right)
        env = make_shown(config, "human" if video is None else "rgb_array")
    with contextlib.closing(env), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of graphics libraries, about fonts and the like
        if Spaces.of(config.env_id, env.observation_space, env.action_space).obs != policy.agent.spaces.obs:
            right = "--capture-video films it during training"
            raise UserError(f"--env-id {config.env_id}: one alone has other observations than a batch; {right}")
        try:
            env.reset(seed=0)
            env.render()
        except Exception as error:  # of any graphics library
            if "mujoco" in sys.modules and no_screen:
                other = "; set MUJOCO_GL=egl or MUJOCO_GL=osmesa, which need no screen"
            raise EnvError(f"{config.env_id}: cannot be shown: {one_line(str(error))}{other}") from error
        if video is None:
            yield env, lambda: None
            return
        with contextlib.closing(writer(video, env.metadata.get("render_fps", 30))) as film:
            yield env, lambda: film.append_data(env.render())


def make_shown(config: EnvConfig, mode: str) -> gym.Env[Any, Any]:
    """An environment that can be rendered in this mode.

    Raises:
        UserError: There is none.
    """
    if config.is_atari():
        game = OneGame(config.env_id, kwargs_of(config.env_kwargs))
        return gym.wrappers.HumanRendering(game) if mode == "human" else game
    with contextlib.closing(make_single(config)) as plain:
        # Gymnasium shows the frames of an environment that has no window.
        if not {*plain.metadata.get("render_modes", [])} & {mode, "rgb_array"}:
            raise UserError(f"--env-id {config.env_id}: has no render_mode {mode}, so it cannot be shown")
    return make_single(config, render_mode=mode)


def has_no_screen() -> bool:
    """Whether windows can only fail: SDL_VIDEODRIVER may name another place for them."""
    return sys.platform == "linux" and not os.environ.keys() & {"DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"}


def writer(path: Path, fps: float) -> Any:
    """Writes frames to a video, one after the other, so that long ones need no memory.

    Raises:
        UserError: The packages that this takes are missing, or the file cannot be written.
    """
    try:
        import imageio.v2 as imageio
        import imageio_ffmpeg  # noqa: F401 (what writes .mp4)
    except ImportError as error:
        raise UserError(f"--video: {error}; pip install 'imageio[ffmpeg]'") from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise UserError(f"--video {path}: cannot be written: {error.strerror}") from error
    if path.suffix.lower() == ".gif":
        return imageio.get_writer(path, mode="I", duration=max(20, math.floor(1000 / fps)), loop=0)
    return imageio.get_writer(path, fps=fps, macro_block_size=2)  # the codec takes even sizes only
