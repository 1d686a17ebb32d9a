"""`rl export`: a trained policy as a file for other programs."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import tyro
from torch import Tensor

from rl.commands.of_run import OfRun, described, read, trained
from rl.envs.config import EnvConfig
from rl.envs.make import make_envs
from rl.errors import UserError
from rl.reporting import note
from rl.run.export import NUM_TRIED, TOLERANCE, format_of, write_policy


@dataclass(frozen=True)
class Export(OfRun):
    """Writes the greedy policy with everything that is inside it: normalization, bounds, one-hot vectors."""

    to: tyro.conf.Positional[Path]
    """The file: .onnx, .pt2 (torch.export) or .safetensors (the weights alone)."""
    action_mask: bool = False
    """Add an input action_mask (bool), one for each alternative, for an environment that has action masks."""


def gives_masks(config: EnvConfig) -> bool:
    """Whether an environment gives action masks; not, if it cannot be made here."""
    try:
        with closing(make_envs(config.for_evaluation(1))) as envs:
            envs.reset(0)
            return isinstance(envs.mask, Tensor)
    except UserError:
        return False


def command(words: Sequence[str]) -> None:
    """Writes the file, and prints its inputs and outputs."""
    flags = read(Export, "export", words)
    to = flags.to.expanduser()
    format_of(to)
    policy = trained(flags)
    if not flags.action_mask and policy.agent.spaces.actions.sizes and gives_masks(policy.env):
        note(f"{policy.env.env_id} has action masks, and the file takes none; --action-mask adds an input for them")
    deployed = write_policy(policy.agent.float(), policy.content, to, masked=flags.action_mask)
    print(described(policy))
    print(f"  {to}: {', '.join(deployed.input_names())} -> {', '.join(deployed.output_names())}")
    print(f"  acts as here on {NUM_TRIED} random observations, within {TOLERANCE:g}")
