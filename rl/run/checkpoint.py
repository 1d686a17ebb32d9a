"""Checkpoints as files: whole or absent, checked before they are read, and readable by `torch.load` alone.

A file is what `torch.save` writes, a zip archive, whose comment is the SHA-256 digest of all that stands before it.
"""

import functools
import hashlib
import io
import os
import re
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import torch
from numpy.typing import NDArray
from typeguard import CollectionCheckStrategy, TypeCheckError, check_type
from typing_extensions import TypedDict

from rl.config import Config
from rl.envs.spaces import Spaces
from rl.errors import CheckpointError, UserError, one_line
from rl.models.agent import Agent, Network
from rl.run.evaluation import act

FORMAT = 1  # of what a checkpoint holds; to be raised with every change that older programs cannot read
_COMMENT_SIZE = len(b"sha256 ") + 64
MISFITS = (ArithmeticError, AttributeError, LookupError, RuntimeError, StopIteration, TypeError, ValueError, UserError)
"""What the use of values from elsewhere may raise."""


class Position(TypedDict):
    """How far a run is."""

    update: int
    step: int
    fraction: float  # that the last update's learning rate was of
    complete: bool
    best_return: float


class Content(TypedDict):
    """What a checkpoint holds."""

    format: int
    agent: dict[str, torch.Tensor]
    spaces: dict[str, Any]
    config: dict[str, Any]
    learner: str
    num_players: int
    torch: str
    run: Position
    ranks: list[torch.Tensor]  # every rank's state as bytes


def content_of(agent: Agent, config: Config[Any], run: Position, ranks: list[torch.Tensor]) -> Content:
    """What a checkpoint holds, on the CPU, so that a machine without a GPU can read it."""
    return {
        "format": FORMAT,
        "agent": {name: value.cpu() for name, value in agent.state_dict().items()},
        "spaces": asdict(agent.spaces),
        "config": config.to_dict(),
        "learner": config.learner_name(),
        "num_players": config.num_players(),
        "torch": str(torch.__version__),
        "run": run,
        "ranks": ranks,
    }


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Writes tensors, numbers and containers of them, as `write_whole` does."""
    write_whole(path, packed(content))


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file; whenever the machine stops, `path` is what it was or all new. No link is followed.

    Raises:
        OSError: It cannot be written; what stood there before still does.
    """
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        unfinished.unlink(missing_ok=True)
        with unfinished.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:  # a stop is one
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
        content = _load(data)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}; it is not loaded") from None
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise CheckpointError(f"{path}: has format {found}; this version of the program reads format {FORMAT}")
    try:
        check_type(content, Content, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
    except TypeCheckError as error:
        raise CheckpointError(
            f"{path}: is no checkpoint of this version of the program: {one_line(repr(error))}"
        ) from None
    return content


def _load(data: bytes) -> dict[str, Any]:
    """What `torch.save` made these bytes of; executes nothing, and takes about as much memory as the bytes do.

    Raises:
        CheckpointError: It would take more, or is anything else.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            records = archive.infolist()
        if any(r.compress_type != zipfile.ZIP_STORED for r in records) or sum(r.file_size for r in records) > len(data):
            raise CheckpointError("is compressed, as no checkpoint of this program is")
        content: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        for name, tensor in tensors_of(content):
            plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
            if not plain or tensor.numel() * tensor.element_size() > len(data):
                raise CheckpointError(f"{name} is larger than the file")
    except CheckpointError:
        raise
    except Exception as error:  # whatever a foreign archive makes of the restricted loader
        named = re.search(r"GLOBAL (\S+)", str(error))
        among = f", among them {named[1]}" if named else ""
        raise CheckpointError(f"holds more than tensors and numbers{among}") from None
    return content


def tensors_of(value: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in nested containers, with where they are."""
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, Mapping | list | tuple):
        for name, part in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from tensors_of(part, f"{path}/{name}" if path else str(name))


def check_finite(tensors: Any) -> None:
    """Raises `CheckpointError` for a number that no run could have kept."""
    for name, tensor in tensors_of(tensors):
        if not tensor.isfinite().all():
            raise CheckpointError(f"{name} of the checkpoint is not finite; take an older one")


def check_types(dataclass: Any) -> None:
    """Raises `TypeCheckError` where a field of a dataclass, or of one in it, is not what its annotation says."""
    hints = get_type_hints(type(dataclass))
    for field in fields(dataclass):
        value = getattr(dataclass, field.name)
        check_types(value) if is_dataclass(value) else check_type(value, hints[field.name])


def to_bytes(state: Mapping[str, Any]) -> torch.Tensor:
    """A state as bytes [B] (uint8), a tensor to send and to keep."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)


def from_bytes(data: torch.Tensor) -> dict[str, Any]:
    """The state whose bytes these are; of a checkpoint that has been checked, never of the network."""
    return _load(data.numpy().tobytes())


def agent_of(content: Mapping[str, Any]) -> Agent:
    """The agent of a checkpoint's content, on the CPU, in the precision that the run kept it in.

    Raises:
        CheckpointError: Its weights are not finite, or not those of the network that the flags describe.
    """
    try:
        spaces, network = Spaces.from_dict(content["spaces"]), Network(**content["config"]["network"])
        check_types(spaces)
        check_types(network)
        network.check()
        with torch.device("meta"):  # sizes alone: whatever the flags say, no memory is taken
            agent = Agent(spaces, replace(network, ortho_init=False))
        agent.load_state_dict(content["agent"], assign=True)
        dtype = torch.bfloat16 if content["config"]["precision"] == "bf16-true" else torch.float32
        if any(tensor.dtype != dtype for tensor in content["agent"].values()):
            raise TypeError(f"weights that are not {dtype}")
    except (*MISFITS, TypeCheckError) as error:
        raise CheckpointError(
            f"the agent and the flags of the checkpoint do not fit: {one_line(repr(error))}"
        ) from None
    check_finite(content["agent"])
    return agent


def load_policy(path: str | Path) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """The trained policy of a checkpoint: from an observation [D], or several [N, D], to the likeliest action.

    Raises:
        CheckpointError: The file is damaged, or no checkpoint of this program.
        OSError: There is no such file, or it cannot be read.
    """
    return functools.partial(act, agent_of(read_checkpoint(path)))
