"""Collects rollouts: the experience of N environments over T steps."""

import functools
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rl import tree
from rl.compile import Execution
from rl.dist.launch import rank
from rl.envs.masks import Mask
from rl.envs.observations import Obs
from rl.envs.tensor_envs import EnvState, TensorEnvs
from rl.envs.types import Envs, Step
from rl.models.agent import Agent, Policy, call_with, weight_vector
from rl.seeding import ACTION, Noise


class Rollout(NamedTuple):
    """T steps of N environments; every field is [T, N, ...], or [N, ...] for a single step."""

    obs: Obs  # [T, N, ...], a tensor or a dict of them
    next_obs: Obs | None  # [T, N, ...], where the action led; None where nobody needs them, since they may be large
    action: Tensor  # [T, N] int64, or [T, N, C] int64 or float32, as sampled, before the environment's bounds
    log_prob: Tensor  # [T, N] float32, of the action under the policy that took it
    value: Tensor  # [T, N] float32, of obs
    next_value: Tensor  # [T, N] float32, of next_obs
    reward: Tensor  # [T, N] float32
    terminated: Tensor  # [T, N] bool
    truncated: Tensor  # [T, N] bool
    weight: Tensor  # [T, N] float32, 0 for a row that no loss may see, else 1
    episode_return: Tensor  # [T, N] float32, of the episode that ended here, else 0
    episode_length: Tensor  # [T, N] float32, likewise
    mask: Mask = ()  # [T, N, ΣA] bool, the legal actions at obs; () if all are, in all states


class Decision(NamedTuple):
    """What the policy decides at observations [N, ...]."""

    action: Tensor  # [N] int64, or [N, C] int64 or float32
    log_prob: Tensor  # [N] float32
    value: Tensor  # [N] float32


def decide(policy: Policy, obs: Obs, mask: Mask, noise: Tensor) -> Decision:
    """Samples legal actions at observations [N, ...] from uniform noise [N, ...]."""
    distribution, value = policy(obs, mask)
    action = distribution.sample(noise)
    return Decision(action, distribution.log_prob(action), value)


def row(obs: Obs, mask: Mask, decision: Decision, step: Step) -> Rollout:
    """One step [N, ...] of a rollout; `next_value` is a placeholder until the rollout is complete."""
    return Rollout(**(step._asdict() | decision._asdict() | {"obs": obs, "mask": mask, "next_value": decision.value}))


