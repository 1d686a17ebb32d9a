"""MinAtar: its ids register themselves, its episodes can be replayed, and those in tensors are the originals."""

import sys
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from minatar import Environment

from rl.envs.config import EnvConfig, make_single
from rl.envs.make import make_envs
from rl.envs.minatar import Asterix, Breakout, Freeway, Seaquest, SpaceInvaders
from rl.envs.seeded import SeededEpisodes, seed_of
from rl.envs.tensor_envs import TensorEnv
from rl.errors import UserError

ID = "MinAtar/Breakout-v1"


class Given:
    """Stands in for an original's generator: it makes what it is asked for of numbers that it is given."""

    def __init__(self) -> None:
        self.numbers: list[float] = []

    def give(self, numbers: torch.Tensor) -> None:
        self.numbers = numbers.tolist()

    def rand(self, size: int | None = None) -> Any:
        return self.numbers.pop(0) if size is None else np.array([self.numbers.pop(0) for _ in range(size)])

    def randint(self, low: int, high: int | None = None, size: int | None = None) -> Any:
        low, high = (0, low) if high is None else (low, high)
        numbers = low + np.floor((high - low) * np.float32(self.rand(size or 1))).astype(int)
        return int(numbers[0]) if size is None else numbers


def spawn_diver(given: Given, original: Callable[[], None]) -> None:
    given.numbers = given.numbers[-2:]
    original()


def play_breakout(game: Any) -> int:
    """The action that leads to the ball."""
    return {0: 0, -1: 1, 1: 2}[int(np.sign(game.ball_x - game.pos))]


def play_freeway(game: Any) -> int:
    return 1


def play_space_invaders(game: Any) -> int:
    """Shoots at the nearest column of aliens, and goes nowhere where a bomb or an alien is about to be."""
    columns = np.flatnonzero(game.alien_map.any(0))
    nearest = columns[np.abs(columns - game.pos).argmin()]
    wanted = 3 if nearest == game.pos else 1 if nearest < game.pos else 2
    for action in (wanted, 3, 1, 2):
        x = min(max(game.pos + (action == 2) - (action == 1), 0), 9)
        if not (game.e_bullet_map[7:, x].any() or game.alien_map[8:, x].any()):
            return action
    return wanted


def play_asterix(game: Any) -> int:
    """Goes where no enemy is near: to gold, if there is some."""

    def badness(action: int) -> float:
        x = game.player_x + (action == 3) - (action == 1)
        y = game.player_y + (action == 4) - (action == 2)
        others = [other for other in game.entities if other is not None]
        near = any(other[1] == y and not other[3] and abs(other[0] - x) < 3 for other in others)
        return 100 * near + min([abs(other[0] - x) + abs(other[1] - y) for other in others if other[3]], default=0)

    return min(range(5), key=badness)


def play_seaquest(game: Any) -> int:
    """Collects divers and shoots what is in its row; goes up before the oxygen ends, if there is a diver on board."""
    x, y, others = game.sub_x, game.sub_y, game.e_fish + game.e_subs
    if game.diver_count == 6 or (game.diver_count > 0 and game.oxygen < 60):
        return 2
    ahead = [other for other in others if other[1] == y and (other[0] > x) == game.sub_or and abs(other[0] - x) < 6]
    if ahead and game.shot_timer == 0:
        return 5
    diver = min(game.divers, key=lambda diver: abs(diver[0] - x) + abs(diver[1] - y), default=None)
    if any(other[1] == y and abs(other[0] - x) < 3 for other in others) or diver is None:
        return 4 if y < 4 else 2 if y > 1 else 5
    if diver[1] != y:
        return 4 if diver[1] > y else 2
    return 3 if diver[0] > x else 1


GAMES: dict[str, tuple[type[TensorEnv], Callable[[Any], int], Callable[[Any], bool]]] = {
    "breakout": (Breakout, play_breakout, lambda game: not game.brick_map.any()),
    "freeway": (Freeway, play_freeway, lambda game: game.pos == 1 and game.move_timer == 0),
    "space_invaders": (SpaceInvaders, play_space_invaders, lambda game: game.ramp_index > 0),
    "asterix": (Asterix, play_asterix, lambda game: game.ramp_index > 2),
    "seaquest": (Seaquest, play_seaquest, lambda game: game.ramp_index > 2),
}
"""Of each game its form in tensors, someone who can play it, and what they should reach ten times and more."""


