"""Environments in tensors, against Gymnasium's and against the same run done another way."""

import math
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from torch import Tensor

import rl
from rl.collector import make_collector
from rl.envs.classic import CartPole, Pendulum
from rl.envs.config import EnvConfig, make_single
from rl.envs.custom import CustomTensorEnv
from rl.envs.families import register_family
from rl.envs.make import has_tensor_form, make_envs
from rl.envs.remembering import AsGymnasium
from rl.envs.tensor_envs import TENSOR_ENVS, TensorEnvs
from rl.envs.types import Step
from rl.errors import UserError
from rl.models.agent import Agent, Network
from rl.rollout import Rollout

NUM_EPISODES = 1000
SHIPPED = sorted(name for name, make in TENSOR_ENVS.items() if make.__module__.startswith("rl."))
NO_NOISE = torch.empty(1, 0)


class Recording(NamedTuple):
    """Steps of a Gymnasium environment; every field is [K, ...]."""

    state: Tensor
    action: Tensor
    next_state: Tensor
    obs: Tensor
    reward: Tensor
    terminated: Tensor


def start_anywhere(env: Any, env_id: str, generator: np.random.Generator) -> None:
    """Starts an episode, for some environments far from their initial states: random actions would never end it."""
    env.reset(seed=int(generator.integers(2**31)))
    if env_id == "CustomEnv-v0":
        env.position, env.velocity = generator.uniform(-1.9, 1.9), generator.uniform(-1, 1)
    elif env_id == "MountainCar-v0":
        env.state = (generator.uniform(-1.2, 0.5), generator.uniform(-0.07, 0.07))
    elif env_id == "Acrobot-v1":
        env.state = generator.uniform([-3, -3, -4, -9], [3, 3, 4, 9])


def state_of(env: Any, env_id: str) -> list[float]:
    return [env.position, env.velocity] if env_id == "CustomEnv-v0" else [float(value) for value in env.state]


def record(env_id: str, max_steps: int) -> Recording:
    env: Any = gym.make(env_id).unwrapped
    env.action_space.seed(1)
    generator = np.random.default_rng(1)
    steps = []
    for _ in range(NUM_EPISODES):
        start_anywhere(env, env_id, generator)
        for _ in range(max_steps):
            state, action = state_of(env, env_id), env.action_space.sample()
            obs, reward, terminated, _, _ = env.step(action)
            steps.append((state, action, state_of(env, env_id), obs, float(reward), terminated))
            if terminated:
                break
    return Recording(*(torch.from_numpy(np.array(field)) for field in zip(*steps, strict=True)))


@pytest.mark.parametrize(
    ("env_id", "max_steps"),
    [("CustomEnv-v0", 200), ("CartPole-v1", 500), ("Pendulum-v1", 100), ("MountainCar-v0", 200), ("Acrobot-v1", 40)],
)
def test_a_thousand_random_episodes_are_gymnasiums_step_for_step(env_id: str, max_steps: int) -> None:
    recording = record(env_id, max_steps)
    env = TENSOR_ENVS[env_id]()
    action = recording.action.double() if recording.action.is_floating_point() else recording.action
    next_state = env.transition(recording.state, action, NO_NOISE)
    # An angle of π is one of -π; Acrobot alone wraps its angles.
    error = (next_state - recording.next_state).abs()
    if env_id == "Acrobot-v1":
        error[:, :2] = torch.minimum(error[:, :2], 2 * torch.pi - error[:, :2])
    assert error.max() <= 1e-5
    assert (env.reward(recording.state, action, next_state) - recording.reward).abs().max() <= 1e-5
    assert (env.observation(next_state) - recording.obs).abs().max() <= 1e-5
    assert torch.equal(env.terminal(next_state), recording.terminated)
    # All ends of episodes are among them, except where there are none.
    assert (recording.terminated.sum() > 50) == (env_id != "Pendulum-v1")


@pytest.mark.parametrize("env_id", SHIPPED)
def test_spaces_and_time_limits_are_gymnasiums(env_id: str) -> None:
    env, theirs = TENSOR_ENVS[env_id](), make_single(EnvConfig(env_id))
    assert (env.observation_space, env.action_space) == (theirs.observation_space, theirs.action_space)
    assert env.max_episode_steps == theirs.spec.max_episode_steps or isinstance(theirs.unwrapped, AsGymnasium)


