"""Distributions against torch.distributions, and samples against their probabilities."""

import math

import pytest
import torch
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from rl.envs.actions import BoxActions, CompositeActions, DiscreteActions, MultiDiscreteActions
from rl.models.distributions import (
    Categorical,
    DiagonalGaussian,
    Joint,
    MaskedCategorical,
    MultiCategorical,
    SquashedGaussian,
    distribution_of,
)

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


def test_squashed_gaussian_agrees_with_torch() -> None:
    mean, log_std = (field.double().requires_grad_() for field in (MEAN, LOG_STD))
    ours, theirs = (
        SquashedGaussian(mean, log_std),
        TransformedDistribution(Normal(mean, log_std.exp()), TanhTransform()),
    )
    u = torch.tensor([[1.0, -2.5], [0.0, 3.0]], dtype=torch.float64)
    log_prob, expected = ours.log_prob(u), theirs.log_prob(u.tanh()).sum(-1)
    assert torch.allclose(log_prob, expected, rtol=1e-9)
    gradients, expected_gradients = (torch.autograd.grad(x.sum(), (mean, log_std)) for x in (log_prob, expected))
    assert all(map(torch.allclose, gradients, expected_gradients))
    assert torch.equal(ours.mode().tanh(), MEAN.double().tanh())
    noise = torch.full((2, 2), 0.3)
    assert torch.equal(ours.sample(noise), DiagonalGaussian(mean, log_std).sample(noise))


def test_the_squashed_density_is_that_of_the_quantiles_and_stays_finite_where_tanh_is_rounded_to_1() -> None:
    distribution = SquashedGaussian(torch.tensor([0.3]).double(), torch.tensor([-0.2]).double())
    noise = torch.tensor([[0.2], [0.5], [0.9]]).double()
    low, high = (distribution.sample(noise + shift).tanh() for shift in (-1e-5, 1e-5))
    by_differences = (2e-5 / (high - low)).log().squeeze(-1)
    assert torch.allclose(distribution.log_prob(distribution.sample(noise)), by_differences, atol=1e-8)
    far = SquashedGaussian(torch.tensor([40.0]), torch.tensor([0.0])).log_prob(torch.tensor([41.0]))
    assert far.item() == pytest.approx(-0.5 - 0.5 * math.log(2 * math.pi) - 2 * math.log(2) + 82, rel=1e-6)


@pytest.mark.parametrize(("log_std", "off"), [(-1.0, 1e-4), (0.0, 2e-3), (math.log(2), 5e-2)])
def test_the_entropy_of_a_squashed_gaussian_is_minus_the_mean_of_its_log_density(log_std: float, off: float) -> None:
    parameters = torch.tensor([0.0, 0.5, 1.0, 2.0]).double(), torch.tensor(log_std).double()
    for parameter in parameters:
        parameter.requires_grad_()
    distribution = SquashedGaussian(parameters[0].view(-1, 1), parameters[1].expand(4, 1))
    noise = (torch.arange(50_000).double() + 0.5).div(50_000).view(-1, 1, 1)  # every quantile once
    entropy, mean = distribution.entropy(), -distribution.log_prob(distribution.sample(noise)).mean(0)
    assert torch.allclose(entropy, mean, atol=off)
    gradients, expected = (torch.autograd.grad(x.sum(), parameters) for x in (entropy, mean))
    assert all(torch.allclose(ours, sampled, atol=10 * off) for ours, sampled in zip(gradients, expected, strict=True))


def test_a_large_deviation_does_not_raise_the_entropy_of_a_squashed_gaussian() -> None:
    log_std = torch.tensor([-1.0, 1.5], requires_grad=True)
    SquashedGaussian(torch.zeros(2, 1), log_std.view(2, 1)).entropy().sum().backward()
    assert log_std.grad is not None and log_std.grad[0] > 0 > log_std.grad[1]


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


