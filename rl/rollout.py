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
from rl.models.memory import Memory, Past, forgotten, given
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
    memory: Memory = ()  # [T, N, M] float32, what the policy remembers before obs; () if it has no memory

    @property
    def past(self) -> Past:
        """Memory before each step, and the steps [T, N] at which an episode begins; () without memory.

        At the first step none is said to begin: the memory before it has already been reset.
        """
        if not isinstance(self.memory, Tensor):
            return ()
        reset = is_reset(self)
        return self.memory, torch.cat([torch.zeros_like(reset[:1]), reset[:-1]])


class Decision(NamedTuple):
    """What the policy decides at observations [N, ...]."""

    action: Tensor  # [N] int64, or [N, C] int64 or float32
    log_prob: Tensor  # [N] float32
    value: Tensor  # [N] float32
    memory: Memory  # [N, M] float32, with these observations in it


def decide(policy: Policy, obs: Obs, mask: Mask, noise: Tensor, memory: Memory = ()) -> Decision:
    """Samples legal actions at observations [N, ...] from uniform noise [N, ...]."""
    distribution, value, *after = policy(obs, mask, *given(memory))
    action = distribution.sample(noise)
    return Decision(action, distribution.log_prob(action), value, after[0] if after else ())


def row(obs: Obs, mask: Mask, memory: Memory, decision: Decision, step: Step) -> Rollout:
    """One step [N, ...] of a rollout; `next_value` is a placeholder until the rollout is complete."""
    seen = {"obs": obs, "mask": mask, "memory": memory, "next_value": decision.value}
    return Rollout(**(step._asdict() | decision._asdict() | seen))


def is_reset(step: Step | Rollout) -> Tensor:
    """Whether the next observation begins an episode; the loss of a life may be a termination, but ends none."""
    return (step.episode_length > 0) | (step.weight == 0)  # some environments end in one step, and reset in the next


def value_of(policy: Policy, obs: Any, memory: Memory) -> Tensor:
    """The values [...] of observations [..., *shape], given what the policy remembers before them."""
    return policy(obs, (), *given(memory))[1]


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
        self.has_memory = policy.memory is not None
        self.noise = Noise(seed, ACTION, first_env, envs.num_envs, envs.spaces.actions.noise_size, envs.device)
        self.num_steps = torch.zeros((), dtype=torch.int64, device=envs.device)
        self.num_played = 0
        self.obs = envs.reset(seed, first_env)
        self.memory = policy.initial_memory(envs.num_envs)
        self.discounted_return = torch.zeros(envs.num_envs, dtype=torch.float64, device=envs.device)
        self.decide = execution.step(functools.partial(decide, policy))

    def restart(self) -> None:
        """Starts a new episode in every environment, also where the current one has not ended."""
        self.obs = self.envs.restart()
        self.memory = self.policy.initial_memory(self.envs.num_envs)
        self.discounted_return.zero_()

    def collect(self, num_steps: int) -> Rollout:
        """The rollout [T, N, ...] of the next T steps."""
        rows: list[Rollout] = []
        finals, num_ignored = [], self.envs.num_ignored
        rollout: Rollout | None = None
        for t, noise in enumerate(self.noise.at(self.num_steps, num_steps)):
            mask = self.envs.mask
            decision = self.decide(self.obs, mask, noise, self.memory)
            step = self.envs.step(decision.action)
            if not self.keeps_next_obs or self.has_memory:
                finals.append(tree.index((step.next_obs, decision.memory), step.terminated | step.truncated))
            if not self.keeps_next_obs:
                step = step._replace(next_obs=None)  # type: ignore[arg-type]
            now = row(self.obs, mask, self.memory, decision, step)
            self.obs = step.obs
            if isinstance(decision.memory, Tensor):
                self.memory = forgotten(decision.memory, is_reset(step))
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
        final = tree.cat(finals) if finals else (tree.index(rollout.next_obs, ended), ())
        return rollout._replace(next_value=self._next_value(rollout, ended, *final))

    def _next_value(self, rollout: Rollout, ended: Tensor, final_obs: Any, final_memory: Memory) -> Tensor:
        """The values [T, N] of where actions led: those of the next step, unless an episode or the rollout ends."""
        next_value = torch.cat([rollout.value[1:], value_of(self.policy, self.obs, self.memory)[None]])
        if bool(ended.any()):
            next_value[ended] = value_of(self.policy, final_obs, final_memory)
        return next_value

    def state_dict(self) -> dict[str, Any]:
        obs = tree.map(Tensor.cpu, self.obs)
        envs = {"obs": obs, **_kept(self), **self.envs.state_dict()}
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
        _restore(self, state, ~changed)
        if num_changed := int(changed.sum()):
            print(
                f"note: {num_changed} of {self.envs.num_envs} environments of rank {rank()} could not be restored:"
                " the resumed run is statistically like the uninterrupted one, but not bit-exact",
                file=sys.stderr,
            )


