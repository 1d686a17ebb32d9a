"""The flags of the programs, and the checks of their values."""

import math
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, Literal, TypeVar

import torch

from rl.compile import Execution, compiling_pays
from rl.compilers import compiler_missing
from rl.dist.launch import local_rank, local_world_size, on_first_machine, rank, world_size
from rl.envs.check import check_env
from rl.envs.make import EnvConfig, make_envs
from rl.envs.spaces import BoxActions, Spaces
from rl.envs.tensor_envs import TensorEnvs
from rl.envs.types import Envs
from rl.errors import UserError, require
from rl.learners.actor_critic import ActorCriticConfig
from rl.learners.learner import LearnerConfig
from rl.learners.ppo import PPOConfig
from rl.learners.reinforce import ReinforceConfig
from rl.models.agent import Network
from rl.models.float8 import check_float8
from rl.run.keep import Keep

# The largest value of whole numbers; of those that are not here, what float64 can count to.
LARGEST = {"num_envs": 2**20, "hidden_size": 2**14, "hidden_layers": 1_000, "eval_episodes": 100_000}
LARGEST |= dict.fromkeys(("update_epochs", "updates_per_collection", "episodes_per_env"), 10_000)

LearnerType = TypeVar("LearnerType", bound=LearnerConfig, covariant=True)