@pytest.mark.parametrize("env_id", SHIPPED)
def test_first_states_spread_as_gymnasiums_do(env_id: str) -> None:
    register_family(env_id)
    obs = TensorEnvs(TENSOR_ENVS[env_id](), 2000).reset(seed=1).float()
    theirs = gym.make_vec(env_id, num_envs=2000, vectorization_mode="sync").reset(seed=1)[0].astype(np.float32)
    assert np.allclose(obs.mean(0), theirs.mean(0), atol=0.05 * (theirs.std(0) + 1).max())
    assert np.allclose(obs.min(0).values, theirs.min(0), atol=0.02)
    assert np.allclose(obs.max(0).values, theirs.max(0), atol=0.02)


def test_the_adapter_resets_truncates_and_counts_as_gymnasiums_vector_environment() -> None:
    ours = rl.TensorVectorEnv(CustomTensorEnv(), 6)
    theirs = RecordEpisodeStatistics(
        gym.make_vec("CustomEnv-v0", 6, vectorization_mode="sync", vector_kwargs={"autoreset_mode": "SameStep"})
    )
    assert np.allclose(ours.reset(seed=1)[0], theirs.reset(seed=1)[0])
    generator = torch.Generator().manual_seed(1)
    num_ended = 0
    for _ in range(450):
        # Some push one way until they leave the track, others to and fro until the time limit.
        actions = torch.tensor([1, 0, 1, 1, 0, 0]) ^ (torch.rand(6, generator=generator) < torch.arange(6) / 10).long()
        obs, reward, terminated, truncated, info = ours.step(actions)
        their_obs, their_reward, their_terminated, their_truncated, their_info = theirs.step(actions.numpy())
        assert np.allclose(obs, their_obs, atol=1e-5)
        assert np.allclose(reward, their_reward, atol=1e-5)
        assert np.array_equal(terminated, their_terminated)
        assert np.array_equal(truncated, their_truncated)
        assert np.array_equal(info["_final_obs"], terminated | truncated)
        for i in np.flatnonzero(info["_final_obs"]):
            num_ended += 1
            assert np.allclose(info["final_obs"][i], their_info["final_obs"][i], atol=1e-5)
            assert info["episode"]["r"][i] == pytest.approx(their_info["episode"]["r"][i], abs=1e-3)
            assert info["episode"]["l"][i] == their_info["episode"]["l"][i]
    assert num_ended > 20
    assert ours.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP


