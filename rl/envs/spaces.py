"""The size of an environment's observations and the kind of its actions, which is all that an agent needs to know."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gymnasium import spaces

from rl.envs.action_spaces import actions_of
from rl.envs.actions import Actions, actions_from_dict, squashed
from rl.errors import UserError


@dataclass(frozen=True)
class Spaces:
    """A flat observation of `obs_size` numbers, and the actions."""

    obs_size: int
    actions: Actions

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Spaces":
        """The inverse of `dataclasses.asdict`."""
        return cls(fields["obs_size"], actions_from_dict(fields["actions"]))

    @classmethod
    def of(cls, env_id: str, observation: spaces.Space[Any], action: spaces.Space[Any]) -> "Spaces":
        """Raises `UserError` unless observations are a flat Box and actions of a kind that is supported."""
        if not (isinstance(observation, spaces.Box) and len(observation.shape) == 1 and observation.shape[0] > 0):
            raise UserError(
                f"--env-id {env_id}: its observation space is {observation}; supported is a Box with one dimension"
                " (gymnasium.wrappers.FlattenObservation makes one of most others)"
            )
        return cls(observation.shape[0], actions_of(env_id, action))

    def squashed(self, env_id: str) -> "Spaces":
        """These spaces, with actions that tanh maps into their bounds; raises `UserError` if there are none."""
        return replace(self, actions=squashed(env_id, self.actions))
