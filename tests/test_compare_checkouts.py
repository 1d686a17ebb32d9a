"""The comparison of two checkouts finds every difference of bits, and says how large it is."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
Difference = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], tuple[bool, float]]
OLD = torch.tensor([1.0, 0.0, math.nan, math.inf])


@pytest.fixture
def difference(monkeypatch: pytest.MonkeyPatch) -> Difference:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import compare_checkouts

    return compare_checkouts.difference


def test_equal_bits_are_equal_also_where_they_are_no_number(difference: Difference) -> None:
    assert difference({"bias": OLD}, {"bias": OLD.clone()}) == (True, 0.0)


@pytest.mark.parametrize(
    ("new", "distance"),
    [
        ([1.0 + 2**-23, 0.0, math.nan, math.inf], 2**-23),
        ([1.0, -0.0, math.nan, math.inf], 0.0),
        ([1.0, 0.0, 5.0, math.inf], math.inf),
        ([1.0, 0.0, math.nan, -math.inf], math.inf),
        ([1.0, 0.0, math.nan], math.inf),
    ],
)
def test_one_other_bit_is_a_difference(difference: Difference, new: list[float], distance: float) -> None:
    assert difference({"bias": OLD}, {"bias": torch.tensor(new)}) == (False, distance)


def test_another_type_is_a_difference_and_another_name_is_none(difference: Difference) -> None:
    zeros = torch.zeros(3)
    assert difference({"bias": zeros}, {"bias": zeros.double()}) == (False, math.inf)
    assert difference({"bias": zeros}, {"critic.bias": zeros}) == (True, 0.0)
