"""Writes policies for other programs: ONNX, torch.export's .pt2, or the weights alone as safetensors.

What is exported takes the environment's observations as they are, and gives its actions as it takes them: statistics
that normalize observations, one-hot vectors, bounds and first numbers of choices are inside. Names are rsl_rl's: `obs`
and `actions`; of a Dict, one input or output for each key. Each file is run on random observations before it is kept.
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
from numpy.typing import NDArray
from torch import Tensor, nn

from rl import tree
from rl.envs.actions import Actions, BoxActions, CompositeActions, tensors_for_env
from rl.envs.masks import KEY
from rl.envs.observations import ObsKey, as_tensors
from rl.envs.spaces import Spaces
from rl.errors import FolderError, UserError
from rl.models.agent import Agent, Network
from rl.run.checkpoint import Content, agent_of, read_checkpoint, write_whole
from rl.run.evaluation import act

NUM_TRIED = 100  # observations
TOLERANCE = 1e-5  # of an action, relative to its size where that is above 1
OPSET = 20
Arrays = list[NDArray[Any]]
Run = Callable[[Arrays], Arrays]
"""From the inputs [N, ...] to the outputs [N, ...]."""


class Deployed(nn.Module):
    """An agent as other programs call it: from an environment's observations [N, ...] to its greedy actions."""

    def __init__(self, agent: Agent, *, masked: bool) -> None:
        super().__init__()
        self.agent = agent.requires_grad_(False)
        self.masked = masked
        actions = agent.spaces.actions
        self.leaves = list(actions.leaves()) if isinstance(actions, CompositeActions) else [actions]
        for number, leaf in enumerate(self.leaves):
            if isinstance(leaf, BoxActions) and leaf.dtype == "float64":
                limits = torch.from_numpy(leaf.limits).reshape(2, *(leaf.shape or (-1,)))
                self.register_buffer(f"limits_{number}", limits)

    def forward(self, *inputs: Tensor) -> Any:
        keys = self.agent.spaces.obs
        named = dict(zip((key.name for key in keys), inputs, strict=False))
        obs = as_tensors(keys, named if keys[0].path else inputs[0])
        distribution, _ = self.agent(obs, inputs[-1] if self.masked else ())
        in_env = tree.leaves(tensors_for_env(self.agent.spaces.actions, distribution.mode()))
        actions = tuple(self._within(number, action) for number, action in enumerate(in_env))
        return actions if len(actions) > 1 else actions[0]

    def _within(self, number: int, action: Tensor) -> Tensor:
        """Clips once more what is in float64, since ONNX has bounds that are no tensors in float32."""
        limits = dict(self.named_buffers(recurse=False)).get(f"limits_{number}")
        return action if limits is None else torch.minimum(torch.maximum(action, limits[0]), limits[1])

    def input_names(self) -> list[str]:
        """One for each tensor of an observation, and that of the mask, if there is one."""
        return [*(key.name or "obs" for key in self.agent.spaces.obs), *([KEY] * self.masked)]

    def output_names(self) -> list[str]:
        return list(_names(self.agent.spaces.actions, "actions"))

    def random_inputs(self, generator: np.random.Generator) -> Arrays:
        """Observations as an environment might give them, with everything legal."""
        keys, sizes = self.agent.spaces.obs, self.agent.spaces.actions.sizes
        num_numbers = sum(key.num_features for key in keys if key.dtype == "float32")
        numbers = generator.normal(size=(NUM_TRIED, num_numbers))
        if (normalizer := self.agent.obs_normalizer) is not None:
            numbers = numbers / normalizer.scale.numpy() + normalizer.shift.numpy()
        arrays = []
        for key in keys:
            size = key.num_features if key.dtype == "float32" else 0
            mine, numbers = numbers[:, :size], numbers[:, size:]
            arrays.append(mine.reshape(-1, *key.shape).astype(np.float32) if size else _random(key, generator))
        return [*arrays, np.ones((NUM_TRIED, sum(sizes)), np.bool_)] if self.masked else arrays


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
        own = version("rl")
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
    inputs = deployed.random_inputs(np.random.default_rng(0))
    keys = deployed.agent.spaces.obs
    named = dict(zip((key.name for key in keys), inputs, strict=False))
    mask = inputs[-1] if deployed.masked else None
    expected = list(tree.leaves(act(deployed.agent, named if keys[0].path else inputs[0], mask)))
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
    return tuple(map(torch.from_numpy, deployed.random_inputs(np.random.default_rng(0))))


def _dynamic(deployed: Deployed) -> dict[str, Any]:
    """Says that the number of rows may be any."""
    rows = {0: torch.export.Dim("N")}
    return {"inputs": tuple(rows for _ in deployed.input_names())}


def _names(actions: Actions, path: str) -> Iterator[str]:
    if isinstance(actions, CompositeActions):
        for key, part in zip(actions.keys or range(len(actions.parts)), actions.parts, strict=True):
            yield from _names(part, f"{path}/{key}")
    else:
        yield path


def _random(key: ObsKey, generator: np.random.Generator) -> NDArray[Any]:
    """Choices or bytes, as an environment has them."""
    shape = (NUM_TRIED, *key.shape)
    if key.num_values:
        counts = np.array(key.num_values).reshape(key.shape)
        start = np.array(key.start or 0).reshape(key.shape if key.start else ())
        return np.asarray(generator.integers(0, counts, shape) + start, np.int64)
    return generator.integers(0, int(key.largest), shape, np.uint8, endpoint=True)


def _tuples(value: Any) -> Any:
    """JSON's lists as tuples."""
    if isinstance(value, Mapping):
        return {name: _tuples(part) for name, part in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
