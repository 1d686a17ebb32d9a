"""The flags of the programs, and the checks of their values."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from rl.agent import Network
from rl.distributed import local_world_size, world_size
from rl.envs.stepping import EnvConfig
from rl.errors import UserError, require
from rl.learners.ppo import PPO


@dataclass(frozen=True)
class Config:
    """Train a policy by proximal policy optimisation, on as many ranks as the launcher starts."""

    exp_name: str = "default"
    """Name of the experiment, a part of the run folder's name."""
    seed: int = 1
    """Seed of all randomness: weights, environments, actions, shuffles."""
    total_timesteps: int = 1_000_000
    """Environment steps of all ranks together."""
    cuda: bool = False
    """Train on GPUs, one for each rank."""
    player_on_gpu: bool = False
    """Put the player on a GPU too; for a program whose player is a rank of its own."""
    torch_deterministic: bool = False
    """Have torch use deterministic algorithms only."""
    share_data: bool = False
    """Give every rank all ranks' rollouts to train on its part of each epoch, instead of its own rollout."""
    capture_video: bool = False
    """Film episodes during training and after it, into train_videos/ and test_videos/ of the run folder."""
    eval_episodes: int = 10
    """Greedy episodes to play after training."""
    max_eval_steps: int = 10_000
    """Steps after which an episode of the evaluation is cut."""
    log_dir: str = "logs"
    """Folder for the folders of all runs."""
    env: EnvConfig = field(default_factory=EnvConfig)
    network: Network = field(default_factory=Network)
    learner: PPO = field(default_factory=PPO)

    def steps_per_update(self) -> int:
        """Environment steps of all ranks in one update."""
        return self.env.num_envs * self.learner.num_steps * world_size()

    def num_updates(self) -> int:
        """Number of updates of the run."""
        return self.total_timesteps // self.steps_per_update()

    def check(self) -> None:
        """Raises `UserError` for a value that cannot work."""
        require(
            re.fullmatch(r"[A-Za-z0-9._-]{1,80}", self.exp_name) is not None,
            "--exp-name",
            repr(self.exp_name),
            "must be 1 to 80 letters, digits, dots, dashes or underscores",
        )
        require(0 <= self.seed < 2**32, "--seed", self.seed, "must lie between 0 and 4294967295")
        require(self.eval_episodes >= 1, "--eval-episodes", self.eval_episodes, "must be at least 1")
        require(self.max_eval_steps >= 1, "--max-eval-steps", self.max_eval_steps, "must be at least 1")
        self.env.check()
        self.network.check()
        self.learner.check(self.env.num_envs)
        require(
            self.num_updates() >= 1,
            "--total-timesteps",
            self.total_timesteps,
            f"less than one rollout of {world_size()} rank(s) × --num-envs {self.env.num_envs}"
            f" × --num-steps {self.learner.num_steps} = {self.steps_per_update()} steps; must be at least that",
        )
        if self.player_on_gpu:
            raise UserError("--player-on-gpu: every rank of this program plays on the device that it learns on")
        if self.cuda and torch.cuda.device_count() < local_world_size():
            raise UserError(
                f"--cuda: {local_world_size()} rank(s) on this machine need a GPU each,"
                f" and torch finds {torch.cuda.device_count()} here"
            )

    def to_dict(self) -> dict[str, Any]:
        """The flags in their groups, as plain values."""
        return asdict(self)

    def flags(self) -> dict[str, Any]:
        """The flags by name, as plain values."""
        groups = (group if isinstance(group, Mapping) else {name: group} for name, group in asdict(self).items())
        return {name: value for group in groups for name, value in group.items()}
