"""What an update records: averages over updates and ranks, and checks that all numbers are finite."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from rl import tree
from rl.dist.ranks import Ranks
from rl.errors import EnvError, NumericError
from rl.models.agent import Agent, bounded
from rl.rollout import Rollout

MIN_LOSS_SCALE = 2.0**-10  # fp16 has then overflowed in 26 steps in a row
FIRST = (
    "Rewards/rew_avg",
    "Rewards/rew_min",
    "Rewards/rew_max",
    "Rewards/last_100_episodes",
    "Game/ep_len_avg",
)
"""The tags that come first in a log."""
ADVICE = "try a lower --learning-rate, or smaller rewards"


class Averages:
    """Means over the records of some updates and over all ranks; tensors stay on `device` until the means are taken."""

    def __init__(
        self, device: torch.device, sum_over_ranks: Callable[[Tensor], Tensor], ranks: Ranks | None = None
    ) -> None:
        """`ranks` are those that are summed over; by default this one alone."""
        self.device = device
        self.sum_over_ranks = sum_over_ranks
        self.ranks = ranks or Ranks()
        self.records: dict[tuple[str, ...], list[tuple[Tensor | float, ...]]] = {}
        self.range = self._no_range()

    def add(self, metrics: Mapping[str, Tensor | float], count: Tensor | float = 1.0) -> None:
        """Adds sums over `count` items; every rank must add the same names. A `Count/…` is summed, not averaged."""
        self.records.setdefault(tuple(metrics), []).append((count, *metrics.values()))

    def add_episodes(self, episode_return: Tensor, ended: Tensor) -> None:
        """Adds the returns [...] of the episodes that ended to the range of returns."""
        low, high = (torch.where(ended, values, math.inf).amin() for values in (episode_return, -episode_return))
        self.range = torch.minimum(self.range, torch.stack([low, high]))

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the duration of the block as `Time/<name>_seconds`."""
        began_at = time.perf_counter()
        yield
        self.add({f"Time/{name}_seconds": time.perf_counter() - began_at})

    def take(self) -> dict[str, float]:
        """The means since the last call, except means over nothing; one reduction and one transfer to the host."""
        # A sum cannot find a smallest number, so each rank's are at places of their own, where others add 0.
        ranges = torch.zeros(self.ranks.size, 2, dtype=torch.float64, device=self.device)
        ranges[self.ranks.rank] = self.range
        totals = torch.cat([*(self._total(records) for records in self.records.values()), ranges.flatten()])
        values = iter(self.sum_over_ranks(totals).tolist())
        means: dict[str, float] = {}
        for names in self.records:
            count = next(values)
            sums = {name: next(values) for name in names}
            counts = {name: total for name, total in sums.items() if name.startswith("Count/")}
            means |= counts
            if count > 0:
                means |= {name: total / count for name, total in sums.items() if name not in counts}
        lows_and_highs = list(values)
        low, high = min(lows_and_highs[::2]), -min(lows_and_highs[1::2])
        if low <= high:  # an episode has ended
            means |= {"Rewards/rew_min": low, "Rewards/rew_max": high}
        self.records, self.range = {}, self._no_range()
        return means

    def _no_range(self) -> Tensor:
        """The smallest return and minus the largest [2], of no episode."""
        return torch.full((2,), math.inf, device=self.device)

    def state_dict(self) -> dict[str, Any]:
        """The records since the last `take`, not their sums, so that a resumed run logs the same bits."""
        return {
            "names": [list(names) for names in self.records],
            "records": [[_columns(column) for column in zip(*rows, strict=True)] for rows in self.records.values()],
            "range": self.range.cpu(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.records = {
            tuple(names): list(zip(*(self._column(column) for column in columns), strict=True))
            for names, columns in zip(state["names"], state["records"], strict=True)
        }
        self.range.copy_(state.get("range", self.range))  # a checkpoint of before has none

    def _column(self, column: Tensor | list[float]) -> list[Tensor] | list[float]:
        return list(column.to(self.device).unbind()) if isinstance(column, Tensor) else column

    def _total(self, records: list[tuple[Tensor | float, ...]]) -> Tensor:
        """Sums (float64) of records with the same names; one operation for all tensors of a name."""
        columns = (
            torch.stack([value for value in column if isinstance(value, Tensor)])
            if isinstance(column[0], Tensor)
            else torch.tensor(column, device=self.device)
            for column in zip(*records, strict=True)
        )
        return torch.stack([column.double().sum() for column in columns])


def in_order(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics with returns and lengths of episodes first."""
    return {tag: metrics[tag] for tag in FIRST if tag in metrics} | {**metrics}


def action_metrics(agent: Agent) -> dict[str, float]:
    """The standard deviation of real-valued actions, their mean, before any tanh; nothing without such actions."""
    if agent.log_std is None:
        return {}
    return {"Info/action_std": bounded(agent.log_std.detach().float()).exp().mean().item()}


def _columns(column: tuple[Tensor | float, ...]) -> Tensor | list[Tensor | float]:
    """One name's values, all tensors or all numbers, in a form that `torch.save` keeps small."""
    tensors = [value for value in column if isinstance(value, Tensor)]
    return torch.stack(tensors).cpu() if tensors else list(column)


class Finite:
    """Checks rollouts, losses and gradients for NaN and infinity, without waiting for the device before a log point."""

    def __init__(self, env_id: str, ranks: Ranks, device: torch.device) -> None:
        self.env_id = env_id
        self.ranks = ranks
        self.num_steps, self.num_envs = 0, 1
        self.masked = False  # whether the environments have action masks
        self.first_bad = torch.full((), -1, dtype=torch.int64, device=device)  # step · N + environment

    def state_dict(self) -> dict[str, Any]:
        return {"num_steps": self.num_steps, "num_envs": self.num_envs, "first_bad": self.first_bad.cpu()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.num_steps, self.num_envs = state["num_steps"], state["num_envs"]
        self.first_bad.copy_(state["first_bad"])

    def look(self, rollout: Rollout) -> dict[str, Tensor]:
        """Counts the rows whose observation or reward is not finite, or that allow no action; remembers the first."""
        self.masked = isinstance(rollout.mask, Tensor)
        if rollout.reward.device.type == "cpu" and not self.masked:
            fields = tree.leaves((rollout.next_obs, rollout.obs, rollout.reward))
            sums = (field.sum(dtype=torch.float64).item() for field in fields if field.is_floating_point())
            if math.isfinite(sum(sums)):  # then every term is
                self.num_steps += len(rollout.reward)
                self.num_envs = rollout.reward.shape[1]
                return {"Count/bad_rows": torch.zeros(())}
        good = rollout.reward.isfinite()
        for field in tree.leaves((rollout.next_obs, rollout.obs)):
            if field.is_floating_point():
                good = good & field.isfinite().reshape(*good.shape, -1).all(-1)
        if isinstance(rollout.mask, Tensor):
            good = good & rollout.mask.any(-1)
        bad = ~good.flatten()
        row = self.num_steps * good.shape[1] + bad.int().argmax()
        self.first_bad = torch.where((self.first_bad < 0) & bad.any(), row, self.first_bad)
        self.num_steps += good.shape[0]
        self.num_envs = good.shape[1]
        return {"Count/bad_rows": bad.sum()}

    def check(self, metrics: Mapping[str, float], update: int) -> None:
        """Checks the means of some updates.

        Raises:
            EnvError: An observation or a reward was not finite, on any rank.
            NumericError: A loss or a gradient was not finite, or fp16 overflows at any loss scale.
        """
        if metrics["Count/bad_rows"] > 0:
            places = torch.zeros(self.ranks.size, dtype=torch.int64, device=self.first_bad.device)
            places[self.ranks.rank] = self.first_bad + 1
            by_rank = self.ranks.sum(places).tolist()
            bad_rank = next(rank for rank, place in enumerate(by_rank) if place > 0)
            step, env = divmod(by_rank[bad_rank] - 1, self.num_envs)
            no_action = ", or an action_mask without a legal action," if self.masked else ""
            raise EnvError(
                f"--env-id {self.env_id}: environment {env} of rank {bad_rank} returned an observation or a reward that"
                f" is not finite{no_action} at its step {step + 1:,}; must be finite numbers. The weights have not seen"
                " it"
            )
        for name, value in metrics.items():
            if name.startswith("Loss/") and not math.isfinite(value):
                raise NumericError(f"{name} is {value} in update {update:,} or just before it; {ADVICE}")
        norm = metrics.get("Info/grad_norm", 0.0)
        if not math.isfinite(norm):
            raise NumericError(f"the gradient's norm is {norm} in update {update:,} or just before it; {ADVICE}")
        scale = metrics.get("Info/loss_scale", 1.0)
        if scale < MIN_LOSS_SCALE:
            raise NumericError(
                f"--precision 16-mixed: gradients still overflow at a loss scale of {scale:.2g}; try bf16-mixed"
            )
