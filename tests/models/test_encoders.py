"""Encoders: images in either order, one-hot vectors, keys of actor and critic, and a class of one's own."""

from dataclasses import asdict

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import one_hot

from rl.config import Config
from rl.envs.spaces import Spaces
from rl.errors import UserError
from rl.models.agent import Agent, Network
from rl.models.encoders import as_floats, check_encoder
from rl.run.checkpoint import agent_of

S = gym.spaces
DICT = S.Dict({"image": S.Box(0, 255, (40, 36, 3), np.uint8), "which": S.Discrete(3), "x": S.Box(-1, 1, (2,))})


def spaces(observation: gym.Space) -> Spaces:
    return Spaces.of("id", observation, S.Discrete(2))


def images(*shape: int) -> torch.Tensor:
    return torch.randint(256, (5, *shape), dtype=torch.uint8)


def test_the_nature_network_is_the_published_one_in_either_order_of_channels() -> None:
    network = Network(encoder="nature", hidden_sizes=(512,), activation_function="relu", shared_encoder=True)
    agent = Agent(spaces(S.Box(0, 255, (4, 84, 84), np.uint8)), network)
    layers = nn.Sequential(
        *(nn.Conv2d(4, 32, 8, stride=4), nn.ReLU(), nn.Conv2d(32, 64, 4, stride=2), nn.ReLU()),
        *(nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 1)),
    )
    own = [value for name, value in agent.state_dict().items() if not name.startswith("actor")]
    assert sum(parameter.numel() for parameter in layers.parameters()) == 1_684_641
    by_shape = {tuple(value.shape): value for value in own}
    layers.load_state_dict({name: by_shape[tuple(value.shape)] for name, value in layers.state_dict().items()})
    obs = images(4, 84, 84)
    expected = layers(obs.float() / 255).squeeze(-1)
    assert torch.allclose(agent(obs)[1], expected, atol=1e-5)
    last = Agent(spaces(S.Box(0, 255, (84, 84, 4), np.uint8)), network)
    last.load_state_dict(agent.state_dict())
    assert torch.allclose(last(obs.movedim(1, -1))[1], expected, atol=1e-5)


@pytest.mark.parametrize("encoder", ["auto", "mlp", "nature", "impala", "minatar"])
def test_a_batch_of_rows_and_a_batch_of_rollouts_agree(encoder: str) -> None:
    agent = Agent(spaces(DICT), Network(encoder=encoder, hidden_sizes=(8,)))
    obs = {"image": images(40, 36, 3), "which": torch.tensor([0, 1, 2, 0, 1]), "x": torch.randn(5, 2)}
    rollout = {name: part.unsqueeze(0) for name, part in obs.items()}
    assert torch.allclose(agent(rollout)[1][0], agent(obs)[1], atol=1e-6)
    assert agent(obs)[1].shape == (5,)


def test_discrete_numbers_are_one_hot_and_normalized_numbers_come_back_in_their_place() -> None:
    space = S.Dict({"a": S.Box(-1, 1, (1, 2)), "b": S.MultiDiscrete([[2], [3]]), "c": S.Box(-1, 1, (3,))})
    keys = spaces(space).obs
    obs = {"a": torch.randn(5, 1, 2), "b": torch.tensor([[[1], [2]]] * 5), "c": torch.randn(5, 3)}
    numbers = torch.arange(25.0).view(5, 5)
    floats = as_floats(keys, obs, torch.float32, numbers)
    assert torch.equal(floats["a"].flatten(1), numbers[:, :2]) and torch.equal(floats["c"], numbers[:, 2:])
    expected = torch.cat([one_hot(obs["b"][:, 0, 0], 2), one_hot(obs["b"][:, 1, 0], 3)], dim=-1)
    assert torch.equal(floats["b"], expected.float())


def test_actor_and_critic_see_their_own_keys() -> None:
    network = Network(actor_keys=("x",), critic_keys=("image", "which"), normalize_obs=True)
    agent = Agent(spaces(DICT), network)
    obs = {"image": images(40, 36, 3), "which": torch.zeros(5, dtype=torch.int64), "x": torch.randn(5, 2)}
    distribution, value = agent(obs)
    other, same_value = agent(obs | {"x": -obs["x"]})
    assert torch.equal(value, same_value) and not torch.equal(distribution.log_probs, other.log_probs)
    same, other_value = agent(obs | {"which": obs["which"] + 1})
    assert torch.equal(distribution.log_probs, same.log_probs) and not torch.equal(value, other_value)
    assert agent.obs_normalizer.mean.shape == (2,)


