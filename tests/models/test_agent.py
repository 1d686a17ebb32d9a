"""The network's shape, its initial weights, and its dtypes."""

import pytest
import torch

from rl.envs.actions import BoxActions, DiscreteActions
from rl.envs.observations import vector
from rl.envs.spaces import Spaces
from rl.errors import UserError
from rl.models.agent import LOG_STD_BOUNDS, Agent, Network, bounded
from rl.models.distributions import Categorical, DiagonalGaussian

DISCRETE, BOX = Spaces(vector(3), DiscreteActions(4)), Spaces(vector(3), BoxActions((-1.0, -1.0), (1.0, 1.0)))


def num_parameters(agent: Agent) -> int:
    return sum(parameter.numel() for parameter in agent.parameters())


def test_sizes() -> None:
    encoder = (3 * 8 + 8) + (8 * 5 + 5) + (5 * 6 + 6)
    heads = (6 * 4 + 4) + (6 + 1)
    network = Network(hidden_sizes=(8, 5, 6), shared_encoder=True)
    assert num_parameters(Agent(DISCRETE, network)) == encoder + heads
    separate = Network(hidden_sizes=(8, 5, 6), shared_encoder=False)
    assert num_parameters(Agent(DISCRETE, separate)) == 2 * encoder + heads


@pytest.mark.parametrize(("shared", "touched"), [(True, True), (False, False)])
def test_the_critic_trains_the_actors_encoder_only_where_it_is_shared(shared: bool, touched: bool) -> None:
    agent = Agent(DISCRETE, Network(shared_encoder=shared))
    agent(torch.randn(5, 3))[1].sum().backward()
    assert (agent.encoder[0].weight.grad is not None) == touched


@pytest.mark.parametrize(("name", "expected"), [("relu", torch.relu), ("tanh", torch.tanh)])
def test_the_value_is_what_the_layers_compute(name: str, expected: object) -> None:
    agent, obs = Agent(DISCRETE, Network(activation_function=name, shared_encoder=True)), torch.randn(5, 3)
    first, second = agent.encoder[0], agent.encoder[2]
    hidden = expected(expected(obs @ first.weight.T + first.bias) @ second.weight.T + second.bias)
    assert torch.allclose(agent(obs)[1], (hidden @ agent.critic.weight.T + agent.critic.bias)[:, 0], atol=1e-6)


def test_orthogonal_initialization_has_the_published_gains() -> None:
    agent = Agent(DISCRETE, Network(ortho_init=True, shared_encoder=False))
    gains = [(agent.encoder[2], 2.0), (agent.critic_encoder[2], 2.0), (agent.actor, 1e-4), (agent.critic, 1.0)]
    for layer, square in gains:
        product = layer.weight @ layer.weight.T
        assert torch.allclose(product, square * torch.eye(len(product)), atol=1e-5)
        assert not layer.bias.any()
    assert Agent(DISCRETE, Network(ortho_init=False)).actor.bias.any()


def test_continuous_actions_have_a_learned_standard_deviation_that_no_observation_changes() -> None:
    agent = Agent(BOX, Network())
    distribution, value = agent(torch.randn(5, 3))
    assert isinstance(distribution, DiagonalGaussian)
    assert distribution.mean.shape == distribution.log_std.shape == (5, 2) and value.shape == (5,)
    assert not distribution.log_std.any() and agent.log_std in set(agent.parameters())


def test_the_initial_log_std_is_the_flags() -> None:
    agent = Agent(BOX, Network(log_std_init=-1.5))
    assert torch.equal(agent(torch.randn(5, 3))[0].log_std, torch.full((5, 2), -1.5))
    with pytest.raises(UserError, match=r"--log-std-init 3: must lie between -20 and 2"):
        Network(log_std_init=3).check()


def test_the_bounds_of_log_std_change_no_value_inside_and_let_gradients_through_outside() -> None:
    inside = torch.linspace(*LOG_STD_BOUNDS, 1000)
    assert torch.equal(bounded(inside), inside)
    beyond = torch.tensor([-25.0, 7.0], requires_grad=True)
    within = bounded(beyond)
    assert torch.allclose(within, torch.tensor(LOG_STD_BOUNDS))
    assert torch.autograd.grad(within.sum(), beyond)[0].tolist() == [1, 1]


@pytest.mark.parametrize("spaces", [DISCRETE, BOX])
def test_results_are_float32_whatever_the_network_runs_in(spaces: Spaces) -> None:
    agent, obs = Agent(spaces, Network()), torch.randn(5, 3)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = agent(obs)
    for distribution, value in (mixed, agent.bfloat16()(obs)):
        assert {field.dtype for field in (*distribution, value)} == {torch.float32}


def test_a_batch_of_rows_and_a_batch_of_rollouts_agree() -> None:
    agent, obs = Agent(DISCRETE, Network()), torch.randn(6, 5, 3)
    distribution, value = agent(obs)
    rows, row_values = agent(obs.flatten(0, 1))
    assert isinstance(distribution, Categorical) and torch.allclose(value.flatten(), row_values)
    assert torch.allclose(distribution.log_probs.flatten(0, 1), rows.log_probs)
