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
from rl.envs.tensor_envs import EnvState, TensorEnvs
from rl.envs.types import Envs, Step
from rl.models.agent import Agent, Policy, call_with, weight_vector
from rl.seeding import ACTION, Noise


class Rollout(NamedTuple):
    """T steps of N environments; every field is [T, N, ...], or [N, ...] for a single step."""

    obs: Tensor  # [T, N, D] float32
    next_obs: Tensor  # [T, N, D] float32, where the action led; the final observation of an episode that ended
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
    """What the policy decides at observations [N, D]."""

    action: Tensor  # [N] int64, or [N, C] int64 or float32
    log_prob: Tensor  # [N] float32
    value: Tensor  # [N] float32


def decide(policy: Policy, obs: Tensor, mask: Mask, noise: Tensor) -> Decision:
    """Samples legal actions at observations [N, D] from uniform noise [N, ...]."""
    distribution, value = policy(obs, mask)
    action = distribution.sample(noise)
    return Decision(action, distribution.log_prob(action), value)


def row(obs: Tensor, mask: Mask, decision: Decision, step: Step) -> Rollout:
    """One step [N, ...] of a rollout; `next_value` is a placeholder until the rollout is complete."""
    return Rollout(**(step._asdict() | decision._asdict() | {"obs": obs, "mask": mask, "next_value": decision.value}))


class Collector:
    """Collects rollouts from N environments; each continues where the last one ended."""

    def __init__(self, envs: Envs, policy: Agent, *, seed: int, first_env: int, execution: Execution) -> None:
        """Starts an episode in every environment; `first_env` counts environments over all ranks."""
        self.envs = envs
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
        rows, num_ignored = [], self.envs.num_ignored
        for noise in self.noise.at(self.num_steps, num_steps):
            mask = self.envs.mask
            decision = self.decide(self.obs, mask, noise)
            step = self.envs.step(decision.action)
            rows.append(row(self.obs, mask, decision, step))
            self.obs = step.obs
        self.num_steps = self.num_steps + num_steps
        self.num_played += num_steps * self.envs.num_envs - (self.envs.num_ignored - num_ignored)
        rollout = tree.stack(rows)
        return rollout._replace(next_value=self._next_value(rollout))

    def _next_value(self, rollout: Rollout) -> Tensor:
        """The values [T, N] of `rollout.next_obs`: those of the next step, unless an episode or the rollout ends."""
        next_value = torch.cat([rollout.value[1:], self.policy(self.obs)[1][None]])
        ended = rollout.terminated | rollout.truncated
        if bool(ended.any()):
            next_value[ended] = self.policy(rollout.next_obs[ended])[1]
        return next_value

    def state_dict(self) -> dict[str, Any]:
        envs = {"obs": self.obs.cpu(), "discounted_return": self.discounted_return.cpu(), **self.envs.state_dict()}
        return {"num_steps": int(self.num_steps), "envs": envs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the environments; prints a note if observations differ from the saved ones."""
        self.num_steps.fill_(state["num_steps"])
        saved = state["envs"]["obs"].to(self.envs.device)
        if saved.shape != self.obs.shape:
            raise ValueError(f"observations of shape {tuple(saved.shape)} instead of {tuple(self.obs.shape)}")
        obs = self.envs.load_state_dict(state["envs"], state["num_steps"])
        self.obs = saved if obs is None else obs
        changed = (self.obs != saved).any(-1)
        self.discounted_return.copy_(discounted_return_in(state) * ~changed)
        if num_changed := int(changed.sum()):
            print(
                f"note: {num_changed} of {self.envs.num_envs} environments of rank {rank()} could not be restored:"
                " the resumed run is statistically like the uninterrupted one, but not bit-exact",
                file=sys.stderr,
            )


class TensorCollector:
    """A `Collector` of tensor environments: a rollout is one function of tensors, which can be compiled as a whole."""

    def __init__(self, envs: TensorEnvs, policy: Agent, *, seed: int, first_env: int, execution: Execution) -> None:
        """Starts an episode in every environment; `first_env` counts environments over all ranks."""
        self.envs = envs
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
        _, next_value = policy(rollout.next_obs)  # at all steps: a compiled function must keep its shapes
        return first_step + num_steps, after, rollout._replace(next_value=next_value)

    def _play_step(
        self, policy: Policy, before: EnvState, noise: Tensor, *env_noise: Tensor
    ) -> tuple[EnvState, Rollout]:
        obs = self.envs.observe(before)
        mask = self.envs.legal(before)
        decision = decide(policy, obs, mask, noise)
        after, step = self.envs.advance(before, decision.action, *env_noise)
        return after, row(obs, mask, decision, step)

    def state_dict(self) -> dict[str, Any]:
        envs = {"discounted_return": self.discounted_return.cpu(), **self.envs.state_dict()}
        return {"num_steps": int(self.num_steps), "envs": envs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.num_steps.fill_(state["num_steps"])
        self.envs.load_state_dict(state["envs"], state["num_steps"])
        self.discounted_return.copy_(discounted_return_in(state))


def discounted_return_in(state: Mapping[str, Any]) -> Tensor:
    """The discounted returns [N] in a collector's state; 0 in one of an earlier version."""
    return torch.as_tensor(state["envs"].get("discounted_return", 0.0))


AnyCollector = Collector | TensorCollector


def make_collector(
    envs: Envs, policy: Agent, *, seed: int, first_env: int, execution: Execution | None = None
) -> AnyCollector:
    """The collector for these environments; eager unless an execution says otherwise."""
    kind: Any = TensorCollector if isinstance(envs, TensorEnvs) else Collector
    collector: AnyCollector = kind(envs, policy, seed=seed, first_env=first_env, execution=execution or Execution())
    return collector