class Collector:
    """Collects rollouts from N environments; each continues where the last one ended."""

    def __init__(
        self, envs: Envs, policy: Agent, *, seed: int, first_env: int, execution: Execution, keeps_next_obs: bool
    ) -> None:
        """Starts an episode in every environment; `first_env` counts environments over all ranks."""
        self.envs = envs
        self.has_images = envs.spaces.has_images()
        self.keeps_next_obs = keeps_next_obs
        self.policy = policy
        self.noise = Noise(seed, ACTION, first_env, envs.num_envs, envs.spaces.actions.noise_size, envs.device)
        self.num_steps = torch.zeros((), dtype=torch.int64, device=envs.device)
        self.num_played = 0
        self.obs = envs.reset(seed, first_env)
        self.discounted_return = torch.zeros(envs.num_envs, dtype=torch.float64, device=envs.device)
        self.decide = execution.step(functools.partial(decide, policy))

    def restart(self) -> None:
        """Starts a new episode in every environment, also where the current one has not ended."""
        self.obs = self.envs.restart()
        self.discounted_return.zero_()

    def collect(self, num_steps: int) -> Rollout:
        """The rollout [T, N, ...] of the next T steps."""
        rows: list[Rollout] = []
        finals, num_ignored = [], self.envs.num_ignored
        rollout: Rollout | None = None
        for t, noise in enumerate(self.noise.at(self.num_steps, num_steps)):
            mask = self.envs.mask
            decision = self.decide(self.obs, mask, noise)
            step = self.envs.step(decision.action)
            if not self.keeps_next_obs:
                finals.append(tree.index(step.next_obs, step.terminated | step.truncated))
                step = step._replace(next_obs=None)  # type: ignore[arg-type]
            now = row(self.obs, mask, decision, step)
            self.obs = step.obs
            if self.has_images:
                # Stacked at the end, frames would lie in memory twice; and small tensors that are kept until then,
                # between large ones that are not, make holes that glibc fills no more (2 GB for 64 × 128 of Atari's).
                rollout = tree.space_for(now, num_steps) if rollout is None else rollout
                tree.put(rollout, t, now)
            else:
                rows.append(now)  # stacking is faster
        self.num_steps = self.num_steps + num_steps
        self.num_played += num_steps * self.envs.num_envs - (self.envs.num_ignored - num_ignored)
        rollout = tree.stack(rows) if rollout is None else rollout
        ended = rollout.terminated | rollout.truncated
        final_obs = tree.index(rollout.next_obs, ended) if self.keeps_next_obs else tree.cat(finals)
        return rollout._replace(next_value=self._next_value(rollout, ended, final_obs))

    def _next_value(self, rollout: Rollout, ended: Tensor, final_obs: Any) -> Tensor:
        """The values [T, N] of where actions led: those of the next step, unless an episode or the rollout ends."""
        next_value = torch.cat([rollout.value[1:], self.policy(self.obs)[1][None]])
        if bool(ended.any()):
            next_value[ended] = self.policy(final_obs)[1]
        return next_value

    def state_dict(self) -> dict[str, Any]:
        obs = tree.map(Tensor.cpu, self.obs)
        envs = {"obs": obs, "discounted_return": self.discounted_return.cpu(), **self.envs.state_dict()}
        return {"num_steps": int(self.num_steps), "envs": envs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the environments; prints a note if observations differ from the saved ones."""
        self.num_steps.fill_(state["num_steps"])
        saved = tree.map(lambda part: part.to(self.envs.device), state["envs"]["obs"])
        if (had := _form(saved)) != (has := _form(self.obs)):
            raise ValueError(f"observations {had} instead of {has}")
        obs = self.envs.load_state_dict(state["envs"], state["num_steps"])
        self.obs = saved if obs is None else obs
        parts = zip(tree.leaves(self.obs), tree.leaves(saved), strict=True)
        changed = torch.stack([(now != before).reshape(len(now), -1).any(-1) for now, before in parts]).any(0)
        self.discounted_return.copy_(discounted_return_in(state) * ~changed)
        if num_changed := int(changed.sum()):
            print(
                f"note: {num_changed} of {self.envs.num_envs} environments of rank {rank()} could not be restored:"
                " the resumed run is statistically like the uninterrupted one, but not bit-exact",
                file=sys.stderr,
            )


class TensorCollector:
    """A `Collector` of tensor environments: a rollout is one function of tensors, which can be compiled as a whole."""

    def __init__(
        self, envs: TensorEnvs, policy: Agent, *, seed: int, first_env: int, execution: Execution, keeps_next_obs: bool
    ) -> None:
        """Starts an episode in every environment; `first_env` counts environments over all ranks."""
        self.envs = envs
        self.keeps_next_obs = keeps_next_obs
        self.policy = policy
        self.noise = Noise(seed, ACTION, first_env, envs.num_envs, envs.spaces.actions.noise_size, envs.device)
        self.num_steps = torch.zeros((), dtype=torch.int64, device=envs.device)
        self.num_played = 0
        envs.reset(seed, first_env)
        self.discounted_return = torch.zeros(envs.num_envs, dtype=torch.float64, device=envs.device)
        self.play_step = execution.part(self._play_step)
        self.play = execution.loop(self._play)

    def restart(self) -> None:
        """Starts a new episode in every environment, also where the current one has not ended."""
        self.envs.state = self.envs.start(self.num_steps)
        self.discounted_return.zero_()

    def collect(self, num_steps: int) -> Rollout:
        """The rollout [T, N, ...] of the next T steps."""
        self.num_steps, self.envs.state, rollout = self.play(self.num_steps, self.envs.state, num_steps)
        self.num_played += num_steps * self.envs.num_envs
        return rollout

    def _play(self, first_step: Tensor, state: EnvState, num_steps: int) -> tuple[Tensor, EnvState, Rollout]:
        policy: Policy = self.policy
        if torch.compiler.is_compiling():  # a compiled loop accepts no weights that are views of one vector
            policy = functools.partial(call_with, self.policy, weight_vector(self.policy))
        noise = (self.noise.at(first_step, num_steps), *self.envs.draw(first_step, num_steps))
        after, rollout = tree.scan(functools.partial(self.play_step, policy), state, noise, Rollout)
        if not self.keeps_next_obs:
            rollout = rollout._replace(next_obs=None)
        else:
            _, next_value = policy(rollout.next_obs)  # at all steps: a compiled function must keep its shapes
            rollout = rollout._replace(next_value=next_value)
        return first_step + num_steps, after, rollout

    def _play_step(
        self, policy: Policy, before: EnvState, noise: Tensor, *env_noise: Tensor
    ) -> tuple[EnvState, Rollout]:
        obs = self.envs.observe(before)
        mask = self.envs.legal(before)
        decision = decide(policy, obs, mask, noise)
        after, step = self.envs.advance(before, decision.action, *env_noise)
        if self.keeps_next_obs:
            return after, row(obs, mask, decision, step)
        _, next_value = policy(step.next_obs)
        # Not None, which a compiled loop could not return.
        return after, row(obs, mask, decision, step)._replace(next_obs=(), next_value=next_value)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        envs = {"discounted_return": self.discounted_return.cpu(), **self.envs.state_dict()}
        return {"num_steps": int(self.num_steps), "envs": envs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.num_steps.fill_(state["num_steps"])
        self.envs.load_state_dict(state["envs"], state["num_steps"])
        self.discounted_return.copy_(discounted_return_in(state))


def _form(obs: Obs) -> Any:
    """The keys, shapes and dtypes of observations."""
    return tree.map(lambda part: (tuple(part.shape), str(part.dtype)), obs)


def discounted_return_in(state: Mapping[str, Any]) -> Tensor:
    """The discounted returns [N] in a collector's state; 0 in one of an earlier version."""
    return torch.as_tensor(state["envs"].get("discounted_return", 0.0))


AnyCollector = Collector | TensorCollector


def make_collector(
    envs: Envs,
    policy: Agent,
    *,
    seed: int,
    first_env: int = 0,
    execution: Execution | None = None,
    keeps_next_obs: bool = True,
) -> AnyCollector:
    """The collector for these environments; eager unless an execution says otherwise."""
    kind: Any = TensorCollector if isinstance(envs, TensorEnvs) else Collector
    execution = execution or Execution()
    collector: AnyCollector = kind(
        envs, policy, seed=seed, first_env=first_env, execution=execution, keeps_next_obs=keeps_next_obs
    )
    return collector
