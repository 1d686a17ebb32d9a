"""Makes the environments that the flags ask for."""

import contextlib
import importlib
import math
import multiprocessing
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import RecordVideo

from rl.dist.launch import rank
from rl.envs.gym_envs import GymEnvs, Memory
from rl.envs.seeded import EpisodeError, SeededEpisodes, from_outside, replayable, worker
from rl.envs.snapshot import snapshots_suffice
from rl.envs.spaces import Spaces
from rl.envs.tensor_envs import TENSOR_ENVS, TensorEnvs
from rl.envs.types import Envs
from rl.envs.watchdog import progress, watched
from rl.errors import EnvError, UserError, described, require

ENV_ID = re.compile(r"([A-Za-z_][\w.]*:)?([A-Za-z0-9_][\w.-]*/)?[A-Za-z0-9_][\w.-]*", re.ASCII)


@dataclass(frozen=True)
class EnvConfig:
    """What is acted on."""

    env_id: str = "CustomEnv-v0"
    """Gymnasium's id of the environment; module:id imports the module that registers it first."""
    num_envs: int = 64
    """Number of environments of each rank."""
    vectorization: Literal["auto", "sync", "async"] = "auto"
    """How a rank steps its environments: sync, in turn; async, each in a process; auto, batched if they can be."""
    env_backend: Literal["gymnasium", "tensor"] = "gymnasium"
    """Gymnasium's environment, or the one of that id written in tensors, which lives on the learner's device."""
    allow_import: bool = False
    """Let --env-id import a module, and so run its code."""
    env_timeout: float = 120.0
    """Seconds that an environment may take for an answer, before the run stops and names the one that hangs."""
    max_replay_steps: int = 100_000
    """Length up to which episodes are played again at --resume; in the place of a longer one a new one starts."""

    def check(self) -> None:
        """Raises `UserError` for a value that cannot work."""
        require(self.num_envs >= 1, "--num-envs", self.num_envs, "must be at least 1")
        require(
            ENV_ID.fullmatch(self.env_id) is not None,
            "--env-id",
            repr(self.env_id),
            "must look like CartPole-v1, namespace/Name-v0 or module:Name-v0",
        )
        require(
            self.allow_import or ":" not in self.env_id,
            "--env-id",
            self.env_id,
            f"imports, and so runs, the module {self.env_id.partition(':')[0]}; say --allow-import too if it may",
        )
        require(0 < self.env_timeout < math.inf, "--env-timeout", self.env_timeout, "must be a finite number above 0")
        require(self.max_replay_steps >= 0, "--max-replay-steps", self.max_replay_steps, "must be at least 0")
        require(
            self.env_backend != "tensor" or self.vectorization == "auto",
            "--vectorization",
            self.vectorization,
            "is for Gymnasium's environments; with --env-backend tensor leave it out",
        )


@contextlib.contextmanager
def making(config: EnvConfig) -> Iterator[None]:
    """Watches a block that makes environments, puts torch's settings back after it, and names what goes wrong.

    Raises:
        UserError: There is no such environment.
        EnvError: It cannot be made.
    """
    grad, dtype, num_threads = torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()
    prefix = f"--env-id {config.env_id}: "
    hung = EnvError(f"{prefix}has not answered for --env-timeout {config.env_timeout:g} s while it was made and tried")
    try:
        with watched(config.env_timeout, lambda: hung):
            yield
    except (gym.error.Error, ImportError) as error:
        raise UserError(f"{prefix}{error}") from error
    except EpisodeError as error:
        raise EnvError(f"{prefix}{error} (rank {rank()}, before the run)") from error
    except BaseException as error:  # whatever a constructor raises
        if from_outside(error):
            raise
        raise EnvError(f"{prefix}cannot be made: {described(error)}") from error
    finally:
        torch.set_grad_enabled(grad)
        torch.set_default_dtype(dtype)
        torch.set_num_threads(num_threads)


