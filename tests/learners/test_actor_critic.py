"""The actor-critic's losses against exact expectations and worked examples, and its replay buffer."""

import math

import pytest
import torch
from torch import Tensor, nn

from rl.learners.actor_critic import ActorCritic, ActorCriticConfig, Transitions, shared_error
from rl.models.distributions import Categorical, Distribution
from rl.rollout import Rollout
from rl.seeding import Shuffle

NUM_STATES, NUM_ACTIONS = 3, 2


class Table(nn.Module):
    """An agent whose logits and values are a table, indexed by the observation."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.logits = nn.Parameter(torch.randn(NUM_STATES, NUM_ACTIONS, generator=generator))
        self.values = nn.Parameter(torch.randn(NUM_STATES, generator=generator))

    def forward(self, obs: Tensor, mask: object = ()) -> tuple[Distribution, Tensor]:
        state = obs[:, 0].long()
        return Categorical.from_logits(self.logits[state]), self.values[state]


def rows(**fields: list[float]) -> Transitions:
    size = len(fields["obs"])
    like = {"action": [0], "log_prob": [math.log(0.5)], "reward": [0.0], "terminated": [False], "weight": [1.0]}
    filled = {name: torch.tensor(fields.get(name, value * size)) for name, value in like.items()}
    obs, next_obs = (torch.tensor(fields[name], dtype=torch.float32)[:, None] for name in ("obs", "next_obs"))
    return Transitions(obs=obs, next_obs=next_obs, **filled)


def gradients(learner: ActorCritic, agent: Table, batch: Transitions) -> tuple[Tensor, Tensor]:
    loss, _ = learner.loss(agent, batch)
    return torch.autograd.grad(loss, [agent.logits, agent.values])


def test_old_actions_give_the_gradient_of_the_present_policy() -> None:
    # All actions of a state, each in proportion to its probability under the policy that acted.
    agent, behavior = Table(), torch.tensor([0.8, 0.2])
    reward, after = torch.tensor([1.0, 3.0]), [1, 2]
    learner = ActorCriticConfig(
        gamma=0.9, rho_clip=100.0, vf_coef=1.0, ent_coef=0.0, normalize_values=False, normalize_advantages=False
    ).build()
    batch = rows(
        obs=[0, 0],
        next_obs=after,
        action=[0, 1],
        log_prob=behavior.log().tolist(),
        reward=reward.tolist(),
        weight=(2 * behavior).tolist(),  # the loss is a mean
    )
    actor, critic = gradients(learner, agent, batch)
    with torch.no_grad():
        policy = torch.softmax(agent.logits[0], 0)
        advantage = reward + 0.9 * agent.values[after] - agent.values[0]
        # The derivative of log-softmax; both expectations are over the present policy.
        score = torch.eye(2) - policy
        expected_actor = -(policy * advantage) @ score
        expected_critic = -2 * (policy * advantage).sum()
    assert torch.allclose(actor[0], expected_actor, atol=1e-5)
    assert critic[0].item() == pytest.approx(expected_critic.item(), rel=1e-5)
    assert not actor[1:].any() and not critic[1:].any()  # the successor's value is a target, not learned here


@pytest.mark.parametrize("last", [False, True])
def test_an_error_that_all_values_share_moves_neither_policy_nor_values(last: bool) -> None:
    agent, learner = Table(), ActorCriticConfig().build()
    batch = rows(
        obs=[0, 0, 1],
        next_obs=[1, 2, 2],
        action=[0, 1, 1],
        reward=[1.0, 3.0, 2.0],
        terminated=[False, False, last],
        weight=[1.0, 0.5, 1.5],
    )
    before = gradients(learner, agent, batch)
    with torch.no_grad():
        agent.values += 50.0
    for shifted, expected in zip(gradients(learner, agent, batch), before, strict=True):
        assert torch.allclose(shifted, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


def test_the_shared_error_is_that_of_the_constant_which_fits_best() -> None:
    generator = torch.Generator().manual_seed(3)
    td_error, weight = torch.randn(7, generator=generator), torch.rand(7, generator=generator)
    discount = 0.9 * torch.tensor([1.0, 0, 1, 1, 0, 1, 1])
    # With values v + c the error is r + discount (v' + c) - (v + c); c is to leave none of it on average.
    left = td_error - shared_error(td_error, discount, weight)
    assert (weight * left).sum().item() == pytest.approx(0, abs=1e-5)
    level = (td_error - left) / (1 - discount)
    assert torch.allclose(level, level[0].expand(7), rtol=1e-4)


def test_the_weight_of_an_action_is_clipped() -> None:
    agent = Table()
    learner = ActorCriticConfig(rho_clip=1.0, normalize_values=False, normalize_advantages=False).build()
    unlikely = rows(obs=[0], next_obs=[1], action=[0], log_prob=[-20.0], reward=[1.0])
    likely = unlikely._replace(log_prob=torch.log_softmax(agent.logits, 1)[0, :1].detach())
    for ours, on_policy in zip(gradients(learner, agent, unlikely), gradients(learner, agent, likely), strict=True):
        assert torch.allclose(ours, on_policy, atol=1e-5)


def test_termination_cuts_the_bootstrap_and_truncation_does_not() -> None:
    agent, learner = Table(), ActorCriticConfig(gamma=0.5, rho_clip=1.0, normalize_values=False).build()
    values = agent.values.tolist()
    for terminated, target in ((False, 2 + 0.5 * values[1]), (True, 2.0)):
        batch = rows(obs=[0], next_obs=[1], reward=[2.0], terminated=[terminated])
        rho = min(1.0, torch.softmax(agent.logits, 1)[0, 0].item() / 0.5)
        _, metrics = learner.loss(agent, batch)
        assert metrics["Loss/value_loss"].item() == pytest.approx(rho * (target - values[0]) ** 2, rel=1e-4)


def test_a_row_of_weight_0_is_as_good_as_absent() -> None:
    agent = Table()
    learner = ActorCriticConfig(ent_coef=0.0, normalize_values=False, normalize_advantages=False).build()
    alone = rows(obs=[0], next_obs=[1], reward=[2.0])
    beside = rows(obs=[0, 2], next_obs=[1, 2], reward=[2.0, 99.0], weight=[2.0, 0.0])
    for ours, theirs in zip(gradients(learner, agent, alone), gradients(learner, agent, beside), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_an_update_draws_so_many_batches_from_what_was_kept() -> None:
    learner = ActorCriticConfig(per_rank_batch_size=5, updates_per_collection=3, buffer_size=4).build()
    numbers = [float(number) for number in range(6)]
    batches = list(learner.minibatches(rows(obs=numbers, next_obs=numbers), Shuffle(1, 0, 1, shared=False)))
    assert [len(batch.obs) for batch in batches] == [5, 5, 5]
    drawn = torch.cat([batch.obs[:, 0] for batch in batches])
    assert set(drawn.tolist()) <= {2.0, 3.0, 4.0, 5.0} and len(drawn.unique()) > 1
    assert learner.config.work(6) == (3, 15)


def test_ranks_draw_different_rows() -> None:
    numbers = [float(number) for number in range(100)]
    drawn = []
    for rank in range(2):
        learner = ActorCriticConfig(updates_per_collection=1).build()
        (batch,) = learner.minibatches(rows(obs=numbers, next_obs=numbers), Shuffle(1, rank, 2, shared=False))
        drawn.append(batch.obs)
    assert not torch.equal(*drawn)


def test_transitions_are_those_of_the_rollout() -> None:
    generator = torch.Generator().manual_seed(2)
    fields = {name: torch.rand(4, 3, generator=generator) for name in Rollout._fields}
    obs = {name: torch.rand(4, 3, 2, generator=generator) for name in ("obs", "next_obs")}
    rollout = Rollout(**(fields | obs | {"weight": torch.ones(4, 3)}))
    learner = ActorCriticConfig().build()
    estimates = learner.estimate(Table(), rollout)
    transitions, _ = learner.prepare(rollout, estimates, estimates.sums)
    for name in Transitions._fields:
        assert torch.equal(getattr(transitions, name), getattr(rollout, name).flatten(0, 1)), name


def test_the_weight_of_the_value_loss_does_not_depend_on_its_size() -> None:
    agent, learner = Table(), ActorCriticConfig(vf_coef=1.0, ent_coef=0.0).build()
    batch = rows(obs=[0, 0, 1], next_obs=[1, 2, 2], action=[0, 1, 1], reward=[1.0, 3.0, 2.0], terminated=[True] * 3)
    wide = batch._replace(reward=1000 * batch.reward)
    before = gradients(learner, agent, batch)[1]
    with torch.no_grad():
        agent.values *= 1000
    assert torch.allclose(1000 * gradients(learner, agent, wide)[1], before, rtol=1e-3)
