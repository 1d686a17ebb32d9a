"""Writes policies for other programs: ONNX, torch.export's .pt2, or the weights alone as safetensors.

What is exported takes the environment's observations as they are, and gives its actions as it takes them: statistics
that normalize observations, one-hot vectors, bounds and first numbers of choices are inside. Names are rsl_rl's: `obs`
and `actions`; of a Dict, one input or output for each key. What the agent remembers is an input and an output, too:
`memory_in` [N, M], which is 0 when an episode begins, and `memory_out`. Each file is run on random observations before
it is kept.
"""

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rl import tree
from rl.envs.spaces import Spaces
from rl.errors import FolderError, UserError
from rl.models.agent import Agent, Network
from rl.models.deployed import Arrays, Deployed
from rl.run.checkpoint import Content, agent_of, read_checkpoint, write_whole
from rl.run.evaluation import Actor

NUM_TRIED = 100  # observations
TOLERANCE = 1e-5  # of an action, relative to its size where that is above 1
OPSET = 20
Run = Callable[[Arrays], Arrays]
"""From the inputs [N, ...] to the outputs [N, ...]."""


class Format(NamedTuple):
    """A kind of file."""

    packages: Sequence[str]
    pack: Callable[[Deployed, dict[str, str]], bytes]
    load: Callable[..., Run]


def export_policy(
    checkpoint: str | Path, to: str | Path, *, masked: bool = False, allow_import: bool = False
) -> Deployed:
    """Writes the policy of a checkpoint into an .onnx, .pt2 or .safetensors file, after it has been tried.

    `masked` adds an input `action_mask` (bool [N, ΣA]), for an environment that has action masks.

    Raises:
        UserError: The file's name ends otherwise, a package is missing, or what is exported acts otherwise.
        CheckpointError: The checkpoint is damaged.
    """
    content = read_checkpoint(checkpoint)
    agent = agent_of(content, allow_import=allow_import).float()
    return write_policy(agent, content, Path(to), masked=masked)


def write_policy(agent: Agent, content: Content, path: Path, *, masked: bool) -> Deployed:
    """As `export_policy`, with an agent in float32 and the content of its checkpoint."""
    format_ = format_of(path)
    if masked and not agent.spaces.actions.sizes:
        raise UserError("--action-mask: the actions are real numbers, which have no mask; leave the flag out")
    deployed = Deployed(agent, masked=masked)
    data = format_.pack(deployed, metadata_of(agent, content))
    check_same(deployed, format_.load(data, masked=masked), path)
    try:
        write_whole(path, data)
    except OSError as error:
        raise FolderError(f"{path}: cannot be written: {error.strerror}") from error
    return deployed


def format_of(path: Path) -> Format:
    """The format that a file's name asks for.

    Raises:
        UserError: There is none, or a package that it needs is missing.
    """
    if path.suffix not in FORMATS:
        raise UserError(f"{path}: must end with {', '.join(FORMATS)}")
    format_ = FORMATS[path.suffix]
    missing = [package for package in format_.packages if importlib.util.find_spec(package) is None]
    if missing:
        raise UserError(f"{path}: needs {', '.join(missing)}; pip install {' '.join(format_.packages)}")
    return format_


def metadata_of(agent: Agent, content: Content) -> dict[str, str]:
    """What a program needs to know of a policy, as text."""
    try:
        own = version("fabric-rl")
    except PackageNotFoundError:
        own = "unknown"
    return {
        "env_id": str(content["config"]["env"]["env_id"]),
        "spaces": json.dumps(asdict(agent.spaces)),
        "network": json.dumps(content["config"]["network"]),
        "step": str(content["run"]["step"]),
        "version": own,
    }


