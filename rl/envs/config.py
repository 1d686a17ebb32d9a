"""The flags of environments."""

import math
import re
from dataclasses import dataclass, replace
from typing import Any, Literal

import gymnasium as gym

from rl.envs.options import check_options, make_env
from rl.errors import UserError, require

ENV_ID = re.compile(r"([A-Za-z_][\w.]*:)?([A-Za-z0-9_][\w.-]*/)?[A-Za-z0-9_][\w.-]*", re.ASCII)


@dataclass(frozen=True)
class EnvConfig:
    """The environments."""

    env_id: str = "CustomEnv-v0"
    """Gymnasium's id of the environment; module:id imports the module that registers it first."""
    num_envs: int = 16
    """Number of environments of each rank."""
    vectorization: Literal["auto", "sync", "async", "native", "envpool", "tensor"] = "auto"
    """How a rank steps its environments: one after the other (sync), in worker processes (async), by a batched class
    of their own (native), by EnvPool's version of them (envpool), or by their form in tensors (tensor); auto takes
    tensor in long runs, else native or sync."""
    env_kwargs: tuple[str, ...] = ()
    """Arguments of the environment's constructor, such as continuous=true gravity=-9.8; values are YAML."""
    env_wrapper: tuple[str, ...] = ()
    """Wrappers of each environment, module:Class, from the innermost to the outermost."""
    num_workers: int | None = None
    """Worker processes of each rank with --vectorization async, or the threads of EnvPool or Atari; by default as many
    as its share of the cores. More are of use where environments wait for something else than a core."""
    allow_import: bool = False
    """Let --env-id and --env-wrapper import modules, and so run their code."""
    env_timeout: float = 120.0
    """Seconds to wait for an environment, before the run stops and names the one that hangs."""
    max_replay_steps: int = 100_000
    """Longest episode that --resume replays; a longer one is replaced by a new episode."""
    squash: bool = False
    """Map continuous actions into their bounds by tanh, instead of clipping them."""
    clip_rewards: bool = False
    """Learn from the sign of rewards; returns that are shown, and the evaluation's, are the environment's."""
    terminate_on_life_loss: bool = False
    """Let the learner take the loss of a life (`info["lives"]`, as of Atari) for the end of an episode, while the game
    goes on; the returns and lengths that are shown are whole games', and the evaluation plays these."""

    def check(self) -> None:
        """Raises `UserError` for an invalid value."""
        module, least = self.env_id.partition(":")[0], "must be at least 1"
        looks = "must look like CartPole-v1, namespace/Name-v0 or module:Name-v0"
        imports = f"imports, and so runs, the module {module}; add --allow-import to permit it"
        require(self.num_envs >= 1, "--num-envs", self.num_envs, least)
        require(self.num_workers is None or self.num_workers >= 1, "--num-workers", self.num_workers, least)
        require(ENV_ID.fullmatch(self.env_id) is not None, "--env-id", repr(self.env_id), looks)
        require(self.allow_import or ":" not in self.env_id, "--env-id", self.env_id, imports)
        check_options(self.env_kwargs, self.env_wrapper, allow_import=self.allow_import)
        if self.env_wrapper and self.vectorization in ("native", "tensor", "envpool"):
            right = "has no single environments for --env-wrapper to wrap; use sync or async"
            raise UserError(f"--vectorization {self.vectorization}: {right}")
        if self.env_kwargs and self.vectorization == "envpool":
            raise UserError("--vectorization envpool: takes no --env-kwargs, which are Gymnasium's; use sync or async")
        require(0 < self.env_timeout < math.inf, "--env-timeout", self.env_timeout, "must be a finite number above 0")
        require(self.max_replay_steps >= 0, "--max-replay-steps", self.max_replay_steps, "must be at least 0")

    def for_evaluation(self, num_envs: int) -> "EnvConfig":
        """The same environments for whole episodes: as they are in tensors or Atari, else one after the other."""
        only_in_pool = self.vectorization == "envpool" and not _can_be_single(self)
        keeps = self.vectorization == "tensor" or self.is_atari() or only_in_pool
        vectorization = self.vectorization if keeps else "sync"
        whole = replace(self, clip_rewards=False, terminate_on_life_loss=False)
        return replace(whole, num_envs=num_envs, vectorization=vectorization)

    def is_atari(self) -> bool:
        """Whether these are `AtariEpisodes`, which single environments of ale-py's do not look like."""
        is_batch = self.vectorization in ("auto", "native") and not self.env_wrapper
        return is_batch and self.env_id.rpartition(":")[2].startswith("ALE/")


def _can_be_single(config: EnvConfig) -> bool:
    """Whether Gymnasium has the environment, and whatever it needs is installed."""
    try:
        make_single(config).close()
    except (gym.error.Error, ImportError):
        return False
    return True


def make_single(config: EnvConfig, **kwargs: Any) -> gym.Env[Any, Any]:
    """A single environment of Gymnasium's, with its wrappers, given further arguments of `gymnasium.make`."""
    return make_env(config.env_id, config.env_kwargs, config.env_wrapper, **kwargs)
