"""The kinds of an environment's observations and actions, which are all that an agent needs to know."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gymnasium import spaces

from rl.envs.action_spaces import actions_of
from rl.envs.actions import Actions, actions_from_dict, squashed
from rl.envs.observations import Keys, ObsKey, UnsupportedSpaceError, keys_of, texts_in, vector
from rl.errors import UserError, one_line
from rl.reporting import note


@dataclass(frozen=True)
class Spaces:
    """The tensors of an observation, and the actions."""

    obs: Keys
    actions: Actions

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Spaces":
        """The inverse of `dataclasses.asdict`; also of earlier versions', whose observations were vectors."""
        obs = vector(fields["obs_size"]) if "obs_size" in fields else tuple(ObsKey(**key) for key in fields["obs"])
        if not obs:
            raise ValueError("no observation")
        return cls(obs, actions_from_dict(fields["actions"]))

    @classmethod
    def of(cls, env_id: str, observation: spaces.Space[Any], action: spaces.Space[Any]) -> "Spaces":
        """Raises `UserError` unless observations and actions are of a kind that is supported."""
        try:
            obs = keys_of(observation)
        except UnsupportedSpaceError as error:
            raise UserError(
                f"--env-id {env_id}: its observation space has {one_line(str(error))}; supported are Box, Discrete,"
                " MultiDiscrete, MultiBinary, and Dict and Tuple of these (--env-wrapper can make one of others)"
            ) from None
        if texts := texts_in(observation):
            _note_texts(env_id, ", ".join(texts))
        return cls(obs, actions_of(env_id, action))

    def has_images(self) -> bool:
        return any(key.is_image for key in self.obs)

    def squashed(self, env_id: str) -> "Spaces":
        """These spaces, with actions that tanh maps into their bounds; raises `UserError` if there are none."""
        return replace(self, actions=squashed(env_id, self.actions))


@functools.cache
def _note_texts(env_id: str, texts: str) -> None:
    note(f"--env-id {env_id}: the agent does not see the text of its observations ({texts})")
