"""PPO's mathematics against worked examples, stable-baselines3, and the same computation done another way."""

import math
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
import torch
from torch import Tensor

from rl import tree
from rl.collector import make_collector
from rl.envs.actions import BoxActions, DiscreteActions
from rl.envs.config import EnvConfig
from rl.envs.make import make_envs
from rl.envs.observations import vector
from rl.envs.spaces import Spaces
from rl.learners.ppo import PPO, PPOConfig, Rows, clipped_surrogate, squared_error
from rl.models.agent import Agent, Network
from rl.models.distributions import Categorical
from rl.rollout import Rollout
from rl.seeding import Shuffle

SPACES = Spaces(vector(4), DiscreteActions(2))


def agent_for(spaces: Spaces = SPACES, **network: object) -> Agent:
    torch.manual_seed(0)
    return Agent(spaces, Network(hidden_sizes=(16, 16), ortho_init=False, **network))


def collect(agent: Agent, env_id: str = "CartPole-v1", num_steps: int = 64, vectorization: str = "sync") -> Rollout:
    envs = make_envs(EnvConfig(env_id, num_envs=4, vectorization=vectorization))
    with torch.no_grad():
        return make_collector(envs, agent, seed=1, first_env=0).collect(num_steps)


def prepare(learner: PPO, agent: Agent, rollout: Rollout) -> Rows:
    with torch.no_grad():
        estimates = learner.estimate(agent, rollout)
        return learner.prepare(rollout, estimates, estimates.sums)[0]


def gradient(learner: PPO, agent: Agent, rows: Rows) -> Tensor:
    agent.zero_grad()
    learner.loss(agent, rows)[0].backward()
    return torch.cat([parameter.grad.flatten() for parameter in agent.parameters()])


def moved(agent: Agent) -> Agent:
    """The agent with other weights than those that acted, so that ratios differ from 1."""
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5))
    return agent


def test_the_surrogate_of_a_worked_example() -> None:
    # Ratios 1.5 and 0.5 with clip 0.2: gains are cut at 1.2 · A and losses at 0.8 · A, never the other way.
    log_ratio = torch.tensor([1.5, 1.5, 0.5, 0.5]).log()
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0])
    assert clipped_surrogate(log_ratio, advantage, 0.2).tolist() == pytest.approx([-1.2, 1.5, -0.5, 0.8], rel=1e-5)


def test_the_surrogates_gradient_is_cut_exactly_where_a_gain_is_clipped() -> None:
    log_ratio = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1]).log().requires_grad_()
    clipped_surrogate(log_ratio, torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0]), 0.2).sum().backward()
    assert log_ratio.grad.tolist() == pytest.approx([0, 1.5, -0.5, 0, -1.1], rel=1e-5)


def test_the_clipped_value_loss_is_the_larger_of_the_two() -> None:
    value, old_value = torch.tensor([2.0, 2.0, 1.1]), torch.tensor([1.0, 1.0, 1.0])
    target = torch.tensor([2.0, 0.0, 3.0])
    assert squared_error(value, old_value, target, None).tolist() == pytest.approx([0, 4, 1.9**2], rel=1e-5)
    # Clipped to 1.2: errors 0.8 and 1.2; the third is within.
    assert squared_error(value, old_value, target, 0.2).tolist() == pytest.approx([0.64, 4, 1.9**2], rel=1e-5)


