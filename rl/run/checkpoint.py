"""Checkpoints as files: whole or absent, checked before they are read, and readable by `torch.load` alone.

A file is what `torch.save` writes, a zip archive, whose comment is the SHA-256 digest of all that stands before it.
"""

import functools
import hashlib
import io
import os
import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from rl.agent import Agent, Network
from rl.envs.spaces import Spaces
from rl.errors import CheckpointError
from rl.run.evaluation import act

FORMAT = 1  # of what a checkpoint holds; to be raised with every change that older programs cannot read
_COMMENT_SIZE = len(b"sha256 ") + 64


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Writes tensors, numbers and containers of them; whenever the machine stops, `path` is what it was or all new.

    Raises:
        OSError: It cannot be written; what stood there before still does.
    """
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        with unfinished.open("wb") as file:
            file.write(packed(content))
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the name
    finally:
        os.close(folder)


def packed(content: Mapping[str, Any]) -> bytes:
    """The bytes of a checkpoint."""
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    # The archive's last two bytes are the length of its comment, none so far.
    archive = buffer.getvalue()[:-2] + struct.pack("<H", _COMMENT_SIZE)
    return archive + _comment(archive)


def _comment(archive: bytes) -> bytes:
    return b"sha256 " + hashlib.sha256(archive).hexdigest().encode()


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """What `write_checkpoint` wrote, on the CPU; nothing in the file is executed.

    Raises:
        CheckpointError: It is not whole, or of another program or version.
        OSError: There is no such file, or it cannot be read.
    """
    data = Path(path).read_bytes()
    archive, comment = data[:-_COMMENT_SIZE], data[-_COMMENT_SIZE:]
    if comment != _comment(archive):
        what = "is damaged: its SHA-256 digest is another" if comment.startswith(b"sha256 ") else "is not whole"
        raise CheckpointError(f"{path}: {what}, or this is no checkpoint of this program")
    try:
        content: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a foreign archive makes of the restricted loader
        named = re.search(r"GLOBAL (\S+)", str(error))
        among = f", among them {named[1]}" if named else ""
        raise CheckpointError(f"{path}: holds more than tensors and numbers{among}; it is not loaded") from None
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise CheckpointError(f"{path}: has format {found}; this version of the program reads format {FORMAT}")
    return content


def to_bytes(state: Mapping[str, Any]) -> torch.Tensor:
    """A state as bytes [B] (uint8), a tensor to send and to keep."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)


def from_bytes(data: torch.Tensor) -> dict[str, Any]:
    """The state whose bytes these are; of a checkpoint that has been checked, never of the network."""
    state: dict[str, Any] = torch.load(io.BytesIO(data.numpy().tobytes()), map_location="cpu", weights_only=True)
    return state


def agent_of(content: Mapping[str, Any]) -> Agent:
    """The agent of a checkpoint's content, on the CPU."""
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn, and overwritten
        agent = Agent(Spaces.from_dict(content["spaces"]), Network(**content["config"]["network"]))
    agent.load_state_dict(content["agent"])
    return agent


def load_policy(path: str | Path) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """The trained policy of a checkpoint: from an observation [D], or several [N, D], to the likeliest action.

    Raises:
        CheckpointError: The file is damaged, or no checkpoint of this program.
        OSError: There is no such file, or it cannot be read.
    """
    return functools.partial(act, agent_of(read_checkpoint(path)))
