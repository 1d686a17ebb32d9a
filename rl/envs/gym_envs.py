"""Steps Gymnasium's NumPy environments in tensors.

`GymEnvs` hides how environments are batched (in turn, in processes, or by a class of their own) and how ended episodes
are reset. With SAME_STEP, the step that ends an episode already returns the first observation of the next one, and the
last one in `info["final_obs"]`. With NEXT_STEP, the step after the end ignores its action and resets; it gets weight 0.

What goes wrong is `guard.py`'s. After a resume, environments come back in one of three ways (`Memory`): a single
environment replays its episodes from seed and actions (`seeded.py`, `history.py`), a batched class gets its attributes
back (`snapshot.py`), and what is not deterministic starts new episodes.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from gymnasium.vector import SyncVectorEnv
from numpy.typing import NDArray
from torch import Tensor

from rl import tree
from rl.envs.actions import CompositeActions
from rl.envs.failures import AnyVectorEnv
from rl.envs.guard import Guard, Position, resets_in_next_step
from rl.envs.history import History
from rl.envs.ledger import Ledger
from rl.envs.lives import Lives
from rl.envs.masks import KEY, Mask, allows_one, checked
from rl.envs.observations import Arrays, Obs, as_arrays, final_arrays
from rl.envs.seeded import seed_of
from rl.envs.snapshot import restore, snapshot
from rl.envs.spaces import Spaces
from rl.envs.types import Outcomes, Seen, Step, stepped
from rl.seeding import environment_seed, episode_seed

Memory = Literal["episodes", "snapshot", "none"]
"""How environments come back after a resume: replayed episodes, restored attributes, or not at all."""


class GymEnvs:
    """N Gymnasium environments as `Envs`."""

    def __init__(
        self,
        envs: AnyVectorEnv,
        env_id: str,
        *,
        seeded: bool = False,
        memory: Memory = "none",
        timeout_seconds: float = math.inf,
        max_replay_steps: int = 100_000,
        where: str = "the run",
    ) -> None:
        """`seeded` says that every environment is a `SeededEpisodes`; `where` names the purpose in error messages.

        Raises:
            UserError: The spaces are not supported, or ended episodes are not reset automatically.
        """
        self.spaces = Spaces.of(env_id, envs.single_observation_space, envs.single_action_space)
        self.envs = envs
        self.seeded = seeded
        self.memory = memory
        self.num_envs = envs.num_envs
        self.device, self.on_cpu = torch.device("cpu"), True
        self.resets_in_next_step = resets_in_next_step(envs, env_id)
        self.resetting = np.zeros(self.num_envs, np.bool_)  # with NEXT_STEP: the next step resets
        self.num_ignored = 0
        self.mask: Mask = ()
        self.clip_rewards = False  # in steps, but not in episodes' returns
        self.lives: Lives | None = None  # if the loss of one is a termination in steps, but ends no episode
        self.position = Position(self.num_envs, seeded=seeded, where=where)
        self.ledger = Ledger(self.num_envs)
        self.history = History(env_id, self.num_envs, max_replay_steps)
        keys = self.keys = self.spaces.obs
        self.guard = Guard(envs, env_id, self.position, keys=keys, timeout_seconds=timeout_seconds)

    def reset(self, seed: int, first_env: int = 0) -> Obs:
        position = self.position
        position.environment[:] = [environment_seed(seed, first_env + i) for i in range(self.num_envs)]
        position.episode[:], position.num_steps = 0, 0
        # Only Gymnasium's own batches promise to take one seed each; any other class gets a single one for all.
        one_each = self.seeded or isinstance(self.envs, SyncVectorEnv)
        seeds = self._episode_seeds() if self.seeded else position.environment.tolist()
        return self._tensors(self._reset(seeds if one_each else seeds[0]))

    def restart(self) -> Obs:
        self.position.episode += 1
        return self._tensors(self._reset(None))

    def step(self, action: Tensor) -> Step:
        """Raises `OneEnvError` if an environment raises, hangs, dies, or returns an invalid observation or reward."""
        return stepped(self, action)

    def act(self, action: Tensor) -> Seen:
        in_env = self.spaces.actions.to_env(action.cpu().numpy())
        if self.seeded and isinstance(self.spaces.actions, CompositeActions):
            in_env = self.spaces.actions.flattened(in_env)
        if self.memory == "episodes":
            self.history.add(in_env)
        result = self.guard.call(lambda: self.envs.step(in_env))
        self.guard.check_types(result)
        # Copies, because an environment may write its next step into the same arrays.
        obs = as_arrays(self.keys, result[0])
        resetting = self.resetting
        reward, terminated, truncated = self.ledger.add(*result[1:4], resetting)
        ended = terminated | truncated
        any_ended = bool(ended.any())
        next_obs = self._successors(obs, ended, result[4]) if any_ended else obs
        self.position.length += ~resetting
        self.guard.check_numbers(obs, next_obs, reward)
        if isinstance(self.mask, Tensor) or KEY in result[4]:
            self.mask = self._mask(result[4], ended=ended)
        final = ended if any_ended else None
        if self.lives and (lost := self.lives.lost(result[4])).any():
            self.ledger.lose_life(lost)
            final = ended | lost
        if self.resets_in_next_step:
            self._count_resets(ended)
        if any_ended:
            self._end_episodes(ended)
        self.position.num_steps += 1
        shown = self._tensors(obs)
        return Seen(
            obs=shown,
            next_obs=shown if next_obs is obs else self._tensors(next_obs),
            ended=None if final is None else self._tensor(final),
            reset=self._tensor(ended | resetting) if any_ended or self.resets_in_next_step else None,
        )

    def outcomes(self) -> Outcomes:
        outcomes = self.ledger.read(clip_rewards=self.clip_rewards)
        return outcomes if self.on_cpu else tree.map(lambda field: field.to(self.device), outcomes)

    def _successors(self, obs: Arrays, ended: NDArray[np.bool_], info: Any) -> Arrays:
        """The observations [N, ...] that the actions led to, which are not `obs` where this step reset an episode."""
        if self.resets_in_next_step:
            return obs
        next_obs = tree.map(np.copy, obs)

        def fill() -> None:
            final_obs = final_arrays(self.keys, info["final_obs"], ended)
            for array, final in zip(tree.leaves(next_obs), tree.leaves(final_obs), strict=True):
                array[ended] = final

        self.guard.call(fill)
        return next_obs

    def _mask(self, info: Mapping[str, Any], *, ended: NDArray[np.bool_] | None = None) -> Mask:
        """The masks after a step, or after a reset, from its info; everything is legal where that says nothing."""
        sizes = self.spaces.actions.sizes
        if (ended is None and KEY not in info) or not sizes:
            return ()
        if not isinstance(self.mask, Tensor) and ended is not None:
            raise self.guard.batch_error(f"gave an {KEY}, and none before; must give one from the first reset on")
        mask = np.ones((self.num_envs, sum(sizes)), np.bool_)
        if KEY in info:
            try:
                given = checked(info[KEY], sizes)
            except ValueError as error:
                raise self.guard.batch_error(f"gave {error}") from None
            known = np.array(info.get(f"_{KEY}", np.ones(self.num_envs)), np.bool_)
            if self.resets_in_next_step and ended is not None:
                known &= ~ended  # whatever is legal there, the next action is ignored
            mask[known] = given[known]
        if not self.seeded and not (possible := allows_one(mask, sizes)).all():
            n = int(possible.argmin())
            raise self.guard.error(f"environment {n} gave an {KEY} without a legal action{self.position.of(n)}")
        return self._tensor(mask)

    def _count_resets(self, ended: NDArray[np.bool_]) -> None:
        if (ended & self.resetting).any():
            raise self.guard.batch_error("ended an episode in the step that resets")
        self.num_ignored += int(self.resetting.sum())
        self.resetting = ended

    def _end_episodes(self, ended: NDArray[np.bool_]) -> None:
        self.ledger.end(ended, self.position.length)
        self.position.length *= ~ended
        self.position.episode += ended
        if self.memory == "episodes":
            self.history.end(ended)

    def to(self, device: torch.device) -> "GymEnvs":
        self.device, self.on_cpu = device, device.type == "cpu"
        return self

    def close(self) -> None:
        self.guard.close()

    def state_dict(self) -> dict[str, Any]:
        self.ledger.settle()
        arrays = {
            "environment": self.position.environment,
            "episode": self.position.episode,
            "running_return": self.ledger.running_return,
            "running_length": self.position.length,
            "resetting": self.resetting,
        }
        if self.lives:
            arrays["lives"] = self.lives.left
        state: dict[str, Any] = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
        if self.memory == "snapshot":
            state["snapshot"] = snapshot(self.envs)
            state["mask"] = self.mask.cpu() if isinstance(self.mask, Tensor) else None
        elif self.memory == "episodes":
            state["actions"] = [torch.from_numpy(np.array(actions)) for actions in self.history.of_each()]
        return state

    def load_state_dict(self, state: Mapping[str, Any], num_steps: int) -> Obs | None:
        """Starts new episodes if the state was saved by environments that come back in another way."""
        position = self.position
        position.environment[:], position.episode[:] = state["environment"], state["episode"]
        position.num_steps = num_steps
        if self.memory == "episodes" and "actions" in state:
            return self._tensors(self._replay(state))
        if self.memory == "snapshot" and "snapshot" in state:
            self.ledger.running_return[:] = state["running_return"]
            position.length[:], self.resetting[:] = state["running_length"], state["resetting"]
            self.guard.call(lambda: restore(self.envs, state["snapshot"]))
            if self.lives:
                self.lives.left[:] = state["lives"]
            if isinstance(self.mask, Tensor):
                self.mask = state["mask"].to(self.device)
            return None
        position.episode += 1
        if self.seeded:
            return self._tensors(self._reset(self._episode_seeds()))
        # A seed that this run has not used: a batched class would otherwise repeat its first episodes.
        return self._tensors(self._reset(episode_seed(int(position.environment[0]), int(position.episode[0]))))

    def _replay(self, state: Mapping[str, Any]) -> Arrays:
        """Replays the current episodes: the last observations; an episode whose actions were dropped starts anew."""
        histories = [actions.numpy() for actions in state["actions"]]
        lengths = np.array([len(history) for history in histories])
        forgotten = (lengths < state["running_length"].numpy()) | (lengths > self.history.max_steps)
        lengths[forgotten] = 0
        histories = [history[:length] for history, length in zip(histories, lengths, strict=True)]
        self.position.episode += forgotten
        obs = self._reset(self._episode_seeds())
        self.guard.call(lambda: self.envs.set_attr("history", histories))  # type: ignore[attr-defined]
        for step in range(lengths.max()):
            # One step of all environments in each call, since --env-timeout is the time for a step.
            self.position.length[:] = np.minimum(step, lengths)
            for n, seen in enumerate(self.guard.call(lambda: self.envs.call("replay"))):  # type: ignore[attr-defined]
                if seen is not None:
                    for array, part in zip(tree.leaves(obs), tree.leaves(as_arrays(self.keys, seen)), strict=True):
                        array[n] = part
        if isinstance(self.mask, Tensor):
            masks = self.guard.call(lambda: self.envs.call("action_mask"))  # type: ignore[attr-defined]
            self.mask = self._tensor(np.stack(masks))
        if self.lives:
            self.lives.left[~forgotten] = state["lives"].numpy()[~forgotten]
        self.ledger.running_return[:] = state["running_return"].numpy() * ~forgotten
        self.position.length[:] = lengths
        self.history.restore(histories)
        return obs

    def _reset(self, seed: list[int] | int | None) -> Arrays:
        position = self.position
        position.batch_seed = seed if isinstance(seed, int) else position.batch_seed
        self.resetting[:] = False
        self.ledger.begin()
        position.length[:] = -1  # so that an error names step 0
        all_obs, info = self.guard.call(lambda: self.envs.reset(seed=seed))  # type: ignore[arg-type]
        obs = self.guard.call(lambda: as_arrays(self.keys, all_obs))
        self.mask = self._mask(info)
        if self.lives:
            self.lives.lost(info)
        position.length[:] = 0
        self.guard.check_numbers(obs, obs, np.zeros(self.num_envs, np.float32))
        self.history.clear()
        return obs

    def _episode_seeds(self) -> list[int]:
        return list(map(seed_of, self.position.environment.tolist(), self.position.episode.tolist()))

    def _tensors(self, obs: Arrays) -> Obs:
        return tree.map(self._tensor, obs)  # type: ignore[return-value]

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor if self.on_cpu else tensor.to(self.device)  # `to` takes half a microsecond to do nothing