def test_the_first_minibatch_has_ratio_1() -> None:
    agent = agent_for()
    rows = prepare(PPOConfig().build(), agent, collect(agent))
    _, metrics = PPOConfig().build().loss(agent, rows)
    assert metrics["Info/approx_kl"].abs() < 1e-5 and metrics["Info/clip_fraction"] == 0


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("env_id", "action"), [("CartPole-v1", "discrete"), ("Pendulum-v1", "box")])
def test_loss_and_gradient_equal_those_of_stable_baselines3(env_id: str, action: str, normalize: bool) -> None:
    spaces = SPACES if action == "discrete" else Spaces(vector(3), BoxActions((-2.0,), (2.0,)))
    agent = agent_for(spaces, shared_encoder=False)
    rollout = collect(agent, env_id, num_steps=210)
    learner = PPOConfig(normalize_advantages=normalize, ent_coef=0.03, vf_coef=0.4, gamma=0.97, gae_lambda=0.9).build()
    rows = prepare(replace(learner.config, normalize_advantages=False).build(), agent, rollout)
    # One step of plain gradient descent with rate 1 and no clipping moves the parameters by the gradient.
    theirs = stable_baselines3.PPO(
        "MlpPolicy",
        gym.make(env_id),
        learning_rate=1.0,
        n_steps=len(rows.obs),
        batch_size=len(rows.obs),
        n_epochs=1,
        ent_coef=0.03,
        vf_coef=0.4,
        max_grad_norm=1e9,
        normalize_advantage=normalize,
        policy_kwargs={"net_arch": [16, 16], "optimizer_class": torch.optim.SGD, "optimizer_kwargs": {}},
        device="cpu",
    )
    policy = theirs.policy
    pairs = [
        (agent.encoder[0], policy.mlp_extractor.policy_net[0]),
        (agent.encoder[2], policy.mlp_extractor.policy_net[2]),
        (agent.critic_encoder[0], policy.mlp_extractor.value_net[0]),
        (agent.critic_encoder[2], policy.mlp_extractor.value_net[2]),
        (agent.actor, policy.action_net),
        (agent.critic, policy.value_net),
    ]
    moved(agent)
    for ours, other in pairs:
        other.load_state_dict(ours.state_dict())
    if action == "box":
        policy.log_std.data.copy_(agent.log_std)
    buffer = theirs.rollout_buffer
    for name, field in (
        ("observations", rows.obs),
        ("actions", rows.action),
        ("values", rows.value),
        ("log_probs", rows.log_prob),
        ("advantages", rows.advantage),
        ("returns", rows.target),
    ):
        getattr(buffer, name)[:] = field.numpy().reshape(getattr(buffer, name).shape)
    buffer.full = True
    theirs._setup_learn(1)
    before = {name: parameter.clone() for name, parameter in policy.named_parameters()}
    theirs.train()

    loss, _ = learner.loss(agent, prepare(learner, agent_for(spaces, shared_encoder=False), rollout))
    agent.zero_grad()
    loss.backward()
    assert theirs.logger.name_to_value["train/loss"] == pytest.approx(loss.item(), rel=1e-5)
    names = {parameter: name for name, parameter in policy.named_parameters()}
    largest = max(parameter.grad.abs().max().item() for parameter in agent.parameters())
    parameters = [pair for ours, other in pairs for pair in zip(ours.parameters(), other.parameters(), strict=True)] + (
        [(agent.log_std, policy.log_std)] if action == "box" else []
    )
    assert len(parameters) == len(list(agent.parameters()))
    for mine, parameter in parameters:
        theirs_gradient = before[names[parameter]] - parameter.detach()
        assert (mine.grad - theirs_gradient).abs().max() <= 1e-5 * largest


def test_the_gradient_is_that_of_finite_differences() -> None:
    agent = agent_for()
    rollout = collect(agent)
    learner = PPOConfig(ent_coef=0.1, clip_vloss=True).build()
    rows = prepare(learner, agent, rollout)
    moved(agent).double()
    agent.forward = lambda obs, mask: _forward_in_float64(agent, obs)
    rows = tree.map(lambda field: field.double() if field.is_floating_point() else field, rows)
    parameters = list(agent.parameters())

    def loss_of(*values: Tensor) -> Tensor:
        named = dict(zip([name for name, _ in agent.named_parameters()], values, strict=True))
        return torch.func.functional_call(_Loss(agent, learner), {f"agent.{k}": v for k, v in named.items()}, (rows,))

    assert torch.autograd.gradcheck(
        loss_of, tuple(p.detach().requires_grad_() for p in parameters), fast_mode=True, atol=1e-6
    )


class _Loss(torch.nn.Module):
    def __init__(self, agent: Agent, learner: PPO) -> None:
        super().__init__()
        self.agent, self.learner = agent, learner

    def forward(self, rows: Rows) -> Tensor:
        return self.learner.loss(self.agent, rows)[0]


def _forward_in_float64(agent: Agent, obs: Tensor) -> tuple[Categorical, Tensor]:
    encoded = agent.encoder(obs)
    return Categorical.from_logits(agent.actor(encoded)), agent.critic(encoded).squeeze(-1)


def test_no_reset_row_enters_the_loss() -> None:
    agent = agent_for()
    rollout = collect(agent, vectorization="auto")  # CartPole's batched class resets in the next step
    resets = rollout.weight == 0
    assert resets.sum() > 5
    learner = PPOConfig().build()
    nonsense = rollout._replace(
        reward=torch.where(resets, 1e3, rollout.reward),
        next_obs=torch.where(resets.unsqueeze(-1), 7.0, rollout.next_obs),
    )
    moving = moved(agent_for())
    clean, dirty = (prepare(learner, agent, r) for r in (rollout, nonsense))
    dirty = dirty._replace(
        obs=torch.where(resets.flatten().unsqueeze(-1), 7.0, dirty.obs),
        action=torch.where(resets.flatten(), 1, dirty.action),
        target=torch.where(resets.flatten(), 1e3, dirty.target),
    )
    assert torch.equal(gradient(learner, moving, clean), gradient(learner, moving, dirty))
    # The remaining rows have the weights that they would have without the others.
    kept = tree.index(clean, ~resets.flatten())
    alone = gradient(learner, moving, kept._replace(weight=torch.ones_like(kept.weight)))
    assert torch.allclose(gradient(learner, moving, clean), alone, rtol=1e-4, atol=1e-6)


def test_advantages_are_normalized_over_the_rows_that_count() -> None:
    agent = agent_for()
    rollout = collect(agent, vectorization="auto")
    raw, normalized = (prepare(PPOConfig(normalize_advantages=flag).build(), agent, rollout) for flag in (False, True))
    kept = raw.advantage[raw.weight > 0]
    expected = (raw.advantage - kept.mean()) / kept.std()
    assert torch.allclose(normalized.advantage, expected, atol=1e-5)
    assert raw.weight.mean().item() == pytest.approx(1, rel=1e-5)