def test_seeds_start_episodes_and_no_seed_starts_others() -> None:
    envs = rl.TensorVectorEnv(TENSOR_ENVS["CartPole-v1"](), 4)
    first, again = (envs.reset(seed=3)[0] for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.isin(envs.reset()[0], first).any()
    assert len(first.unique()) == first.numel()
    with pytest.raises(ValueError, match=r"seed \[1, 2\]: must be one number"):
        envs.reset(seed=[1, 2])


def test_two_objects_without_a_seed_start_other_episodes() -> None:
    first, second = (rl.TensorVectorEnv(TENSOR_ENVS["CartPole-v1"](), 4).reset()[0] for _ in range(2))
    assert not torch.isin(first, second).any()


class CountsFromOne(CartPole):
    """CartPole with the actions 1 and 2."""

    action_space = gym.spaces.Discrete(2, start=1)


def test_the_adapter_counts_actions_as_their_space_does() -> None:
    ours, theirs = rl.TensorVectorEnv(CountsFromOne(), 3), rl.TensorVectorEnv(CartPole(), 3)
    assert torch.equal(ours.reset(seed=1)[0], theirs.reset(seed=1)[0])
    for _ in range(30):
        action = ours.action_space.sample()
        assert torch.equal(ours.step(action)[0], theirs.step(torch.from_numpy(action - 1))[0])


@pytest.mark.parametrize(
    ("env", "actions", "message"),
    [
        (CartPole(), [0, 5], r"actions \[0, 5\]: must be whole numbers from 0 to 1 of shape \(2,\)"),
        (CartPole(), [0, -1], "must be whole numbers from 0 to 1"),
        (CountsFromOne(), [0, 1], "must be whole numbers from 1 to 2"),
        (CartPole(), [0.0, 1.0], "must be whole numbers"),
        (CartPole(), [[0], [1]], r"of shape \(2,\)"),
        (CartPole(), [0], r"of shape \(2,\)"),
        (Pendulum(), [0.0, 1.0], r"actions \[0.0, 1.0\]: must be numbers of shape \(2, 1\)"),
        (Pendulum(), [[math.nan], [0.0]], "must be numbers"),
    ],
)
def test_the_adapter_refuses_what_is_no_action(env: rl.TensorEnv, actions: list[Any], message: str) -> None:
    envs = rl.TensorVectorEnv(env, 2)
    envs.reset(seed=1)
    with pytest.raises(gym.error.InvalidAction, match=message):
        envs.step(torch.tensor(actions))


def test_the_adapter_clips_real_actions_to_their_bounds() -> None:
    obs = []
    for torque in (2.0, 9.0):
        envs = rl.TensorVectorEnv(Pendulum(), 2)
        envs.reset(seed=1)
        obs.append(envs.step(torch.full((2, 1), torque))[0])
    assert torch.equal(*obs)


SIZES = [4, 6, 8, 10, 34]


@pytest.mark.parametrize("num_envs", SIZES)
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_the_same_actions_lead_to_the_same_bits_however_environments_are_spread_over_ranks(
    env_id: str, num_envs: int
) -> None:
    half = num_envs // 2
    parts = [TensorEnvs(TENSOR_ENVS[env_id](), size) for size in (num_envs, half, half)]
    for envs, first_env in zip(parts, (0, 0, half), strict=True):
        envs.reset(1, first_env)
    generator = torch.Generator().manual_seed(1)
    num_ended = 0
    for _ in range(230):
        action = torch.rand(num_envs, 1, generator=generator)
        action = 4 * action - 2 if env_id == "Pendulum-v1" else action[:, 0].round().long()
        step, *steps = (
            envs.step(part) for envs, part in zip(parts, (action, action[:half], action[half:]), strict=True)
        )
        for name, field, *fields in zip(Step._fields, step, *steps, strict=True):
            assert torch.equal(field, torch.cat(fields)), name
        num_ended += int((step.terminated | step.truncated).sum())
    assert num_ended >= num_envs


@pytest.mark.parametrize("num_envs", SIZES)
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_two_ranks_collect_to_rounding_what_one_rank_with_all_their_environments_does(
    env_id: str, num_envs: int
) -> None:
    def collect(num_envs: int, first_env: int) -> Rollout:
        envs = make_envs(EnvConfig(env_id, num_envs=num_envs, vectorization="tensor"))
        torch.manual_seed(3)
        policy = Agent(envs.spaces, Network(ortho_init=False))
        with torch.no_grad():
            return make_collector(envs, policy, seed=1, first_env=first_env).collect(25)

    # A matrix product of 6 rows may differ from one of 3 rows in its last bits, and such differences grow.
    half = num_envs // 2
    whole, halves = collect(num_envs, 0), [collect(half, first_env) for first_env in (0, half)]
    for name, field, *parts in zip(Rollout._fields, whole, *halves, strict=True):
        if isinstance(field, torch.Tensor):  # there are no masks, and no memory
            assert torch.allclose(field.float(), torch.cat(parts, dim=1).float(), atol=1e-3), name


def test_what_is_not_written_in_tensors_is_said_so() -> None:
    with pytest.raises(UserError, match=r"--env-id LunarLander-v3: not written in tensors.*Acrobot-v1, CartPole-v1"):
        make_envs(EnvConfig("LunarLander-v3", vectorization="tensor"))


@pytest.mark.parametrize(
    ("env_id", "allow_import", "expected"),
    [
        ("CartPole-v1", False, True),
        ("LunarLander-v3", False, False),
        ("Unknown-v0", False, False),
        ("tests.probes:CartPole-v1", False, False),
        ("tests.probes:CartPole-v1", True, True),
    ],
)
def test_an_environment_has_a_tensor_form_if_one_is_registered_by_what_may_be_imported(
    env_id: str, allow_import: bool, expected: bool
) -> None:
    assert has_tensor_form(EnvConfig(env_id, allow_import=allow_import)) == expected


def test_a_module_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"--env-id nowhere:Env-v0: No module named 'nowhere'"):
        has_tensor_form(EnvConfig("nowhere:Env-v0", allow_import=True))
