"""What ranks do together equals what one rank does alone."""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from rl import tree
from rl.dist.launch import rank
from rl.dist.ranks import Ranks, pack, unpack
from rl.envs.actions import DiscreteActions
from rl.envs.observations import vector
from rl.envs.spaces import Spaces
from rl.learners.ppo import PPOConfig
from rl.models.agent import Agent, Network
from rl.rollout import Rollout
from rl.run.metrics import Averages
from tests.ranks import in_ranks


class Mixed(NamedTuple):
    whole: Tensor
    real: Tensor
    flag: Tensor
    double: Tensor


def mixed_rows(num_rows: int, start: int = 0) -> Mixed:
    index = torch.arange(start, start + num_rows)
    return Mixed(index - 2**62, index.view(-1, 1) * torch.tensor([[0.1, torch.nan]]), index % 2 == 0, index / 3.0)


def assert_same_bytes(ours: Mixed, theirs: Mixed) -> None:
    for field, other in zip(ours, theirs, strict=True):
        assert field.dtype == other.dtype and field.shape == other.shape
        assert field.numpy().tobytes() == other.numpy().tobytes()


def test_unpacking_undoes_packing_bit_for_bit() -> None:
    rows = mixed_rows(5)
    assert pack(rows).dtype == torch.uint8
    assert_same_bytes(unpack(pack(rows), rows), rows)
    assert_same_bytes(unpack(pack(rows)[1:3], rows), Mixed(*(field[1:3] for field in rows)))


def test_alone_nothing_is_sent() -> None:
    rows, values = mixed_rows(3), torch.tensor([1.0, 2.0])
    assert Ranks.of() == Ranks(0, 1)
    assert Ranks().share(rows) is rows and Ranks().sum(values) is values


def _meet() -> tuple[object, ...]:
    own = torch.tensor([1.0 + rank(), 10.0])
    ranks = Ranks.of()
    averages = Averages(torch.device("cpu"), ranks.sum)
    averages.add({"mean": own[0]})
    averages.add({"mean": own[0] + 2})
    averages.add({"sum": torch.tensor(6.0 * rank())}, count=torch.tensor(3 * rank()))
    averages.add({"nothing": torch.tensor(0.0)}, count=0)
    means = averages.take()
    shared = tuple(ranks.share(mixed_rows(4, start=4 * rank())))
    first = own.clone()
    ranks.broadcast(first)
    return (ranks.rank, ranks.size), ranks.sum(own), ranks.mean(own), own, first, shared, means


def test_ranks_sum_average_and_share(tmp_path: Path) -> None:
    for number, (place, total, mean, own, first, shared, means) in enumerate(in_ranks(_meet, 3, tmp_path)):
        assert place == (number, 3)
        assert total.tolist() == [6, 30] and mean.tolist() == [2, 10]
        assert own[0] == 1 + number  # not summed in place
        assert first.tolist() == [1, 10]
        assert_same_bytes(Mixed(*shared), mixed_rows(12))
        assert means == {"mean": 3, "sum": 2}


LEARNER = PPOConfig(ent_coef=0.01, gamma=0.9).build()


def synthetic_rollout() -> Rollout:
    """16 steps of 8 environments; the weights of the first four differ much from those of the rest."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(16, 8, *shape, generator=generator)

    def chance(rate: float) -> Tensor:
        return torch.rand(16, 8, generator=generator) < rate

    weight = torch.ones(16, 8)
    weight[:, :4] = chance(0.4)[:, :4].float()
    action = chance(0.5).long()
    return Rollout(
        obs=normal(3),
        next_obs=normal(3),
        action=action,
        log_prob=-0.7 + 0.1 * normal(),
        value=normal(),
        next_value=normal(),
        reward=2 * normal() + 1,
        terminated=chance(0.1),
        truncated=chance(0.1),
        weight=weight,
        episode_return=normal(),
        episode_length=normal(),
    )


def _gradient(num_parts: int) -> tuple[Tensor, Tensor]:
    """Gradient and metrics of this rank's part of the environments, averaged over ranks."""
    size = 8 // num_parts
    rollout = tree.map(lambda field: field[:, rank() * size : (rank() + 1) * size], synthetic_rollout())
    torch.manual_seed(0)
    policy = Agent(Spaces(vector(3), DiscreteActions(2)), Network(ortho_init=False))
    agent = DistributedDataParallel(policy) if num_parts > 1 else policy
    with torch.no_grad():
        estimates = LEARNER.estimate(policy, rollout)
        rows, metrics = LEARNER.prepare(rollout, estimates, Ranks.of().sum(estimates.sums))
    loss, loss_metrics = LEARNER.loss(agent, rows)
    loss.backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in policy.parameters()])
    return gradient, Ranks.of().mean(torch.stack(list((metrics | loss_metrics).values())))


@pytest.mark.parametrize("backend", ["gloo", "nccl"])
def test_bytes_are_gathered_where_the_ranks_can_talk(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def zeros(*_: object, device: torch.device, **__: object) -> Tensor:
        made.append(device.type)
        raise InterruptedError

    monkeypatch.setattr(dist, "get_backend", lambda group: backend)
    monkeypatch.setattr(torch, "zeros", zeros)
    with pytest.raises(InterruptedError):
        Ranks(0, 2).gather_bytes(torch.tensor([1], dtype=torch.uint8))
    assert made == [{"gloo": "cpu", "nccl": "cuda"}[backend]]


@pytest.mark.parametrize("num_parts", [2, 4])
def test_ranks_with_parts_of_the_batch_give_the_gradient_of_one_with_the_whole(tmp_path: Path, num_parts: int) -> None:
    whole, metrics = _gradient(1)
    for gradient, rank_metrics in in_ranks(_gradient, num_parts, tmp_path, num_parts):
        assert (gradient - whole).norm() <= 1e-6 * whole.norm()
        assert torch.allclose(rank_metrics, metrics, rtol=1e-5, atol=1e-6)
