"""The compiled gradient step, against autograd, clip_grad_norm_ and Adam."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

import rl.optimization
from rl import tree
from rl.collector import make_collector
from rl.compile import Execution, Mode
from rl.dist.ranks import Ranks
from rl.envs.actions import BoxActions, DiscreteActions
from rl.envs.config import EnvConfig
from rl.envs.make import make_envs
from rl.envs.observations import vector
from rl.envs.spaces import Spaces
from rl.errors import LostRankError
from rl.learners.ppo import PPOConfig, Rows
from rl.models.agent import Agent, Network, Weights, call_with, weight_vector
from rl.optimization import Epochs, GradientStep, make_adam
from rl.seeding import Shuffle
from tests import masked, seeing  # noqa: F401 (registers environments)
from tests.ranks import in_ranks

SPACES = {
    "discrete": Spaces(vector(3), DiscreteActions(4)),
    "continuous": Spaces(vector(3), BoxActions((-1.0, -1.0), (1.0, 1.0))),
    "squashed": Spaces(vector(3), BoxActions((-1.0, -1.0), (1.0, 1.0), squash=True)),
}
LEARNER = PPOConfig(ent_coef=0.01, clip_vloss=True).build()


def agent(kind: str) -> Agent:
    torch.manual_seed(1)
    return Agent(SPACES[kind], Network(hidden_sizes=(16, 16), shared_encoder=False))


def minibatches(kind: str, num_rows: int) -> list[Rows]:
    generator = torch.Generator().manual_seed(2)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def action() -> Tensor:
        return torch.randint(0, 4, (num_rows,), generator=generator) if kind == "discrete" else normal(num_rows, 2)

    return [
        Rows(normal(num_rows, 3), action(), normal(num_rows) - 1, *(normal(num_rows) for _ in range(3)), weight)
        for weight in torch.rand(4, num_rows, generator=generator)
    ]


def reference(kind: str, batches: list[Rows]) -> tuple[Tensor, list[float]]:
    """The weights after a step on each minibatch, and the norms of the gradients, by plain PyTorch."""
    policy = agent(kind)
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2, eps=1e-5)
    norms = []
    for rows in batches:
        optimizer.zero_grad()
        LEARNER.loss(policy, rows)[0].backward()
        norms.append(float(clip_grad_norm_(policy.parameters(), LEARNER.config.max_grad_norm)))
        optimizer.step()
    return weight_vector(policy), norms


# 601 rows of 64 bytes: in one part, or in three.
@pytest.mark.parametrize(
    ("mode", "kind", "cache_bytes"),
    [
        ("eager", "discrete", 2**19),
        ("eager", "continuous", 2**14),
        ("compile", "squashed", 2**14),
    ],
)
def test_gradient_steps_are_those_of_autograd_and_adam(
    mode: Mode, kind: str, cache_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rl.optimization, "CACHE_BYTES", cache_bytes)
    policy = agent(kind)
    weights = Weights(policy)
    step = GradientStep(LEARNER, policy, weights, make_adam(weights, 1e-2, fused=True), Ranks(), Execution(mode))
    batches = minibatches(kind, 601)
    metrics = [step(rows) for rows in batches]
    expected, norms = reference(kind, batches)
    # Where a gradient is as small as Adam's epsilon, its rounding is a thousandth of a step of 1e-2.
    assert torch.allclose(weights.vector, expected, atol=1e-4)
    assert torch.equal(weight_vector(policy), weights.vector)
    assert [float(m["Info/grad_norm"]) for m in metrics] == pytest.approx(norms, rel=1e-3)
    loss_metrics = LEARNER.loss(agent(kind), batches[0])[1]
    for name, value in loss_metrics.items():
        assert float(metrics[0][name]) == pytest.approx(float(value), rel=1e-3, abs=1e-5), name


SAMPLES = {kind: tree.cat(minibatches(kind, 64)) for kind in SPACES}
ORDER = torch.randperm(256, generator=torch.Generator().manual_seed(3)).view(4, 64)


def looped(mode: Mode, kind: str, *, fails: bool = False) -> tuple[Tensor, float]:
    """The weights and the mean norm of gradients after a loop, of whose minibatches every rank has its part."""
    policy, ranks = agent(kind), Ranks.of()
    weights = Weights(policy)
    step = GradientStep(LEARNER, policy, weights, make_adam(weights, 1e-2, fused=True), ranks, Execution(mode))
    assert step.takes_loops(SAMPLES[kind], 1, 64) == (mode == "compile")
    epochs = Epochs(SAMPLES[kind], ORDER.view(4, ranks.size, -1)[:, ranks.rank])
    metrics = step(epochs)
    learned = weights.vector.detach().clone()
    assert torch.equal(weight_vector(policy), learned)
    if fails and ranks.rank == 0:
        assert ranks.memory is not None
        ranks.memory.timeout_seconds = 0.1
        with pytest.raises(LostRankError, match="rank 1 of its group has not come in"):
            step(epochs)
        assert torch.equal(weights.vector, learned)
    return learned, float(metrics["Info/grad_norm"])


def test_a_loop_over_the_steps_of_an_update_takes_those_steps(tmp_path: Path) -> None:
    for kind, results in {
        "continuous": [looped("eager", "continuous")],
        "discrete": in_ranks(looped_in_ranks, 2, tmp_path),
    }.items():
        expected, norms = reference(kind, [tree.index(SAMPLES[kind], rows) for rows in ORDER])
        for learned, norm in results:
            assert torch.allclose(learned, expected, atol=1e-4)
            assert norm == pytest.approx(sum(norms) / len(norms), rel=1e-3)
        assert torch.equal(results[0][0], results[-1][0])


def looped_in_ranks() -> tuple[Tensor, float]:
    return looped("compile", "discrete", fails=True)


def test_compiled_bf16_products_stay_near_those_of_fp32() -> None:
    policy = agent("discrete")
    weights = Weights(policy)
    adam = make_adam(weights, 1e-2, fused=True)
    step = GradientStep(LEARNER, policy, weights, adam, Ranks(), Execution("compile"), autocast=torch.bfloat16)
    batches = minibatches("discrete", 64)
    for rows in batches:
        step(rows)
    expected, _ = reference("discrete", batches)
    start = weight_vector(agent("discrete"))
    moved = (expected - start).norm()
    assert 0 < (weights.vector - expected).norm() < 0.2 * moved


def test_a_loss_scaler_skips_a_gradient_that_is_not_finite_and_scales_the_others_away() -> None:
    policy = agent("discrete")
    weights = Weights(policy)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    adam = make_adam(weights, 1e-2, fused=True)
    step = GradientStep(LEARNER, policy, weights, adam, Ranks(), Execution("compile"), scaler=scaler)
    batches = minibatches("discrete", 64)
    poisoned = batches[0]._replace(advantage=torch.full((64,), torch.inf))
    before = weight_vector(policy)
    step(poisoned)
    assert torch.equal(weight_vector(policy), before)
    assert scaler.get_scale() == 2.0**9
    for rows in batches:
        step(rows)
    assert torch.allclose(weights.vector, reference("discrete", batches)[0], atol=1e-4)


def test_weights_are_views_of_one_vector_in_both_directions() -> None:
    policy = agent("continuous")
    before = weight_vector(policy)
    weights = Weights(policy)
    assert torch.equal(weights.vector, before)
    obs = torch.randn(5, 3)
    with torch.no_grad():
        weights.vector += 1
        policy.critic.bias.zero_()
    _, value = policy(obs)
    _, same = call_with(agent("continuous"), weights.vector.detach(), obs)
    assert torch.equal(value, same) and torch.equal(weight_vector(policy), weights.vector)
    value.sum().backward()
    assert weights.gradient.norm() > 0
    assert torch.equal(weights.gradient, torch.cat([p.grad.flatten() for p in policy.parameters()]))


def test_adam_keeps_its_moments_in_float32_whatever_the_weights_are() -> None:
    policy = agent("discrete").to(torch.bfloat16)
    weights = Weights(policy)
    adam = make_adam(weights, 1e-4, fused=True)
    weights.gradient.fill_(0.5)
    for _ in range(1000):
        adam.step()
    # A bf16 moment would stop changing once a thousandth of it is lost in rounding.
    assert adam.state[weights.vector]["exp_avg_sq"].mean().item() == pytest.approx(0.25 * (1 - 0.999**1000), rel=1e-3)
    assert weights.vector.dtype == torch.bfloat16


def trained(env_id: str, num_envs: int) -> Tensor:
    """The weights after some updates from the environments of all ranks, each of which is a minibatch."""
    ranks, config = Ranks.of(), PPOConfig(num_steps=32, num_minibatches=1, update_epochs=3)
    learner, size = config.build(), num_envs // ranks.size
    envs = make_envs(EnvConfig(env_id, size, "sync"))
    torch.manual_seed(1)
    policy = Agent(envs.spaces, Network(hidden_sizes=(16,)))
    weights = Weights(policy)
    step = GradientStep(learner, policy, weights, make_adam(weights, 1e-3, fused=True), ranks, Execution())
    shuffle = Shuffle(1, ranks.rank, ranks.size, shared=False)
    keeps = config.keeps_next_obs(envs.spaces)
    collector = make_collector(envs, policy, seed=1, first_env=ranks.rank * size, keeps_next_obs=keeps)
    for _ in range(3):
        with torch.no_grad():
            rollout = learner.collect(collector)
            estimates = learner.estimate(policy, rollout)
            samples, _ = learner.prepare(rollout, estimates, ranks.sum(estimates.sums))
        for _ in range(config.update_epochs):
            for minibatch in learner.minibatches(samples, shuffle):
                step(minibatch)
    return weights.vector.detach()


@pytest.mark.parametrize("env_id", ["Frames-v0", "Everything-v0", "TreeOfDoors-v0"])
def test_two_ranks_learn_to_rounding_what_one_learns_from_all_environments(env_id: str, tmp_path: Path) -> None:
    alone, (first, second) = trained(env_id, 4), in_ranks(trained, 2, tmp_path, env_id, 4)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, alone, rtol=1e-4, atol=1e-5)
    assert (alone - trained(env_id, 2)).abs().max() > 1e-3  # than from half of them
