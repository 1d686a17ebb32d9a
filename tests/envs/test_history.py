"""Episodes are replayed from their actions; the actions of episodes that are too long are dropped."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from rl.envs.config import EnvConfig
from rl.envs.history import History
from rl.envs.make import make_envs
from rl.errors import UserError
from rl.seeding import environment_seed
from tests.probes import Obs, Probe


class InPlace(Probe):
    """Halves its argument in place, a common mistake, and observes the sum of all actions."""

    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    length = 1000
    total = 0.0

    def reset(self, **kwargs: Any) -> tuple[Obs, dict[str, Any]]:
        self.total = 0.0
        return super().reset(**kwargs)

    def reward(self, action: Any) -> float:
        action *= 0.5
        self.total += float(action[0])
        return 1.0

    def observe(self) -> Obs:
        return np.float32([self.total])


class FirstNeverEnds(InPlace):
    """Ends after 20 steps, except the first environment of a run, which never ends."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Obs, dict[str, Any]]:
        self.length = 10**9 if seed == environment_seed(7, 0) else 20
        return super().reset(seed=seed, options=options)


for probe in (InPlace, FirstNeverEnds):
    gym.register(f"{probe.__name__}-v0", entry_point=probe)


def test_what_is_recorded_is_the_action_that_the_environment_was_given() -> None:
    config = EnvConfig("InPlace-v0", num_envs=2, vectorization="sync")
    envs, again = (make_envs(config, training=True) for _ in range(2))
    envs.reset(seed=7)
    for _ in range(4):
        step = envs.step(torch.tensor([[1.0], [0.6]]))
    state = envs.state_dict()
    assert [actions.flatten().tolist() for actions in state["actions"]] == [[1.0] * 4, [pytest.approx(0.6)] * 4]
    assert torch.equal(again.load_state_dict(state, 4), step.obs)
    assert torch.equal(envs.step(torch.ones(2, 1)).obs, again.step(torch.ones(2, 1)).obs)


@pytest.mark.parametrize("max_steps", [0, 1, 50, 5000])
def test_an_endless_episode_keeps_no_more_rows_than_it_may_and_costs_the_others_none(max_steps: int) -> None:
    history = History("id", 2, max_steps)
    played: list[list[int]] = [[], []]
    most = 0
    for step in range(8000):
        history.add(np.array([step, -step]))
        for n in (0, 1):
            played[n].append((step, -step)[n])
        if step % 40 == 39:  # the second ends now and then, the first never
            history.end(np.array([False, True]))
            played[1].clear()
        most = max(most, len(history.actions))
        if step % 97 == 0 or step == 7999:
            assert [part.tolist() for part in history.of_each()] == [
                part if len(part) <= max_steps else [] for part in played
            ]
    assert most <= max_steps
    assert len(history.actions) <= 1024 + 40 or max_steps < 1024  # no actions of the endless episode are kept


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_a_new_episode_starts_in_the_place_of_one_that_is_too_long_and_the_others_go_on(
    vectorization: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = EnvConfig("FirstNeverEnds-v0", num_envs=2, vectorization=vectorization, max_replay_steps=30)
    envs, again, shorter = (make_envs(config, training=True) for _ in range(3))
    first = envs.reset(seed=7)
    note = "note: --env-id FirstNeverEnds-v0: an episode is longer than --max-replay-steps 30: a resumed run starts a"
    for num_steps in range(1, 56):
        step = envs.step(torch.tensor([[1.0], [0.5]]))
        assert capsys.readouterr().err.count(note) == (num_steps == 31)
    state = envs.state_dict()
    assert [len(actions) for actions in state["actions"]] == [0, 15]
    obs = again.load_state_dict(state, 55)
    assert torch.equal(obs[1], step.obs[1]) and torch.equal(obs[0], first[0]) and not torch.equal(obs[0], step.obs[0])
    assert again.state_dict()["running_length"].tolist() == [0, 15] and again.state_dict()["episode"].tolist() == [1, 2]
    for _ in range(10):
        expected, step = (which.step(torch.tensor([[1.0], [0.5]])) for which in (envs, again))
        assert all(torch.equal(a[1], b[1]) for a, b in zip(expected, step, strict=True))
    assert capsys.readouterr().err == ""
    shorter.history.max_steps = 10
    shorter.load_state_dict(state, 55)
    assert shorter.state_dict()["running_length"].tolist() == [0, 0]
    for each in (envs, again, shorter):
        each.close()


def test_a_negative_length_is_refused() -> None:
    with pytest.raises(UserError, match="--max-replay-steps -1: must be at least 0"):
        EnvConfig(max_replay_steps=-1).check()
