"""Makes the environments that the flags ask for."""

import contextlib
import importlib
import inspect
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import torch

from rl.dist.launch import local_world_size, num_cores, rank
from rl.envs.batch import make_batch, make_seeded
from rl.envs.failures import AnyVectorEnv, EpisodeError, from_outside, progress, watched
from rl.envs.families import register_family
from rl.envs.gym_envs import GymEnvs, Memory
from rl.envs.options import check_options, kwargs_of, make_env
from rl.envs.pool import Pool
from rl.envs.seeded import SeededEpisodes, replayable
from rl.envs.snapshot import snapshots_suffice
from rl.envs.spaces import Spaces
from rl.envs.tensor_envs import TENSOR_ENVS, TensorEnvs
from rl.envs.types import Envs
from rl.envs.vector_envs import VectorTensorEnvs, gives_tensors
from rl.errors import EnvError, UserError, described, require
from rl.reporting import note

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
    """Worker processes of each rank with --vectorization async, or EnvPool's threads; by default as many as its share
    of the cores. More are of use where environments wait for something else than a core."""
    allow_import: bool = False
    """Let --env-id and --env-wrapper import modules, and so run their code."""
    env_timeout: float = 120.0
    """Seconds to wait for an environment, before the run stops and names the one that hangs."""
    max_replay_steps: int = 100_000
    """Longest episode that --resume replays; a longer one is replaced by a new episode."""
    squash: bool = False
    """Map continuous actions into their bounds by tanh, instead of clipping them."""

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
        """The same environments for whole episodes: in tensors if these are, else one after the other if possible."""
        only_in_pool = self.vectorization == "envpool" and not _can_be_single(self)
        keeps = self.vectorization == "tensor" or only_in_pool
        return replace(self, num_envs=num_envs, vectorization=self.vectorization if keeps else "sync")


@contextlib.contextmanager
def making(config: EnvConfig) -> Iterator[None]:
    """Names what goes wrong while a block makes environments, a hang included, and restores torch's settings.

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
    except BaseException as error:  # a constructor may raise anything
        if from_outside(error):
            raise
        given = kwargs_of(config.env_kwargs)
        if isinstance(error, TypeError) and any(f"argument '{name}'" in str(error) for name in given):
            raise UserError(f"--env-kwargs {' '.join(config.env_kwargs)}: {described(error)}") from error
        raise EnvError(f"{prefix}cannot be made: {described(error)}") from error
    finally:
        torch.set_grad_enabled(grad)
        torch.set_default_dtype(dtype)
        torch.set_num_threads(num_threads)


def make_envs(config: EnvConfig, *, training: bool = False, film: Path | None = None) -> Envs:
    """The environments that the flags ask for; those for training can be resumed.

    `film` is an .mp4 file for the first episode; what is written beside it has `-episode-0` after its name.

    Raises:
        UserError: There is no such environment, or its spaces are not supported.
        EnvError: It cannot be made.
    """
    with making(config):
        env_id = _imported(config)
        if config.vectorization == "tensor":
            tensor_envs = _make_tensor_envs(config, env_id)
            tensor_envs.spaces = _spaces(config, tensor_envs)
            return tensor_envs
        batch = _batched(config, env_id, film, training=training)
        try:
            envs = _as_tensors(config, batch, where="the run" if training else "the evaluation")
            envs.spaces = _spaces(config, envs)
            return envs
        except UserError:
            batch.envs.close()
            raise


class _Batch(NamedTuple):
    envs: AnyVectorEnv
    memory: Memory = "none"
    seeded: bool = False  # whether each is a `SeededEpisodes`
    in_tensors: bool = False  # whether it takes and gives tensors


def _as_tensors(config: EnvConfig, batch: _Batch, *, where: str) -> Envs:
    if batch.in_tensors:
        return VectorTensorEnvs(batch.envs, config.env_id, timeout_seconds=config.env_timeout, where=where)
    return GymEnvs(
        batch.envs,
        config.env_id,
        seeded=batch.seeded,
        memory=batch.memory,
        timeout_seconds=config.env_timeout,
        max_replay_steps=config.max_replay_steps,
        where=where,
    )


def _spaces(config: EnvConfig, envs: Envs) -> Spaces:
    return envs.spaces.squashed(config.env_id) if config.squash else envs.spaces


def _batched(config: EnvConfig, env_id: str, film: Path | None, *, training: bool) -> _Batch:
    """A batch of environments; says if they do not come back after a resume."""
    why = "is not deterministic given seed and actions"
    if config.vectorization == "envpool":
        batch = _Batch(Pool(env_id, config.num_envs, _num_workers(config)))
        why = "EnvPool does not give the state of its environments"
    elif _is_native(config, env_id):
        batch = _native(config, env_id, training=training)
        why = "its class does not give the state of its environments" if batch.in_tensors else why
    else:
        # Tried on one made in this process, where an error keeps its cause.
        memory, made_anew = probed(config) if training else ("none", False)
        num_workers = _num_workers(config) if config.vectorization == "async" else 0
        make = partial(make_seeded, config.env_id, kwargs=config.env_kwargs, wrappers=config.env_wrapper)
        envs = make_batch(make, config.num_envs, num_workers=num_workers, film=film)
        envs.set_attr("index", list(range(config.num_envs)))  # type: ignore[attr-defined]
        envs.set_attr("made_anew", made_anew)  # type: ignore[attr-defined]
        batch = _Batch(envs, memory, seeded=True)
    if training and batch.memory == "none":
        note(f"--env-id {config.env_id}: {why}: a resumed run starts new episodes and is not bit-exact")
    return batch


def _native(config: EnvConfig, env_id: str, *, training: bool) -> _Batch:
    envs = gym.make_vec(env_id, num_envs=config.num_envs, **kwargs_of(config.env_kwargs))
    keys = Spaces.of(config.env_id, envs.single_observation_space, envs.single_action_space).obs
    if gives_tensors(envs, keys):
        return _Batch(envs, in_tensors=True)
    return _Batch(envs, "snapshot" if training and snapshots_suffice(envs) else "none")


def has_tensor_form(config: EnvConfig) -> bool:
    """Whether the environment is registered in tensors, and there takes the arguments that the flags have.

    Raises:
        UserError: Its module, which is imported if --allow-import permits it, cannot be.
    """
    if ":" in config.env_id and not config.allow_import:
        return False
    with making(config):
        env_id = _imported(config)
        return env_id in TENSOR_ENVS and not config.env_wrapper and _takes(TENSOR_ENVS[env_id], config)


def has_gymnasium_form(config: EnvConfig) -> bool:
    """Whether Gymnasium knows the environment; its module must have been imported."""
    return config.env_id.rpartition(":")[2] in gym.registry


def make_single(config: EnvConfig, **kwargs: Any) -> gym.Env[Any, Any]:
    """A single environment of Gymnasium's, with its wrappers, given further arguments of `gymnasium.make`."""
    return make_env(config.env_id, config.env_kwargs, config.env_wrapper, **kwargs)


