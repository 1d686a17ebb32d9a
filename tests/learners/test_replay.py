"""The replay buffer: what it keeps, how it samples, and that it is restored."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rl.learners.replay import Replay


class Numbered(NamedTuple):
    number: Tensor
    pair: Tensor
    weight: Tensor


def numbered(first: int, num_rows: int) -> Numbered:
    number = torch.arange(first, first + num_rows)
    return Numbered(number, torch.stack([number, -number], dim=1).float(), torch.ones(num_rows))


@given(st.integers(1, 20), st.lists(st.integers(1, 30), min_size=1, max_size=10))
def test_it_keeps_the_rows_added_last(capacity: int, sizes: list[int]) -> None:
    replay: Replay[Numbered] = Replay(capacity)
    for first, size in zip([sum(sizes[:i]) for i in range(len(sizes))], sizes, strict=True):
        replay.add(numbered(first, size))
    total = sum(sizes)
    assert len(replay) == min(total, capacity)
    assert sorted(replay.kept.number[: len(replay)].tolist()) == list(range(max(0, total - capacity), total))


def test_a_sample_holds_whole_rows_each_as_likely_as_any_other() -> None:
    replay: Replay[Numbered] = Replay(10)
    replay.add(numbered(0, 25))
    sample = replay.sample(100_000, torch.Generator().manual_seed(1))
    assert torch.equal(sample.pair, torch.stack([sample.number, -sample.number], dim=1).float())
    counts = torch.bincount(sample.number, minlength=25)
    assert counts[:15].sum() == 0
    # Of a multinomial distribution, five standard deviations of a count.
    assert ((counts[15:] - 10_000).abs() < 5 * (10_000 * 0.9) ** 0.5).all()


def test_nothing_is_drawn_from_the_places_that_are_still_empty() -> None:
    replay: Replay[Numbered] = Replay(1000)
    replay.add(numbered(7, 3))
    assert set(replay.sample(200, torch.Generator().manual_seed(1)).number.tolist()) == {7, 8, 9}


def test_a_buffer_put_back_goes_on_as_the_one_that_was_saved(tmp_path: object) -> None:
    saved, restored = Replay(10), Replay(10)
    saved.add(numbered(0, 7))
    torch.save(saved.state_dict(), f"{tmp_path}/replay.pt")
    restored.load_state_dict(torch.load(f"{tmp_path}/replay.pt", weights_only=True), Numbered)
    for replay in (saved, restored):
        replay.add(numbered(7, 6))
    samples = [replay.sample(50, torch.Generator().manual_seed(3)) for replay in (saved, restored)]
    assert all(map(torch.equal, *samples))


def test_a_buffer_of_another_size_is_refused() -> None:
    replay = Replay(10)
    replay.add(numbered(0, 3))
    with pytest.raises(ValueError, match="a replay buffer of 10 rows; must have 11"):
        Replay(11).load_state_dict(replay.state_dict(), Numbered)
