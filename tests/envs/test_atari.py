"""Atari in ale-py's own batches: seeds of episodes, lives, rewards, replay, film."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio.v3
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from rl.commands.of_run import Trained
from rl.commands.play import play, shown
from rl.envs.config import EnvConfig
from rl.envs.make import make_envs
from rl.envs.spaces import Spaces
from rl.envs.types import Envs, Step
from rl.errors import UserError
from rl.models.agent import Agent, Network
from rl.run.evaluation import evaluate, record_video
from rl.seeding import environment_seed, episode_seed

ale_py = pytest.importorskip("ale_py", reason="ale-py is not installed")
SHORT = ("max_num_frames_per_episode=300",)
BREAKOUT = EnvConfig("ALE/Breakout-v5", num_envs=3, num_workers=1)
BERZERK = replace(BREAKOUT, env_id="ALE/Berzerk-v5")


def actions(num_steps: int, num_actions: int = 4) -> Iterator[torch.Tensor]:
    yield from torch.randint(num_actions, (num_steps, 3), generator=torch.Generator().manual_seed(0))


def played(envs: Envs, num_steps: int, num_actions: int = 4) -> list[Step]:
    return [envs.step(action) for action in actions(num_steps, num_actions)]


def fresh(game: str, seed: int, **kwargs: Any) -> tuple[Any, np.ndarray]:
    """A game by itself, with the settings that are registered, and its first observation."""
    alone = ale_py.AtariVectorEnv(game, 1, num_threads=1, repeat_action_probability=0.25, **kwargs)
    return alone, alone.reset(seed=seed)[0][0]


@pytest.mark.parametrize(("kwargs", "num_steps"), [(SHORT, 150), ((), 250)], ids=["truncated", "terminated"])
def test_each_episode_is_that_of_a_fresh_game_with_the_seed_of_its_number(
    kwargs: tuple[str, ...], num_steps: int
) -> None:
    limits = {"max_num_frames_per_episode": 300} if kwargs else {}
    with closing(make_envs(replace(BREAKOUT, env_kwargs=kwargs))) as envs:
        first, steps = envs.reset(seed=4, first_env=2), played(envs, num_steps)
    for n in range(3):
        episode, obs = 0, first[n]
        alone, expected = fresh("breakout", environment_seed(4, 2 + n), **limits)
        for step, action in zip(steps, actions(num_steps), strict=True):
            assert np.array_equal(obs, expected)
            seen, reward, terminated, truncated, _ = alone.step(action[n : n + 1].numpy())
            assert np.array_equal(step.next_obs[n], seen[0]) and step.weight[n] == 1
            now = step.reward[n], step.terminated[n], step.truncated[n]
            assert now == (reward[0], terminated[0], truncated[0])
            obs, expected = step.obs[n], seen[0]
            if terminated[0] or truncated[0]:
                episode += 1
                alone, expected = fresh("breakout", episode_seed(environment_seed(4, 2 + n), episode), **limits)
        assert episode >= 1
    ends = torch.stack([step.truncated if kwargs else step.terminated for step in steps])
    assert ends.sum() >= 3


def test_the_learner_sees_signs_and_lost_lives_while_the_game_goes_on() -> None:
    seen = replace(BERZERK, clip_rewards=True, terminate_on_life_loss=True)
    with closing(make_envs(BERZERK)) as envs, closing(make_envs(seen)) as learner_envs:
        assert torch.equal(envs.reset(seed=5), learner_envs.reset(seed=5))
        whole, steps = played(envs, 160, 18), played(learner_envs, 160, 18)
    assert max(step.reward.max() for step in whole) > 1
    for game, learner in zip(whole, steps, strict=True):
        assert torch.equal(learner.reward, game.reward.sign())
        assert torch.equal(learner.obs, game.obs) and torch.equal(learner.next_obs, game.next_obs)
        assert torch.equal(learner.episode_return, game.episode_return) and learner.weight.all()
        assert torch.equal(learner.episode_length, game.episode_length)
    num_over = 0
    for n in range(3):
        alone, _ = fresh("berzerk", environment_seed(5, n), life_loss_info=True, reward_clipping=False)
        total, num_lost = 0.0, 0
        for game, learner, action in zip(whole, steps, actions(160, 18), strict=True):
            _, reward, lost, *_ = alone.step(action[n : n + 1].numpy())
            total, num_lost = total + float(reward[0]), num_lost + int(lost[0])
            assert learner.terminated[n] == lost[0]
            if game.terminated[n]:
                num_over += 1
                assert learner.episode_return[n] == total > 0 and num_lost > 1
                break
            assert learner.episode_length[n] == 0
    assert num_over == 2


def test_single_environments_lose_lives_too_and_others_are_told_that_they_have_none() -> None:
    single = replace(BREAKOUT, vectorization="sync", terminate_on_life_loss=True)
    with closing(make_envs(single)) as envs:
        assert envs.reset(seed=1).shape == (3, 210, 160, 3)
        steps = played(envs, 120)
    assert sum(int(step.terminated.sum()) for step in steps) > sum(
        int((step.episode_length > 0).sum()) for step in steps
    )
    for config in (EnvConfig("CartPole-v1"), EnvConfig("CartPole-v1", vectorization="sync")):
        with pytest.raises(UserError, match=r"^--terminate-on-life-loss: CartPole-v1 gives no info\['lives'\]"):
            make_envs(replace(config, terminate_on_life_loss=True))


def test_a_batch_beside_another_does_not_change_how_either_resets() -> None:
    """ale-py's class writes its mode into a dictionary that all batched classes share."""
    config = replace(BREAKOUT, env_kwargs=SHORT)
    with closing(make_envs(config)) as envs, closing(make_envs(config)) as other:
        envs.reset(seed=1)
        ale_py.AtariVectorEnv("pong", 1, autoreset_mode=AutoresetMode.SAME_STEP)
        other.reset(seed=2)
        steps = [(envs.step(action), other.step(action)) for action in actions(100)]
    assert not (envs.resets_in_next_step or other.resets_in_next_step)
    assert all(step.weight.all() for pair in steps for step in pair)
    with closing(make_envs(config)) as alone:
        alone.reset(seed=1)
        assert all(torch.equal(a.obs, b.obs) for a, (b, _) in zip(played(alone, 100), steps, strict=True))


