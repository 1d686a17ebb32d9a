"""Steps batched classes that take and give tensors, as simulators on a GPU do, without leaving their device.

`VectorTensorEnvs` does for them what `GymEnvs` does for NumPy's classes, but no step waits for the device. Shapes and
types are checked without a look at numbers; what has to be counted is counted on the device, and read once a rollout
(`num_ignored`). Numbers that are not finite are found in whole rollouts (`Finite` in rl/run/metrics.py).

Most simulators reset in the step that ends an episode, and give the next episode's first observation only. Without a
final observation in `info`, the one before the last action takes its place as the successor. So a truncated episode is
bootstrapped from the value of that observation, as rsl_rl does, and a terminated one from nothing, as ever.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rl import tree
from rl.envs.actions import tensors_for_env
from rl.envs.failures import AnyVectorEnv
from rl.envs.guard import Guard, Position, resets_in_next_step
from rl.envs.masks import KEY, Mask, without_halves
from rl.envs.observations import Keys, Obs, as_tensors, part_of
from rl.envs.spaces import Spaces
from rl.envs.types import Outcomes, Seen, Step, is_reset, stepped
from rl.reporting import note
from rl.seeding import environment_seed, episode_seed


def gives_tensors(envs: AnyVectorEnv, keys: Keys) -> bool:
    """Whether a batched class's observations are tensors; it is reset to see that."""
    obs, _ = envs.reset(seed=0)
    return isinstance(part_of(obs, keys[0]), Tensor)


