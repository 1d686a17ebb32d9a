"""`GymEnvs`: the same steps with every autoreset mode and every kind of space."""

from contextlib import closing
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rl.envs.actions import DiscreteActions
from rl.envs.config import EnvConfig
from rl.envs.gym_envs import GymEnvs
from rl.envs.make import make_envs
from rl.envs.types import Step
from rl.errors import OneEnvError, UserError
from tests.probes import Probe


class Counter(Probe):
    """Observes the number of steps of its episode, which ends after 3."""

    observation_space = gym.spaces.Box(0, 10, (1,), np.float64)
    action_space = gym.spaces.Discrete(2, start=5)
    length = 3

    def observe(self) -> np.ndarray:
        return np.array([float(self.elapsed)])

    def reward(self, action: np.int64) -> float:
        return float(action)


gym.register("OneArray-v0", entry_point=f"{__name__}:OneArray", max_episode_steps=9)


def stepper(mode: AutoresetMode, env: type[Probe] = Counter, num_envs: int = 2) -> GymEnvs:
    return GymEnvs(SyncVectorEnv([env] * num_envs, autoreset_mode=mode), "Counter")


def test_same_step_gives_the_final_observation_and_the_next_first_one() -> None:
    envs = stepper(AutoresetMode.SAME_STEP)
    assert envs.reset(seed=0).tolist() == [[0], [0]]
    steps = [envs.step(torch.tensor([0, 1])) for _ in range(4)]
    assert [step.next_obs[0, 0].item() for step in steps] == [1, 2, 3, 1]
    assert [step.obs[0, 0].item() for step in steps] == [1, 2, 0, 1]
    assert [step.terminated[0].item() for step in steps] == [False, False, True, False]
    assert all(step.weight.tolist() == [1, 1] for step in steps)


def test_next_step_marks_the_row_that_resets() -> None:
    envs = stepper(AutoresetMode.NEXT_STEP)
    envs.reset(seed=0)
    steps = [envs.step(torch.tensor([0, 1])) for _ in range(8)]
    assert [step.next_obs[0, 0].item() for step in steps] == [1, 2, 3, 0, 1, 2, 3, 0]
    assert [step.weight[0].item() for step in steps] == [1, 1, 1, 0, 1, 1, 1, 0]


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_episodes_are_counted_once_with_their_own_rewards_and_steps(mode: AutoresetMode) -> None:
    envs = stepper(mode)
    envs.reset(seed=0)
    steps = [envs.step(torch.tensor([0, 1])) for _ in range(7)]
    # Rewards are the actions in the environment's own terms: 5 and 6, three times.
    assert [step.episode_return.tolist() for step in steps if step.terminated.any()] == [[15, 18]] * 2
    assert [step.episode_length.tolist() for step in steps if step.terminated.any()] == [[3, 3]] * 2
    assert all(step.episode_return.tolist() == [0, 0] for step in steps if not step.terminated.any())


class PaidResets(SyncVectorEnv):
    """Returns rewards in the steps that only reset, where no action was taken."""

    def step(self, actions: np.ndarray) -> tuple[Any, ...]:
        obs, reward, *rest = super().step(actions)
        return (obs, np.where(reward == 0, 1e3, reward), *rest)


def test_what_a_reset_rewards_is_of_no_episode() -> None:
    envs = GymEnvs(PaidResets([Counter] * 2, autoreset_mode=AutoresetMode.NEXT_STEP), "Counter")
    envs.reset(seed=0)
    steps = [envs.step(torch.tensor([0, 1])) for _ in range(8)]
    assert [step.episode_return.tolist() for step in steps if step.terminated.any()] == [[15, 18]] * 2


class EndsInResets(SyncVectorEnv):
    """Reports the end of an episode at every step, so that no action is ever taken."""

    def step(self, actions: np.ndarray) -> tuple[Any, ...]:
        obs, reward, terminated, *rest = super().step(actions)
        return (obs, reward, np.ones_like(terminated), *rest)


def test_an_episode_does_not_end_in_the_step_that_resets() -> None:
    envs = GymEnvs(EndsInResets([Counter] * 2, autoreset_mode=AutoresetMode.NEXT_STEP), "Counter")
    envs.reset(seed=0)
    envs.step(torch.tensor([0, 1]))
    with pytest.raises(OneEnvError, match="ended an episode in the step that resets"):
        envs.step(torch.tensor([0, 1]))


def test_what_exists_only_as_a_batch_is_evaluated_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = replace(gym.spec("CustomEnv-v0"), entry_point=None)
    monkeypatch.setitem(gym.registry, "CustomEnv-v0", spec)
    with closing(make_envs(EnvConfig(num_envs=2, vectorization="sync"))) as envs:
        assert envs.reset(seed=1).shape == (2, 2)


def test_a_batched_class_can_be_asked_for() -> None:
    with closing(make_envs(EnvConfig("CartPole-v1", num_envs=2, vectorization="native"))) as envs:
        assert not isinstance(envs.envs, SyncVectorEnv) and envs.resets_in_next_step
    with pytest.raises(UserError, match="--vectorization native: LunarLander-v3 has no batched class of its own; use"):
        make_envs(EnvConfig("LunarLander-v3", vectorization="native"))


def test_observations_come_as_float32() -> None:
    envs = stepper(AutoresetMode.SAME_STEP)
    assert envs.reset(seed=0).dtype == envs.step(torch.tensor([0, 0])).obs.dtype == torch.float32


