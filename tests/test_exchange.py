"""No row is lost or counted twice between the player and any number of trainers; weights come back."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from rl import tree
from rl.dist.launch import rank
from rl.dist.ranks import Ranks
from rl.envs.actions import DiscreteActions
from rl.envs.observations import vector
from rl.envs.spaces import Spaces
from rl.exchange import PLAYER, Exchange, Order, padded
from rl.learners.ppo import PPOConfig, Rows
from rl.models.agent import Agent, Network, weight_vector
from rl.run.control import ASKED
from rl.seeding import Shuffle
from tests.ranks import in_ranks

SPACES = Spaces(vector(3), DiscreteActions(2))
LEARNER = PPOConfig(per_rank_batch_size=4, update_epochs=2).build()


def make_rows(num_rows: int) -> Rows:
    """Rows that are identified by their target; some have weight 0, and the mean weight is 1."""
    generator = torch.Generator().manual_seed(1)
    weight = (torch.rand(num_rows, generator=generator) > 0.2).float()
    return Rows(
        obs=torch.randn(num_rows, 3, generator=generator),
        action=torch.arange(num_rows) % 2,
        log_prob=torch.full((num_rows,), -0.7),
        value=torch.randn(num_rows, generator=generator),
        advantage=torch.randn(num_rows, generator=generator),
        target=torch.arange(num_rows).float(),
        weight=weight / weight.mean(),
    )


def agent() -> Agent:
    torch.manual_seed(0)
    return Agent(SPACES, Network(ortho_init=False))


def loss_gradient(module: torch.nn.Module, rows: Rows) -> Tensor:
    LEARNER.loss(module, rows)[0].backward()
    return torch.cat([parameter.grad.flatten() for parameter in module.parameters()])


def _both_ends(num_rows: int, shared: bool) -> tuple[object, ...] | None:
    """What a trainer received (its rows, an epoch of them, the averaged gradient); None for the player."""
    group = torch.distributed.new_group(list(range(1, torch.distributed.get_world_size())))
    rows, policy = make_rows(num_rows), agent()
    num_trainers = torch.distributed.get_world_size() - 1
    exchange = Exchange(
        policy, make_rows(1), ("loss", "kl"), num_rows=num_rows, num_trainers=num_trainers, shared=shared, pinned=False
    )
    if rank() == PLAYER:
        for _ in range(3):  # the buffers are used again
            exchange.send_rows(rows, Order(save=1, stop=15, last=0, done=1 / 3))
        metrics = exchange.receive_weights()
        return metrics, [parameter.detach().clone() for parameter in policy.parameters()]
    for _ in range(3):
        received, order = exchange.receive_rows()
        assert order == Order(save=1, stop=15, last=0, done=1 / 3)
    trainers = Ranks.of(group)
    shuffle = Shuffle(1, trainers.rank, trainers.size, shared=shared)
    epoch = next(PPOConfig(per_rank_batch_size=10**6, update_epochs=1).build().minibatches(received, shuffle))
    num_minibatches = len(list(LEARNER.minibatches(received, shuffle)))
    gradient = loss_gradient(DistributedDataParallel(policy, process_group=group), epoch)
    with torch.no_grad():
        policy.actor.bias += 1
    exchange.send_weights({"kl": 0.25, "unused": 1.0, "loss": 3.0 + trainers.rank})
    return tuple(received), tuple(epoch), num_minibatches, gradient


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("num_trainers", "num_rows"), [(1, 7), (2, 5), (3, 512)])
def test_every_row_reaches_one_trainer_an_epoch_and_weighs_the_same(
    tmp_path: Path, num_trainers: int, num_rows: int, shared: bool
) -> None:
    (metrics, weights), *trainers = in_ranks(_both_ends, num_trainers + 1, tmp_path, num_rows, shared)
    rows = make_rows(num_rows)
    epochs = [Rows(*epoch) for _, epoch, _, _ in trainers]
    learned = tree.cat(epochs)
    real = learned.weight > 0
    assert sorted(learned.target[real].tolist()) == rows.target[rows.weight > 0].tolist()
    # All weights grew by one factor, which keeps their mean over all rows at 1.
    factors = (learned.weight / rows.weight[learned.target.long()])[real]
    assert torch.allclose(factors, factors[0].expand_as(factors)) and learned.weight.mean().item() == pytest.approx(1)
    assert len({len(epoch.weight) for epoch in epochs}) == 1
    assert len({num_minibatches for _, _, num_minibatches, _ in trainers}) == 1
    for received, *_ in trainers:
        assert len(received[0]) == len(epochs[0].weight) * (num_trainers if shared else 1)

    whole = loss_gradient(agent(), rows)
    for *_, gradient in trainers:
        assert (gradient - whole).norm() <= 1e-6 * whole.norm()

    assert metrics == {"loss": 3.0, "kl": 0.25}
    expected = agent()
    with torch.no_grad():
        expected.actor.bias += 1
    assert all(torch.equal(w, parameter) for w, parameter in zip(weights, expected.parameters(), strict=True))


def test_what_was_asked_of_a_run_is_not_asked_of_the_one_that_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.get_rank", lambda: PLAYER)
    policy, names = agent(), ("loss", *ASKED)
    exchange = Exchange(policy, make_rows(1), names, num_rows=4, num_trainers=1, shared=False, pinned=False)
    values = torch.tensor([0.5, 15.0, 1.0, 0.0], dtype=torch.float64)  # the run was stopped by SIGTERM
    exchange.load_state_dict({"received": (values, weight_vector(policy))})
    assert exchange.receive_weights() == {"loss": 0.5} | dict.fromkeys(ASKED, 0.0)
    # An earlier version sent fewer metrics.
    exchange.load_state_dict({"received": (values[1:], weight_vector(policy) + 1)})
    assert exchange.receive_weights() == {"loss": 0.0} | dict.fromkeys(ASKED, 0.0)
    assert torch.equal(weight_vector(policy), weight_vector(agent()) + 1)


def test_rows_that_divide_are_left_as_they_are() -> None:
    rows = make_rows(6)
    assert padded(rows, 3) is rows


@pytest.mark.parametrize(("num_rows", "num_parts"), [(5, 2), (5, 4), (1, 3)])
def test_padding_adds_rows_of_no_weight(num_rows: int, num_parts: int) -> None:
    rows = make_rows(num_rows)
    rows = rows._replace(weight=torch.ones(num_rows))
    longer = padded(rows, num_parts)
    assert len(longer.weight) % num_parts == 0 and len(longer.weight) - num_rows < num_parts
    assert not longer.weight[num_rows:].any() and longer.weight.mean().item() == pytest.approx(1)
    assert torch.equal(longer.obs[:num_rows], rows.obs)
