"""Distributions against torch.distributions, and samples against their probabilities."""

import math

import pytest
import torch
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Normal

from rl.models.distributions import Categorical, DiagonalGaussian

LOGITS = torch.tensor([[0.0, 1.0, -2.0], [3.0, 3.0, 3.0]])
MEAN, LOG_STD = torch.tensor([[0.5, -1.0], [2.0, 0.0]]), torch.tensor([[0.0, -1.0], [0.3, 0.7]])


def test_categorical_agrees_with_torch() -> None:
    ours, theirs, action = Categorical.from_logits(LOGITS), TorchCategorical(logits=LOGITS), torch.tensor([2, 0])
    assert torch.allclose(ours.log_prob(action), theirs.log_prob(action))
    assert torch.allclose(ours.entropy(), theirs.entropy())
    assert torch.equal(ours.mode(), theirs.mode)


def test_gaussian_agrees_with_torch() -> None:
    ours, theirs, action = DiagonalGaussian(MEAN, LOG_STD), Normal(MEAN, LOG_STD.exp()), torch.tensor([[1.0, 2.0]])
    assert torch.allclose(ours.log_prob(action), theirs.log_prob(action).sum(-1))
    assert torch.allclose(ours.entropy(), theirs.entropy().sum(-1))
    assert torch.equal(ours.mode(), MEAN)


def test_entropy_of_a_uniform_choice_is_the_logarithm_of_its_size() -> None:
    assert Categorical.from_logits(torch.zeros(7)).entropy().item() == pytest.approx(math.log(7), rel=1e-6)


def test_categorical_samples_have_the_distributions_frequencies() -> None:
    noise = (torch.arange(10_000) + 0.5) / 10_000  # every quantile once
    sample = Categorical.from_logits(LOGITS[0].expand(10_000, 3)).sample(noise.unsqueeze(-1))
    frequency = torch.bincount(sample, minlength=3) / 10_000
    assert torch.allclose(frequency, LOGITS[0].softmax(-1), atol=1.01e-4)


def test_the_extremes_of_the_noise_give_the_first_and_the_last_action() -> None:
    distribution = Categorical.from_logits(torch.tensor([0.0, 0.0, -100.0]))
    assert distribution.sample(torch.tensor([2.0**-24])).item() == 0
    assert distribution.sample(torch.tensor([1 - 2.0**-24])).item() <= 2


def test_gaussian_samples_have_the_distributions_quantiles() -> None:
    distribution = DiagonalGaussian(torch.tensor([2.0]), torch.tensor([math.log(3.0)]))
    # One and two standard deviations from the mean of a normal distribution.
    noise = torch.tensor([[0.5], [0.841344746], [0.022750132]])
    assert torch.allclose(distribution.sample(noise).flatten(), torch.tensor([2.0, 5.0, -4.0]), atol=1e-4)


def test_sampling_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    Categorical.from_logits(LOGITS).sample(torch.full((2, 1), 0.3))
    DiagonalGaussian(MEAN, LOG_STD).sample(torch.full((2, 2), 0.3))
    assert torch.equal(torch.get_rng_state(), before)


def test_extreme_logits_stay_finite() -> None:
    distribution = Categorical.from_logits(torch.tensor([1e4, -1e4]))
    assert torch.isfinite(distribution.log_prob(torch.tensor(1)))
    assert torch.isfinite(distribution.entropy())
