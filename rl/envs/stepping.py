"""Makes the environments that the flags ask for, and steps Gymnasium's NumPy ones in tensors."""

import importlib
import re
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray
from torch import Tensor

from rl.envs.functional import TENSOR_ENVS, TensorEnvs
from rl.envs.spaces import Spaces
from rl.envs.step import Envs, Step
from rl.errors import UserError, require
from rl.seeding import environment_seed

ENV_ID = re.compile(r"([\w.]+:)?([\w.-]+/)?[\w.-]+")


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
            self.env_backend != "tensor" or self.vectorization == "auto",
            "--vectorization",
            self.vectorization,
            "is for Gymnasium's environments; with --env-backend tensor leave it out",
        )


class Stepper:
    """Steps N Gymnasium environments in tensors, whatever way they are batched and reset."""

    def __init__(self, envs: gym.vector.VectorEnv[Any, Any, Any], env_id: str) -> None:
        """Raises `UserError` where an agent cannot act on the spaces or nobody resets ended episodes."""
        self.spaces = Spaces.of(env_id, envs.single_observation_space, envs.single_action_space)
        self.envs = envs
        self.num_envs = envs.num_envs
        self.device = torch.device("cpu")
        autoreset = envs.metadata.get("autoreset_mode")
        if autoreset not in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP):
            raise UserError(f"--env-id {env_id}: its batched class has autoreset_mode {autoreset}; try --vectorization")
        self.resets_in_next_step = autoreset == AutoresetMode.NEXT_STEP
        self.resetting = np.zeros(self.num_envs, np.bool_)
        self.running_return = np.zeros(self.num_envs)
        self.running_length = np.zeros(self.num_envs)

    def reset(self, seed: int, first_env: int = 0) -> Tensor:
        """The first observations [N, D] (float32); `first_env` counts environments over all ranks."""
        seeds = [environment_seed(seed, first_env + i) for i in range(self.num_envs)]
        # A batched class of its own takes one seed for all; only Gymnasium's wrappers promise to take one each.
        one_each = isinstance(self.envs, SyncVectorEnv | AsyncVectorEnv)
        return self._reset(seeds if one_each else seeds[0])

    def restart(self) -> Tensor:
        """The first observations [N, D] of further episodes, one in every environment, whatever became of the last."""
        return self._reset(None)

    def _reset(self, seed: list[int] | int | None) -> Tensor:
        obs, _ = self.envs.reset(seed=seed)  # type: ignore[arg-type]
        self.resetting[:] = False
        self.running_return[:] = self.running_length[:] = 0
        return self._tensor(np.array(obs, np.float32))

    def step(self, action: Tensor) -> Step:
        """Acts once: actions [N] or [N, A] as the policy sampled them, put into the environment's terms here."""
        result = self.envs.step(self.spaces.actions.to_env(action.cpu().numpy()))
        # All copies: an environment may write its next step over this one's arrays.
        obs = next_obs = np.array(result[0], np.float32)
        reward = np.array(result[1], np.float32)
        terminated, truncated = np.array(result[2], np.bool_), np.array(result[3], np.bool_)
        ended = terminated | truncated
        acted = ~self.resetting
        self.running_return += reward
        self.running_length += acted
        if ended.any() and not self.resets_in_next_step:
            next_obs = obs.copy()
            next_obs[ended] = np.stack(result[4]["final_obs"][ended])
        step = Step(
            *map(
                self._tensor,
                (
                    obs,
                    next_obs,
                    reward,
                    terminated,
                    truncated,
                    acted.astype(np.float32),
                    (self.running_return * ended).astype(np.float32),
                    (self.running_length * ended).astype(np.float32),
                ),
            )
        )
        if self.resets_in_next_step:
            self.resetting = ended
        self.running_return *= ~ended
        self.running_length *= ~ended
        return step

    def to(self, device: torch.device) -> "Stepper":
        """Has the tensors made on this device from now on."""
        self.device = device
        return self

    def close(self) -> None:
        """Closes the environments, their processes included."""
        self.envs.close()

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device)


def make_envs(config: EnvConfig) -> Envs:
    """The environments that the flags ask for.

    Raises:
        UserError: There is no such environment, or an agent cannot act on it.
    """
    module, _, name = config.env_id.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        if config.env_backend == "tensor":
            return make_tensor_envs(name, config.num_envs)
        native = config.vectorization == "auto" and gym.spec(name).vector_entry_point
        envs = gym.make_vec(
            config.env_id,
            num_envs=config.num_envs,
            vectorization_mode=None if native else "async" if config.vectorization == "async" else "sync",
            vector_kwargs=None if native else {"autoreset_mode": AutoresetMode.SAME_STEP},
        )
    except (gym.error.Error, ImportError) as error:
        raise UserError(f"--env-id {config.env_id}: {error}") from error
    try:
        return Stepper(envs, config.env_id)
    except UserError:
        envs.close()
        raise


def make_tensor_envs(env_id: str, num_envs: int) -> TensorEnvs:
    """Environments registered as tensor environments.

    Raises:
        UserError: None is registered by this id.
    """
    if env_id not in TENSOR_ENVS:
        raise UserError(
            f"--env-id {env_id}: not written in tensors, as --env-backend tensor wants; there are"
            f" {', '.join(sorted(TENSOR_ENVS))}"
        )
    return TensorEnvs(TENSOR_ENVS[env_id](), num_envs, env_id)
