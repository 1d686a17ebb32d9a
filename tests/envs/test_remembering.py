"""Tasks that take memory: returns known by arithmetic, and forms that agree."""

import gymnasium as gym
import numpy as np
import pytest
import torch

import rl
from rl.envs.classic import CartPole, Pendulum
from rl.envs.remembering import CartPoleNoVel, PendulumNoVel, Recall, TMaze, WithoutVelocities


@pytest.mark.parametrize("delay", [1, 4])
def test_whoever_recalls_is_right_as_soon_as_it_can_be_and_others_a_quarter_of_the_time(delay: int) -> None:
    for remembers in (True, False):
        envs = rl.TensorVectorEnv(Recall(delay), 2000)
        obs, _ = envs.reset(seed=1)
        seen, rewards = [], []
        for t in range(48 + delay):
            seen.append(obs)
            obs, reward, _, truncated, _ = envs.step(seen[-1 - delay] if remembers and t >= delay else seen[-1])
            rewards.append(reward)
        assert truncated.all()
        total = torch.stack(rewards)
        assert not remembers or (total[delay:] == 1).all()
        expected = 48 - delay / 2 if remembers else -(48 + delay) / 2
        assert total.sum(0).mean().item() == pytest.approx(expected, abs=0.6)


@pytest.mark.parametrize(("choice", "expected"), [("shown", 4.0), ("other", -0.1), ("left", 1.95)])
def test_a_maze_pays_for_the_turn_that_was_shown_at_its_beginning(choice: str, expected: float) -> None:
    envs = rl.TensorVectorEnv(TMaze(5), 2000)
    obs, _ = envs.reset(seed=1)
    side = obs[:, 0]
    assert (side.abs() == 1).all() and abs(side.mean()) < 0.1
    total = torch.zeros(2000)
    for t in range(6):
        assert torch.equal(obs, torch.stack([side * (t == 0), torch.full_like(side, t == 5)], -1))
        turn = {"shown": 1.5 + side / 2, "other": 1.5 - side / 2, "left": torch.ones(2000)}[choice]
        obs, reward, terminated, _, _ = envs.step(turn.long() if t == 5 else torch.zeros(2000, dtype=torch.int64))
        total += reward
        assert terminated.all() if t == 5 else not terminated.any()
    assert total.mean().item() == pytest.approx(expected, abs=0.15)


def test_a_turn_on_the_way_costs_and_a_walk_into_the_wall_gives_nothing() -> None:
    env, at_end = TMaze(5), torch.tensor([[5.0, 1.0]])
    before, ahead, left = torch.tensor([[2.0, 1.0]]), torch.tensor([0]), torch.tensor([1])
    after = env.transition(before, left, torch.empty(1, 0))
    assert torch.equal(after, before) and env.reward(before, left, after).item() == pytest.approx(-0.1)
    after = env.transition(at_end, ahead, torch.empty(1, 0))
    assert torch.equal(after, at_end) and env.reward(at_end, ahead, after).item() == 0


@pytest.mark.parametrize("env_id", ["CartPoleNoVel-v1", "PendulumNoVel-v1", "Recall-v0", "TMaze-v0"])
def test_gymnasiums_form_passes_gymnasiums_checks_and_is_the_same_with_the_same_seed(env_id: str) -> None:
    env = gym.make(env_id)
    env.action_space.seed(1)
    actions = [env.action_space.sample() for _ in range(20)]
    runs = []
    for _ in range(2):
        obs, _ = env.reset(seed=1)
        runs.append([obs])
        for action in actions:
            assert env.observation_space.contains(obs)
            obs, reward, *_ = env.step(action)
            runs[-1] += [obs, reward]
    assert all(np.array_equal(one, other) for one, other in zip(*runs, strict=True))


def test_what_is_left_without_velocities_is_the_same_in_both_forms() -> None:
    for env, full, name, keep in (
        (CartPoleNoVel(), CartPole(), "CartPole-v1", (0, 2)),
        (PendulumNoVel(), Pendulum(), "Pendulum-v1", (0, 1)),
    ):
        wrapped = WithoutVelocities(gym.make(name), keep)
        state = env.initial(torch.rand(1, env.initial_noise_size))
        assert torch.equal(env.observation(state)[0], full.observation(state)[0][list(keep)])
        assert env.observation_space == wrapped.observation_space
        everything = full.observation(state)[0].numpy()
        assert np.array_equal(wrapped.observation(everything), env.observation(state)[0].numpy())
