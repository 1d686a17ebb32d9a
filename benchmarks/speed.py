"""Compares the speed of this project and of other PPO implementations on the same problems.

python benchmarks/speed.py --peers "jax=/path/to/python /path/to/jax_ppo.py"
python benchmarks/speed.py --suites gpu --peers "jax=…"          # on a machine with a GPU
python benchmarks/speed.py --suites gpu --small                  # a short test of that command, on a CPU

It runs this project and its peers in turn, and reports medians, ratios and curves. A peer is a command that takes the
flags --env --num-envs --num-steps --minibatches --epochs --hidden --total-timesteps, and prints a JSON line with
steps_per_s and optionally greedy_return. Steps per second count collecting and learning, but neither compilation nor
the first fifth of our run.
"""

import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import matplotlib.pyplot as plt
import torch
import tyro
from matplotlib.ticker import LogLocator
from programs import ROOT, run_program, run_watched
from speed_cases import ENV_IDS, SOLVED_AT, SUITES, Case, EnvName, Problem, Way, small

SB3 = f"{sys.executable} {ROOT}/benchmarks/peers/sb3_ppo.py"


@dataclass
class Arguments:
    """Runs this project and its peers in turn."""

    suites: list[Literal["peers", "simulators", "ranks", "envs", "hidden", "solved", "gpu"]] = field(
        default_factory=lambda: ["peers", "simulators", "ranks", "envs", "hidden", "solved"]
    )
    """Sets of cases to measure."""
    cases: str = ""
    """Measure only the cases whose names contain this."""
    peers: list[str] = field(default_factory=list)
    """Further peers, as name=command."""
    rounds: int = 3
    """Number of runs of each case."""
    output: Path = Path("speed")
    """Folder for speed.json and the curves."""
    small: bool = False
    """Make short runs of small problems, to test that the command works."""


def matrix_product_flops(way: Way) -> float:
    """Floating-point operations per second of matrix products on this machine, with as many cores as the run has."""
    device, dtype = ("cuda", torch.bfloat16) if way.cuda else ("cpu", torch.float32)
    torch.set_num_threads(way.ranks * way.threads)
    size, repeats = (8192, 20) if way.cuda else (1024, 20)
    matrix = torch.randn(size, size, device=device, dtype=dtype)
    seconds = []
    for _ in range(5):
        began_at = time.perf_counter()
        for _ in range(repeats):
            matrix @ matrix
        if way.cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began_at)
    return 2 * size**3 * repeats / min(seconds)