def make_envs(config: EnvConfig, *, training: bool = False, film: Path | None = None) -> Envs:
    """The environments that the flags ask for; those for training come back after a resume.

    `film` is where to film the first episode, an .mp4 file; its folder gets it with `-episode-0` behind the name.

    Raises:
        UserError: There is no such environment, or an agent cannot act on it.
        EnvError: It cannot be made.
    """
    module, _, name = config.env_id.rpartition(":")
    with making(config):
        if module:
            importlib.import_module(module)
            progress()
        if config.env_backend == "tensor":
            return make_tensor_envs(name, config.num_envs)
        if name in TENSOR_ENVS and name not in gym.registry:
            raise UserError(f"--env-id {config.env_id}: is written in tensors; say --env-backend tensor too")
        spec = gym.spec(name)
        # An environment that exists only as a batch is evaluated as one too.
        native = spec.vector_entry_point and (config.vectorization == "auto" or spec.entry_point is None)
        # Tried on one made here, where an error still has its cause.
        memory, made_anew = probed(name) if training and not native else ("none", False)
        try:
            envs = gym.make_vec(name, num_envs=config.num_envs, **how_batched(config, film, native=bool(native)))
        except BaseException:
            for process in multiprocessing.active_children():  # those of an AsyncVectorEnv that is not complete
                if process.name.startswith("Worker<AsyncVectorEnv>"):
                    process.kill()
            raise
        if native:
            memory = "snapshot" if training and snapshots_suffice(envs) else "none"
        else:
            envs.set_attr("index", list(range(config.num_envs)))  # type: ignore[attr-defined]
            envs.set_attr("made_anew", made_anew)  # type: ignore[attr-defined]
        if training and memory == "none" and rank() == 0:
            print(
                f"note: --env-id {config.env_id}: does not do the same again after the same seed and actions; a resumed"
                " run starts new episodes, so it is one like the uninterrupted run and not exactly that",
                file=sys.stderr,
            )
        try:
            return GymEnvs(
                envs,
                config.env_id,
                seeded=not native,
                memory=memory,
                timeout_seconds=config.env_timeout,
                max_replay_steps=config.max_replay_steps,
                where="the run" if training else "the evaluation",
            )
        except UserError:
            envs.close()
            raise


def probed(name: str) -> tuple[Memory, bool]:
    """Whether episodes of a single environment can be played again, and if so, only in one that was made anew.

    Raises:
        UserError: An agent cannot act on its spaces.
        EpisodeError: It does not what its spaces say.
    """
    env = SeededEpisodes(gym.make(name))
    try:
        Spaces.of(name, env.observation_space, env.action_space)
        return ("episodes" if replayable(env) else "none"), env.made_anew
    finally:
        env.close()


def how_batched(config: EnvConfig, film: Path | None, *, native: bool) -> dict[str, Any]:
    """What `gymnasium.make_vec` has to be told beside the environment and how many."""
    if native:
        return {"vectorization_mode": None}
    # A film is not written while a step is watched.
    kwargs: dict[str, Any] = {"autoreset_mode": AutoresetMode.NEXT_STEP if film else AutoresetMode.SAME_STEP}
    if config.vectorization == "async":
        kwargs["worker"] = worker
    mode = "async" if config.vectorization == "async" else "sync"
    how = {"vectorization_mode": mode, "vector_kwargs": kwargs, "wrappers": (SeededEpisodes,)}
    if film is None:
        return how
    warnings.filterwarnings("ignore", ".*Overwriting existing videos", UserWarning)  # it would write beside them
    recorded = partial(
        RecordVideo, video_folder=str(film.parent), episode_trigger=lambda n: n == 0, name_prefix=film.stem
    )
    return how | {"wrappers": (recorded, SeededEpisodes), "render_mode": "rgb_array"}


def make_tensor_envs(env_id: str, num_envs: int) -> TensorEnvs:
    """Environments registered as tensor environments.

    Raises:
        UserError: None is registered by this id.
    """
    if env_id not in TENSOR_ENVS:
        raise UserError(
            f"--env-id {env_id}: not written in tensors, as --env-backend tensor wants; there are"
            f" {', '.join(sorted(TENSOR_ENVS))}; module:Name imports the module that has another"
        )
    return TensorEnvs(TENSOR_ENVS[env_id](), num_envs, env_id)
