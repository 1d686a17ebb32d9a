"""Checkpoints as files: whole or absent, checked before they are used, and readable by `torch.load` alone.

A file is the zip archive that `torch.save` writes, with the SHA-256 digest of everything before it as the archive's
comment. Whoever forges a checkpoint can forge the digest, too. So `torch.load` executes nothing (`weights_only`), it is
called only if the content takes about as much memory as the file, and the content's types are checked (`Content`).
"""

import contextlib
import functools
import hashlib
import io
import os
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, cast, get_type_hints

import torch
from typeguard import CollectionCheckStrategy, TypeCheckError, check_type
from typing_extensions import TypedDict

from rl.config import Config
from rl.envs.spaces import Spaces
from rl.errors import CheckpointError, EnvError, UserError, one_line
from rl.models.agent import Agent, Network
from rl.models.encoders import KINDS

FORMAT = 3  # of `Content`; raise it with every change that older versions cannot read
READS = (2, FORMAT)
_COMMENT_SIZE = len(b"sha256 ") + 64


class Position(TypedDict):
    """How far a run is."""

    update: int
    step: int
    fraction: float  # of the run, when the last update set its learning rate
    complete: bool
    best_return: float


class Content(TypedDict):
    """The content of a checkpoint."""

    format: int
    agent: dict[str, torch.Tensor]
    spaces: dict[str, Any]
    config: dict[str, Any]
    learner: str
    num_players: int
    torch: str
    run: Position
    ranks: list[torch.Tensor]  # each rank's state as bytes


def content_of(agent: Agent, config: Config[Any], run: Position, ranks: list[torch.Tensor]) -> Content:
    """What to write; on the CPU, so that a machine without a GPU can read it."""
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
    """Writes a checkpoint of tensors, numbers and containers of them, by `write_whole`."""
    write_whole(path, packed(content))


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file so that it is either the old or the new one, even if the machine stops. Links are not followed.

    Raises:
        OSError: It cannot be written; the old file is still there.
    """
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        unfinished.unlink(missing_ok=True)
        with unfinished.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:  # `StopError` is one
        unfinished.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # until then the new name may be lost
    finally:
        os.close(folder)


def packed(content: Mapping[str, Any]) -> bytes:
    """The bytes of a checkpoint file."""
    # A zip archive ends with the length of its comment (2 bytes) and the comment; torch writes none.
    archive = _saved(content)[:-2] + struct.pack("<H", _COMMENT_SIZE)
    return archive + _comment(archive)


def _saved(content: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    return buffer.getvalue()


def _comment(archive: bytes) -> bytes:
    return b"sha256 " + hashlib.sha256(archive).hexdigest().encode()


def read_checkpoint(path: str | Path) -> Content:
    """Reads a checkpoint to the CPU; executes nothing that is in the file.

    Raises:
        CheckpointError: The file is incomplete or damaged, or of another program or version.
        OSError: There is no such file, or it cannot be read.
    """
    data = Path(path).read_bytes()
    archive, comment = data[:-_COMMENT_SIZE], data[-_COMMENT_SIZE:]
    if comment != _comment(archive):
        what = "is damaged (wrong SHA-256 digest)" if comment.startswith(b"sha256 ") else "is incomplete"
        raise CheckpointError(f"{path}: {what}, or is not a checkpoint of this program")
    try:
        content = _load(data)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}; it is not loaded") from None
    found = content.get("format") if isinstance(content, dict) else None
    if found not in READS:
        reads = " and ".join(map(str, READS))
        raise CheckpointError(f"{path}: has format {found}; this version of the program reads formats {reads}")
    with refused(f"{path}: is not a checkpoint of this version of the program"):
        check_type(content, Content, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
    return cast(Content, content)


def read_once(path: Path) -> Content:
    """Reads the checkpoint of a run to resume: `read_checkpoint`, which reads an unchanged file only the first time.

    A resumed run needs its flags before environments can be made, and its state after that.
    """
    status = path.stat()
    return _read_version(path, status.st_ino, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=1)
def _read_version(path: Path, *version: int) -> Content:
    return read_checkpoint(path)


def _load(data: bytes) -> dict[str, Any]:
    """Loads what `torch.save` made these bytes of; executes nothing, and takes about as much memory as the bytes.

    Raises:
        CheckpointError: It would take more, or contains more than tensors and numbers.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            records = archive.infolist()
        if any(r.compress_type != zipfile.ZIP_STORED for r in records) or sum(r.file_size for r in records) > len(data):
            raise CheckpointError("is compressed, which no checkpoint of this program is")
        content: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        for name, tensor in tensors_of(content):
            plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
            if not plain or tensor.numel() * tensor.element_size() > len(data):
                raise CheckpointError(f"{name} is larger than the file")
    except CheckpointError:
        raise
    except Exception as error:  # a forged archive can make zipfile and torch raise anything
        named = re.search(r"GLOBAL (\S+)", str(error))
        among = f", among them {named[1]}" if named else ""
        raise CheckpointError(f"holds more than tensors and numbers{among}") from None
    return content


