"""Trains tasks with many seeds, several runs at once, as a user would start the program; every run leaves a JSON file.

python benchmarks/learning.py --tasks hopper walker2d --seeds 5 --jobs 2
python benchmarks/learning.py --tasks hopper walker2d --seeds 2 --jobs 2 --peer sb3
python benchmarks/learning.py --tasks custom-small --program train_fabric_decoupled.py --ranks 2 --flags="--share-data"
    --out /tmp/share-data

A run whose file exists is not repeated. `learning_table.py` makes a table and pictures of the files.
"""

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from programs import ROOT, launched, logged_in
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

RECALL = "--memory gru --memory-size 64 --hidden-sizes 64 --num-envs 64 --num-steps 32 --num-minibatches 4"
RECALL += " --update-epochs 4 --learning-rate 2e-3 --gamma 0.5"
TMAZE = "--memory gru --num-envs 64 --num-steps 64 --num-minibatches 8 --update-epochs 4 --learning-rate 1e-3"
TMAZE += " --ent-coef 0.01 --total-timesteps 500000 --eval-episodes 100"
MILLION = "--total-timesteps 1000000 --eval-episodes 20"
TASKS = {
    "halfcheetah": f"--env-id HalfCheetah-v5 {MILLION}",
    "hopper": f"--env-id Hopper-v5 {MILLION}",
    "walker2d": f"--env-id Walker2d-v5 {MILLION}",
    "ant": f"--env-id Ant-v5 {MILLION}",
    "humanoid": f"--env-id Humanoid-v5 {MILLION}",
    "swimmer": f"--env-id Swimmer-v5 {MILLION}",
    "reacher": f"--env-id Reacher-v5 {MILLION}",
    "inverteddoublependulum": f"--env-id InvertedDoublePendulum-v5 {MILLION}",
    "bipedalwalker": f"--env-id BipedalWalker-v3 {MILLION}",
    "lunarlander": f"--env-id LunarLander-v3 {MILLION}",
    "lunarlander-continuous": f"--env-id LunarLanderContinuous-v3 {MILLION}",
    "mountaincarcontinuous": "--env-id MountainCarContinuous-v0 --eval-episodes 20",
    "pendulum": "--env-id Pendulum-v1 --eval-episodes 100",
    "acrobot": "--env-id Acrobot-v1 --eval-episodes 20",
    "minatar-asterix": "--env-id MinAtar/Asterix-v1 --eval-episodes 20",
    "minatar-breakout": "--env-id MinAtar/Breakout-v1 --eval-episodes 20",
    "minatar-freeway": "--env-id MinAtar/Freeway-v1 --eval-episodes 20",
    "minatar-seaquest": "--env-id MinAtar/Seaquest-v1 --eval-episodes 20",
    "minatar-spaceinvaders": "--env-id MinAtar/SpaceInvaders-v1 --eval-episodes 20",
    "cartpole": "--env-id CartPole-v1",
    # What no agent without memory can do (docs/memory.md).
    "cartpole-novel": "--env-id CartPoleNoVel-v1 --eval-episodes 20",
    "cartpole-novel-plain": "--config none --env-id CartPoleNoVel-v1 --memory gru --total-timesteps 200000",
    "cartpole-novel-none": "--env-id CartPoleNoVel-v1 --memory none --eval-episodes 20",
    "recall-4": f"--env-id Recall-v0 {RECALL} --total-timesteps 500000 --eval-episodes 100",
    "recall-16": f"--env-id Recall-v0 --env-kwargs delay=16 {RECALL} --total-timesteps 2000000 --eval-episodes 100",
    "tmaze-50": f"--env-id TMaze-v0 --memory-span 64 {TMAZE}",
    "tmaze-50-plain": f"--env-id TMaze-v0 {TMAZE}",
    "cartpole-one-player": "--env-id CartPole-v1 --num-envs 16 --num-minibatches 16",
    # The settings of the example that these programs grew from.
    "cartpole-example": "--config none --env-id CartPole-v1 --num-envs 4 --num-steps 128 --num-minibatches 8"
    " --update-epochs 10 --learning-rate 3e-3 --gamma 0.95 --shared-encoder --total-timesteps 65536",
    "custom": "",
    "custom-small": "--total-timesteps 300000 --num-envs 32",
}
# Programs with settings of their own: they take `PEER_FLAGS` and --seed, and end with a line of JSON.
PEERS = {"sb3": "benchmarks/peers/sb3_tuned.py"}
PEER_FLAGS = {"--env-id", "--total-timesteps", "--eval-episodes"}
RESULTS = ROOT / "benchmarks/results/learning"
MAX_POINTS = 200  # of a curve
PACKAGES = ("torch", "gymnasium", "mujoco", "numpy", "lightning", "stable_baselines3")


