"""Stops a run on numbers that are not finite, and says which and where; weights never see them."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rl.dist.ranks import Ranks
from rl.errors import EnvError, NumericError
from rl.rollout import Rollout

MIN_LOSS_SCALE = 2.0**-10  # fp16 has then overflowed in 26 steps in a row


class Finite:
    """Looks at all that is learned from, without waiting for the device, and remembers where something was wrong."""

    def __init__(self, env_id: str, ranks: Ranks, device: torch.device) -> None:
        """`device` is that of the rollouts."""
        self.env_id = env_id
        self.ranks = ranks
        self.num_steps, self.num_envs = 0, 1
        self.first_bad = torch.full((), -1, dtype=torch.int64, device=device)  # step · N + environment

    def state_dict(self) -> dict[str, Any]:
        """What was seen so far."""
        return {"num_steps": self.num_steps, "num_envs": self.num_envs, "first_bad": self.first_bad.cpu()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there."""
        self.num_steps, self.num_envs = state["num_steps"], state["num_envs"]
        self.first_bad.copy_(state["first_bad"])

    def look(self, rollout: Rollout) -> dict[str, Tensor]:
        """How many rows of a rollout hold an observation or a reward that is not finite."""
        if rollout.reward.device.type == "cpu":
            fields = (rollout.next_obs, rollout.obs, rollout.reward)
            if math.isfinite(sum(field.sum(dtype=torch.float64).item() for field in fields)):  # as it is as a rule
                self.num_steps += len(rollout.reward)
                self.num_envs = rollout.reward.shape[1]
                return {"Count/bad_rows": torch.zeros(())}
        good = rollout.next_obs.isfinite().all(-1) & rollout.obs.isfinite().all(-1) & rollout.reward.isfinite()
        bad = ~good.flatten()
        row = self.num_steps * good.shape[1] + bad.int().argmax()
        self.first_bad = torch.where((self.first_bad < 0) & bad.any(), row, self.first_bad)
        self.num_steps += good.shape[0]
        self.num_envs = good.shape[1]
        return {"Count/bad_rows": bad.sum()}

    def check(self, metrics: Mapping[str, float], update: int) -> None:
        """Raises on all ranks if what an update recorded is not finite on one of them."""
        if metrics["Count/bad_rows"] > 0:
            places = torch.zeros(self.ranks.size, dtype=torch.int64, device=self.first_bad.device)
            places[self.ranks.rank] = self.first_bad + 1
            by_rank = self.ranks.sum(places).tolist()
            bad_rank = next(rank for rank, place in enumerate(by_rank) if place > 0)
            step, env = divmod(by_rank[bad_rank] - 1, self.num_envs)
            raise EnvError(
                f"--env-id {self.env_id}: environment {env} of rank {bad_rank} gave an observation or a reward that is"
                f" not finite at its step {step + 1:,}; must be finite numbers. The weights have not seen it"
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


ADVICE = "try a lower --learning-rate, or smaller rewards"