@dataclass(frozen=True)
class Config(Generic[LearnerType]):
    """Train a policy on as many ranks as the launcher starts."""

    exp_name: str = "default"
    """Name of the experiment, a part of the run folder's name."""
    seed: int = 1
    """Seed of all randomness: weights, environments, actions, shuffles."""
    total_timesteps: int = 1_000_000
    """Environment steps of all ranks together, in whole updates."""
    total_episodes: int | None = None
    """End the run after so many episodes of all ranks together, if that comes before --total-timesteps."""
    report_episodes: int | None = None
    """Print the mean return after so many episodes each time; without it, ten times a run outside a terminal."""
    cuda: bool = False
    """Train on GPUs, one for each rank that learns."""
    player_on_gpu: bool = False
    """Put the player on a GPU too; for a program whose player is a rank of its own."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true"] = "32-true"
    """What the network computes in, by Lightning's names; `fabric run` takes this flag as its own."""
    fp8: bool = False
    """Compute the linear layers' matrix products in 8 bits, by torchao; what else there is in --precision."""
    execution: Literal["auto", "eager", "compiled", "captured"] = "auto"
    """How functions of tensors run; auto captures CUDA graphs on GPUs, and on the CPU compiles for long runs."""
    torch_deterministic: bool = False
    """Have torch use deterministic algorithms only."""
    capture_video: bool = False
    """Film episodes during training and after it, into train_videos/ and test_videos/ of the run folder."""
    eval_episodes: int = 10
    """Greedy episodes to play after training."""
    max_eval_steps: int = 10_000
    """Steps after which an episode of the evaluation is cut."""
    log_dir: str = "logs"
    """Folder for the folders of all runs."""
    rank_timeout: float = 300.0
    """Seconds that ranks wait for each other, before the run stops and names the one that is missing."""
    env: EnvConfig = field(default_factory=EnvConfig)
    network: Network = field(default_factory=Network)
    keep: Keep = field(default_factory=Keep)
    learner: LearnerType = field(default_factory=PPOConfig)  # type: ignore[assignment]
    """How it learns."""

    def device(self) -> torch.device:
        """Where this rank computes."""
        return torch.device("cuda", local_rank()) if self.cuda else torch.device("cpu")

    def num_players(self) -> int:
        """Number of ranks that collect rollouts."""
        return world_size()

    def rows_per_rank(self) -> int:
        """Number of rows that a rank learns from in an epoch."""
        return self.env.num_envs * self.learner.num_steps

    def steps_per_update(self) -> int:
        """Environment steps of all ranks in one update, where none only resets; of whole episodes, the fewest."""
        return self.env.num_envs * self.learner.num_steps * self.num_players()

    def num_updates(self) -> int:
        """Number of updates of the run, where no step only resets; of whole episodes, the most."""
        return self.total_timesteps // self.steps_per_update()

    def make_envs(self, device: torch.device) -> Envs:
        """The environments that a rank plays, tried where they are written in tensors.

        Raises:
            UserError: They are wrong, or this machine has no room for what is learned from them.
            EnvError: They cannot be made.
        """
        envs = make_envs(self.env, training=True)
        try:
            if isinstance(envs, TensorEnvs):
                check_env(envs.env, device)
            self.check_memory(envs.spaces)
        except UserError:
            envs.close()
            raise
        return envs

    def make_execution(self, device: torch.device) -> Execution:
        """How functions of tensors run on a device; a player on the CPU compiles what its trainers on GPUs capture."""
        on_gpu = device.type == "cuda"
        if self.execution == "eager" or self.learner.whole_episodes:
            return Execution("eager", device)
        if self.execution == "auto" and not on_gpu:
            num_gradient_steps, num_rows = (
                self.num_updates() * work for work in self.learner.work(self.rows_per_rank())
            )
            if not compiling_pays(num_gradient_steps, num_rows):
                return Execution("eager", device)
        missing = compiler_missing(device)
        if missing and rank() == 0:
            print(f"note: {missing} is missing, so nothing is compiled and the run takes longer", file=sys.stderr)
        if on_gpu and self.execution != "compiled":
            return Execution("captured", device)
        return Execution("eager" if missing else "compiled", device)

    def check_names(self) -> None:
        """Raises `UserError` where what a run's folder is called after could lead elsewhere."""
        require(
            re.fullmatch(r"[A-Za-z0-9._-]{1,80}", self.exp_name) is not None,
            "--exp-name",
            repr(self.exp_name),
            "must be 1 to 80 letters, digits, dots, dashes or underscores",
        )
        surrogates = any("\ud800" <= letter <= "\udfff" for letter in self.log_dir)  # what the locale could not read
        require(not surrogates, "--log-dir", ascii(self.log_dir), "is no text in this locale; set PYTHONUTF8=1")
        require(0 <= self.seed < 2**32, "--seed", self.seed, "must lie between 0 and 4294967295")
        self.env.check()

    def check(self) -> None:
        """Raises `UserError` for a value that cannot work."""
        self.check_names()
        for name, value in self.flags().items():
            if isinstance(value, int):
                most = LARGEST.get(name, 2**53)
                require(value <= most, f"--{name.replace('_', '-')}", value, f"must be at most {most:,}")
        require(self.eval_episodes >= 1, "--eval-episodes", self.eval_episodes, "must be at least 1")
        require(self.max_eval_steps >= 1, "--max-eval-steps", self.max_eval_steps, "must be at least 1")
        for flag, number in (("--total-episodes", self.total_episodes), ("--report-episodes", self.report_episodes)):
            require(number is None or number >= 1, flag, number, "must be at least 1")
        require(1 <= self.rank_timeout < math.inf, "--rank-timeout", self.rank_timeout, "must be finite, at least 1")
        self.network.check()
        self.keep.check()
        self.learner.check(self.rows_per_rank())
        require(
            self.num_updates() >= 1,
            "--total-timesteps",
            self.total_timesteps,
            f"less than one rollout of {self.num_players()} rank(s) × --num-envs {self.env.num_envs}"
            f" × --num-steps {self.learner.num_steps} = {self.steps_per_update()} steps; must be at least that",
        )
        if self.execution == "captured" and not (self.cuda or os.environ.get("LT_ACCELERATOR") in ("cuda", "gpu")):
            raise UserError("--execution captured: CUDA graphs need a GPU; say --cuda too, or --execution compiled")
        if self.learner.whole_episodes and self.execution in ("compiled", "captured"):
            raise UserError(
                f"--execution {self.execution}: whole episodes make rollouts of no fixed length; leave the flag out"
            )
        if self.fp8:
            check_float8()
        self.check_devices()

    def last_step(self) -> int:
        """The environment steps with which the run ends: those of its updates; of whole episodes, all."""
        return self.total_timesteps if self.learner.whole_episodes else self.num_updates() * self.steps_per_update()

    def check_memory(self, spaces: Spaces) -> None:
        """Raises `UserError` for rollouts, a replay buffer or a network that all of this machine could not hold."""
        action_size = len(spaces.actions.low) if isinstance(spaces.actions, BoxActions) else 2  # an int64
        row_bytes = 4 * (2 * spaces.obs_size + action_size + 8)
        buffer_size, network = getattr(self.learner, "buffer_size", 0), self.network
        width, depth = network.hidden_size, network.hidden_layers
        # Weights, their gradients, and Adam's two moments.
        network_bytes = 4 * 4 * width * (spaces.obs_size + (depth - 1) * width) * (1 if network.shared_encoder else 2)
        has = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / local_world_size()
        num_steps = self.learner.num_steps
        for flag, value, needs in (
            (f"--num-envs {self.env.num_envs} × --num-steps", num_steps, row_bytes * self.env.num_envs * num_steps),
            ("--buffer-size", buffer_size, row_bytes * buffer_size),
            (f"--hidden-size {width} × --hidden-layers", depth, network_bytes),
        ):
            right = f"takes {needs / 2**30:,.1f} GiB of memory, and a rank has {has / 2**30:,.1f}; must be less"
            require(needs < has, flag, value, right)

    def check_devices(self) -> None:
        """Raises `UserError` where there are not the devices that the flags ask for."""
        if self.player_on_gpu:
            raise UserError("--player-on-gpu: every rank of this program plays on the device that it learns on")
        if self.cuda:
            require_gpus(local_world_size(), "rank(s)")

    def learner_name(self) -> str:
        """What the learner is called on the command line."""
        return next(name for name, config in CONFIGS.items() if type(config.learner) is type(self.learner))

    def to_dict(self) -> dict[str, Any]:
        """The flags in their groups, as plain values."""
        return asdict(self)

    def flags(self) -> dict[str, Any]:
        """The flags by name, as plain values."""
        return flat(self.to_dict())