@dataclass
class Arguments:
    """Trains tasks with many seeds, several runs at once."""

    tasks: list[str]
    """Names of tasks, which are those of `TASKS`."""
    seeds: int = 5
    """Number of seeds, from 1 on; all tasks run with the first seed, then with the second one."""
    jobs: int = 1
    """Number of runs at once; each of their ranks has one thread."""
    peer: Literal["", "sb3"] = ""
    """Train with this program in place of ours; for tasks without settings, which have `PEER_FLAGS` alone."""
    program: str = "train_fabric.py"
    """Our program."""
    ranks: int = 1
    """Number of ranks of a run; one rank runs without a launcher."""
    flags: str = ""
    """Further flags of the program."""
    options: str = ""
    """Further options of the launcher, such as --precision=bf16-mixed."""
    out: Path = RESULTS
    """Folder of the JSON files."""

    def path(self, task: str, seed: int) -> Path:
        """The file of a run."""
        return self.out / f"{f'{self.peer}_' if self.peer else ''}{task}_{seed}.json"

    def all_flags(self, task: str) -> list[str]:
        """The program's flags without the seed."""
        return [*TASKS[task].split(), *self.flags.split()]

    def command(self, task: str, seed: int) -> list[str]:
        """What starts a run."""
        program = ROOT / (PEERS[self.peer] if self.peer else self.program)
        launcher = [sys.executable, str(program)]
        if self.ranks > 1:
            launcher = launched(program, ranks=self.ranks, options=self.options.split())
        return [*launcher, *self.all_flags(task), f"--seed={seed}"]


def main(arguments: Arguments) -> None:
    """Makes the runs that have no file yet, and says how each ended."""
    check(arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)
    asked = [(task, seed) for seed in range(1, arguments.seeds + 1) for task in arguments.tasks]
    failed = False
    with ThreadPoolExecutor(arguments.jobs) as pool:
        futures = {pool.submit(make_run, arguments, *run): run for run in asked if not arguments.path(*run).exists()}
        try:
            for future in as_completed(futures):
                task, seed = futures[future]
                failed |= future.exception() is not None
                print(f"{task}, seed {seed}: {future.exception() or future.result()}", flush=True)
        finally:
            pool.shutdown(cancel_futures=True)  # after Ctrl-C, which has ended the runs, no others begin
    if failed:
        sys.exit(1)


def check(arguments: Arguments) -> None:
    """Ends the program if the runs cannot be made, or if files of other runs are in their place."""
    if unknown := sorted(set(arguments.tasks) - TASKS.keys()):
        sys.exit(f"error: --tasks {' '.join(unknown)}: must be among {', '.join(TASKS)}")
    if arguments.jobs > 1 and arguments.jobs * arguments.ranks > (cores := os.cpu_count() or 1):
        sys.exit(f"error: --jobs {arguments.jobs} with --ranks {arguments.ranks}: there are {cores} cores")
    for task in arguments.tasks:
        if arguments.peer and set(arguments.all_flags(task)[::2]) != PEER_FLAGS:
            sys.exit(
                f"error: --peer {arguments.peer}: takes {', '.join(sorted(PEER_FLAGS))} alone; not those of {task}"
            )
        for path in (arguments.path(task, seed) for seed in range(1, arguments.seeds + 1)):
            if path.exists() and (found := json.loads(path.read_text())["flags"]) != " ".join(
                arguments.all_flags(task)
            ):
                sys.exit(f"error: {path}: was made with the flags {found!r}; name another folder with --out")