class Own(nn.Module):
    """The sum of all that it is given."""

    def __init__(self, shape: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        assert shape == {"image": (3, 40, 36), "which": (3,), "x": (2,)}

    def forward(self, obs: dict[str, torch.Tensor]) -> torch.Tensor:
        return sum(part.flatten(1).sum(1, keepdim=True) for part in obs.values())


def test_an_encoder_of_ones_own_gets_floats_in_rows() -> None:
    agent = Agent(spaces(DICT), Network(encoder=f"{__name__}:Own", hidden_sizes=(4,)))
    obs = {"image": images(40, 36, 3), "which": torch.tensor([0, 1, 2, 0, 1]), "x": torch.randn(5, 2)}
    features = obs["image"].flatten(1).sum(1, keepdim=True) / 255 + 1 + obs["x"].sum(1, keepdim=True)
    assert agent.encoder[1].weight.shape == (4, 1)
    assert torch.allclose(agent.encoder.features(as_floats(agent.spaces.obs, obs, torch.float32)), features)
    assert agent({name: part.unsqueeze(0) for name, part in obs.items()})[1].shape == (1, 5)


class Pretrained(nn.Module):
    """Has weights of its own, and numbers that no checkpoint has."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layer = nn.Linear(*shape, 4)
        self.layer.weight.data.fill_(0.5)
        self.register_buffer("shift", torch.tensor(3.0), persistent=False)

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return self.layer(obs) + self.shift


def test_an_encoder_of_ones_own_keeps_its_weights_and_its_numbers() -> None:
    config = Config(network=Network(encoder=f"{__name__}:Pretrained", hidden_sizes=(4,)))
    agent = Agent(spaces(S.Box(-1, 1, (3,))), config.network)
    assert torch.equal(agent.encoder.features.own.layer.weight, torch.full((4, 3), 0.5))
    content = {"agent": agent.state_dict(), "spaces": asdict(agent.spaces), "config": asdict(config)}
    again, obs = agent_of(content, allow_import=True), torch.randn(5, 3)
    assert torch.equal(again(obs)[1], agent(obs)[1])


class Dropping(nn.Dropout):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()


def test_normalized_numbers_may_have_no_dimension() -> None:
    space = S.Dict({"a": S.Box(-9, 9, (), np.float32), "b": S.Box(-9, 9, (2,), np.float32)})
    agent = Agent(spaces(space), Network(normalize_obs=True))
    _, value = agent({"a": torch.tensor(1.0), "b": torch.ones(2)})
    _, values = agent({"a": torch.ones(3), "b": torch.ones(3, 2)})
    assert torch.allclose(values, value.expand(3))


@pytest.mark.parametrize(
    ("space", "network", "message"),
    [
        (S.Box(-1, 1, (3,)), Network(encoder="nature"), "--encoder nature: is for images, and no observation is one"),
        (S.Box(0, 1, (9, 9, 2)), Network(encoder="nature"), r"nature: an image \(9 × 9\) is smaller than 36 × 36"),
        (
            S.Box(-1, 1, (3,)),
            Network(critic_keys=("x",)),
            "--critic-keys x: must be a key .* one tensor without",
        ),
        (
            DICT,
            Network(actor_keys=("y",)),
            "--actor-keys y: must be a key .* has image, which, x",
        ),
        (DICT, Network(encoder="no.module:Here"), "--encoder no.module:Here: ModuleNotFoundError"),
        (
            DICT,
            Network(encoder=f"{__name__}:Dropping"),
            "--encoder .*:Dropping: its Dropping: acts otherwise in training",
        ),
    ],
)
def test_what_cannot_be_encoded_is_said_in_one_line(space: gym.Space, network: Network, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Agent(spaces(space), network)


def test_an_own_encoder_has_to_be_permitted() -> None:
    check_encoder("a.b:C", allow_import=True)
    with pytest.raises(UserError, match=r"imports, and so runs, the module a\.b; add --allow-import"):
        check_encoder("a.b:C", allow_import=False)
    with pytest.raises(UserError, match="--encoder cnn: must be one of auto, mlp, nature, impala, minatar, or"):
        check_encoder("cnn", allow_import=True)
    with pytest.raises(UserError, match="--shared-encoder: actor and critic see different keys"):
        Network(shared_encoder=True, critic_keys=("x",)).check()
