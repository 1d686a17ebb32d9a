"""What a run's next update depends on, gathered from all ranks into a checkpoint, and given back to them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rl.dist.ranks import Ranks
from rl.errors import CheckpointError, UserError, one_line
from rl.run.checkpoint import MISFITS, check_finite, from_bytes, to_bytes


class Stateful(Protocol):
    """Whatever has a state."""

    def state_dict(self) -> Any:
        """The state, of types that `torch.load` reads without executing anything."""

    def load_state_dict(self, state: Any, /) -> Any:
        """Puts it back."""


class InPlace:
    """Tensors by name as a state, put back without making new ones: others have views of them."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """The tensors themselves."""
        self.tensors = tensors

    def state_dict(self) -> dict[str, Tensor]:
        """Copies on the CPU."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self.tensors.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copies the values back."""
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(state[name])


def learning(policy: nn.Module, weights: Tensor, optimizer: torch.optim.Optimizer, scaler: Any) -> dict[str, Stateful]:
    """What all ranks that learn have alike: the agent, Adam's moments of its vector of weights, and a loss scaler."""
    parts: dict[str, Stateful] = {"agent": policy, "optimizer": InPlace(optimizer.state[weights])}
    return parts if scaler is None else parts | {"scaler": scaler}


@dataclass
class State:
    """The parts of a rank's state by name: what is its own, and what all ranks that learn have alike."""

    own: dict[str, Stateful]
    shared: dict[str, Stateful] = field(default_factory=dict)
    replicas: Sequence[Tensor] = ()
    """The weights and Adam's moments, which must be the same on all ranks that learn; none on one that does not."""

    def gather(self, everyone: Ranks, *, leads: bool) -> list[Tensor]:
        """All ranks' states as bytes, on rank 0; `leads` says that this rank gives what all have alike."""
        state = {"own": {name: on_cpu(part.state_dict()) for name, part in self.own.items()}}
        if leads and self.shared:
            state["shared"] = {name: on_cpu(part.state_dict()) for name, part in self.shared.items()}
        return everyone.gather_bytes(to_bytes(state))

    def load(self, parts: Sequence[Tensor], everyone: Ranks) -> None:
        """Gives this rank its part of what `gather` gave, dealt anew if there were other ranks.

        Raises:
            CheckpointError: What ranks kept for themselves fits no other number of them, or is none of this program's.
        """
        try:
            self._load(parts, everyone)
        except UserError:
            raise
        except MISFITS as error:
            raise CheckpointError(
                f"--resume: the checkpoint is none of this program: {one_line(repr(error))}"
            ) from None

    def _load(self, parts: Sequence[Tensor], everyone: Ranks) -> None:
        states = [from_bytes(part) for part in parts]
        shared = next(state["shared"] for state in states if "shared" in state)
        check_finite(shared)
        for name, part in self.shared.items():
            if shared.get(name):  # a loss scaler that is not used has no state
                part.load_state_dict(shared[name])
        if len(parts) == everyone.size:
            for name, part in self.own.items():
                part.load_state_dict(states[everyone.rank]["own"][name])
            return
        if any(state["own"].get("learner") for state in states):
            raise CheckpointError(
                f"--resume: the run's {len(parts)} ranks have a replay buffer each, which are not dealt to"
                f" {everyone.size}; start {len(parts)}"
            )
        collectors = [state["own"]["collector"] for state in states if "collector" in state["own"]]
        if "collector" in self.own:
            num_players = everyone.size if self.shared else 1  # who plays and does not learn is the only player
            self.own["collector"].load_state_dict(dealt(collectors, everyone.rank, num_players))
        for name in self.own.keys() & {"run", "exchange", "policy"}:
            kept = dict(states[0]["own"][name])
            kept.pop("averages", None)  # of what each rank has recorded since the last log
            self.own[name].load_state_dict(kept)


def on_cpu(state: Any) -> Any:
    """Nested dictionaries with their tensors on the CPU."""
    if isinstance(state, Tensor):
        return state.detach().cpu()
    return {name: on_cpu(value) for name, value in state.items()} if isinstance(state, Mapping) else state


def dealt(collectors: Sequence[Mapping[str, Any]], rank: int, num_ranks: int) -> dict[str, Any]:
    """The collector's state of one of `num_ranks`, from those that another number of ranks had."""
    if len(collectors) == num_ranks:
        return dict(collectors[rank])
    envs: dict[str, Any] = {}
    for name, first in collectors[0]["envs"].items():
        if name == "snapshot":
            continue  # of a batch, which cannot be cut
        parts = [collector["envs"][name] for collector in collectors]
        whole = torch.cat(parts) if isinstance(first, Tensor) else [value for part in parts for value in part]
        each = len(whole) // num_ranks
        envs[name] = whole[rank * each : (rank + 1) * each]
    return {"num_steps": collectors[0]["num_steps"], "envs": envs}
