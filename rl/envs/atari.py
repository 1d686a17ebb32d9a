"""Atari in batches, by ale-py's own class, which steps games in threads and shrinks and stacks their frames.

By itself that class starts the next episode with whatever its generator has come to. `AtariEpisodes` starts it in the
step in which an episode ends, with a seed that depends on the game's seed and the episode's number alone, as
`SeededEpisodes` do. An episode is therefore replayed from its number and its actions.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from rl.envs.families import register_family
from rl.envs.seeded import EPISODES
from rl.errors import UserError
from rl.seeding import episode_seed

# Arguments of ale-py's class that this program gives itself, and what they follow from.
OWN = dict.fromkeys(("autoreset_mode", "batch_size"), "this program needs its own")
OWN |= {"num_threads": "use --num-workers", "reward_clipping": "use --clip-rewards"}
OWN |= dict.fromkeys(("episodic_life", "life_loss_info"), "use --terminate-on-life-loss")
HEIGHT, WIDTH, FRAMES_PER_SECOND = 210, 160, 60  # of the console
ENLARGED = 3  # how large a window shows them


class AtariEpisodes(gym.vector.VectorEnv[Any, Any, Any]):
    """N games, each of whose episodes has a seed of its own; info has the `lives` [N] left."""

    def __init__(
        self, env_id: str, num_envs: int, kwargs: Mapping[str, Any], *, num_threads: int, film: Path | None = None
    ) -> None:
        """`film` is a file for the first episode of the first game.

        Raises:
            UserError: ale-py is not installed, or an argument is not the user's to give.
        """
        register_family(env_id)
        if own := OWN.keys() & kwargs.keys():
            raise UserError(f"--env-kwargs {(name := min(own))}: {OWN[name]}; leave it out")
        self.make = partial(gym.make_vec, env_id, num_envs=num_envs, num_threads=num_threads, reward_clipping=False)
        # A reset of some games alone takes the place of the one that this mode has them make in the next step.
        self.batch: Any = partial(self.make, autoreset_mode=AutoresetMode.NEXT_STEP, **kwargs)()
        # A dictionary of its own: ale-py's class writes into one that all batched classes share.
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.num_envs = num_envs
        self.single_observation_space = self.batch.single_observation_space
        self.single_action_space = self.batch.single_action_space
        self.observation_space, self.action_space = self.batch.observation_space, self.batch.action_space
        self.film = Film(self.make, kwargs, film) if film else None
        self.environment, self.episode = np.zeros((2, num_envs), np.int64)
        self.history: list[NDArray[Any]] = []  # the actions of each episode to replay
        self.num_replayed = 0

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts the next episodes, or those that `seed_of` made the seeds from."""
        if seed is None:
            self.episode += 1
        else:
            self.environment, self.episode = np.divmod(seed, EPISODES)
        self.num_replayed = 0
        obs, info = self._begin(np.ones(self.num_envs, np.bool_))
        if self.film:
            self.film.begin(self._seed(0))
        return obs, info

    def step(self, actions: NDArray[Any]) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.batch.step(actions)
        ended = terminated | truncated
        if self.film:
            self.film.step(actions)
            if ended[0]:
                self.stop_recording()
        if ended.any():
            final_obs = obs
            self.episode += ended
            obs, info = self._begin(ended)
            info = info | {"final_obs": final_obs}
        return obs, reward, terminated, truncated, info

    def replay(self) -> list[Any]:
        """Takes the next step of the episodes in `history`: the observations of those that have begun, else None.

        All games step together, so that an episode begins when as many steps are left as it has; until then, its game
        does nothing.
        """
        lengths = np.array([len(history) for history in self.history])
        left = int(lengths.max()) - self.num_replayed
        actions = np.zeros(self.action_space.shape or (), self.action_space.dtype)
        for n in np.flatnonzero(lengths >= left):
            actions[n] = self.history[n][-left]
        obs = self.batch.step(actions)[0]
        self.num_replayed += 1
        if (begins := lengths == left - 1).any():
            obs, _ = self._begin(begins)
        return [frames if length >= left - 1 else None for frames, length in zip(obs, lengths, strict=True)]

    def _begin(self, games: NDArray[np.bool_]) -> tuple[Any, dict[str, Any]]:
        """Starts episodes in some games: the observations and the info of all."""
        seeds = np.array([self._seed(game) for game in np.flatnonzero(games).tolist()])
        obs, info = self.batch.reset(seed=seeds, options={"reset_mask": games})
        return obs, info

    def _seed(self, game: int) -> int:
        return episode_seed(int(self.environment[game]), int(self.episode[game]))

    def call(self, name: str) -> Any:
        """What a method returns, as with environments that are batched one by one."""
        return getattr(self, name)()

    def set_attr(self, name: str, values: Any) -> None:
        """Sets an attribute to a list with a value for each game."""
        setattr(self, name, values)

    def stop_recording(self) -> None:
        """Completes the film."""
        if self.film:
            self.film.close()
            self.film = None

    def close_extras(self, **kwargs: Any) -> None:
        self.stop_recording()
        del self.batch  # ends its threads, which its `close` does not


