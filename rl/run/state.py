"""The state that a run's next update depends on: gathered from all ranks into a checkpoint, and restored on them.

A rank has state of its own (environments, generators, counts, a replay buffer). What the ranks that learn have in
common (agent, optimizer, loss scaler) is stored once. On resume every rank reads all ranks' states: it restores the
common one and its own or, with another number of ranks, its part of all environments.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rl import tree
from rl.dist.ranks import Ranks
from rl.errors import CheckpointError
from rl.run.checkpoint import check_finite, from_bytes, refused, to_bytes


class Stateful(Protocol):
    """A part of a rank's state, of types that `torch.load` reads without executing anything."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any, /) -> Any: ...


class InPlace:
    """Tensors by name, restored in place, since others have views of them."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors

    def state_dict(self) -> dict[str, Tensor]:
        return {name: tensor.detach().cpu().clone() for name, tensor in self.tensors.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(state[name])


def learning(policy: nn.Module, weights: Tensor, optimizer: torch.optim.Optimizer, scaler: Any) -> dict[str, Stateful]:
    """What all ranks that learn have in common: agent, Adam's state for its weights [P], and a loss scaler if any."""
    adam = {"learning_rate": optimizer.param_groups[0]["lr"], **optimizer.state[weights]}
    parts: dict[str, Stateful] = {"agent": policy, "optimizer": InPlace(adam)}
    return parts if scaler is None else parts | {"scaler": scaler}


@dataclass
class State:
    """The parts of a rank's state, by name."""

    own: dict[str, Stateful]
    shared: dict[str, Stateful] = field(default_factory=dict)
    """What all ranks that learn have in common; empty on a rank that does not learn."""
    replicas: Sequence[Tensor] = ()
    """The weights, Adam's state and its learning rate, whose checksum must be the same on all ranks that learn."""

    def gather(self, everyone: Ranks, *, leads: bool) -> list[Tensor]:
        """All ranks' states as bytes, on rank 0; the rank that `leads` adds what all have in common."""
        state = {"own": {name: on_cpu(part.state_dict()) for name, part in self.own.items()}}
        if leads and self.shared:
            state["shared"] = {name: on_cpu(part.state_dict()) for name, part in self.shared.items()}
        return everyone.gather_bytes(to_bytes(state))

    def load(self, parts: Sequence[Tensor], everyone: Ranks) -> None:
        """Restores this rank's part of what `gather` returned, which may be that of another number of ranks.

        Raises:
            CheckpointError: It does not fit this program, or cannot be divided among this number of ranks.
            EnvError: An environment failed while its episode was played again.
        """
        with refused("--resume: the checkpoint does not fit this program"):
            states = [from_bytes(part) for part in parts]
            shared = next(state["shared"] for state in states if "shared" in state)
            check_finite(shared)
            for name, part in self.shared.items():
                if shared.get(name):  # the state of a disabled loss scaler is empty
                    part.load_state_dict(shared[name])
            if len(parts) == everyone.size:
                for name, part in self.own.items():
                    part.load_state_dict(states[everyone.rank]["own"][name])
            else:
                self._load_from_other_ranks([state["own"] for state in states], everyone)

    def _load_from_other_ranks(self, states: Sequence[Mapping[str, Any]], everyone: Ranks) -> None:
        if any(state.get("learner") for state in states):
            raise CheckpointError(
                f"--resume: each of the run's {len(states)} ranks has a replay buffer, and these cannot be divided"
                f" among {everyone.size} ranks; start {len(states)}"
            )
        if "collector" in self.own:
            collectors = [state["collector"] for state in states if "collector" in state]
            num_players = everyone.size if self.shared else 1  # a rank that plays but does not learn is the only player
            self.own["collector"].load_state_dict(divided(collectors, everyone.rank, num_players))
        for name in self.own.keys() & {"run", "exchange", "policy"}:
            kept = dict(states[0][name])
            kept.pop("averages", None)  # the records since the last log belong to a rank
            self.own[name].load_state_dict(kept)


def on_cpu(state: Any) -> Any:
    """Nested dictionaries with their tensors moved to the CPU."""
    if isinstance(state, Tensor):
        return state.detach().cpu()
    return {name: on_cpu(value) for name, value in state.items()} if isinstance(state, Mapping) else state


def divided(collectors: Sequence[Mapping[str, Any]], rank: int, num_ranks: int) -> dict[str, Any]:
    """The collector's state of one of `num_ranks`, given those of another number of ranks with as many environments."""
    if len(collectors) == num_ranks:
        return dict(collectors[rank])
    envs: dict[str, Any] = {}
    for name, first in collectors[0]["envs"].items():
        if name == "snapshot":
            continue  # of a batch of environments, which cannot be cut
        parts = [collector["envs"][name] for collector in collectors]
        if isinstance(first, list):
            whole = [value for part in parts for value in part]
            num_each = len(whole) // num_ranks
            envs[name] = whole[rank * num_each : (rank + 1) * num_each]
        else:
            envs[name] = list(tree.split(tree.cat(parts), num_ranks))[rank]
    return {"num_steps": collectors[0]["num_steps"], "envs": envs}
