"""The final states of runs, and their differences."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rl.run.checkpoint import from_bytes, read_checkpoint


def final_state(folder: Path) -> dict[str, Any]:
    """Everything on which the next update of a complete run would depend."""
    content = read_checkpoint(folder / "last.ckpt")
    return {"agent": content["agent"], "run": content["run"], "ranks": [from_bytes(part) for part in content["ranks"]]}


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """The places where two nested states differ, except durations."""
    if "seconds" in path or "averages" in path:
        return []
    if isinstance(one, torch.Tensor):
        return [] if one.dtype == other.dtype and torch.equal(one, other) else [path]
    if isinstance(one, Mapping):
        if one.keys() != other.keys():
            return [f"{path}: {set(one) ^ set(other)}"]
        return [found for name in one for found in differences(one[name], other[name], f"{path}/{name}")]
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return [f"{path}: {len(one)} and {len(other)}"]
        pairs = enumerate(zip(one, other, strict=True))
        return [found for i, (a, b) in pairs for found in differences(a, b, f"{path}/{i}")]
    return [] if one == other else [f"{path}: {one} and {other}"]