@pytest.mark.parametrize("sizes", [(3, 2, 4), (3, 3, 3), (9,)], ids=str)
def test_several_choices_agree_with_torch(sizes: tuple[int, ...]) -> None:
    logits = torch.randn(5, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    ours = MultiCategorical.from_logits(logits, sizes)
    theirs = [TorchCategorical(logits=part) for part in logits.split(list(sizes), dim=-1)]
    action = torch.stack([torch.arange(5) % size for size in sizes], dim=-1)
    log_prob = torch.stack([each.log_prob(action[:, k]) for k, each in enumerate(theirs)]).sum(0)
    entropy = torch.stack([each.entropy() for each in theirs]).sum(0)
    assert torch.allclose(ours.log_prob(action), log_prob) and torch.allclose(ours.entropy(), entropy)
    assert torch.equal(ours.mode(), torch.stack([each.mode for each in theirs], dim=-1))
    sums = [(ours.log_prob(action) + ours.entropy()).sum(), (log_prob + entropy).sum()]
    assert torch.allclose(*(torch.autograd.grad(each, logits)[0] for each in sums))
    noise = torch.rand(1000, 5, len(sizes), generator=torch.Generator().manual_seed(2))
    parts = enumerate(logits.split(list(sizes), -1))
    drawn = [Categorical.from_logits(part).sample(noise[..., k : k + 1]) for k, part in parts]
    assert torch.equal(ours.sample(noise), torch.stack(drawn, dim=-1))


COMPOSITE = CompositeActions(
    ("grip", "arms", "move"),
    (
        DiscreteActions(3, start=5),
        CompositeActions(None, (BoxActions((-1.0, -1.0), (1.0, 1.0)), BoxActions((0.0,), (2.0,), squash=True))),
        MultiDiscreteActions((2, 4), (0, 0), (2,)),
    ),
)


def test_a_joint_distribution_is_that_of_its_parts_with_the_mask_of_each() -> None:
    output, log_std = torch.randn(7, 12, generator=torch.Generator().manual_seed(1)), torch.tensor([0.1, -0.3, 0.5])
    mask = torch.ones(7, 9, dtype=torch.bool)
    mask[:, 1] = mask[:, 6] = False
    joint, noise = distribution_of(COMPOSITE, output, log_std, mask), torch.full((7, 6), 0.4)
    grip, move = output[:, :3].masked_fill(~mask[:, :3], -1e8), output[:, 6:].masked_fill(~mask[:, 3:], -1e8)
    parts = [
        MultiCategorical.from_logits(grip, (3,)),
        DiagonalGaussian(output[:, 3:5], log_std[:2].expand(7, 2)),
        SquashedGaussian(output[:, 5:6], log_std[2:].expand(7, 1)),
        MultiCategorical.from_logits(move, (2, 4)),
    ]
    assert isinstance(joint, Joint)
    row = joint.sample(noise)
    columns = list(zip(parts, row.split([1, 2, 1, 2], dim=-1), strict=True))
    assert row.dtype == torch.float32
    assert torch.equal(row, torch.cat([part.sample(noise[:, : own.shape[-1]]) for part, own in columns], dim=-1))
    assert torch.allclose(joint.log_prob(row), sum(part.log_prob(own) for part, own in columns))
    assert torch.allclose(joint.entropy(), sum(p.entropy() for p in parts))
    assert torch.equal(joint.mode(), torch.cat([p.mode() for p in parts], dim=-1))


def test_a_masked_action_is_never_drawn_and_its_logit_has_no_gradient() -> None:
    actions, mask = MultiDiscreteActions((4, 3), (0, 0), (2,)), torch.tensor([[1, 0, 1, 0, 0, 1, 0]]).bool()
    logits = torch.tensor([[0.3, 50.0, -1.0, 9.0, 2.0, -30.0, 1.0]], requires_grad=True)
    both = distribution_of(actions, logits, None, mask)
    first = distribution_of(DiscreteActions(4), logits[:, :4], None, mask[:, :4])
    noise = torch.rand(10**6, 2, generator=torch.Generator().manual_seed(0)).clamp(2.0**-24, 1 - 2.0**-24)
    drawn = MultiCategorical(both.log_probs.expand(len(noise), 2, 4)).sample(noise)
    assert set(drawn[:, 0].tolist()) == {0, 2} and set(drawn[:, 1].tolist()) == {1}
    assert torch.equal(MaskedCategorical(first.log_probs.expand(len(noise), 4)).sample(noise[:, :1]), drawn[:, 0])
    assert (drawn[:, 0] == 0).double().mean().item() == pytest.approx(1 / (1 + math.exp(-1.3)), abs=2e-3)
    assert both.mode().tolist() == [[0, 1]] and first.mode().tolist() == [0]
    loss = both.log_prob(drawn[:1]).sum() + both.entropy().sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite() and gradient[~mask].tolist() == [0] * 4 and (gradient[:, [0, 2]] != 0).all()
    legal = TorchCategorical(logits=logits[0, [0, 2]])
    assert torch.allclose(both.entropy(), legal.entropy())


def test_rounding_draws_no_impossible_action() -> None:
    log_probs = torch.tensor([-1e8, math.log(0.4), -1e8, math.log(0.5), -1e8])  # they add up to 0.9
    noise = torch.tensor([[2.0**-24], [0.39], [0.41], [0.95], [1 - 2.0**-24]])
    assert MaskedCategorical(log_probs.expand(5, 5)).sample(noise).tolist() == [1, 1, 3, 3, 3]
