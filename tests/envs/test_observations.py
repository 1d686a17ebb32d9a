"""Observations of every kind: what an environment gives is what the policy gets, in every batch and after a replay."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import rl
from rl import tree
from rl.envs.config import EnvConfig
from rl.envs.gym_envs import GymEnvs
from rl.envs.make import make_envs
from rl.envs.observations import ObsKey, keys_of
from rl.envs.seeded import SeededEpisodes, seed_of
from rl.envs.spaces import Spaces
from rl.envs.tensor_envs import TensorEnv, TensorEnvs
from rl.errors import OneEnvError, UserError
from rl.seeding import environment_seed
from tests.seeing import Everything

S = gym.spaces
ACTION = torch.zeros(3, dtype=torch.int64)


def by_hand(obs: dict[str, Any]) -> dict[str, torch.Tensor]:
    """An observation of `Everything` as tensors."""
    inner = obs["inner"]
    return {
        "image": torch.tensor(obs["image"]).to(torch.uint8),
        "inner/bits": torch.tensor(inner["bits"]).to(torch.uint8),
        "inner/count": torch.tensor(int(inner["count"]) - 2),
        "numbers": torch.tensor(obs["numbers"]),
        "several": torch.tensor(obs["several"]),
    }


def equal(one: Any, other: Any) -> bool:
    same = one.keys() == other.keys() if isinstance(one, dict) else True
    pairs = zip(tree.leaves(one), tree.leaves(other), strict=True)
    return same and all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("space", "key"),
    [
        (S.Box(-1, 1, (3,)), ObsKey((), (3,), "float32")),
        (S.Box(0, 255, (3,), np.uint8), ObsKey((), (3,), "float32")),
        (S.Box(0, 255, (84, 84, 3), np.uint8), ObsKey((), (84, 84, 3), "uint8", largest=255)),
        (S.Box(0, 1, (10, 10, 4), np.bool_), ObsKey((), (10, 10, 4), "uint8")),
        (S.Box(-1, 1, (2, 2), np.float64), ObsKey((), (2, 2), "float32")),
        (S.Discrete(5, start=3), ObsKey((), (), "int64", (5,), (3,))),
        (S.MultiDiscrete([[2, 3]]), ObsKey((), (1, 2), "int64", (2, 3), (0, 0))),
        (S.MultiBinary([2, 2]), ObsKey((), (2, 2), "uint8")),
        (S.Tuple([S.Text(3), S.Dict({"a/b": S.Discrete(2)})]), ObsKey((1, "a/b"), (), "int64", (2,), (0,))),
    ],
)
def test_the_tensors_of_a_space(space: gym.Space, key: ObsKey) -> None:
    assert keys_of(space) == (key,)


def test_parts_with_the_same_path_are_refused() -> None:
    space = S.Dict({"a": S.Dict({"b": S.Box(-1, 1, (2,))}), "a/b": S.Box(-1, 1, (2,))})
    with pytest.raises(UserError, match=r"its observation space has .*, of which two parts are both called a/b"):
        Spaces.of("Env-v0", space, S.Discrete(2))


@pytest.mark.parametrize(
    ("shape", "planes"), [((4, 84, 84), (4, 84, 84)), ((7, 7, 3), (3, 7, 7)), ((10, 10, 10), (10, 10, 10))]
)
def test_an_image_has_its_channels_where_there_are_fewer_of_them(
    shape: tuple[int, ...], planes: tuple[int, ...]
) -> None:
    assert ObsKey((), shape, "uint8").planes == planes
    assert ObsKey((), shape, "uint8").channels_first == (shape == planes and shape[0] < shape[2])


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_observations_are_the_environments_own_also_the_last_of_an_episode_and_after_a_replay(
    vectorization: str,
) -> None:
    config = EnvConfig("Everything-v0", num_envs=3, vectorization=vectorization, num_workers=2)
    envs, again = make_envs(config, training=True), make_envs(config, training=True)
    single = SeededEpisodes(Everything)
    try:
        obs = envs.reset(seed=5)
        expected = by_hand(single.reset(seed=seed_of(environment_seed(5, 1), 0))[0])
        num_ended = 0
        for _ in range(25):
            assert equal(tree.index(obs, 1), expected)
            step = envs.step(ACTION)
            given, _, ended, *_ = single.step(0)
            assert equal(tree.index(step.next_obs, 1), by_hand(given))
            expected = by_hand(single.reset()[0] if ended else given)
            obs, num_ended = step.obs, num_ended + ended
        assert num_ended > 0
        again.reset(seed=5)
        assert equal(again.load_state_dict(envs.state_dict(), 25), obs)
    finally:
        envs.close()
        again.close()


def test_a_batch_that_resets_in_the_next_step_gives_the_last_observation_itself() -> None:
    modes = AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP
    batches = [SyncVectorEnv([Everything] * 3, autoreset_mode=mode) for mode in modes]
    nexts, same = (GymEnvs(batch, "Everything-v0") for batch in batches)
    assert equal(nexts.reset(seed=1), same.reset(seed=1))
    for _ in range(40):
        ours, theirs = nexts.step(ACTION), same.step(ACTION)
        assert equal(ours.next_obs, theirs.next_obs)
        if theirs.terminated.any():
            break
    assert theirs.terminated.any() and not equal(theirs.obs, theirs.next_obs)


def wrong_count(obs: dict[str, Any]) -> Any:
    return obs | {"inner": obs["inner"] | {"count": np.int64(5)}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (wrong_count, r"environment 0 gave .*inner/count 3 \(its space has \(3,\) values, counted from 0\)"),
        (lambda obs: obs | {"numbers": obs["numbers"] * np.nan}, r"environment 0 gave .*not finite: numbers \[nan"),
        (lambda obs: {"image": obs["image"]}, "environment 0 gave an observation without inner/bits"),
        (lambda obs: obs | {"numbers": obs["numbers"][:4]}, r"observation of shape \(4,\) for numbers; its space says"),
    ],
)
def test_a_wrong_part_is_named(change: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    envs = make_envs(EnvConfig("Everything-v0", num_envs=2))
    envs.reset(seed=1)
    observe = Everything.observe
    monkeypatch.setattr(Everything, "observe", lambda self: change(observe(self)))
    with pytest.raises(OneEnvError, match=message):
        envs.step(ACTION[:2])


class Tensors(TensorEnv):
    """Counts to 3, and shows it in three ways."""

    observation_space = S.Dict(
        {"count": S.Discrete(4, start=1), "image": S.Box(0, 255, (3, 3, 1), np.uint8), "number": S.Box(0, 3, (1,))}
    )
    action_space = S.Discrete(2)
    max_episode_steps, initial_noise_size = 5, 1

    def initial(self, noise: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(noise)

    def transition(self, state: torch.Tensor, action: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return state + 1

    def observation(self, state: torch.Tensor) -> dict[str, torch.Tensor]:
        image = (100 * state / 2).reshape(-1, 1, 1, 1).expand(-1, 3, 3, 1)
        return {"count": state[:, 0] + 1, "image": image, "number": state}

    def reward(self, state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> torch.Tensor:
        return next_state[:, 0]

    def terminal(self, state: torch.Tensor) -> torch.Tensor:
        return state[:, 0] >= 3


def test_a_tensor_environment_may_observe_a_dict(monkeypatch: pytest.MonkeyPatch) -> None:
    rl.check_env(Tensors)
    envs = TensorEnvs(Tensors(), 2)
    envs.reset(seed=1)
    for count in (1, 2, 3):
        step = envs.step(ACTION[:2])
        assert step.next_obs["count"].tolist() == [count] * 2 and step.next_obs["count"].dtype == torch.int64
        assert step.next_obs["image"].flatten().tolist() == [50 * count] * 18
        assert step.next_obs["number"].tolist() == [[float(count)]] * 2
    assert step.obs["count"].tolist() == [0, 0]
    monkeypatch.setattr(Tensors, "observation", lambda self, state: {"count": state[:, 0]})
    with pytest.raises(rl.errors.UserError, match=r"Tensors.observation: gives dict; must be a dict as its space"):
        rl.check_env(Tensors)
