"""Who acts: the network from observations to a distribution over actions, and a value."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rl.envs.spaces import DiscreteActions, Spaces
from rl.errors import require
from rl.models.distributions import Categorical, DiagonalGaussian, Distribution

Policy = Callable[[Tensor], tuple[Distribution, Tensor]]  # an agent, or what stands for one


@dataclass(frozen=True)
class Network:
    """The agent's network."""

    hidden_size: int = 64
    """Width of the hidden layers."""
    hidden_layers: int = 2
    """Number of hidden layers."""
    activation_function: Literal["relu", "tanh"] = "tanh"
    """What follows each hidden layer."""
    shared_encoder: bool = True
    """Actor and critic read the same hidden layers, instead of having their own."""
    ortho_init: bool = True
    """Orthogonal initial weights, instead of torch's own."""

    def check(self) -> None:
        """Raises `UserError` for a value that cannot work."""
        require(self.hidden_size >= 1, "--hidden-size", self.hidden_size, "must be at least 1")
        require(self.hidden_layers >= 1, "--hidden-layers", self.hidden_layers, "must be at least 1")


class Agent(nn.Module):
    """Actor and critic, on one encoder or on two."""

    def __init__(self, spaces: Spaces, network: Network) -> None:
        """Initial weights come from torch's global generator."""
        super().__init__()
        self.spaces = spaces
        actions = spaces.actions
        self.encoder = _encoder(spaces.obs_size, network)
        self.critic_encoder = None if network.shared_encoder else _encoder(spaces.obs_size, network)
        self.actor = nn.Linear(
            network.hidden_size, actions.num_actions if isinstance(actions, DiscreteActions) else len(actions.low)
        )
        self.critic = nn.Linear(network.hidden_size, 1)
        self.log_std = None if isinstance(actions, DiscreteActions) else nn.Parameter(torch.zeros(len(actions.low)))
        if network.ortho_init:
            self._init_orthogonally()

    def forward(self, obs: Tensor) -> tuple[Distribution, Tensor]:
        """The distribution over actions and the value [...] at observations [..., D], both in float32.

        They are float32 whatever precision the network runs in, so that nothing behind it needs to know.
        """
        obs = obs.to(self.critic.weight.dtype)
        encoded = self.encoder(obs)
        value = self.critic(encoded if self.critic_encoder is None else self.critic_encoder(obs))
        output = self.actor(encoded).float()
        distribution = (
            Categorical.from_logits(output)
            if self.log_std is None
            else DiagonalGaussian(output, self.log_std.float().expand_as(output))
        )
        return distribution, value.squeeze(-1).float()

    def _init_orthogonally(self) -> None:
        """Orthogonal weights and zero biases ("The 37 implementation details of PPO", detail 2)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                gain = 0.01 if module is self.actor else 1.0 if module is self.critic else 2**0.5
                nn.init.orthogonal_(module.weight, gain)
                nn.init.zeros_(module.bias)


def weight_vector(policy: nn.Module) -> Tensor:
    """A copy of all parameters as one vector [P]."""
    return torch.cat([parameter.detach().flatten() for parameter in policy.parameters()])


def weight_views(policy: nn.Module, vector: Tensor) -> dict[str, Tensor]:
    """A vector [P] as the parameters by name, without a copy."""
    names, parameters = zip(*policy.named_parameters(), strict=True)
    parts = torch.split(vector, [parameter.numel() for parameter in parameters])
    return {n: part.view(p.shape) for n, part, p in zip(names, parts, parameters, strict=True)}


def call_with(policy: Agent, vector: Tensor, obs: Tensor) -> tuple[Distribution, Tensor]:
    """What the policy would answer to observations if `vector` [P] were its parameters."""
    return cast(tuple[Distribution, Tensor], functional_call(policy, weight_views(policy, vector), (obs,)))


class Weights:
    """All parameters of a policy as one vector [P], and their gradients as another; the policy's are views of these."""

    def __init__(self, policy: nn.Module) -> None:
        """Moves the policy's parameters into the vector; its device and dtype must not change afterwards."""
        self.vector = nn.Parameter(weight_vector(policy))
        self.gradient = torch.zeros_like(self.vector, requires_grad=False)
        self.vector.grad = self.gradient
        views, gradients = (weight_views(policy, vector) for vector in (self.vector.detach(), self.gradient))
        for name, parameter in policy.named_parameters():
            parameter.data, parameter.grad = views[name], gradients[name]

    def keep_finite(self, norm: Tensor) -> None:
        """Zeroes the gradient if its norm is NaN or infinite, so that no such number reaches a weight."""
        self.gradient.masked_fill_(~norm.isfinite(), 0)


def _encoder(obs_size: int, network: Network) -> nn.Sequential:
    activation = {"relu": nn.ReLU, "tanh": nn.Tanh}[network.activation_function]
    sizes = [obs_size] + network.hidden_layers * [network.hidden_size]
    layers = [layer for i, o in itertools.pairwise(sizes) for layer in (nn.Linear(i, o), activation())]
    return nn.Sequential(*layers)