@pytest.mark.parametrize("name", GAMES)
def test_games_in_tensors_are_the_originals_step_for_step(name: str) -> None:
    num_envs, num_steps = 16, 2600 if name == "freeway" else 1200
    make, play, is_far = GAMES[name]
    env, generator = make(), torch.Generator().manual_seed(1)
    games, sticky, givens = ([kind() for _ in range(num_envs)] for kind in (lambda: Environment(name), Given, Given))
    carelessness = torch.linspace(0, 0.5, num_envs) ** 2

    def noise(size: int) -> torch.Tensor:
        return torch.rand(num_envs, size, generator=generator)

    start = noise(env.initial_noise_size)
    for game, once, given, numbers in zip(games, sticky, givens, start, strict=True):
        game.random, game.env.random = once, given
        if name == "seaquest":  # whose last two numbers are a diver's, also where no enemy has taken the others
            game.env._spawn_diver = partial(spawn_diver, given, game.env._spawn_diver)
        given.give(numbers)
        game.reset()
    state = env.initial(start)
    num_ended = num_far = total = 0
    for _ in range(num_steps):
        now, start = noise(env.transition_noise_size), noise(env.initial_noise_size)
        at_random = torch.randint(0, int(env.action_space.n), (num_envs,), generator=generator)  # type: ignore[attr-defined]
        careless = noise(1)[:, 0] < carelessness
        action = torch.where(careless, at_random, torch.tensor([play(game.env) for game in games]))
        num_far += sum(is_far(game.env) for game in games)
        results = []
        for game, once, given, numbers, one in zip(games, sticky, givens, now, action, strict=True):
            once.give(numbers[:1])
            given.give(numbers[1:])
            results.append(game.act(game.minimal_action_set()[one]))
        reward, terminated = map(np.array, zip(*results, strict=True))
        next_state = env.transition(state, action, now)
        assert np.array_equal(env.observation(next_state), [game.state() for game in games])
        assert np.array_equal(env.reward(state, action, next_state), reward)
        assert np.array_equal(env.terminal(next_state), terminated)
        for n in np.flatnonzero(terminated):
            givens[n].give(start[n])
            games[n].reset()
            games[n].last_action = 0  # see `MinAtarGame` in rl/envs/families.py
        state = torch.where(torch.from_numpy(terminated)[:, None], env.initial(start), next_state)
        assert np.array_equal(env.observation(state), [game.state() for game in games])
        num_ended, total = num_ended + int(terminated.sum()), total + reward.sum()
    assert num_ended >= num_envs
    assert num_far > 10
    assert total > num_envs


@pytest.mark.parametrize("game", ["Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders"])
def test_an_episode_does_not_depend_on_the_one_before_it(game: str) -> None:
    """The original repeats the last action of an episode in the first step of the next one."""
    config = EnvConfig(f"MinAtar/{game}-v1")
    env = SeededEpisodes(lambda: make_single(config))
    env.reset(seed=seed_of(1, 0))
    for _ in range(3):
        env.step(2)
    assert env.unwrapped.game.last_action != 0
    env.reset(seed=seed_of(1, 1))
    assert env.unwrapped.game.last_action == 0


def test_images_stay_bytes() -> None:
    with closing(make_envs(EnvConfig(ID, num_envs=2, vectorization="sync"))) as envs:
        obs = envs.reset(1)
    assert isinstance(obs, torch.Tensor)
    assert (obs.dtype, obs.shape) == (torch.uint8, (2, 10, 10, 4))
    assert envs.spaces.obs[0].planes == (4, 10, 10)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for env_id in [name for name in gym.registry if name.startswith("MinAtar/")]:
        monkeypatch.delitem(gym.registry, env_id)
    monkeypatch.setitem(sys.modules, "minatar.gym", None)
    with pytest.raises(UserError, match=rf"^--env-id {ID}: .*minatar.*; pip install 'fabric-rl\[minatar\]'$"):
        make_envs(EnvConfig(ID))
