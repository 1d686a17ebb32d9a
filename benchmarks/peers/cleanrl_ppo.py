"""Trains PPO of CleanRL with the same network and minibatches, and prints one JSON line.

CleanRL is no package: this runs the scripts of a checkout (https://github.com/vwxyzjn/cleanrl), in an environment with
gymnasium 0.29.1, MuJoCo and MinAtar, which speed.py calls as a peer:

python benchmarks/speed.py --suites simulators \
    --peers "cleanrl=/path/to/its/python benchmarks/peers/cleanrl_ppo.py --checkout /path/to/cleanrl"
"""

import contextlib
import io
import json
import os
import re
import runpy
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import tyro

# Of HalfCheetah gymnasium 0.29.1 has no later version; the physics is the same.
ENV_IDS = {"cartpole": "CartPole-v1", "halfcheetah": "HalfCheetah-v4", "breakout": "FlatBreakout-v0"}


@dataclass
class Arguments:
    """Trains CleanRL's PPO and measures its speed."""

    checkout: Path
    """Folder of CleanRL's repository."""
    env: Literal["cartpole", "halfcheetah", "breakout"] = "cartpole"
    num_envs: int = 64
    num_steps: int = 128
    minibatches: int = 4
    epochs: int = 4
    hidden: int = 64
    """Width of both layers; CleanRL's scripts have 64."""
    total_timesteps: int = 200_000


def flat_breakout(**kwargs: Any) -> gym.Env[Any, Any]:
    """Breakout of MinAtar, whose picture CleanRL's network takes as a vector only."""
    return gym.wrappers.FlattenObservation(gym.make("MinAtar/Breakout-v1", **kwargs))


def main(arguments: Arguments) -> None:
    """Runs the script that fits the environment, and prints the speed that it reports at its end."""
    if arguments.hidden != 64:
        sys.exit(f"--hidden {arguments.hidden}: CleanRL's scripts have layers of 64 units")
    if arguments.env == "breakout":
        gym.register("FlatBreakout-v0", entry_point=flat_breakout)
    name = "ppo_continuous_action.py" if arguments.env == "halfcheetah" else "ppo.py"
    script = arguments.checkout.resolve() / "cleanrl" / name
    flags = {
        "env-id": ENV_IDS[arguments.env],
        "num-envs": arguments.num_envs,
        "num-steps": arguments.num_steps,
        "num-minibatches": arguments.minibatches,
        "update-epochs": arguments.epochs,
        "total-timesteps": arguments.total_timesteps,
    }
    sys.argv = [str(script), "--no-cuda", *(f"--{flag}={value}" for flag, value in flags.items())]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()) as printed:
        os.chdir(folder)  # it writes its logs there
        runpy.run_path(str(script), run_name="__main__")
        os.chdir("/")
    speeds = re.findall(r"^SPS: (\d+)", printed.getvalue(), re.MULTILINE)
    print(json.dumps({"steps_per_s": float(speeds[-1])}))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
