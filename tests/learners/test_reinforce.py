"""REINFORCE: its gradient against the analytic one, its returns, and its whole episodes."""

import pytest
import torch
from torch import Tensor, nn

from rl import tree
from rl.collector import make_collector
from rl.config import CONFIGS
from rl.envs.config import EnvConfig
from rl.envs.make import make_envs
from rl.learners.reinforce import Reinforce, ReinforceConfig, Rows, collect_episodes
from rl.models.agent import Agent, Network
from rl.models.distributions import Categorical, Distribution
from rl.returns import returns_to_go
from rl.rollout import Rollout


class Bandit(nn.Module):
    """An agent that ignores its observation."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.3, -0.4]))

    def forward(self, obs: Tensor, mask: object = ()) -> tuple[Distribution, Tensor]:
        return Categorical.from_logits(self.logits.expand(len(obs), 2)), obs[:, 0]


def pulled(action: Tensor, reward: Tensor) -> Rollout:
    """Episodes of one step each, with these arms."""
    zeros, ones = torch.zeros_like(reward), torch.ones_like(reward)
    ended = ones.bool()
    obs = zeros[..., None]
    return Rollout(obs, obs, action, zeros, zeros, zeros, reward, ended, ~ended, ones, reward, ones)


def rows_of(learner: Reinforce, agent: nn.Module, rollout: Rollout) -> Rows:
    with torch.no_grad():
        estimates = learner.estimate(agent, rollout)
        return learner.prepare(rollout, estimates, estimates.sums)[0]


def test_the_gradient_on_a_two_armed_bandit_is_the_analytic_one() -> None:
    # Both arms, weighted as often as the policy pulls them: the mean is the expectation.
    bandit, payoff = Bandit(), torch.tensor([1.0, 3.0])
    probability = torch.softmax(bandit.logits.detach(), 0)
    learner = ReinforceConfig(normalize_returns=False).build()
    action = torch.tensor([[0, 1]])
    rollout = pulled(action, payoff[action])._replace(weight=probability[action])
    learner.loss(bandit, rows_of(learner, bandit, rollout))[0].backward()
    # d E[payoff] / d logit_a = p_a (payoff_a - E[payoff]).
    expected = probability * (payoff - probability @ payoff)
    assert torch.allclose(-bandit.logits.grad, expected, atol=1e-5)


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_the_gradient_sums_over_an_episode_and_takes_the_mean_over_episodes(num_ranks: int) -> None:
    # The first environment's episode has one step, the second's three; what follows an episode counts for nothing.
    action = torch.tensor([[0, 1], [1, 1], [1, 0]])
    reward = torch.tensor([[1.0, 0.5], [9.0, 0.5], [9.0, 1.0]])
    ended = torch.tensor([[True, False], [False, False], [False, True]])
    weight = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    rollout = pulled(action, reward)._replace(terminated=ended, truncated=torch.zeros_like(ended), weight=weight)
    learner, bandit = ReinforceConfig(gamma=0.9, normalize_returns=False).build(), Bandit()
    parts = [tree.map(lambda field, n=n: field[:, n::num_ranks], rollout) for n in range(num_ranks)]
    estimates = [learner.estimate(bandit, part) for part in parts]
    total = sum(estimate.sums for estimate in estimates)
    for part, estimate in zip(parts, estimates, strict=True):
        rows, _ = learner.prepare(part, estimate, total)
        (learner.loss(bandit, rows)[0] / num_ranks).backward()  # DDP takes the mean of the ranks' gradients
    stop, go = (torch.eye(2)[a] - torch.softmax(bandit.logits.detach(), 0) for a in (0, 1))  # grad log pi
    returns = (0.5 + 0.9 * 0.5 + 0.81 * 1.0, 0.5 + 0.9 * 1.0, 1.0)
    expected = (1.0 * stop + returns[0] * go + returns[1] * go + returns[2] * stop) / 2
    assert torch.allclose(-bandit.logits.grad, expected, rtol=1e-4)


def test_losses_that_are_logged_are_means_over_rows() -> None:
    action = torch.tensor([[1], [1], [0]])
    ended = torch.tensor([[False], [False], [True]])
    rollout = pulled(action, torch.tensor([[0.5], [0.5], [1.0]]))._replace(terminated=ended)
    rollout = rollout._replace(truncated=torch.zeros_like(ended))
    learner, bandit = ReinforceConfig(gamma=1.0, normalize_returns=False).build(), Bandit()
    metrics = learner.loss(bandit, rows_of(learner, bandit, rollout))[1]
    log_prob = torch.log_softmax(bandit.logits.detach(), 0)
    expected = {
        "Loss/policy_loss": -((2.0 + 1.5) * log_prob[1] + 1.0 * log_prob[0]) / 3,
        "Loss/value_loss": (2.0**2 + 1.5**2 + 1.0**2) / 3,
        "Loss/entropy_loss": (log_prob.exp() * log_prob).sum(),
    }
    for name, value in expected.items():
        assert metrics[name].item() == pytest.approx(float(value), rel=1e-5), name


def test_a_baseline_leaves_the_expected_gradient_as_it_is() -> None:
    gradients = []
    for baseline in (False, True):
        bandit, payoff = Bandit(), torch.tensor([1.0, 3.0])
        probability = torch.softmax(bandit.logits.detach(), 0)
        learner = ReinforceConfig(normalize_returns=False, baseline=baseline).build()
        action = torch.tensor([[0, 1]])
        rollout = pulled(action, payoff[action])._replace(weight=probability[action], value=torch.full((1, 2), 1.7))
        learner.loss(bandit, rows_of(learner, bandit, rollout))[0].backward()
        gradients.append(bandit.logits.grad)
    assert torch.allclose(*gradients, atol=1e-5)


def test_returns_to_go_are_discounted_sums_to_the_episodes_end() -> None:
    generator = torch.Generator().manual_seed(1)
    reward, ended = torch.rand(20, 3, generator=generator), torch.rand(20, 3, generator=generator) < 0.2
    ours = returns_to_go(reward, ended, 0.9)
    for env in range(3):
        for start in range(20):
            total, discount = 0.0, 1.0
            for t in range(start, 20):
                total, discount = total + discount * reward[t, env].item(), discount * 0.9
                if ended[t, env]:
                    break
            assert ours[start, env].item() == pytest.approx(total, rel=1e-5)


def test_normalized_returns_have_mean_0_and_deviation_1_over_the_rows_that_count() -> None:
    action = torch.tensor([[0, 1, 0, 1]])
    rollout = pulled(action, torch.tensor([[1.0, 2.0, 6.0, 99.0]]))._replace(weight=torch.tensor([[1.0, 1, 1, 0]]))
    rows = rows_of(ReinforceConfig().build(), Bandit(), rollout)
    counted = rows.advantage[:3]
    assert counted.mean().item() == pytest.approx(0, abs=1e-5) and counted.std().item() == pytest.approx(1, abs=1e-5)
    assert rows.weight.tolist() == pytest.approx([4 / 3] * 3 + [0], rel=1e-5)


@pytest.mark.parametrize("vectorization", ["auto", "tensor"])
@pytest.mark.parametrize("num_each", [1, 3])
def test_every_environment_gives_as_many_whole_episodes(vectorization: str, num_each: int) -> None:
    envs = make_envs(EnvConfig("CartPole-v1", num_envs=4, vectorization=vectorization))
    torch.manual_seed(0)
    collector = make_collector(envs, Agent(envs.spaces, Network()), seed=1, first_env=0)
    with torch.no_grad():
        collector.collect(5)  # in the middle of an episode
        rollout = collect_episodes(collector, num_each, look_every=8, max_steps=10_000)
    ended = rollout.terminated | rollout.truncated
    assert ended.sum(0).tolist() == [num_each] * 4
    for env in range(4):
        own = ended[:, env]
        # From the first step on, and not one more; a reward of 1 a step makes a return a length.
        assert rollout.weight[:, env].sum() == rollout.episode_length[own, env].sum()
        assert not rollout.weight[own.nonzero().max() + 1 :, env].any()
        assert torch.equal(rollout.episode_return[own, env], rollout.episode_length[own, env])
    assert rollout.obs[0].abs().max() <= 0.05  # where CartPole starts


def test_further_episodes_start_elsewhere() -> None:
    for vectorization in ("auto", "tensor"):
        envs = make_envs(EnvConfig("CartPole-v1", num_envs=2, vectorization=vectorization))
        collector = make_collector(envs, Agent(envs.spaces, Network()), seed=1, first_env=0)
        with torch.no_grad():
            starts = [collect_episodes(collector, 1, look_every=8, max_steps=1000).obs[0] for _ in range(3)]
        assert len({tuple(start.flatten().tolist()) for start in starts}) == 3


def test_an_episode_that_does_not_end_is_left_out() -> None:
    envs = make_envs(EnvConfig("CustomEnv-v0", num_envs=2))
    collector = make_collector(envs, Agent(envs.spaces, Network()), seed=1, first_env=0)
    with torch.no_grad():
        rollout = collect_episodes(collector, 1, look_every=2, max_steps=4)
    assert not (rollout.terminated | rollout.truncated).any()  # to leave the track takes more than 4 steps
    rows = rows_of(ReinforceConfig().build(), collector.policy, rollout)
    assert not rows.weight.any() and rows.advantage.isfinite().all()


def test_an_update_is_one_step_on_all_rows() -> None:
    rows = rows_of(ReinforceConfig().build(), Bandit(), pulled(torch.tensor([[0, 1]]), torch.tensor([[1.0, 2.0]])))
    assert [batch is rows for batch in ReinforceConfig().build().minibatches(rows, None)] == [True]


def test_the_network_of_the_textbook() -> None:
    config = CONFIGS["reinforce"]
    agent = Agent(make_envs(config.env).spaces, config.network)
    parameters = (*agent.encoder.parameters(), *agent.actor.parameters())
    assert [tuple(parameter.shape) for parameter in parameters] == [(128, 4), (128,), (2, 128), (2,)]