class InColor:
    """Frames in color and in the console's size: those of further games, with the same seed and actions."""

    def __init__(self, make: Callable[..., Any], kwargs: Mapping[str, Any]) -> None:
        size = {"img_height": HEIGHT, "img_width": WIDTH, "grayscale": False, "stack_num": 1}
        self.batch = make(**{**kwargs, **size})
        self.frame_rate = FRAMES_PER_SECOND / self.batch.spec.kwargs["frameskip"]

    def reset(self, seed: int) -> NDArray[np.uint8]:
        return self.batch.reset(seed=seed)[0][0, 0]  # type: ignore[no-any-return]

    def step(self, actions: NDArray[Any]) -> NDArray[np.uint8]:
        return self.batch.step(actions)[0][0, 0]  # type: ignore[no-any-return]


class Film:
    """An episode in color."""

    def __init__(self, make: Callable[..., Any], kwargs: Mapping[str, Any], path: Path) -> None:
        from moviepy.video.io.ffmpeg_writer import FFMPEG_VideoWriter  # which few runs need

        self.frames = InColor(make, kwargs)
        path.parent.mkdir(parents=True, exist_ok=True)
        name = str(path.with_name(f"{path.stem}-episode-0.mp4"))  # as Gymnasium's wrapper calls it
        self.writer: Any = FFMPEG_VideoWriter(name, (WIDTH, HEIGHT), self.frames.frame_rate)

    def begin(self, seed: int) -> None:
        self.writer.write_frame(self.frames.reset(seed))

    def step(self, actions: NDArray[Any]) -> None:
        self.writer.write_frame(self.frames.step(actions))

    def close(self) -> None:
        self.writer.close()


class OneGame(gym.Env[Any, Any]):
    """A game that `AtariEpisodes` would play with the same seed, by itself; it is rendered in color."""

    render_mode = "rgb_array"

    def __init__(self, env_id: str, kwargs: Mapping[str, Any]) -> None:
        """Raises `UserError` as `AtariEpisodes` does."""
        self.game = AtariEpisodes(env_id, 1, kwargs, num_threads=1)
        self.colors = InColor(self.game.make, kwargs)
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": self.colors.frame_rate}
        self.observation_space = self.game.single_observation_space
        self.action_space = self.game.single_action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts the episode of a seed, which must be given."""
        assert seed is not None
        obs, _ = self.game.batch.reset(seed=seed)
        self.frame = self.colors.reset(seed)
        return obs[0], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        actions = np.array([action])
        obs, reward, terminated, truncated, _ = self.game.batch.step(actions)
        self.frame = self.colors.step(actions)
        return obs[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), {}

    def render(self) -> Any:
        return self.frame.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1)

    def close(self) -> None:
        self.game.close()
        del self.colors  # ends its threads
