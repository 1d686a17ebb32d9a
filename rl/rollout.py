"""What is collected: the experience of N environments over T steps."""

import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from rl.compile import Execution, scan
from rl.dist.launch import rank
from rl.envs.tensor_envs import EnvState, TensorEnvs
from rl.envs.types import Envs, Step
from rl.models.agent import Agent, Policy, call_with, weight_vector
from rl.seeding import ACTION, Noise

Fields = TypeVar("Fields", bound=tuple[Tensor, ...])  # a NamedTuple of tensors


class Rollout(NamedTuple):
    """T steps of N environments; every field is [T, N, ...], or [N, ...] for a single step."""

    obs: Tensor  # [T, N, D] float32
    next_obs: Tensor  # [T, N, D] float32, where the action truly led: an ended episode's last observation
    action: Tensor  # [T, N] int64 or [T, N, A] float32, as sampled, before any clipping to the environment's bounds
    log_prob: Tensor  # [T, N] float32, of the action under the policy that took it
    value: Tensor  # [T, N] float32, of obs
    reward: Tensor  # [T, N] float32
    terminated: Tensor  # [T, N] bool
    truncated: Tensor  # [T, N] bool
    weight: Tensor  # [T, N] float32, 0 for a row that no loss may see, else 1
    episode_return: Tensor  # [T, N] float32, of the episode that ended here, else 0
    episode_length: Tensor  # [T, N] float32, likewise


class Decision(NamedTuple):
    """What the policy does at observations [N, D]."""

    action: Tensor  # [N] int64 or [N, A] float32
    log_prob: Tensor  # [N] float32
    value: Tensor  # [N] float32


def map_tensors(function: Callable[[Tensor], Tensor], fields: Fields) -> Fields:
    """The NamedTuple with the function applied to every tensor of it."""
    return type(fields)(*map(function, fields))


def decide(policy: Policy, obs: Tensor, noise: Tensor) -> Decision:
    """What the policy does at observations [N, D], given noise [N, ...]."""
    distribution, value = policy(obs)
    action = distribution.sample(noise)
    return Decision(action, distribution.log_prob(action), value)


def unaliased(policy: Agent) -> Policy:
    """The policy for use in a compiled loop, which takes no weights that are views of one vector."""
    if not torch.compiler.is_compiling():
        return policy
    return functools.partial(call_with, policy, weight_vector(policy))


def row(obs: Tensor, decision: Decision, step: Step) -> Rollout:
    """One step [N, ...] of a rollout."""
    return Rollout(**(step._asdict() | decision._asdict() | {"obs": obs}))


