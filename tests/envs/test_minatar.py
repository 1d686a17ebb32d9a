"""MinAtar: its ids register themselves, its episodes can be replayed, and Breakout in tensors is the original."""

import sys
from contextlib import closing

import gymnasium as gym
import numpy as np
import pytest
import torch
from minatar import Environment

from rl.envs.config import EnvConfig, make_single
from rl.envs.make import make_envs
from rl.envs.minatar import Breakout
from rl.envs.seeded import SeededEpisodes, seed_of
from rl.errors import UserError

ID = "MinAtar/Breakout-v1"


class Given:
    """Stands in for the original's generator: it gives the numbers that it is given."""

    def __init__(self) -> None:
        self.sticky = self.side = 0.0

    def rand(self) -> float:
        return self.sticky

    def randint(self, num: int) -> int:
        return int(self.side * num)


def follow(game: Environment) -> int:
    """The action that leads to the ball."""
    return {0: 0, -1: 1, 1: 2}[int(np.sign(game.env.ball_x - game.env.pos))]


def test_breakout_in_tensors_is_the_original_step_for_step() -> None:
    num_envs, num_steps = 48, 1200
    env, generator = Breakout(), torch.Generator().manual_seed(1)
    games, givens = [Environment("breakout") for _ in range(num_envs)], [Given() for _ in range(num_envs)]
    carelessness = torch.linspace(0, 0.5, num_envs) ** 2
    start = torch.rand(num_envs, 1, generator=generator)
    for game, given, number in zip(games, givens, start, strict=True):
        game.random = game.env.random = given
        given.side = number.item()
        game.reset()
    state = env.initial(start)
    num_ended = num_cleared = 0
    for _ in range(num_steps):
        noise, start = (torch.rand(num_envs, 1, generator=generator) for _ in range(2))
        at_random = torch.randint(0, 3, (num_envs,), generator=generator)
        careless = torch.rand(num_envs, generator=generator) < carelessness
        action = torch.where(careless, at_random, torch.tensor([follow(game) for game in games]))
        results = []
        for game, given, number, one in zip(games, givens, noise, action, strict=True):
            given.sticky = number.item()
            num_cleared += not game.env.brick_map.any()
            results.append(game.act(game.minimal_action_set()[one]))
        reward, terminated = map(np.array, zip(*results, strict=True))
        next_state = env.transition(state, action, noise)
        assert np.array_equal(env.observation(next_state), [game.state() for game in games])
        assert np.array_equal(env.reward(state, action, next_state), reward)
        assert np.array_equal(env.terminal(next_state), terminated)
        for n in np.flatnonzero(terminated):
            givens[n].side = start[n].item()
            games[n].reset()
            games[n].last_action = 0  # see `MinAtarGame`
        state = torch.where(torch.from_numpy(terminated)[:, None], env.initial(start), next_state)
        assert np.array_equal(env.observation(state), [game.state() for game in games])
        num_ended += int(terminated.sum())
    assert num_ended > 500
    assert num_cleared > 10


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
