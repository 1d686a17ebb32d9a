"""What came of steps, against sums that are taken step by step."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rl.envs.ledger import Ledger

N = 3


@pytest.mark.parametrize("clip_rewards", [False, True])
@pytest.mark.parametrize("num_steps", [1, 2, 7, 63])
def test_rollouts_of_any_length_read_what_single_steps_would(num_steps: int, clip_rewards: bool) -> None:
    """Rewards of very different sizes, whose sum depends on the order in which it is taken."""
    generator = np.random.default_rng(0)
    ledger, read = Ledger(N), []
    running, length = np.zeros(N), np.zeros(N)
    resetting = np.zeros(N, np.bool_)
    expected: dict[str, list[NDArray[Any]]] = {
        name: [] for name in ("reward", "terminated", "weight", "return", "length")
    }
    for step in range(126):
        reward = generator.normal(size=N) * 10.0 ** generator.integers(-8, 8, N)
        terminated, truncated, lost = generator.random((3, N)) < 0.1
        ledger.add(reward, terminated, truncated, resetting)
        if lost.any():
            ledger.lose_life(lost)
        reward = np.float32(reward) * ~resetting
        running, length = running + reward, length + ~resetting
        ended = terminated | truncated
        expected["reward"].append(np.sign(reward) if clip_rewards else reward)
        expected["terminated"].append(terminated | lost)
        expected["weight"].append(np.float32(~resetting))
        expected["return"].append(np.float32(running * ended))
        expected["length"].append(np.float32(length * ended))
        if ended.any():
            ledger.end(ended, length)
        running, length, resetting = running * ~ended, length * ~ended, ended
        if (step + 1) % num_steps == 0:
            read.append(ledger.read(clip_rewards=clip_rewards))
    got = [torch.cat(parts).numpy() for parts in zip(*read, strict=True)]
    for name, index in {"reward": 0, "terminated": 1, "weight": 3, "return": 4, "length": 5}.items():
        assert np.array_equal(got[index], np.stack(expected[name])), name
    assert np.array_equal(ledger.running_return, running)


def test_what_has_been_read_is_not_written_over() -> None:
    ledger, none = Ledger(1), np.zeros(1, np.bool_)
    ledger.add([1.0], none, none, none)
    first = ledger.read(clip_rewards=False)
    before = [field.clone() for field in first]
    ledger.add([2.0], ~none, ~none, ~none)
    ledger.lose_life(~none)
    ledger.end(~none, np.ones(1))
    ledger.read(clip_rewards=False)
    assert all(map(torch.equal, first, before))


def test_what_nobody_read_is_forgotten_where_episodes_begin() -> None:
    ledger, none = Ledger(1), np.zeros(1, np.bool_)
    ledger.add([1.0], ~none, none, none)
    ledger.end(~none, np.ones(1))
    ledger.begin()
    ledger.add([2.0], none, none, none)
    outcomes = ledger.read(clip_rewards=False)
    assert [field.tolist() for field in outcomes] == [[[2]], [[False]], [[False]], [[1]], [[0]], [[0]]]
    assert ledger.running_return.tolist() == [2]