def _can_be_single(config: EnvConfig) -> bool:
    """Whether Gymnasium has the environment, and whatever it needs is installed."""
    try:
        make_single(config).close()
    except (gym.error.Error, ImportError):
        return False
    return True


def probed(config: EnvConfig) -> tuple[Memory, bool]:
    """Whether episodes of a single environment can be replayed, and whether each needs a new object for that.

    Raises:
        UserError: Its spaces are not supported.
        EpisodeError: It fails, or does not do what its spaces say.
    """
    env = SeededEpisodes(partial(make_single, config))
    try:
        Spaces.of(config.env_id, env.observation_space, env.action_space)
        return ("episodes" if replayable(env) else "none"), env.made_anew
    finally:
        env.close()


def _imported(config: EnvConfig) -> str:
    """The id, after the import of what registers it: the module of module:id, or the package that has it."""
    module, _, env_id = config.env_id.rpartition(":")
    if module:
        importlib.import_module(module)
        progress()
    else:
        register_family(env_id)
    return env_id


def _is_native(config: EnvConfig, env_id: str) -> bool:
    if env_id in TENSOR_ENVS and env_id not in gym.registry:
        raise UserError(f"--env-id {config.env_id}: exists in tensors only; add --vectorization tensor")
    spec = gym.spec(env_id)
    if config.vectorization == "native" and not spec.vector_entry_point:
        raise UserError(f"--vectorization native: {config.env_id} has no batched class of its own; use sync or async")
    if config.env_wrapper:
        return False
    # An environment that exists only as a batch is evaluated as one too.
    return bool(spec.vector_entry_point) and (config.vectorization in ("auto", "native") or spec.entry_point is None)


def _num_workers(config: EnvConfig) -> int:
    """Number of processes or threads of this rank that step environments."""
    return min(config.num_envs, config.num_workers or max(1, num_cores() // local_world_size()))


def _make_tensor_envs(config: EnvConfig, env_id: str) -> TensorEnvs:
    if env_id not in TENSOR_ENVS:
        raise UserError(
            f"--env-id {env_id}: not written in tensors, as --vectorization tensor requires; available are"
            f" {', '.join(sorted(TENSOR_ENVS))}, and with module:Name whatever that module registers"
        )
    make = TENSOR_ENVS[env_id]
    right = f"the tensor form of {env_id} takes {inspect.signature(make)}; use those, or --vectorization sync"
    require(_takes(make, config), "--env-kwargs", " ".join(config.env_kwargs), right)
    return TensorEnvs(make(**kwargs_of(config.env_kwargs)), config.num_envs, env_id)


def _takes(make: Callable[..., Any], config: EnvConfig) -> bool:
    """Whether the constructor of a tensor environment has the arguments that the flags ask for."""
    try:
        inspect.signature(make).bind(**kwargs_of(config.env_kwargs))
    except TypeError:
        return False
    return True