def make_run(arguments: Arguments, task: str, seed: int) -> str:
    """Makes a run, writes its file, and returns what to say of it."""
    flags = arguments.all_flags(task)
    record = {"task": task, "seed": seed, "program": arguments.peer or arguments.program, "flags": " ".join(flags)}
    record |= {"ranks": arguments.ranks, "jobs": arguments.jobs} | machine()
    with tempfile.TemporaryDirectory() as folder:
        command = arguments.command(task, seed)
        began_at = time.time()
        if arguments.peer:
            output, cost = measured(command)
            named = dict(zip(flags[::2], flags[1::2], strict=True))
            record |= {"eval_episodes": int(named["--eval-episodes"]), "steps": int(named["--total-timesteps"])}
            record |= json.loads(output.splitlines()[-1])
        else:
            _, cost = measured([*command, f"--log-dir={folder}"])
            record |= results_in(Path(folder), began_at)
    record |= cost  # a peer's line has the seconds of its training only; these are those of the program
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in record.items())
    part = arguments.path(task, seed).with_suffix(".part")
    part.write_text(f"{{\n{lines}\n}}\n")
    part.replace(arguments.path(task, seed))
    return (
        f"greedy return {record['greedy_return']:.2f}, sampled {record['sampled_return']:.2f}, {cost['seconds']:.0f} s"
    )


def measured(command: list[str]) -> tuple[str, dict[str, float]]:
    """What a command printed, and the seconds that it took; CPU seconds are those of all its processes together.

    Raises:
        RuntimeError: It failed.
    """
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        began_at = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=errors, env=os.environ | {"OMP_NUM_THREADS": "1"})
        _, status, usage = os.wait4(process.pid, 0)  # RUSAGE_CHILDREN would include the runs beside this one
        seconds = time.perf_counter() - began_at
        process.returncode = os.waitstatus_to_exitcode(status)
        for file in (output, errors):
            file.seek(0)
        if process.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} failed:\n{errors.read()[-2000:]}")
        return output.read(), {"seconds": round(seconds, 1), "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1)}


def results_in(logs: Path, began_at: float) -> dict[str, Any]:
    """Returns, steps and curve of the run that logged there; a curve's seconds count from `began_at`."""
    (config,) = logs.glob("*/*/config.json")
    events = logged_in(logs)
    mean, std = (events.Scalars(tag)[-1] for tag in ("Test/cumulative_reward", "Test/return_std"))
    training = events.Scalars("Rewards/last_100_episodes")
    chosen = np.unique(np.linspace(0, len(training) - 1, min(len(training), MAX_POINTS)).round().astype(int))
    return {
        "greedy_return": round(mean.value, 3),
        "greedy_std": round(std.value, 3),
        "eval_episodes": json.loads(config.read_text())["eval_episodes"],
        "sampled_return": round(training[-1].value, 3),
        "sampled_return_1000": round(last_episodes(events, 1000), 3),
        "steps": mean.step,
        "curve": [[(e := training[i]).step, round(e.wall_time - began_at, 1), round(e.value, 2)] for i in chosen],
    }


def last_episodes(events: EventAccumulator, wanted: int) -> float:
    """The mean return of the last training episodes: as many as wanted, and the others that were logged with them."""
    number, total = 0.0, 0.0
    counts = {event.step: event.value for event in events.Scalars("Count/episodes")}
    for event in reversed(events.Scalars("Rewards/rew_avg")):
        number, total = number + counts[event.step], total + counts[event.step] * event.value
        if number >= wanted:
            break
    return total / number


def machine() -> dict[str, Any]:
    """The revision of the source, the CPU, and the versions of packages."""
    describe = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    revision = subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    cpu = re.search("model name\\s*: (.*)", Path("/proc/cpuinfo").read_text())
    installed = {found.metadata["Name"].lower(): found.version for found in importlib.metadata.distributions()}
    versions = {name: installed[name] for name in PACKAGES if name in installed}
    return {"revision": revision, "cpu": cpu[1] if cpu else platform.machine(), "cores": os.cpu_count()} | {
        "versions": {"python": platform.python_version()} | versions
    }


if __name__ == "__main__":
    main(tyro.cli(Arguments))
