"""The cases of `speed.py`: problems, and ways of running them."""

from dataclasses import dataclass, replace
from typing import Literal

EnvName = Literal["custom", "cartpole", "halfcheetah", "breakout"]
ENV_IDS: dict[EnvName, str] = {
    "custom": "CustomEnv-v0",
    "cartpole": "CartPole-v1",
    "halfcheetah": "HalfCheetah-v5",
    "breakout": "MinAtar/Breakout-v1",
}
# Sizes of the observation and of the distribution over actions.
SIZES: dict[EnvName, tuple[int, int]] = {
    "custom": (2, 2),
    "cartpole": (4, 2),
    "halfcheetah": (17, 6),
    "breakout": (400, 3),
}
SOLVED_AT = {"custom": 195.0, "cartpole": 475.0}


@dataclass(frozen=True)
class Problem:
    """What this project and its peers train."""

    env: EnvName = "custom"
    num_envs: int = 64
    num_steps: int = 128
    minibatches: int = 4
    epochs: int = 4
    hidden: int = 64
    total_timesteps: int = 2_000_000

    def flops_per_step(self) -> float:
        """FLOPs of matrix products per environment step: a forward pass, and three times that for each epoch."""
        num_obs, num_actions = SIZES[self.env]
        forward = 2 * (2 * self.hidden * (num_obs + self.hidden) + self.hidden * (num_actions + 1))
        return forward * (1 + 3 * self.epochs)


@dataclass(frozen=True)
class Way:
    """How this project runs."""

    ranks: int = 1
    threads: int = 1
    precision: str = "32-true"
    execution: str = "compile"
    vectorization: str = "tensor"
    cuda: bool = False
    shared: bool = False


@dataclass(frozen=True)
class Case:
    """A row of the table: a problem, how it is run, and the peers to compare with."""

    name: str
    problem: Problem
    way: Way
    peers: tuple[str, ...] = ()
    goal: str = ""


TWO_THREADS, TWO_RANKS = Way(threads=2), Way(ranks=2)
BF16 = replace(TWO_RANKS, precision="bf16-mixed")
SMALL_BATCH = Problem(num_envs=8, minibatches=16, epochs=10, total_timesteps=400_000)
LARGE = Problem(num_envs=1024, total_timesteps=4_000_000)
PYTHON_CARTPOLE = Problem("cartpole", num_envs=4, minibatches=4, epochs=10, total_timesteps=100_000)

SUITES: dict[str, list[Case]] = {
    "peers": [
        Case("CustomEnv, 64", Problem(), TWO_THREADS, ("sb3", "jax"), "5x sb3, 1x jax"),
        Case("CartPole, 64", Problem("cartpole"), TWO_THREADS, ("sb3",), "5x sb3"),
        Case("CustomEnv, 8, batch 64", SMALL_BATCH, Way(), ("sb3",), "3x sb3"),
        Case("CartPole, 8, batch 64", replace(SMALL_BATCH, env="cartpole"), Way(), ("sb3",), "3x sb3"),
        Case("CustomEnv, 1,024", LARGE, TWO_RANKS, ("jax",), "1.2x jax"),
        Case("CustomEnv, 1,024, bf16", LARGE, BF16, ("jax",), "2x jax"),
        Case("CustomEnv, 4", Problem(num_envs=4, total_timesteps=500_000), Way(), ("jax",), "0.8x jax"),
        Case(
            "CartPole in Python, 4, batch 64",
            PYTHON_CARTPOLE,
            replace(TWO_RANKS, vectorization="native"),
            goal="8,000 steps/s",
        ),
    ],
    "simulators": [  # each in the form of ours that is fastest, and in that of theirs
        Case(
            "HalfCheetah, 8, batch 64",
            Problem("halfcheetah", 8, num_steps=256, minibatches=32, epochs=10, total_timesteps=100_000),
            Way(vectorization="sync"),
            ("sb3", "cleanrl"),
            "3x sb3 and cleanrl",
        ),
        Case(
            "Breakout of MinAtar, 64, on the flat picture",
            Problem("breakout", 64, minibatches=8, total_timesteps=500_000),
            Way(),
            ("sb3", "cleanrl"),
            "3x sb3 and cleanrl",
        ),
    ],
    "ranks": [
        Case(f"CustomEnv, {num_envs} a rank, {ranks} ranks", Problem(num_envs=num_envs * ranks), Way(ranks=ranks))
        for num_envs in (64, 512, 2048)
        for ranks in (1, 2)
    ],
    "envs": [
        Case(
            f"CustomEnv, {num_envs}, {way.precision}", Problem(num_envs=num_envs, total_timesteps=1_000_000), way, peers
        )
        for num_envs in (4, 16, 64, 256, 1024, 4096, 16384, 65536)
        for way, peers in (
            (Way() if num_envs <= 16 else TWO_THREADS if num_envs <= 64 else TWO_RANKS, ("jax",)),
            (BF16, ()),
        )
        if num_envs >= 256 or way != BF16
    ],
    "hidden": [
        Case(f"hidden {hidden}, {way.precision}", problem, way, peers)
        for hidden in (64, 128, 256, 512, 1024)
        for problem in [Problem(num_envs=256, hidden=hidden, total_timesteps=400_000)]
        for way, peers in ((TWO_RANKS, ("jax",)), (BF16, ()))
    ],
    "gpu": [
        Case(
            f"{env}, {num_envs:,}, {precision}",
            Problem(env, num_envs, num_steps=32, total_timesteps=200 * num_envs * 32),
            Way(precision=precision, execution="cudagraphs", cuda=True, shared=True),
            ("jax",),
            {4096: "60 M steps/s, 3x jax", 16384: "150 M steps/s, 3x jax"}.get(num_envs, "3x jax"),
        )
        for env in ("custom", "cartpole")
        for num_envs in (4096, 16384, 65536, 262144)
        for precision in ("32-true", "bf16-mixed")
    ],
}


def small(case: Case) -> Case:
    """The case at a size that any CPU runs in seconds."""
    problem, way = case.problem, case.way
    num_envs = min(problem.num_envs, 64)
    steps = 6 * num_envs * problem.num_steps
    way = replace(way, cuda=False, execution="compile" if way.execution == "cudagraphs" else way.execution)
    return replace(case, problem=replace(problem, num_envs=num_envs, total_timesteps=steps), way=way)
