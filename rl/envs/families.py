"""Environments of other packages whose ids say which package has them, so that nobody has to import it."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from rl.envs.failures import progress
from rl.errors import UserError, install


class MinAtarGame(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """A game of MinAtar whose episodes can be replayed, and whose frames can be filmed.

    Sticky actions begin each episode with no action, instead of the last one of the episode before, so that an episode
    is the same whatever came before it. Frames are bytes, with squares for cells.
    """

    CELL, FRAMES_PER_SECOND = 16, 20

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)  # Gymnasium asks it of wrappers that belong to an id
        super().__init__(env)
        self.metadata = env.metadata | {"render_fps": self.FRAMES_PER_SECOND}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.unwrapped.game.last_action = 0  # type: ignore[attr-defined]
        return super().reset(seed=seed, options=options)

    def render(self) -> Any:
        frame: Any = super().render()
        if self.render_mode != "rgb_array":
            return frame
        return np.rint(255 * frame).astype(np.uint8).repeat(self.CELL, 0).repeat(self.CELL, 1)


def _register_minatar() -> None:
    from minatar.gym import register_envs

    register_envs()
    wrapper = gym.envs.registration.WrapperSpec("MinAtarGame", f"{__name__}:MinAtarGame", {})
    for env_id, spec in gym.registry.items():
        if env_id.startswith("MinAtar/"):
            # Gymnasium's checker would complain of the frames before they are bytes.
            gym.registry[env_id] = replace(spec, additional_wrappers=(wrapper,), disable_env_checker=True)


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
                raise UserError(f"--env-id {env_id}: {error}; {install(extra)}") from error
            progress()