CONFIGS: dict[str, Config[Any]] = {
    "ppo": Config(),
    "actor-critic": Config(
        total_timesteps=400_000,
        total_episodes=2_000,
        report_episodes=100,
        env=EnvConfig(num_envs=8),
        learner=ActorCriticConfig(),
    ),
    "reinforce": Config(
        total_timesteps=300_000,
        env=EnvConfig(env_id="CartPole-v1", num_envs=8),
        network=Network(hidden_size=128, hidden_layers=1, activation_function="relu"),
        learner=ReinforceConfig(),
    ),
}
"""By the learner's name, what the programs do if no flag says otherwise."""


@dataclass(frozen=True)
class DecoupledConfig(Config[PPOConfig]):
    """Train a policy by proximal policy optimisation: rank 0 plays, the others learn."""

    overlap: bool = False
    """Collect a rollout while the trainers learn from the last, with weights (and a log of losses) one update old."""

    def num_players(self) -> int:
        """Rank 0 alone collects rollouts."""
        return 1

    def num_trainers(self) -> int:
        """Number of ranks that learn."""
        return world_size() - 1

    def rows_per_rank(self) -> int:
        """Number of rows that a trainer learns from in an epoch, where they do not divide the larger one."""
        return math.ceil(super().rows_per_rank() / self.num_trainers())

    def check(self) -> None:
        """Raises `UserError` for a value that cannot work."""
        if self.num_trainers() < 1:
            raise UserError(
                f"{world_size()} rank: this program needs a player and at least one trainer;"
                " start 2 ranks or more, as fabric run --devices=2 does"
            )
        if self.total_episodes is not None:
            raise UserError("--total-episodes: this program counts steps; say --total-timesteps instead")
        super().check()
        num_rows = super().rows_per_rank()
        require(
            num_rows >= self.num_trainers(),
            "--num-steps",
            self.learner.num_steps,
            f"× --num-envs {self.env.num_envs} = {num_rows} rows; each of {self.num_trainers()} trainers needs one",
        )

    def check_devices(self) -> None:
        """Raises `UserError` where there are not the devices that the flags ask for."""
        if self.player_on_gpu and not self.cuda:
            raise UserError("--player-on-gpu: the trainers are not on GPUs; say --cuda too")
        if self.cuda:
            on_this_machine = local_world_size() - on_first_machine()
            require_gpus(on_this_machine, "trainer(s)")


def require_gpus(number: int, users: str) -> None:
    """Raises `UserError` if this machine has fewer GPUs."""
    if torch.cuda.device_count() < number:
        found = torch.cuda.device_count()
        raise UserError(f"--cuda: {number} {users} on this machine need a GPU each, and torch finds {found} here")


def flat(groups: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of `Config.to_dict` by name, without their groups."""
    parts = (group if isinstance(group, Mapping) else {name: group} for name, group in groups.items())
    return {name: value for part in parts for name, value in part.items()}
