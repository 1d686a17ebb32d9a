"""What is left of a run: the trained agent in a file."""

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from rl.agent import Agent, Network
from rl.envs.spaces import Spaces
from rl.run.evaluation import act


def save_checkpoint(path: Path, policy: Agent, config: Mapping[str, Any]) -> None:
    """Writes the agent, and all it takes to build it again; the file is whole or absent, whenever the machine stops."""
    # On the CPU, so that a machine without a GPU can read it.
    state = {name: value.cpu() for name, value in policy.state_dict().items()}
    content = {"agent": state, "spaces": asdict(policy.spaces), "config": dict(config)}
    unfinished = path.with_name(path.name + ".tmp")
    with unfinished.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def load_agent(path: str | Path) -> Agent:
    """The trained agent of a checkpoint, on the CPU."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    agent = Agent(Spaces.from_dict(content["spaces"]), Network(**content["config"]["network"]))
    agent.load_state_dict(content["agent"])
    return agent


def load_policy(path: str | Path) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """The trained policy of a checkpoint: from an observation [D], or several [N, D], to the likeliest action."""
    return functools.partial(act, load_agent(path))
