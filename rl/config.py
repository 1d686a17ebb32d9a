"""The flags of the programs, and the checks of their values."""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, Literal, TypeVar

import torch

from rl.compile import Execution, compiling_pays
from rl.compilers import compiler_missing
from rl.dist.launch import local_rank, local_world_size, on_first_machine, world_size
from rl.envs.check import check_env
from rl.envs.config import EnvConfig
from rl.envs.make import make_envs
from rl.envs.tensor_envs import TensorEnvs
from rl.envs.types import Envs
from rl.errors import UserError, counted, require
from rl.keep import Keep
from rl.learners.actor_critic import ActorCriticConfig
from rl.learners.learner import LearnerConfig
from rl.learners.ppo import PPOConfig
from rl.learners.reinforce import ReinforceConfig
from rl.limits import check_memory, require_gpus
from rl.models.agent import Network
from rl.models.encoders import check_encoder
from rl.models.float8 import check_float8
from rl.reporting import note

# The largest whole number that a flag takes; for flags that are not here, the largest that float64 counts to.
LARGEST = {"num_envs": 2**20, "eval_episodes": 100_000}
LARGEST |= dict.fromkeys(("update_epochs", "updates_per_collection", "episodes_per_env"), 10_000)

LEARNER_NAME = "learner_name"  # in config.json
NUM_EVALUATIONS = 10  # of a run, if no flag says when to evaluate
Precision = Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true"]
LearnerType = TypeVar("LearnerType", bound=LearnerConfig, covariant=True)