def tensors_of(value: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in nested containers, each with its path, such as run/1/weight."""
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, Mapping | list | tuple):
        for name, part in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from tensors_of(part, f"{path}/{name}" if path else str(name))


@contextlib.contextmanager
def refused(what: str) -> Iterator[None]:
    """Turns what an unfit or forged checkpoint makes a block raise into `CheckpointError`; lets `EnvError` pass."""
    misfits = (ArithmeticError, AttributeError, LookupError, RuntimeError, StopIteration, TypeError, ValueError)
    try:
        yield
    except (CheckpointError, EnvError):
        raise
    except (*misfits, UserError, TypeCheckError) as error:
        raise CheckpointError(f"{what}: {one_line(repr(error))}") from None


def check_finite(tensors: Any) -> None:
    """Raises `CheckpointError` for a number that no run would have saved."""
    for name, tensor in tensors_of(tensors):
        if not tensor.isfinite().all():
            raise CheckpointError(f"{name} in the checkpoint is not finite; take an older checkpoint")


def check_types(dataclass: Any) -> None:
    """Raises `TypeCheckError` if a field of a dataclass, or of one inside it, does not have its annotated type."""
    hints = get_type_hints(type(dataclass))
    for field in fields(dataclass):
        value = getattr(dataclass, field.name)
        check_types(value) if is_dataclass(value) else check_type(value, hints[field.name])
        for part in value if isinstance(value, tuple) else ():
            if is_dataclass(part):
                check_types(part)


def to_bytes(state: Mapping[str, Any]) -> torch.Tensor:
    """A state as bytes [B] (uint8), a tensor that ranks can send."""
    return torch.frombuffer(bytearray(_saved(state)), dtype=torch.uint8)


def from_bytes(data: torch.Tensor) -> dict[str, Any]:
    """The state whose bytes `to_bytes` returned; raises `CheckpointError` for any other bytes."""
    return _load(data.numpy().tobytes())


def agent_of(content: Content, *, allow_import: bool = False) -> Agent:
    """The agent of a checkpoint, on the CPU, in the precision in which the run kept it.

    Raises:
        CheckpointError: Its weights are not finite, or do not fit the network that the flags describe; or that has an
            encoder of the user's, and nothing permits to import it.
    """
    with refused("the agent and the flags of the checkpoint do not fit"):
        spaces, network = Spaces.from_dict(content["spaces"]), Network(**content["config"]["network"])
        for dataclass in (spaces, *spaces.obs, network):
            check_types(dataclass)
        network.check()
        if not allow_import and network.encoder not in KINDS:
            raise CheckpointError(
                f"the checkpoint's --encoder {one_line(network.encoder)} imports, and so runs, a module; to permit it,"
                " use load_policy(path, allow_import=True)"
            )
        # On meta it takes no memory, whatever sizes the flags have; the user's may have numbers that no file has.
        with torch.device("meta" if network.encoder in KINDS else "cpu"):
            agent = Agent(spaces, replace(network, ortho_init=False))
        dtypes = [buffer.dtype for buffer in agent.buffers()]
        agent.load_state_dict(content["agent"], assign=True)
        dtype = torch.bfloat16 if content["config"]["precision"] == "bf16-true" else torch.float32
        if any(parameter.dtype != dtype for parameter in agent.parameters()):
            raise TypeError(f"weights that are not {dtype}")
        if [buffer.dtype for buffer in agent.buffers()] != dtypes:
            raise TypeError("statistics of another precision")
    check_finite(content["agent"])
    return agent