class Collector:
    """Plays N environments with a policy, on from where the last rollout ended."""

    def __init__(self, envs: Envs, policy: Agent, *, seed: int, first_env: int, execution: Execution) -> None:
        """Starts an episode in every environment; `first_env` counts environments over all ranks."""
        self.envs = envs
        self.policy = policy
        self.noise = Noise(seed, ACTION, first_env, envs.num_envs, envs.spaces.actions.noise_size, envs.device)
        self.num_steps = torch.zeros((), dtype=torch.int64, device=envs.device)
        self.num_played = 0
        self.obs = envs.reset(seed, first_env)
        self.decide = execution.step(functools.partial(decide, policy))

    def restart(self) -> None:
        """Starts an episode in every environment, whatever became of the last."""
        self.obs = self.envs.restart()

    def state_dict(self) -> dict[str, Any]:
        """Where the environments are, for `torch.save`."""
        return {"num_steps": int(self.num_steps), "envs": {"obs": self.obs.cpu(), **self.envs.state_dict()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there; says so where an environment did not come back to what it showed."""
        self.num_steps.fill_(state["num_steps"])
        saved = state["envs"]["obs"].to(self.envs.device)
        if saved.shape != self.obs.shape:
            raise ValueError(f"observations of shape {tuple(saved.shape)} instead of {tuple(self.obs.shape)}")
        obs = self.envs.load_state_dict(state["envs"], state["num_steps"])
        self.obs = saved if obs is None else obs
        if num_changed := int((self.obs != saved).any(-1).sum()):
            print(
                f"note: {num_changed} of {self.envs.num_envs} environments of rank {rank()} are not where they were:"
                " this run goes on like the first one, and not exactly as it would have",
                file=sys.stderr,
            )

    def collect(self, num_steps: int) -> Rollout:
        """The rollout [T, N, ...] of the next T steps."""
        rows, num_ignored = [], self.envs.num_ignored
        for noise in self.noise.at(self.num_steps, num_steps):
            decision = self.decide(self.obs, noise)
            step = self.envs.step(decision.action)
            rows.append(row(self.obs, decision, step))
            self.obs = step.obs
        self.num_steps = self.num_steps + num_steps
        self.num_played += num_steps * self.envs.num_envs - (self.envs.num_ignored - num_ignored)
        return Rollout(*map(torch.stack, zip(*rows, strict=True)))


class TensorCollector:
    """A `Collector` of tensor environments: a rollout is one function of tensors, without the host in between."""

    def __init__(self, envs: TensorEnvs, policy: Agent, *, seed: int, first_env: int, execution: Execution) -> None:
        """Starts an episode in every environment; `first_env` counts environments over all ranks."""
        self.envs = envs
        self.policy = policy
        self.noise = Noise(seed, ACTION, first_env, envs.num_envs, envs.spaces.actions.noise_size, envs.device)
        self.num_steps = torch.zeros((), dtype=torch.int64, device=envs.device)
        self.num_played = 0
        envs.reset(seed, first_env)
        self.play_step = execution.part(self._play_step)
        self.play = execution.loop(self._play)

    def restart(self) -> None:
        """Starts an episode in every environment, whatever became of the last."""
        self.envs.state = self.envs.start(self.num_steps)

    def state_dict(self) -> dict[str, Any]:
        """Where the environments are, for `torch.save`."""
        return {"num_steps": int(self.num_steps), "envs": self.envs.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there."""
        self.num_steps.fill_(state["num_steps"])
        self.envs.load_state_dict(state["envs"], state["num_steps"])

    def collect(self, num_steps: int) -> Rollout:
        """The rollout [T, N, ...] of the next T steps."""
        self.num_steps, self.envs.state, rollout = self.play(self.num_steps, self.envs.state, num_steps)
        self.num_played += num_steps * self.envs.num_envs
        return rollout

    def _play(self, first_step: Tensor, state: EnvState, num_steps: int) -> tuple[Tensor, EnvState, Rollout]:
        noise = (self.noise.at(first_step, num_steps), *self.envs.draw(first_step, num_steps))
        after, rollout = scan(functools.partial(self.play_step, unaliased(self.policy)), state, noise, Rollout)
        return first_step + num_steps, after, rollout

    def _play_step(
        self, policy: Policy, before: EnvState, noise: Tensor, *env_noise: Tensor
    ) -> tuple[EnvState, Rollout]:
        obs = self.envs.observe(before)
        decision = decide(policy, obs, noise)
        after, step = self.envs.advance(before, decision.action, *env_noise)
        return after, row(obs, decision, step)


AnyCollector = Collector | TensorCollector


def make_collector(
    envs: Envs, policy: Agent, *, seed: int, first_env: int, execution: Execution | None = None
) -> AnyCollector:
    """The collector for these environments; without an execution, it runs as it stands."""
    execution = execution or Execution()
    if isinstance(envs, TensorEnvs):
        return TensorCollector(envs, policy, seed=seed, first_env=first_env, execution=execution)
    return Collector(envs, policy, seed=seed, first_env=first_env, execution=execution)


def collect_episodes(collector: AnyCollector, num_each: int, *, look_every: int, max_steps: int) -> Rollout:
    """The next `num_each` whole episodes of every environment, from fresh starts on: a rollout [T, N, ...].

    As many of each environment as of any other, since the first ones to end among all would be the short ones. What an
    environment does after its last episode weighs 0 and says nothing of episodes, as does all of an episode that has
    not ended after about `max_steps`.
    """
    collector.restart()
    pieces = []
    num_ended = torch.zeros(collector.envs.num_envs, device=collector.envs.device)
    for _ in range(0, max_steps, look_every):
        piece = collector.collect(look_every)
        pieces.append(piece)
        num_ended = num_ended + (piece.terminated | piece.truncated).sum(0)
        if bool((num_ended >= num_each).all()):
            break
    rollout = Rollout(*map(torch.cat, zip(*pieces, strict=True)))
    ended = rollout.terminated | rollout.truncated
    ended_before = ended.cumsum(0) - ended.long()
    whole = (ended_before < num_each) & (ended_before < num_ended)
    return rollout._replace(
        terminated=rollout.terminated & whole,
        truncated=rollout.truncated & whole,
        weight=rollout.weight * whole,
        episode_return=rollout.episode_return * whole,
        episode_length=rollout.episode_length * whole,
    )