def check_same(deployed: Deployed, run: Run, path: Path) -> None:
    """Raises `UserError` if a file's actions differ from the agent's, as it acts here, on random observations."""
    inputs = deployed.random_inputs(NUM_TRIED, np.random.default_rng(0))
    keys = deployed.agent.spaces.obs
    named = dict(zip((key.name for key in keys), inputs, strict=False))
    mask = inputs[len(keys)] if deployed.masked else None
    actor = Actor(deployed.agent)
    if deployed.agent.memory is not None:
        actor.memory = torch.from_numpy(inputs[-1])
    actions = actor(named if keys[0].path else inputs[0], mask)
    expected = list(tree.leaves((actions, tree.map(Tensor.numpy, actor.memory))))
    halves = [run(part) for part in ([array[:1] for array in inputs], [array[1:] for array in inputs])]
    for name, ours, *theirs in zip(deployed.output_names(), expected, *halves, strict=True):
        size = np.maximum(1, np.abs(np.asarray(ours, np.float64)))
        worst = float((np.abs(np.concatenate(theirs, dtype=np.float64) - ours) / size).max())
        if not worst <= TOLERANCE:  # also NaN
            right = f"must be at most {TOLERANCE:g}"
            raise UserError(f"{path}: not written, since its {name} differ by {worst:.1e} from those here; {right}")


def pack_onnx(deployed: Deployed, metadata: dict[str, str]) -> bytes:
    """The policy as an ONNX model in one file."""
    with quiet():
        program = torch.onnx.export(
            deployed,
            _tensors(deployed),
            dynamo=True,
            opset_version=OPSET,
            input_names=deployed.input_names(),
            output_names=deployed.output_names(),
            dynamic_shapes=_dynamic(deployed),
            external_data=False,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(metadata)
    data: bytes = program.model_proto.SerializeToString()
    return data


def load_onnx(data: bytes, *, masked: bool) -> Run:
    """Runs it by onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return lambda inputs: session.run(None, dict(zip(names, inputs, strict=True)))


def pack_pt2(deployed: Deployed, metadata: dict[str, str]) -> bytes:
    """The policy as `torch.export.save` writes it; its metadata is the extra file metadata.json."""
    file = io.BytesIO()
    with quiet():
        program = torch.export.export(deployed, _tensors(deployed), dynamic_shapes=_dynamic(deployed))
        torch.export.save(program, file, extra_files={"metadata.json": json.dumps(metadata)})
    return file.getvalue()


def load_pt2(data: bytes, *, masked: bool) -> Run:
    """Runs it without the classes of this package."""
    module = torch.export.load(io.BytesIO(data)).module()
    return lambda inputs: [leaf.numpy() for leaf in tree.leaves(module(*map(torch.from_numpy, inputs)))]


def pack_safetensors(deployed: Deployed, metadata: dict[str, str]) -> bytes:
    """The agent's state dict; spaces and network in the metadata say what it is the state of."""
    from safetensors.torch import save

    state = {name: tensor.contiguous() for name, tensor in deployed.agent.state_dict().items()}
    data: bytes = save(state, metadata)
    return data


def agent_in(data: bytes) -> Agent:
    """The agent of a .safetensors file, which is made anew from the file alone."""
    from safetensors import torch as in_tensors

    size = int.from_bytes(data[:8], "little")  # of the header, in JSON
    metadata = json.loads(data[8 : 8 + size])["__metadata__"]
    spaces, network = (_tuples(json.loads(metadata[name])) for name in ("spaces", "network"))
    agent = Agent(Spaces.from_dict(spaces), Network(**network))
    agent.load_state_dict(in_tensors.load(data))
    return agent


def load_safetensors(data: bytes, *, masked: bool) -> Run:
    """Runs the agent of the file."""
    deployed = Deployed(agent_in(data), masked=masked)

    def run(inputs: Arrays) -> Arrays:
        with torch.no_grad():
            return [leaf.numpy() for leaf in tree.leaves(deployed(*map(torch.from_numpy, inputs)))]

    return run


FORMATS: Mapping[str, Format] = {
    ".onnx": Format(("onnx", "onnxscript", "onnxruntime"), pack_onnx, load_onnx),
    ".pt2": Format((), pack_pt2, load_pt2),
    ".safetensors": Format(("safetensors",), pack_safetensors, load_safetensors),
}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences what torch tells developers while it exports."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _tensors(deployed: Deployed) -> tuple[Tensor, ...]:
    return tuple(map(torch.from_numpy, deployed.random_inputs(NUM_TRIED, np.random.default_rng(0))))


def _dynamic(deployed: Deployed) -> dict[str, Any]:
    """Says that the number of rows may be any."""
    rows = {0: torch.export.Dim("N")}
    return {"inputs": tuple(rows for _ in deployed.input_names())}


def _tuples(value: Any) -> Any:
    """JSON's lists as tuples."""
    if isinstance(value, Mapping):
        return {name: _tuples(part) for name, part in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