def settings(problem: Problem, way: Way) -> list[str]:
    """The flags of a problem, as its peers have them too."""
    return [
        *("--total-timesteps", str(problem.total_timesteps)),
        *("--num-envs", str(problem.num_envs // way.ranks), "--num-steps", str(problem.num_steps)),
        *("--update-epochs", str(problem.epochs), "--hidden-sizes", *2 * [str(problem.hidden)]),
        *("--per-rank-batch-size", str(problem.num_envs // way.ranks * problem.num_steps // problem.minibatches)),
        *("--learning-rate", "1e-3", "--gamma", "0.99", "--ent-coef", "0.01"),
        *("--config", "none", "--shared-encoder" if way.shared else "--no-shared-encoder"),
        *(("--encoder", "mlp") if problem.env == "breakout" else ()),
    ]


def ours(problem: Problem, way: Way, *, with_recipe: bool = False) -> dict[str, Any]:
    """One training run of this project, with the settings of the problem or with the environment's recipe."""
    flags = [
        *("--env-id", ENV_IDS[problem.env], "--vectorization", way.vectorization, "--execution", way.execution),
        *("--eval-episodes", "16", *(("--cuda",) if way.cuda else ())),
        *(() if with_recipe else settings(problem, way)),
    ]
    scalars, _ = run_program(
        "train_fabric.py",
        flags,
        ranks=way.ranks,
        options=[*(() if way.cuda else ("--accelerator=cpu",)), f"--precision={way.precision}"],
        variables={"OMP_NUM_THREADS": str(way.threads)},
    )
    steps = [after - before for before, after in zip([0.0, *scalars["step"]], scalars["step"], strict=False)]
    seconds = [n / speed for n, speed in zip(steps, scalars["Time/step_per_second"], strict=True)]
    warm = len(steps) // 5
    collect, learn = (statistics.median(scalars[f"Time/{part}_seconds"]) for part in ("collect", "learn"))
    # The peer too counts the last hundred episodes; before the first one ends there is no value.
    recent = scalars.get("Rewards/last_100_episodes", [])
    points = zip(
        scalars["step"][-len(recent) :],
        recent,
        itertools.accumulate(scalars["Count/episodes"][-len(recent) :]),
        strict=True,
    )
    goal = SOLVED_AT.get(problem.env, math.inf)
    solved = next((step for step, value, number in points if number >= 100 and value >= goal), None)
    result = {
        "steps_per_s": sum(steps[warm:]) / sum(seconds[warm:]),
        "collect_share": collect / (collect + learn),
        "compile_seconds": scalars.get("Time/compile_seconds", [0.0])[-1],
        "memory_mib": scalars["memory_mib"][0],
        "greedy_return": scalars["Test/cumulative_reward"][-1],
    }
    if solved is not None:
        until = scalars["step"].index(solved) + 1
        result |= {"solved_steps": solved, "solved_seconds": sum(seconds[:until])}
    return result


def peer(name: str, command: str, problem: Problem) -> dict[str, Any]:
    """One training run of a peer."""
    update = problem.num_envs * problem.num_steps
    # One of its updates may take seconds, so it makes fewer.
    steps = min(problem.total_timesteps, 20 * update) if name == "sb3" else problem.total_timesteps
    flags = {name.replace("_", "-"): value for name, value in asdict(replace(problem, total_timesteps=steps)).items()}
    output, memory_mib = run_watched([*command.split(), *(f"--{name}={value}" for name, value in flags.items())])
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result | {"memory_mib": memory_mib}


def measure(case: Case, peers: dict[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Results of one run of this project and of each of the case's peers, by name."""
    update = case.problem.num_envs * case.problem.num_steps
    problem = replace(case.problem, total_timesteps=max(case.problem.total_timesteps, 4 * update))
    yield "ours", ours(problem, case.way)
    for name in case.peers:
        if name in peers:
            yield name, peer(name, peers[name], problem)


def medians(runs: list[dict[str, Any]]) -> dict[str, float]:
    """The median of every number in the results."""
    names = [name for name, value in runs[0].items() if isinstance(value, int | float)]
    return {name: statistics.median(run[name] for run in runs if name in run) for name in names}


def row(case: Case, results: dict[str, list[dict[str, Any]]], peak_flops: float) -> str:
    """A row of the table."""
    own = medians(results["ours"])
    speed = own["steps_per_s"]
    ratios = [f"{speed / medians(runs)['steps_per_s']:.2f}x {name}" for name, runs in results.items() if name != "ours"]
    peers = [f"{name} {medians(runs)['steps_per_s']:,.0f}" for name, runs in results.items() if name != "ours"]
    way = f"{case.way.ranks} x {case.way.threads}, {case.way.precision}"
    cells = (
        case.name,
        way,
        f"{speed:,.0f}",
        ", ".join(peers),
        ", ".join(ratios),
        case.goal,
        f"{speed * case.problem.flops_per_step() / peak_flops:.0%}",
        f"{own['collect_share']:.0%}",
        f"{own['compile_seconds']:.0f}",
        f"{own['memory_mib']:,.0f}",
        f"{own['greedy_return']:.1f}",
    )
    return f"| {' | '.join(cells)} |"


def solved(rounds: int, is_small: bool) -> None:
    """Prints the table of steps and seconds until the problem is solved."""
    print("\n| problem | program | steps until solved | seconds of training until solved |\n|---|---|---|---|")
    problems: tuple[tuple[EnvName, int], ...] = (("custom", 64), ("cartpole", 8))
    for env, num_envs in problems:
        problem = Problem(env, num_envs, total_timesteps=30_000 if is_small else 1_000_000)
        runs: dict[str, list[dict[str, Any]]] = {}
        for _ in range(rounds):
            runs.setdefault("ours, its recipe", []).append(ours(problem, Way(), with_recipe=True))
            runs.setdefault("ours", []).append(ours(problem, Way()))
            runs.setdefault("stable-baselines3", []).append(peer("", f"{SB3} --solved-at={SOLVED_AT[env]}", problem))
        for name, results in runs.items():
            reached = [result for result in results if "solved_steps" in result]
            cells = [
                f"{statistics.median(run[key] for run in reached):,.1f}" if reached else "never"
                for key in ("solved_steps", "solved_seconds")
            ]
            print(f"| {ENV_IDS[env]}, {num_envs} | {name} | {' | '.join(cells)} |", flush=True)


def draw(suite: str, measured: list[tuple[Case, dict[str, list[dict[str, Any]]]]], folder: Path) -> None:
    """Plots the curves of a suite."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for case, results in measured:
        x = case.problem.hidden if suite == "hidden" else case.problem.num_envs
        for name, runs in results.items():
            ranks = f", {case.way.ranks} rank(s)" if suite == "ranks" else ""
            label = f"this project, {case.way.precision}{ranks}" if name == "ours" else name
            label += f", {ENV_IDS[case.problem.env]}" if suite == "gpu" else ""
            lines.setdefault(label, []).append((x, medians(runs)["steps_per_s"]))
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for label, points in lines.items():
        axes.plot(*zip(*sorted(dict(points).items()), strict=True), marker="o", label=label)
    axes.set(
        xscale="log",
        yscale="log",
        ylabel="training steps/s",
        xlabel="width of the hidden layers" if suite == "hidden" else "environments of all ranks",
    )
    sizes = sorted({size for points in lines.values() for size, _ in points})
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.yaxis.set_minor_formatter("{x:,.0f}")
    axes.grid(which="both", alpha=0.3)
    axes.legend()
    figure.savefig(folder / f"{suite}.png", dpi=120)
    plt.close(figure)


def main(arguments: Arguments) -> None:
    """Prints a table for each suite, and writes all numbers and curves to the output folder."""
    peers = {"sb3": SB3} | dict(text.split("=", 1) for text in arguments.peers)
    arguments.output.mkdir(parents=True, exist_ok=True)
    everything: dict[str, Any] = {}
    for suite in arguments.suites:
        if suite == "solved":
            solved(arguments.rounds, arguments.small)
            continue
        cases = [case for case in SUITES[suite] if arguments.cases in case.name]
        if arguments.small:
            by_content = {(c.problem, c.way): c for c in map(small, cases)}
            cases = list(by_content.values())
        found: list[dict[str, list[dict[str, Any]]]] = [{} for _ in cases]
        for _ in range(arguments.rounds):
            for case, results in zip(cases, found, strict=True):
                for name, result in measure(case, peers):
                    results.setdefault(name, []).append(result)
                    print(f"{case.name}: {name} {result['steps_per_s']:,.0f} steps/s", file=sys.stderr, flush=True)
        print(f"\n{suite}, medians of {arguments.rounds} round(s)\n")
        print(
            "| problem | ranks x threads, precision | steps/s | peers | ratio | goal | share of matmul FLOP/s"
            " | collecting | compile s | MiB | greedy return |"
        )
        print("|---|---|---|---|---|---|---|---|---|---|---|")
        for case, results in zip(cases, found, strict=True):
            print(row(case, results, matrix_product_flops(case.way)), flush=True)
        everything[suite] = [asdict(case) | {"runs": runs} for case, runs in zip(cases, found, strict=True)]
        (arguments.output / "speed.json").write_text(json.dumps(everything, indent=1))
        if suite not in ("peers", "simulators"):  # whose problems are not points of one curve
            draw(suite, list(zip(cases, found, strict=True)), arguments.output)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
