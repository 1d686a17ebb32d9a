"""Collects rollouts from environments that step on the host, or that are functions of tensors.

A rollout of tensor environments is a function that can be compiled as a whole. In the loop over its steps every
operation takes longer to start than to run where environments are few. Compiled, the loop then passes on only what the
next step needs; observations, values, rewards and all else are computed after it, for all steps at once, by the same
functions.
"""

import functools
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rl import tree
from rl.compile import Execution
from rl.dist.launch import rank
from rl.envs.observations import Obs
from rl.envs.tensor_envs import EnvState, TensorEnvs
from rl.envs.types import Envs, SteppedEnvs, is_reset
from rl.models.agent import Agent, Policy, call_with, copied_for_few_rows, weight_vector
from rl.models.linear import FEW_ROWS
from rl.models.memory import Memory, forgotten
from rl.rollout import Rollout, Taken, decide, row, value_of
from rl.seeding import ACTION, Noise

STEPS_AT_ONCE = 4  # of few environments, in a compiled loop; 8 gain no more, and take longer to compile


class Collector:
    """Collects rollouts from N environments; each continues where the last one ended."""

    def __init__(
        self, envs: SteppedEnvs, policy: Agent, *, seed: int, first_env: int, execution: Execution, keeps_next_obs: bool
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
        rows: list[Taken] = []
        finals, num_ignored = [], self.envs.num_ignored
        taken: Taken | None = None
        for t, noise in enumerate(self.noise.at(self.num_steps, num_steps)):
            mask = self.envs.mask
            decision = self.decide(self.obs, mask, noise, self.memory)
            seen = self.envs.act(decision.action)
            if seen.ended is not None and (not self.keeps_next_obs or self.has_memory):
                finals.append(tree.index((seen.next_obs, decision.memory), seen.ended))
            next_obs = seen.next_obs if self.keeps_next_obs else None
            now = Taken(self.obs, next_obs, *decision[:3], mask, self.memory)
            self.obs, self.memory = seen.obs, decision.memory
            if isinstance(decision.memory, Tensor) and seen.reset is not None:
                self.memory = forgotten(decision.memory, seen.reset)
            if self.has_images:
                # Stacked at the end, frames would lie in memory twice; and small tensors that are kept until then,
                # between large ones that are not, make holes that glibc fills no more (2 GB for 64 × 128 of Atari's).
                taken = tree.space_for(now, num_steps) if taken is None else taken
                tree.put(taken, t, now)
            else:
                rows.append(now)  # stacking is faster
        self.num_steps = self.num_steps + num_steps
        self.num_played += num_steps * self.envs.num_envs - (self.envs.num_ignored - num_ignored)
        taken = tree.stack(rows) if taken is None else taken
        outcomes = tree.index(self.envs.outcomes(), slice(-num_steps, None))
        rollout = Rollout(**taken._asdict(), **outcomes._asdict(), next_value=taken.value)  # for now
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


class Acts(NamedTuple):
    """What a rollout of tensor environments can be computed from, for all steps at once."""

    state: Tensor  # [T, N, ...], before each step, as are the next three
    elapsed_steps: Tensor  # [T, N]
    episode_return: Tensor  # [T, N]
    memory: Memory  # [T, N, M]
    action: Tensor  # [T, N], or [T, N, C]

    @property
    def before(self) -> Played:
        return Played(EnvState(self.state, self.elapsed_steps, self.episode_return), self.memory)


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
        self.act, self.look = execution.loop(self._act), execution.loop(self._look)
        self.has_few = execution.mode == "compile" and execution.device.type == "cpu" and envs.num_envs <= FEW_ROWS

    def restart(self) -> None:
        """Starts a new episode in every environment, also where the current one has not ended."""
        self.envs.state = self.envs.start(self.num_steps)
        self.memory = self.policy.initial_memory(self.envs.num_envs)
        self.discounted_return.zero_()

    def collect(self, num_steps: int) -> Rollout:
        """The rollout [T, N, ...] of the next T steps."""
        first_step, before = self.num_steps, Played(self.envs.state, self.memory)
        if self.has_few:
            self.num_steps, (self.envs.state, self.memory), acts = self.act(first_step, before, num_steps)
            rollout = self.look(first_step, acts)
        else:
            self.num_steps, (self.envs.state, self.memory), rollout = self.play(first_step, before, num_steps)
        self.num_played += num_steps * self.envs.num_envs
        return rollout

    def _play(self, first_step: Tensor, before: Played, num_steps: int) -> tuple[Tensor, Played, Rollout]:
        policy = self._policy()
        step = functools.partial(self.play_step, policy)
        after, rollout = tree.scan(step, before, self._noise(first_step, num_steps), Rollout)
        return first_step + num_steps, after, self._completed(policy, rollout)

    def _act(self, first_step: Tensor, before: Played, num_steps: int) -> tuple[Tensor, Played, Acts]:
        """Plays like `_play`, and returns what `_look` needs; of all else the compiler removes the computation."""
        policy = copied_for_few_rows(self.policy)

        def step(before: Played, *noise: Tensor) -> tuple[Played, Acts]:
            after, now = self._play_step(policy, before, *noise)
            return after, Acts(*before.state, before.memory, now.action)

        noise = self._noise(first_step, num_steps)
        after, acts = tree.scan(step, before, noise, Acts, num_at_once=STEPS_AT_ONCE)
        return first_step + num_steps, after, acts

    def _look(self, first_step: Tensor, acts: Acts) -> Rollout:
        """The rollout in which these actions were taken, computed from all of its steps as if they were one."""
        policy, num_steps = self._policy(), len(acts.action)
        rows, noise = tree.map(lambda field: field.flatten(0, 1), (acts, self._noise(first_step, num_steps)))
        _, seen = self._play_step(policy, rows.before, *noise, action=rows.action)
        return self._completed(policy, tree.map(lambda field: field.unflatten(0, (num_steps, -1)), seen))

    def _noise(self, first_step: Tensor, num_steps: int) -> tuple[Tensor, ...]:
        return self.noise.at(first_step, num_steps), *self.envs.draw(first_step, num_steps)

    def _policy(self) -> Policy:
        if torch.compiler.is_compiling():  # a compiled loop accepts no weights that are views of one vector
            return functools.partial(call_with, self.policy, weight_vector(self.policy))
        return self.policy

    def _completed(self, policy: Policy, rollout: Rollout) -> Rollout:
        if not self.keeps_next_obs:
            return rollout._replace(next_obs=None)
        if self.has_memory:
            return rollout
        # At all steps: a compiled function must keep its shapes.
        return rollout._replace(next_value=value_of(policy, rollout.next_obs, ()))

    def _play_step(
        self, policy: Policy, before: Played, noise: Tensor, *env_noise: Tensor, action: Tensor | None = None
    ) -> tuple[Played, Rollout]:
        obs = self.envs.observe(before.state)
        mask = self.envs.legal(before.state)
        decision = decide(policy, obs, mask, noise, before.memory, action)
        after, step = self.envs.advance(before.state, decision.action, *env_noise)
        now = row(obs, mask, before.memory, decision, step)
        if self.has_memory or not self.keeps_next_obs:
            now = now._replace(next_value=value_of(policy, step.next_obs, decision.memory))
        if not self.keeps_next_obs:
            now = now._replace(next_obs=())  # type: ignore[arg-type]  # not None, which a compiled loop could not return
        memory = decision.memory
        if isinstance(memory, Tensor):
            memory = forgotten(memory, is_reset(step.weight, step.episode_length))
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
