"""GAE against its definition, against stable-baselines3, and in its special cases."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.buffers import RolloutBuffer
from torch import Tensor

from rl.returns import gae


def random_rollout(seed: int, num_steps: int = 40, num_envs: int = 3, end_rate: float = 0.2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(num_steps, num_envs, generator=generator)

    ends = torch.rand(2, num_steps, num_envs, generator=generator) < end_rate
    return {
        "reward": normal(),
        "value": normal(),
        "next_value": normal(),
        "terminated": ends[0],
        "truncated": ends[1],
    }


def test_a_worked_example() -> None:
    # One environment, gamma 1/2, lambda 1/2: the carry is 1/4. Step 1 terminates, step 2 is truncated.
    advantage = gae(
        torch.tensor([[1.0], [2.0], [3.0], [4.0]]),
        torch.tensor([[1.0], [1.0], [1.0], [1.0]]),
        torch.tensor([[1.0], [8.0], [4.0], [2.0]]),
        terminated=torch.tensor([[False], [True], [False], [False]]),
        truncated=torch.tensor([[False], [False], [True], [False]]),
        gamma=0.5,
        gae_lambda=0.5,
    )
    # td errors: 1 + 0.5 - 1 = 0.5; 2 - 1 = 1 (no bootstrap); 3 + 2 - 1 = 4; 4 + 1 - 1 = 4
    assert advantage.flatten().tolist() == [0.5 + 0.25 * 1, 1.0, 4.0, 4.0]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    num_steps=st.integers(1, 24),
    num_envs=st.integers(1, 4),
    end_rate=st.sampled_from([0.0, 0.3, 1.0]),
    gamma=st.floats(0, 1),
    gae_lambda=st.floats(0, 1),
)
def test_gae_is_the_discounted_sum_of_td_errors(
    seed: int, num_steps: int, num_envs: int, end_rate: float, gamma: float, gae_lambda: float
) -> None:
    rollout = random_rollout(seed, num_steps, num_envs, end_rate)
    advantage = gae(**rollout, gamma=gamma, gae_lambda=gae_lambda)
    for n in range(num_envs):
        for t in range(num_steps):
            total = 0.0
            for k in range(t, num_steps):
                alive = 0.0 if rollout["terminated"][k, n] else 1.0
                td_error = (
                    rollout["reward"][k, n] + gamma * alive * rollout["next_value"][k, n] - rollout["value"][k, n]
                )
                total += (gamma * gae_lambda) ** (k - t) * td_error.item()
                if rollout["terminated"][k, n] or rollout["truncated"][k, n]:
                    break
            assert advantage[t, n].item() == pytest.approx(total, abs=1e-4)


def test_gae_equals_the_buffer_of_stable_baselines3() -> None:
    num_steps, num_envs, gamma, gae_lambda = 128, 4, 0.97, 0.9
    rollout = random_rollout(7, num_steps, num_envs, end_rate=0.05)
    ended = rollout["terminated"] | rollout["truncated"]
    # Within an episode the next value is that of the next observation; at its end, of the final one.
    following = torch.cat([rollout["value"][1:], rollout["next_value"][-1:]])
    next_value = torch.where(ended, rollout["next_value"], following)
    buffer = RolloutBuffer(
        num_steps, gym.spaces.Box(-1, 1, (1,)), gym.spaces.Discrete(2), gamma=gamma, gae_lambda=gae_lambda, n_envs=4
    )
    # That library adds the bootstrap of a truncated episode to its last reward.
    truncated_only = rollout["truncated"] & ~rollout["terminated"]
    reward = rollout["reward"] + gamma * truncated_only * next_value
    starts = torch.cat([torch.zeros(1, num_envs, dtype=torch.bool), ended[:-1]])
    for t in range(num_steps):
        buffer.add(
            np.zeros((num_envs, 1)),
            np.zeros((num_envs, 1)),
            reward[t].numpy(),
            starts[t].numpy(),
            rollout["value"][t],
            torch.zeros(num_envs),
        )
    buffer.compute_returns_and_advantage(next_value[-1], ended[-1].numpy())
    ours = gae(**rollout | {"next_value": next_value}, gamma=gamma, gae_lambda=gae_lambda)
    assert np.abs(ours.numpy() - buffer.advantages).max() <= 1e-6 * np.abs(buffer.advantages).max()


def test_lambda_0_is_the_td_error() -> None:
    rollout = random_rollout(1)
    td_error = rollout["reward"] + 0.9 * rollout["next_value"] * ~rollout["terminated"] - rollout["value"]
    assert torch.equal(gae(**rollout, gamma=0.9, gae_lambda=0.0), td_error)


def test_environments_do_not_mix() -> None:
    rollout, order = random_rollout(2), torch.tensor([2, 0, 1])
    permuted = {name: field[:, order] for name, field in rollout.items()}
    expected = gae(**rollout, gamma=0.9, gae_lambda=0.8)[:, order]
    assert torch.equal(gae(**permuted, gamma=0.9, gae_lambda=0.8), expected)


def test_truncation_bootstraps_where_termination_does_not() -> None:
    rollout = random_rollout(3, end_rate=0.0)
    end = torch.zeros_like(rollout["terminated"])
    end[-1] = True
    truncated = gae(**rollout | {"truncated": end}, gamma=0.9, gae_lambda=0.8)
    terminated = gae(**rollout | {"terminated": end}, gamma=0.9, gae_lambda=0.8)
    assert torch.allclose(truncated[-1] - terminated[-1], 0.9 * rollout["next_value"][-1])