@dataclass(frozen=True)
class Config(Generic[LearnerType]):
    """Train a policy on as many ranks as the launcher starts."""

    config: str | None = None
    """Recipe to take defaults from: a name, a file (YAML, or config.json), or none; by default the environment's."""
    exp_name: str = "default"
    """Name of the experiment; part of the name of the run's folder."""
    seed: int = 1
    """Seed of the weights, the environments, the actions and the shuffles."""
    total_timesteps: int = 1_000_000
    """Environment steps of all ranks together, rounded down to whole updates."""
    total_episodes: int | None = None
    """End the run after this many episodes of all ranks together, if that comes before --total-timesteps."""
    report_episodes: int | None = None
    """Print a line every so many episodes; by default there is a progress bar, or ten lines outside a terminal."""
    quiet: bool = False
    """Print errors only: no notes, no progress, no summary."""
    cuda: bool = False
    """Train on GPUs, one for each rank that learns."""
    precision: Precision = "32-true"
    """Precision of the network, by Lightning's names; for `fabric run`, give this flag before the program."""
    fp8: bool = False
    """Multiply the matrices of the linear layers in 8 bits, by torchao; everything else is in --precision."""
    execution: Literal["auto", "eager", "compile", "cudagraphs"] = "auto"
    """How tensor code runs; auto is cudagraphs on GPUs; on the CPU compile in long runs, eager in short ones."""
    torch_deterministic: bool = False
    """Let PyTorch use deterministic algorithms only."""
    capture_video: bool = False
    """Film episodes during and after training, into train_videos/ and test_videos/ of the run's folder."""
    eval_episodes: int = 10
    """Number of greedy episodes of an evaluation, during training and after it."""
    max_eval_steps: int = 10_000
    """Steps after which an episode of the evaluation is cut off."""
    log_dir: str = "logs"
    """Folder that holds the folders of all runs."""
    rank_timeout: float = 300.0
    """Seconds that ranks wait for each other before the run stops and names the missing rank."""
    env: EnvConfig = field(default_factory=EnvConfig)
    network: Network = field(default_factory=Network)
    keep: Keep = field(default_factory=Keep)
    learner: LearnerType = field(default_factory=PPOConfig)  # type: ignore[assignment]
    """How the agent learns."""

    def device(self) -> torch.device:
        """Where this rank computes."""
        return torch.device("cuda", local_rank()) if self.cuda else torch.device("cpu")

    def num_players(self) -> int:
        """Number of ranks that collect rollouts."""
        return world_size()

    def collects_on_gpu(self) -> bool:
        """Whether rollouts are collected on a GPU."""
        return self.cuda

    def collects_eagerly(self) -> bool:
        """Whether rollouts are collected by tensor code that is neither compiled nor recorded."""
        device = torch.device("cuda" if self.collects_on_gpu() else "cpu")
        return self.runs_eagerly(device) or (device.type == "cpu" and compiler_missing(device) is not None)

    def steps_per_row(self) -> int:
        """Number of steps in a row: one or, where the agent has memory, those of a piece."""
        return 1 if self.network.memory == "none" else self.learner.steps_per_piece()

    def rows_per_rank(self) -> int:
        """Number of rows that a rank learns from in an epoch."""
        return self.env.num_envs * self.learner.num_steps // self.steps_per_row()

    def steps_per_update(self) -> int:
        """Environment steps of all ranks in one update, not counting resets; fewest, where episodes are whole."""
        return self.env.num_envs * self.learner.num_steps * self.num_players()

    def num_updates(self) -> int:
        """Number of updates of the run, not counting resets as steps; most, where episodes are whole."""
        return self.total_timesteps // self.steps_per_update()

    def last_step(self) -> int:
        """Number of environment steps after which the run ends."""
        return self.total_timesteps if self.learner.whole_episodes else self.num_updates() * self.steps_per_update()

    def eval_every(self) -> int:
        """Environment steps from one evaluation during training to the next."""
        return self.keep.eval_every or math.ceil(self.last_step() / NUM_EVALUATIONS)

    def make_envs(self, device: torch.device) -> Envs:
        """The environments of a rank; those written in tensors are tested first.

        Raises:
            UserError: They are wrong, or memory is too small to learn from them.
            EnvError: They cannot be made.
        """
        envs = make_envs(self.env, training=True)
        try:
            if isinstance(envs, TensorEnvs):
                check_env(envs.env, device)
            check_memory(self.network, self.learner, envs.spaces, num_envs=self.env.num_envs)
        except UserError:
            envs.close()
            raise
        return envs

    def runs_eagerly(self, device: torch.device) -> bool:
        """Whether flags ask for eager execution on a device, or the run is too short to gain from compiling."""
        if self.execution == "eager" or self.learner.whole_episodes:
            return True
        if self.execution != "auto" or device.type == "cuda":
            return False
        num_gradient_steps, num_rows = self.learner.work(self.rows_per_rank())
        of_update = (self.learner.num_steps, num_gradient_steps, num_rows * self.steps_per_row())
        return not compiling_pays(*(number * self.num_updates() for number in of_update))

    def make_execution(self, device: torch.device) -> Execution:
        """How tensor code runs on a device: a player on the CPU compiles where its trainers capture CUDA graphs."""
        if self.runs_eagerly(device):
            return Execution("eager", device)
        if missing := compiler_missing(device):
            note(f"{missing} is missing, so nothing is compiled and the run takes longer")
        if device.type == "cuda" and self.execution != "compile":
            return Execution("cudagraphs", device)
        return Execution("eager" if missing else "compile", device)

    def check_names(self) -> None:
        """Raises `UserError` for a value that could lead outside the run's folder."""
        require(
            re.fullmatch(r"[A-Za-z0-9._-]{1,80}", self.exp_name) is not None,
            "--exp-name",
            repr(self.exp_name),
            "must be 1 to 80 letters, digits, dots, dashes or underscores",
        )
        surrogates = any("\ud800" <= letter <= "\udfff" for letter in self.log_dir)  # bytes the locale cannot decode
        require(not surrogates, "--log-dir", ascii(self.log_dir), "cannot be decoded in this locale; set PYTHONUTF8=1")
        require(0 <= self.seed < 2**32, "--seed", self.seed, "must lie between 0 and 4294967295")
        self.env.check()
        check_encoder(self.network.encoder, allow_import=self.env.allow_import)

    def check(self) -> None:
        """Raises `UserError` for a value that cannot work."""
        self.check_names()
        for name, value in self.flags().items():
            if isinstance(value, int):
                most = LARGEST.get(name, 2**53)
                require(value <= most, f"--{name.replace('_', '-')}", value, f"must be at most {most:,}")
        for name in ("eval_episodes", "max_eval_steps", "total_episodes", "report_episodes"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"--{name.replace('_', '-')}", value, "must be at least 1")
        require(1 <= self.rank_timeout < math.inf, "--rank-timeout", self.rank_timeout, "must be finite, at least 1")
        self.network.check()
        self.keep.check()
        self.learner.check(self.rows_per_rank())
        least, rollouts = 1, "a rollout"
        if self.network.normalizes():
            least, rollouts = 2, "two rollouts, of which the first is only measured,"
        require(
            self.num_updates() >= least,
            "--total-timesteps",
            self.total_timesteps,
            f"must be at least {least * self.steps_per_update()}: {rollouts} of {counted(self.num_players(), 'rank')}"
            f" × --num-envs {self.env.num_envs} × --num-steps {self.learner.num_steps} steps",
        )
        if self.execution == "cudagraphs" and not self.cuda:
            raise UserError("--execution cudagraphs: needs a GPU; add --cuda, or use --execution compile")
        if self.learner.whole_episodes and self.execution in ("compile", "cudagraphs"):
            raise UserError(f"--execution {self.execution}: whole episodes vary in length; leave the flag out")
        self.learner.check_network(self.network)
        if self.env.terminate_on_life_loss and self.learner.whole_episodes:
            right = "learns from whole episodes; leave the flag out"
            raise UserError(f"--terminate-on-life-loss: {self.learner_name()} {right}")
        if self.fp8:
            check_float8()
        self.check_devices()

    def check_devices(self) -> None:
        """Raises `UserError` where the GPUs that the flags ask for are missing."""
        if self.cuda:
            require_gpus(local_world_size(), "rank")

    def learner_name(self) -> str:
        """The learner's name on the command line."""
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
        network=Network(shared_encoder=True),
        learner=ActorCriticConfig(),
    ),
    "reinforce": Config(
        total_timesteps=300_000,
        env=EnvConfig(env_id="CartPole-v1", num_envs=8),
        network=Network(hidden_sizes=(128,), activation_function="relu", shared_encoder=True),
        learner=ReinforceConfig(),
    ),
}
"""The defaults of each learner, by its name on the command line."""