def test_replayed_games_go_on_as_if_nothing_had_happened() -> None:
    config = replace(BREAKOUT, terminate_on_life_loss=True)
    with closing(make_envs(config, training=True)) as envs, closing(make_envs(config, training=True)) as again:
        envs.reset(seed=3)
        for num_steps, action in enumerate(actions(400)):
            step = envs.step(action)
            if num_steps > 150 and step.episode_length.any():
                break
        state = envs.state_dict()
        lengths = [len(episode) for episode in state["actions"]]
        assert min(lengths) == 0 and len(set(lengths)) == 3  # a game has just begun, and all are at different steps
        again.reset(seed=9)
        assert torch.equal(again.load_state_dict(state, num_steps), step.obs)
        for one, other in zip(played(envs, 50), played(again, 50), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_whole_games_of_the_same_frames_are_evaluated_and_filmed_in_color(tmp_path: Path) -> None:
    config = replace(BREAKOUT, env_kwargs=SHORT, clip_rewards=True, terminate_on_life_loss=True)
    with closing(make_envs(config)) as trained_in, closing(make_envs(config.for_evaluation(2))) as evaluated_in:
        assert evaluated_in.spaces == trained_in.spaces and evaluated_in.num_envs == 2
        policy = Agent(trained_in.spaces, Network(hidden_sizes=(16,), ortho_init=False))
        evaluation = evaluate(policy, evaluated_in, seed=5, max_steps=1000)
    assert not evaluation.unfinished.any()
    filmed = record_video(policy, config, tmp_path / "film.mp4", seed=5, max_steps=1000)
    assert filmed == evaluation.total_return[0]
    frames = imageio.v3.imread(tmp_path / "film.mp4")
    assert frames.shape[1:] == (210, 160, 3) and 60 < len(frames) <= 76
    assert len(np.unique(frames[0].reshape(-1, 3), axis=0)) > 100  # the colors of the bricks, and of their edges
    assert [file.name for file in tmp_path.iterdir()] == ["film.mp4"]


def test_what_is_not_the_users_to_say_is_named() -> None:
    for name, right in (("reward_clipping=true", "use --clip-rewards"), ("batch_size=1", "this program needs its own")):
        with pytest.raises(UserError, match=rf"^--env-kwargs {name[:-5].rstrip('=')}\S*: {right}; leave it out$"):
            make_envs(replace(BREAKOUT, env_kwargs=(name,)))


def test_a_game_alone_is_the_one_that_an_evaluation_plays(tmp_path: Path) -> None:
    agent = Agent(spaces_of(BREAKOUT), Network(hidden_sizes=(8,)))
    with closing(make_envs(replace(BREAKOUT, num_envs=2, env_kwargs=SHORT).for_evaluation(2))) as envs:
        expected = evaluate(agent, envs, seed=5, max_steps=1000, sampled=True)
    policy = Trained(tmp_path, {}, agent, replace(BREAKOUT, env_kwargs=SHORT), seed=5, max_steps=1000)  # type: ignore[typeddict-item]
    for episode in range(2):
        with shown(policy, tmp_path / "film.gif") as (env, show):
            total, length, ended = play(policy, env, show, seed=5, episode=episode, sampled=True)
        assert ended and (total, length) == (expected.total_return[episode], expected.length[episode])
    frames = imageio.v3.imread(tmp_path / "film.gif")
    assert length / 2 < len(frames) <= length + 1  # a GIF merges frames that are equal
    assert frames.shape[1:] == (630, 480, 3) and frames.std(axis=-1).max() > 20  # in color


def spaces_of(config: EnvConfig) -> Spaces:
    with closing(make_envs(config)) as envs:
        return envs.spaces
