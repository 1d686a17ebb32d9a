"""Evaluation: one whole greedy episode for each environment, reproducible; and videos."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import imageio.v3
import numpy as np
import pytest
import torch

from rl.config import CONFIGS
from rl.envs.config import EnvConfig
from rl.envs.make import make_envs
from rl.models.agent import Agent, Network
from rl.run.evaluation import Evaluation, act, evaluate, evaluate_run, record_video
from rl.seeding import environment_seed, evaluation_seed


class Balancer(Agent):
    """A CartPole policy without learning: push in the direction in which the pole falls."""

    def forward(self, obs: torch.Tensor, mask: object = ()) -> tuple[object, torch.Tensor]:
        distribution, value = super().forward(obs)
        lean = obs[..., 2] + 0.5 * obs[..., 3]
        return type(distribution).from_logits(torch.stack([-lean, lean], dim=-1)), value


def evaluate_on(config: EnvConfig, policy: type[Agent] = Agent, **kwargs: int) -> Evaluation:
    envs = make_envs(config)
    torch.manual_seed(1)
    evaluation = evaluate(policy(envs.spaces, Network()), envs, **{"seed": 3, "max_steps": 1000} | kwargs)
    envs.close()
    return evaluation


@pytest.mark.parametrize("vectorization", ["auto", "sync"])
def test_each_environment_plays_one_whole_episode(vectorization: str) -> None:
    good, bad = (
        evaluate_on(EnvConfig("CartPole-v1", 6, vectorization), policy).total_return for policy in (Balancer, Agent)
    )
    assert good.tolist() == [500] * 6
    assert (bad < 100).all() and (bad >= 8).all()  # no pole falls in fewer than eight steps


def test_the_returns_are_those_of_single_environments() -> None:
    envs = make_envs(EnvConfig("CartPole-v1", 6, "sync"))
    policy, env, totals = Agent(envs.spaces, Network(ortho_init=False)), gym.make("CartPole-v1"), []
    for n in range(6):
        obs, ended = env.reset(seed=environment_seed(3, n))[0], False
        totals.append(0.0)
        while not ended:
            obs, reward, terminated, truncated, _ = env.step(act(policy, obs))
            totals[n], ended = totals[n] + reward, terminated or truncated
    assert evaluate(policy, envs, seed=3, max_steps=1000).total_return.tolist() == totals
    assert len(set(totals)) > 1


def test_an_episode_that_does_not_end_is_cut_and_said_to_be() -> None:
    evaluation = evaluate_on(EnvConfig("CartPole-v1", 2), Balancer, max_steps=20)
    assert evaluation.total_return.tolist() == [20, 20] and evaluation.unfinished.tolist() == [True, True]


def test_evaluation_depends_on_its_seed_alone() -> None:
    config = EnvConfig("Pendulum-v1", 3, "sync")
    first, again, other = (evaluate_on(config, seed=seed).total_return for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_film_is_of_the_first_episode_that_evaluates_a_run(tmp_path: Path) -> None:
    config = replace(CONFIGS["reinforce"], env=EnvConfig("CartPole-v1", 4), eval_episodes=6)
    with closing(make_envs(config.env)) as envs:
        policy = Agent(envs.spaces, Network(ortho_init=False))
    returns = evaluate_run(config, policy).total_return.tolist()
    filmed = record_video(policy, config.env, tmp_path / "film.mp4", seed=evaluation_seed(config.seed), max_steps=500)
    assert filmed == returns[0] and len(set(returns)) > 1
    assert len(imageio.v3.imread(tmp_path / "film.mp4")) in (filmed, filmed + 1)


def test_a_video_shows_the_episode(tmp_path: Path) -> None:
    config = EnvConfig("CustomEnv-v0", 1)
    policy = Agent(make_envs(config).spaces, Network())
    path = tmp_path / "videos" / "film.mp4"
    record_video(policy, config, path, seed=1, max_steps=5)
    frames = imageio.v3.imread(path)
    assert [file.name for file in path.parent.iterdir()] == ["film.mp4"]
    assert frames.shape[1:] == (120, 480, 3) and 5 <= len(frames) <= 6
    assert not np.array_equal(frames[0], frames[-1])