class Played(NamedTuple):
    """What N environments and the policy that plays them carry from one step to the next."""

    state: EnvState
    memory: Memory


class TensorCollector:
    """A `Collector` of tensor environments: a rollout is one function of tensors, which can be compiled as a whole."""

    def __init__(
        self, envs: TensorEnvs, policy: Agent, *, seed: int, first_env: int, execution: Execution, keeps_next_obs: bool
    ) -> None:
        """Starts an episode in every environment; `first_env` counts environments over all ranks."""
        self.envs = envs
        self.keeps_next_obs = keeps_next_obs
        self.policy = policy
        self.has_memory = policy.memory is not None
        self.noise = Noise(seed, ACTION, first_env, envs.num_envs, envs.spaces.actions.noise_size, envs.device)
        self.num_steps = torch.zeros((), dtype=torch.int64, device=envs.device)
        self.num_played = 0
        envs.reset(seed, first_env)
        self.memory = policy.initial_memory(envs.num_envs)
        self.discounted_return = torch.zeros(envs.num_envs, dtype=torch.float64, device=envs.device)
        self.play_step = execution.part(self._play_step)
        self.play = execution.loop(self._play)

    def restart(self) -> None:
        """Starts a new episode in every environment, also where the current one has not ended."""
        self.envs.state = self.envs.start(self.num_steps)
        self.memory = self.policy.initial_memory(self.envs.num_envs)
        self.discounted_return.zero_()

    def collect(self, num_steps: int) -> Rollout:
        """The rollout [T, N, ...] of the next T steps."""
        before = Played(self.envs.state, self.memory)
        self.num_steps, (self.envs.state, self.memory), rollout = self.play(self.num_steps, before, num_steps)
        self.num_played += num_steps * self.envs.num_envs
        return rollout

    def _play(self, first_step: Tensor, before: Played, num_steps: int) -> tuple[Tensor, Played, Rollout]:
        policy: Policy = self.policy
        if torch.compiler.is_compiling():  # a compiled loop accepts no weights that are views of one vector
            policy = functools.partial(call_with, self.policy, weight_vector(self.policy))
        noise = (self.noise.at(first_step, num_steps), *self.envs.draw(first_step, num_steps))
        after, rollout = tree.scan(functools.partial(self.play_step, policy), before, noise, Rollout)
        if not self.keeps_next_obs:
            rollout = rollout._replace(next_obs=None)
        elif not self.has_memory:  # at all steps: a compiled function must keep its shapes
            rollout = rollout._replace(next_value=value_of(policy, rollout.next_obs, ()))
        return first_step + num_steps, after, rollout

    def _play_step(self, policy: Policy, before: Played, noise: Tensor, *env_noise: Tensor) -> tuple[Played, Rollout]:
        obs = self.envs.observe(before.state)
        mask = self.envs.legal(before.state)
        decision = decide(policy, obs, mask, noise, before.memory)
        after, step = self.envs.advance(before.state, decision.action, *env_noise)
        now = row(obs, mask, before.memory, decision, step)
        if self.has_memory or not self.keeps_next_obs:
            now = now._replace(next_value=value_of(policy, step.next_obs, decision.memory))
        if not self.keeps_next_obs:
            now = now._replace(next_obs=())  # type: ignore[arg-type]  # not None, which a compiled loop could not return
        memory = forgotten(decision.memory, is_reset(step)) if isinstance(decision.memory, Tensor) else ()
        return Played(after, memory), now

    def state_dict(self) -> dict[str, Any]:
        envs = {**_kept(self), **self.envs.state_dict()}
        return {"num_steps": int(self.num_steps), "envs": envs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.num_steps.fill_(state["num_steps"])
        self.envs.load_state_dict(state["envs"], state["num_steps"])
        _restore(self, state, torch.ones(self.envs.num_envs, dtype=torch.bool, device=self.envs.device))


def _form(obs: Obs) -> Any:
    """The keys, shapes and dtypes of observations."""
    return tree.map(lambda part: (tuple(part.shape), str(part.dtype)), obs)


AnyCollector = Collector | TensorCollector


def _kept(collector: AnyCollector) -> dict[str, Tensor]:
    """What a collector keeps of the episodes that its environments are in, on the CPU."""
    kept = {"discounted_return": collector.discounted_return.cpu()}
    return kept | {"memory": collector.memory.cpu()} if isinstance(collector.memory, Tensor) else kept


def _restore(collector: AnyCollector, state: Mapping[str, Any], goes_on: Tensor) -> None:
    """Restores what `_kept` returned where episodes go on [N]; an earlier version kept no discounted returns."""
    before = torch.as_tensor(state["envs"].get("discounted_return", 0.0))
    collector.discounted_return.copy_(before.to(goes_on.device) * goes_on)
    if isinstance(collector.memory, Tensor):
        collector.memory = forgotten(state["envs"]["memory"].to(goes_on.device), ~goes_on)


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