@dataclass(frozen=True)
class DecoupledConfig(Config[PPOConfig]):
    """Train a policy by PPO; rank 0 plays, the others learn."""

    player_on_gpu: bool = False
    """Run the player on a GPU too."""
    overlap: bool = False
    """Collect a rollout while the trainers learn from the last one, with weights that are one update old."""

    def num_players(self) -> int:
        return 1

    def collects_on_gpu(self) -> bool:
        return self.player_on_gpu

    def num_trainers(self) -> int:
        """Number of ranks that learn."""
        return world_size() - 1

    def rows_per_rank(self) -> int:
        """Number of rows that a trainer learns from in an epoch; the larger number where they do not divide evenly."""
        return math.ceil(super().rows_per_rank() / self.num_trainers())

    def check(self) -> None:
        if self.num_trainers() < 1:
            raise UserError(
                f"{world_size()} rank: this program needs a player and at least one trainer;"
                " start 2 ranks or more, as fabric run --devices=2 does"
            )
        if self.total_episodes is not None:
            raise UserError("--total-episodes: this program counts steps; use --total-timesteps instead")
        if self.learner.recompute_advantages:
            note("--recompute-advantages: trainers have no whole rollouts, so all epochs use the first estimates")
        super().check()
        num_rows = super().rows_per_rank()
        right = f"× --num-envs {self.env.num_envs} = {num_rows} rows; each of {self.num_trainers()} trainers needs one"
        require(num_rows >= self.num_trainers(), "--num-steps", self.learner.num_steps, right)

    def check_devices(self) -> None:
        if self.player_on_gpu and not self.cuda:
            raise UserError("--player-on-gpu: the trainers are not on GPUs; add --cuda")
        if self.cuda:
            require_gpus(local_world_size() - on_first_machine(), "trainer")


def flat(groups: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of `Config.to_dict` by name, without their groups; several values as they are on a command line."""
    parts = (group if isinstance(group, Mapping) else {name: group} for name, group in groups.items())
    flags = {name: value for part in parts for name, value in part.items()}
    return {name: " ".join(map(str, value)) if isinstance(value, tuple) else value for name, value in flags.items()}