class VectorTensorEnvs:
    """N environments of a batched class that takes and gives tensors, as `Envs`; a resume starts new episodes."""

    def __init__(
        self, envs: AnyVectorEnv, env_id: str, *, timeout_seconds: float = math.inf, where: str = "the run"
    ) -> None:
        """Raises `UserError` if the spaces are not supported, or ended episodes are not reset automatically."""
        self.envs, self.env_id, self.num_envs = envs, env_id, envs.num_envs
        self.spaces = Spaces.of(env_id, envs.single_observation_space, envs.single_action_space)
        # ManiSkill, Isaac Lab and mjlab declare nothing, and reset in the same step.
        self.resets_in_next_step = resets_in_next_step(envs, env_id, default=False)
        self.device = torch.device("cpu")
        self.mask: Mask = ()
        self.clip_rewards = False  # in steps, but not in episodes' returns
        self.told: set[str] = set()  # the notes that have been printed
        self.taken: list[Outcomes] = []
        self.position = Position(self.num_envs, seeded=False, where=where)
        self.keys = self.spaces.obs
        self.guard = Guard(envs, env_id, self.position, keys=self.keys, timeout_seconds=timeout_seconds)

    def reset(self, seed: int, first_env: int = 0) -> Obs:
        self.first_seed = environment_seed(seed, first_env)
        self.position.num_steps = 0
        self.counts = torch.zeros(3, dtype=torch.int64, device=self.device)  # see `num_ignored`
        return self._reset(self.first_seed)

    def restart(self) -> Obs:
        return self._reset(None)

    def _reset(self, seed: int | None) -> Obs:
        self.position.batch_seed = self.position.batch_seed if seed is None else seed
        self.taken.clear()
        result = self.guard.call(lambda: self.envs.reset(seed=seed))
        self.guard.check_parts(result, 2)
        self.obs = self._obs(result[0])
        self.home = part_of(result[0], self.keys[0]).device
        if self.home.type != self.device.type:
            self._tell(f"its tensors are on {self.home.type}, the run on {self.device.type}: each step copies them")
        self.mask = self._mask(result[1])
        self.running_return, self.running_length = torch.zeros(2, self.num_envs, device=self.device)
        self.resetting = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        return self.obs

    def step(self, action: Tensor) -> Step:
        """Raises `OneEnvError` if the class raises, hangs, or gives tensors of other shapes or types."""
        return stepped(self, action)

    def act(self, action: Tensor) -> Seen:
        in_env = tree.map(lambda part: part.to(self.home), tensors_for_env(self.spaces.actions, action))
        result = self.guard.call(lambda: self.envs.step(in_env))
        self.guard.check_parts(result, 5)
        obs, numbers = self._obs(result[0]), zip(("reward", "terminated", "truncated"), result[1:4], strict=True)
        reward, terminated, truncated = (self._tensor(name, given, (self.num_envs,)) for name, given in numbers)
        terminated, truncated, acted = terminated.bool(), truncated.bool(), ~self.resetting
        ended = terminated | truncated
        reward = torch.where(acted, reward.float(), 0.0)  # a step that only resets belongs to no episode
        running_return, running_length = self.running_return + reward, self.running_length + acted
        outcome = Outcomes(
            reward=reward.sign() if self.clip_rewards else reward,
            terminated=terminated,
            truncated=truncated,
            weight=acted.float(),
            episode_return=running_return * ended,
            episode_length=running_length * ended,
        )
        self.running_return, self.running_length = running_return * ~ended, running_length * ~ended
        if self.resets_in_next_step:
            self.counts[0] += self.resetting.sum()
            self.counts[1] += (ended & self.resetting).sum()
            self.resetting = ended
        elif _final_obs(result[4]) is None:
            self.counts[2] += (truncated & ~terminated).sum()
        next_obs = self._successors(obs, ended, result[4])
        self.obs, self.mask = obs, self._mask(result[4], ended=ended)
        self.position.num_steps += 1
        self.taken.append(outcome)
        return Seen(obs, next_obs, ended, is_reset(outcome.weight, outcome.episode_length))

    def outcomes(self) -> Outcomes:
        taken, self.taken = self.taken, []
        return tree.stack(taken)

    def _successors(self, obs: Obs, ended: Tensor, info: Mapping[str, Any]) -> Obs:
        """The observations [N, ...] that the actions led to; see above for those that are not given."""
        if self.resets_in_next_step:
            return obs
        given = _final_obs(info)
        last = self.obs if given is None else self._obs(given)

        def chosen(final: Tensor, first: Tensor) -> Tensor:
            return torch.where(ended.view(-1, *(1 for _ in first.shape[1:])), final, first)

        return tree.map(chosen, last, obs)

    @property
    def num_ignored(self) -> int:
        """Waits for the device, since steps have counted there; says what else they have counted.

        Raises:
            OneEnvError: An episode ended in a step that only resets.
        """
        num_ignored, num_wrong, num_unknown = self.counts.tolist()
        if num_wrong:
            raise self.guard.batch_error("ended an episode in the step that resets")
        if num_unknown:
            self._tell(
                "its class gives no final observation of an episode that is truncated: the value of the observation"
                " before takes the place of its value"
            )
        return int(num_ignored)

    def _mask(self, info: Mapping[str, Any], *, ended: Tensor | None = None) -> Mask:
        """The masks after a step, or after a reset, from its info; everything is legal where that says nothing."""
        sizes = self.spaces.actions.sizes
        has_masks = KEY in info if ended is None else isinstance(self.mask, Tensor)
        if not sizes or not has_masks:
            if sizes and KEY in info:
                raise self.guard.batch_error(f"gave an {KEY}, and none before; must give one from the first reset on")
            return ()
        if KEY not in info:
            return torch.ones(self.num_envs, sum(sizes), dtype=torch.bool, device=self.device)
        mask = without_halves(self._tensor(KEY, info[KEY], (self.num_envs, sum(sizes))).bool(), sizes)
        if f"_{KEY}" in info:
            mask = mask | ~self._tensor(f"_{KEY}", info[f"_{KEY}"], (self.num_envs,)).bool()[:, None]
        if self.resets_in_next_step and ended is not None:
            mask = mask | ended[:, None]  # whatever is legal there, the next action is ignored
        return mask

    def _obs(self, given: Any) -> Obs:
        """Checked copies of observations [N, ...] on the run's device; simulators reuse their tensors."""
        for key, shape in zip(self.keys, self.guard.shapes, strict=True):
            part = self.guard.call(lambda key=key: part_of(given, key))  # type: ignore[misc]
            self._check(key.name or "observation", part, shape, whole=key.dtype != "float32")
        return tree.map(lambda part: part.to(self.device, copy=True), as_tensors(self.keys, given))

    def _tensor(self, name: str, given: Any, shape: tuple[int, ...]) -> Tensor:
        self._check(name, given, shape)
        return given.to(self.device, copy=True)  # type: ignore[no-any-return]

    def _check(self, name: str, given: Any, shape: tuple[int, ...], *, whole: bool = False) -> None:
        """Raises `OneEnvError` unless it is a tensor of this shape, and of whole numbers where the space has them."""
        if not isinstance(given, Tensor):
            raise self.guard.batch_error(f"gave {type(given).__name__} for {name}; must be a tensor")
        wrong_type = given.is_complex() or (whole and given.is_floating_point())
        if given.shape != shape or wrong_type:
            has, must = f"{given.dtype} of shape {tuple(given.shape)}", "whole numbers" if whole else "numbers"
            raise self.guard.batch_error(f"gave {has} for {name}; must be {must} of shape {shape}")

    def _tell(self, what: str) -> None:
        if what not in self.told:
            self.told.add(what)
            note(f"--env-id {self.env_id}: {what}")

    def to(self, device: torch.device) -> "VectorTensorEnvs":
        """Sets the device of the tensors returned from the next reset on."""
        self.device = device
        return self

    def state_dict(self) -> dict[str, Any]:
        """Nothing: a simulator does not give its state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any], num_steps: int) -> Obs | None:
        """Starts new episodes, by a seed that this run has not used."""
        self.position.num_steps = num_steps
        return self._reset(episode_seed(self.first_seed, num_steps))

    def close(self) -> None:
        self.guard.close()


def _final_obs(info: Mapping[str, Any]) -> Any:
    """The final observations in a step's info, by either of the names that Gymnasium has had for them, or None."""
    return info.get("final_obs", info.get("final_observation"))
