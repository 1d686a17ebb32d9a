"""Makes the environments that the flags ask for."""

import contextlib
import importlib
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import torch

from rl.dist.launch import local_world_size, num_cores, rank
from rl.envs.atari import AtariEpisodes
from rl.envs.batch import make_batch, make_seeded
from rl.envs.config import EnvConfig, make_single
from rl.envs.failures import AnyVectorEnv, EpisodeError, from_outside, progress, watched
from rl.envs.families import register_family
from rl.envs.gym_envs import GymEnvs, Memory
from rl.envs.lives import Lives
from rl.envs.masks import MaskInInfo, MasksInInfo
from rl.envs.options import kwargs_of
from rl.envs.pool import Pool
from rl.envs.seeded import SeededEpisodes, replayable
from rl.envs.snapshot import snapshots_suffice
from rl.envs.spaces import Spaces
from rl.envs.tensor_envs import TENSOR_ENVS, TensorEnvs
from rl.envs.types import Envs
from rl.envs.vector_envs import VectorTensorEnvs, gives_tensors
from rl.errors import EnvError, UserError, described, require
from rl.reporting import note


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
            tensor_envs.clip_rewards = config.clip_rewards
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
        _refuse_lives(config)
        envs: Any = VectorTensorEnvs(batch.envs, config.env_id, timeout_seconds=config.env_timeout, where=where)
    else:
        envs = GymEnvs(
            batch.envs,
            config.env_id,
            seeded=batch.seeded,
            memory=batch.memory,
            timeout_seconds=config.env_timeout,
            max_replay_steps=config.max_replay_steps,
            where=where,
        )
        envs.lives = Lives.of(batch.envs, config.env_id) if config.terminate_on_life_loss else None
    envs.clip_rewards = config.clip_rewards
    return envs  # type: ignore[no-any-return]


def _refuse_lives(config: EnvConfig) -> None:
    if config.terminate_on_life_loss:
        raise UserError("--terminate-on-life-loss: environments in tensors have no lives; leave the flag out")


def _spaces(config: EnvConfig, envs: Envs) -> Spaces:
    return envs.spaces.squashed(config.env_id) if config.squash else envs.spaces


def _batched(config: EnvConfig, env_id: str, film: Path | None, *, training: bool) -> _Batch:
    """A batch of environments; says if they do not come back after a resume."""
    why = "is not deterministic given seed and actions"
    if config.vectorization == "envpool":
        batch = _Batch(Pool(env_id, config.num_envs, _num_workers(config)))
        why = "EnvPool does not give the state of its environments"
    elif config.is_atari():
        kwargs = kwargs_of(config.env_kwargs)
        games = AtariEpisodes(env_id, config.num_envs, kwargs, num_threads=_num_workers(config), film=film)
        batch = _Batch(games, "episodes", seeded=True)
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
    envs: AnyVectorEnv = gym.make_vec(env_id, num_envs=config.num_envs, **kwargs_of(config.env_kwargs))
    if MaskInInfo.is_for(envs.single_observation_space):
        envs = MasksInInfo(envs)
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
    _refuse_lives(config)
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
