"""CustomEnv against its specification, the checkers of two libraries, and its batched form."""

import itertools
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from stable_baselines3.common.env_checker import check_env as check_env_of_stable_baselines3

OPTIMUM = 198.970171


def make(**kwargs: object) -> gym.Env:
    return gym.make("CustomEnv-v0", **kwargs)


def test_a_trajectory_worked_by_hand() -> None:
    env = make()
    obs, _ = env.reset()
    assert obs.dtype == np.float32 and obs.tolist() == [0, 0]
    # Push right twice: v = 0.1, x = 0.1, v = 0.095; then v = 0.195, x = 0.295, v = 0.18525.
    obs, reward, terminated, truncated, _ = env.step(1)
    assert obs == pytest.approx([0.1, 0.095]) and reward == pytest.approx(0.99)
    obs, reward, terminated, truncated, _ = env.step(1)
    assert obs == pytest.approx([0.295, 0.18525]) and reward == pytest.approx(1 - 0.0295)
    assert not terminated and not truncated


def test_it_terminates_beyond_2_and_not_before() -> None:
    env = make()
    env.reset()
    for _ in range(200):
        obs, _, terminated, _, _ = env.step(1)
        assert terminated == (abs(obs[0]) > 2)
        if terminated:
            break
    assert terminated


@pytest.mark.parametrize("limit", [None, 7])
def test_it_is_truncated_at_the_limit(limit: int | None) -> None:
    env = make(max_episode_steps=limit)
    env.reset()
    ends = [env.step(i % 2)[2:4] for i in range(limit or 200)]
    assert ends == [(False, False)] * (len(ends) - 1) + [(False, True)]


def test_pushing_towards_the_centre_is_optimal() -> None:
    def total(actions: tuple[int, ...]) -> float:
        env = make()
        env.reset()
        return sum(env.step(action)[1] for action in actions)

    env, obs, actions, rewards = make(), np.zeros(2), [], []
    env.reset()
    for _ in range(200):
        actions.append(int(obs[0] < 0))
        obs, reward, *_ = env.step(actions[-1])
        rewards.append(reward)
    assert sum(rewards) == pytest.approx(OPTIMUM, abs=1e-6)
    # No sequence of ten pushes beats its first ten.
    assert sum(rewards[:10]) >= max(map(total, itertools.product((0, 1), repeat=10))) - 1e-12


@pytest.mark.parametrize("action", [2, -1, 0.5, None])
def test_an_action_outside_the_space_is_an_error(action: object) -> None:
    env = gym.make("CustomEnv-v0", disable_env_checker=True)
    env.reset()
    with pytest.raises(gym.error.InvalidAction, match="takes 0"):
        env.step(action)


def test_a_batch_refuses_an_action_outside_the_space() -> None:
    envs = gym.make_vec("CustomEnv-v0", 2)
    envs.reset()
    with pytest.raises(gym.error.InvalidAction, match="takes 0"):
        envs.step(np.array([0, 2]))


@pytest.mark.parametrize("checker", [check_env, check_env_of_stable_baselines3])
@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_checkers_find_nothing(checker: object, spread: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checker(make(start_spread=spread).unwrapped)


@pytest.mark.parametrize("spread", [0.0, 1.5])
def test_the_batch_gives_the_trajectories_of_the_single_environment(spread: float) -> None:
    kwargs = {"start_spread": spread, "max_episode_steps": 60, "target": 0.3}
    native = gym.make_vec("CustomEnv-v0", 5, **kwargs)
    same_step = {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP}
    single = gym.make_vec("CustomEnv-v0", 5, vectorization_mode="sync", vector_kwargs=same_step, **kwargs)
    assert native.observation_space == single.observation_space and native.action_space == single.action_space
    obs = native.reset(seed=11)[0]
    assert np.array_equal(obs, single.reset(seed=11)[0])
    generator = np.random.default_rng(0)
    num_terminated = num_truncated = 0
    for _ in range(400):
        # Towards the target more or less often: some leave the track, some stay to the limit.
        actions = ((obs[:, 0] < 0.3) ^ (generator.random(5) < np.linspace(0.1, 0.9, 5))).astype(np.int64)
        ours, theirs = native.step(actions), single.step(actions)
        for field in range(4):
            assert np.array_equal(ours[field], theirs[field])
        obs, ended = ours[0], ours[2] | ours[3]
        if ended.any():
            assert np.array_equal(ours[4]["_final_obs"], theirs[4]["_final_obs"])
            assert np.array_equal(ours[4]["final_obs"][ended], np.stack(theirs[4]["final_obs"][ended]))
        num_terminated, num_truncated = num_terminated + ours[2].sum(), num_truncated + ours[3].sum()
    assert num_terminated > 5 and num_truncated > 5
    single.close()


def test_the_start_can_be_spread_for_one_episode() -> None:
    for env in (make(), gym.make_vec("CustomEnv-v0", 1)):
        starts = {float(np.ravel(env.reset(seed=s, options={"start_spread": 1.0})[0])[0]) for s in range(20)}
        assert len(starts) == 20 and max(map(abs, starts)) <= 1
        assert np.ravel(env.reset(seed=1)[0])[0] == 0
    with pytest.raises(ValueError, match="start_spread 3"):
        make(start_spread=3.0)


def test_gymnasiums_statistics_read_the_batch() -> None:
    envs = RecordEpisodeStatistics(gym.make_vec("CustomEnv-v0", 3, max_episode_steps=4))
    envs.reset()
    infos = [envs.step(np.zeros(3, np.int64))[4] for _ in range(4)]
    assert infos[3]["episode"]["l"].tolist() == [4, 4, 4]


def test_frames_show_the_mass_where_it_is() -> None:
    env = make(render_mode="rgb_array")
    env.reset()
    columns = []
    for _ in range(2):
        picture = env.render()
        assert picture.shape == (120, 480, 3) and picture.dtype == np.uint8
        columns.append(np.argwhere((picture == (50, 90, 200)).all(-1))[:, 1].mean())
        for _ in range(4):
            env.step(1)
    assert columns[0] == pytest.approx(240, abs=2) and columns[1] > columns[0] + 20
    envs = gym.make_vec("CustomEnv-v0", 2, render_mode="rgb_array")
    envs.reset()
    assert np.array_equal(envs.render()[1], envs.render()[0])


def test_the_window_opens_and_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = make(render_mode="human")
    env.reset()
    env.step(1)
    assert env.unwrapped.window is not None
    env.close()
    assert env.unwrapped.window is None