def test_explained_variance_is_its_definition() -> None:
    agent = agent_for()
    rollout = collect(agent)
    with torch.no_grad():
        learner = PPOConfig().build()
        estimates = learner.estimate(agent, rollout)
        rows, metrics = learner.prepare(rollout, estimates, estimates.sums)
    expected = 1 - np.var((rows.target - rows.value).numpy()) / np.var(rows.target.numpy())
    assert metrics["Info/explained_variance"].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("num_rows", "batch_size"), [(256, 64), (5, 2), (129, 64), (7, 7), (10, None), (1, 1)])
def test_an_epoch_visits_every_row_once_in_minibatches_of_almost_equal_size(
    num_rows: int, batch_size: int | None
) -> None:
    flags = PPOConfig(num_minibatches=4, per_rank_batch_size=batch_size)
    learner, rows = flags.build(), Rows(*[torch.arange(num_rows).float()] * 7)
    shuffle = Shuffle(1, 0, 1, shared=False)
    epochs = []
    for _ in range(3):
        minibatches = [minibatch.obs for minibatch in learner.minibatches(rows, shuffle)]
        assert len(minibatches) == -(-num_rows // (batch_size or -(-num_rows // 4)))
        sizes = [len(obs) for obs in minibatches]
        assert max(sizes) - min(sizes) <= 1
        epochs.append(torch.cat(minibatches))
    assert all(sorted(epoch.tolist()) == list(range(num_rows)) for epoch in epochs)
    assert num_rows < 5 or not torch.equal(epochs[0], epochs[1])


def test_a_minibatch_of_one_row_has_a_finite_loss() -> None:
    agent = agent_for()
    rows = tree.index(prepare(PPOConfig().build(), agent, collect(agent)), slice(1))
    assert torch.isfinite(gradient(PPOConfig().build(), agent, rows)).all()


def test_a_rollout_of_one_row_can_be_prepared() -> None:
    agent = agent_for()
    rollout = tree.map(lambda field: field[:1, :1], collect(agent))
    assert all(field.isfinite().all() for field in tree.leaves(prepare(PPOConfig().build(), agent, rollout)))


def test_the_learning_rate_falls_linearly_from_its_full_value() -> None:
    assert [PPOConfig(learning_rate=0.4).learning_rate_at(p) for p in (0.0, 0.25, 0.75)] == pytest.approx(
        [0.4, 0.3, 0.1]
    )
    assert PPOConfig(learning_rate=0.4, schedule="constant").learning_rate_at(0.75) == 0.4


@pytest.mark.parametrize(
    ("kl", "before", "after"),
    [
        ((0.02, 0.03), 3e-4, 2e-4),  # more than twice 0.01 on average
        ((0.018, 0.02), 3e-4, 3e-4),
        ((0.001, 0.004), 3e-4, 4.5e-4),  # less than half
        ((0.0, 0.0), 3e-4, 3e-4),  # no step was taken, so nothing is known
        ((9.0, 9.0), 1.2e-5, 1e-5),
        ((0.001, 0.001), 9e-3, 1e-2),
        ((math.nan, 0.0), 3e-4, 3e-4),
    ],
)
def test_an_adaptive_learning_rate_follows_the_mean_kl_of_an_update_by_rsl_rls_rule(
    kl: tuple[float, float], before: float, after: float
) -> None:
    learner, rate = PPOConfig(schedule="adaptive", desired_kl=0.01).build(), torch.tensor(before)
    steps = [{"Info/approx_kl": torch.tensor(value)} for value in kl]
    learner.adapt(rate, steps, lambda mean: mean)
    assert rate.item() == pytest.approx(after, rel=1e-6)


def test_ranks_adapt_the_learning_rate_by_the_kl_of_all_of_them() -> None:
    kls, rates = (0.001, 0.05), [torch.tensor(3e-4) for _ in range(2)]
    for kl, rate in zip(kls, rates, strict=True):
        of_rank = [{"Info/approx_kl": torch.tensor(kl)}]
        PPOConfig(schedule="adaptive").build().adapt(rate, of_rank, lambda own: torch.tensor(sum(kls) / 2))
    assert rates[0] == rates[1] == torch.tensor(3e-4) / 1.5
    PPOConfig(schedule="linear").build().adapt(rates[0], [], lambda own: own)
    assert rates[0] == rates[1]


def test_target_kl_stops_beyond_one_and_a_half_times_itself() -> None:
    learner = PPOConfig(target_kl=0.02).build()
    answers = [learner.should_stop({"Info/approx_kl": torch.tensor(kl)}, lambda x: x) for kl in (0.029, 0.031)]
    assert answers == [False, True]
    assert not PPOConfig().build().should_stop({"Info/approx_kl": torch.tensor(9.0)}, lambda x: x)