def test_an_environment_may_reuse_its_arrays() -> None:
    inner = SyncVectorEnv([Counter] * 2, autoreset_mode=AutoresetMode.SAME_STEP, copy=False)
    envs = GymEnvs(inner, "Counter")
    envs.reset(seed=0)
    first = envs.step(torch.tensor([0, 0]))
    kept = [field.clone() for field in first]
    envs.step(torch.tensor([0, 0]))
    assert all(torch.equal(field, copy) for field, copy in zip(first, kept, strict=True))


class OneArray(Counter):
    """Writes all its observations into one array."""

    array = np.zeros(1)

    def observe(self) -> np.ndarray:
        self.array[0] = self.elapsed
        return self.array


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_the_final_observation_is_not_that_of_the_reset_after_it(vectorization: str) -> None:
    with closing(make_envs(EnvConfig("OneArray-v0", num_envs=1, vectorization=vectorization))) as envs:
        envs.reset(seed=0)
        assert [envs.step(torch.tensor([0])).next_obs.item() for _ in range(4)] == [1, 2, 3, 1]


def test_a_reward_of_a_step_that_only_resets_belongs_to_no_episode() -> None:
    inner = SyncVectorEnv([Counter], autoreset_mode=AutoresetMode.NEXT_STEP)
    envs, plain = GymEnvs(inner, "Counter"), inner.step

    def generous(action: Any) -> Any:
        obs, reward, *rest = plain(action)
        return obs, reward + 1000 * (obs[:, 0] == 0), *rest

    inner.step = generous
    envs.reset(seed=0)
    rewards = [envs.step(torch.tensor([0])).reward.item() for _ in range(8)]
    assert rewards == [5, 5, 5, 0, 5, 5, 5, 0]


@pytest.mark.parametrize("vectorization", ["auto", "sync", "async"])
@pytest.mark.parametrize("env_id", ["CustomEnv-v0", "CartPole-v1", "Pendulum-v1"])
def test_rows_are_true_transitions(env_id: str, vectorization: str) -> None:
    """Each row with weight 1 is what a single environment does from the row's observation."""
    envs = make_envs(EnvConfig(env_id, num_envs=3, vectorization=vectorization))
    single = gym.make(env_id).unwrapped
    single.reset()
    generator = torch.Generator().manual_seed(0)
    discrete = isinstance(envs.spaces.actions, DiscreteActions)
    obs = envs.reset(seed=4)
    num_ended = num_rows = 0
    for _ in range(260):
        action = torch.randint(2, (3,), generator=generator) if discrete else torch.randn(3, 1, generator=generator)
        step = envs.step(action)
        for n in np.flatnonzero(step.weight):
            put_into_state(single, obs[n].numpy())
            check_row(step, n, single.step(envs.spaces.actions.to_env(action[n].numpy())))
            num_rows += 1
        num_ended += int((step.terminated | step.truncated).sum())
        obs = step.obs
    envs.close()
    assert num_ended >= 3 and num_rows >= 3 * 260 - num_ended


def check_row(step: Step, n: int, result: tuple[Any, ...]) -> None:
    """Row `n` is what a single environment's `step` has returned."""
    next_obs, reward, terminated, *_ = result
    assert step.next_obs[n].numpy() == pytest.approx(next_obs, abs=1e-4)
    assert step.reward[n].item() == pytest.approx(reward, abs=1e-4)
    assert step.terminated[n].item() == terminated


def put_into_state(env: gym.Env, obs: np.ndarray) -> None:
    if env.spec.id == "CustomEnv-v0":
        env.position, env.velocity = map(float, obs)
    elif env.spec.id == "CartPole-v1":
        env.state, env.steps_beyond_terminated = obs.astype(float), None
    else:
        env.state = np.array([np.arctan2(obs[1], obs[0]), obs[2]], dtype=float)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_ranks_continue_each_others_environments(vectorization: str) -> None:
    config = EnvConfig("CartPole-v1", num_envs=4, vectorization=vectorization)
    whole, first, second = make_envs(config), *(make_envs(replace(config, num_envs=2)) for _ in range(2))
    parts = torch.cat([first.reset(seed=5, first_env=0), second.reset(seed=5, first_env=2)])
    assert torch.equal(whole.reset(seed=5), parts)
    assert len(parts.unique(dim=0)) == 4
    for envs in (whole, first, second):
        envs.close()


def test_box_actions_are_clipped_at_the_door_only() -> None:
    class Echo(Probe):
        action_space = gym.spaces.Box(np.float32([-1, -2]), np.float32([1, 2]))

        def reward(self, action: np.ndarray) -> float:
            assert self.action_space.contains(action)
            return float(action[0] + 10 * action[1])

    envs = stepper(AutoresetMode.SAME_STEP, Echo, num_envs=1)
    envs.reset(seed=0)
    action = torch.tensor([[5.0, -5.0]])
    assert envs.step(action).reward.item() == 1 - 20
    assert action.tolist() == [[5, -5]]


def test_an_environment_that_nobody_resets_is_refused() -> None:
    with pytest.raises(UserError, match="autoreset_mode"):
        stepper(AutoresetMode.DISABLED)


def test_observations_are_aligned_since_last_bits_of_products_depend_on_it() -> None:
    envs = make_envs(EnvConfig("CartPole-v1", num_envs=3, vectorization="sync"))
    seen = [envs.reset(seed=1), *(envs.step(torch.ones(3, dtype=torch.int64)).obs for _ in range(30))]
    assert all(obs.data_ptr() % 64 == 0 for obs in seen)
