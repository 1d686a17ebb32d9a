"""Environments of other packages whose ids say which package has them, so that nobody has to import it."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import gymnasium as gym

from rl.envs.failures import progress
from rl.errors import UserError


class ForgetsAction(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """MinAtar, whose sticky actions begin each episode with no action, instead of the last one of the episode before.

    An episode is then the same whatever came before it, so that it can be replayed.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)  # Gymnasium asks it of wrappers that belong to an id
        super().__init__(env)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.unwrapped.game.last_action = 0  # type: ignore[attr-defined]
        return super().reset(seed=seed, options=options)


def _register_minatar() -> None:
    from minatar.gym import register_envs

    register_envs()
    wrapper = gym.envs.registration.WrapperSpec("ForgetsAction", f"{__name__}:ForgetsAction", {})
    for env_id, spec in gym.registry.items():
        if env_id.startswith("MinAtar/"):
            gym.registry[env_id] = replace(spec, additional_wrappers=(wrapper,))


class Family(NamedTuple):
    """What registers the environments of a package, and the extra of this one that installs it."""

    register: Callable[[], object]
    extra: str


FAMILIES = {
    "ALE/": Family(partial(import_module, "ale_py"), "atari"),
    "MinAtar/": Family(_register_minatar, "minatar"),
    "MiniGrid-": Family(partial(import_module, "minigrid"), "minigrid"),
}
"""Packages by how the ids of their environments begin."""


def register_family(env_id: str) -> None:
    """Registers the environments of the package that has this one, if it is one of `FAMILIES`.

    Raises:
        UserError: The package is not installed.
    """
    for start, (register, extra) in FAMILIES.items():
        if env_id.startswith(start) and not any(known.startswith(start) for known in gym.registry):
            try:
                register()
            except ImportError as error:
                raise UserError(f"--env-id {env_id}: {error}; pip install 'rl[{extra}]'") from error
            progress()
