"""The agent: a network from observations to a distribution over actions and a value."""

import functools
import itertools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import Unpack

from rl.envs.masks import Mask
from rl.envs.observations import Keys, Obs, numbers_of
from rl.envs.spaces import Spaces
from rl.errors import UserError, require
from rl.models.distributions import Distribution, distribution_of
from rl.models.encoders import OwnFeatures, as_floats, check_images, chosen, make_features
from rl.models.linear import Linear, transposed_in_memory
from rl.models.memory import Memory, Recurrent
from rl.models.normalizer import CLIP, Normalizer

Output = tuple[Distribution, Tensor, Unpack[tuple[Tensor, ...]]]
"""The distribution over actions, the value, and the memory afterwards, if memory was given."""
Policy = Callable[..., Output]  # an agent, or a wrapper of one

LARGEST_DEPTH, LARGEST_WIDTH = 1_000, 2**14
LOG_STD_BOUNDS = (-20.0, 2.0)


@dataclass(frozen=True)
class Network:
    """The agent's network."""

    hidden_sizes: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers, from the first to the last."""
    activation_function: Literal["relu", "tanh"] = "tanh"
    """Activation function after each hidden layer."""
    shared_encoder: bool = False
    """Share all layers but the last between actor and critic; otherwise each has its own."""
    encoder: str = "auto"
    """Layers before the hidden ones: convolutions for images (nature, impala, or minatar for small ones), none (mlp),
    by the size of the image (auto), or a class of your own (module:Class)."""
    actor_keys: tuple[str, ...] = ()
    """Keys of a Dict observation that the actor sees; all by default."""
    critic_keys: tuple[str, ...] = ()
    """Keys of a Dict observation that the critic sees; all by default."""
    ortho_init: bool = True
    """Initialize weights orthogonally; otherwise as PyTorch does by default."""
    log_std_init: float = 0.0
    """Logarithm of the initial standard deviation of continuous actions; during training it stays in -20 to 2."""
    memory: Literal["none", "gru", "lstm"] = "none"
    """Recurrent layer after the hidden ones, by which the agent remembers what it has observed in an episode; actor and
    critic have one each, unless they share all layers but the last."""
    memory_size: int = 128
    """Number of units of a recurrent layer."""
    memory_span: int = 1
    """Number of steps for which the units remember at first: longer than what has to be remembered, where that is more
    than some ten steps. With 1 a memory halves at each step."""
    normalize_obs: bool = False
    """Shift and scale observations to mean 0 and standard deviation 1, as measured so far on all ranks."""
    normalize_reward: bool = False
    """Learn from rewards divided by the standard deviation of their discounted sum, as measured so far."""

    def check(self) -> None:
        """Raises `UserError` for a value that cannot work."""
        if not 1 <= len(self.hidden_sizes) <= LARGEST_DEPTH:
            raise UserError(f"--hidden-sizes: {len(self.hidden_sizes)} layers; must be 1 to {LARGEST_DEPTH:,} widths")
        for size in self.hidden_sizes:
            require(size >= 1, "--hidden-sizes", size, "must be at least 1")
            require(size <= LARGEST_WIDTH, "--hidden-sizes", size, f"must be at most {LARGEST_WIDTH:,}")
        fits = 1 <= self.memory_size <= LARGEST_WIDTH
        require(fits, "--memory-size", self.memory_size, f"must lie between 1 and {LARGEST_WIDTH:,}")
        require(self.memory_span >= 1, "--memory-span", self.memory_span, "must be at least 1")
        if self.shared_encoder and self.actor_keys != self.critic_keys:
            raise UserError("--shared-encoder: actor and critic see different keys; use --no-shared-encoder")
        low, high = LOG_STD_BOUNDS
        fits = low <= self.log_std_init <= high
        require(fits, "--log-std-init", self.log_std_init, f"must lie between {low:g} and {high:g}")

    def normalizes(self) -> bool:
        """Whether the agent keeps statistics."""
        return self.normalize_obs or self.normalize_reward


class Agent(nn.Module):
    """An actor and a critic, on one encoder or on two; initial weights come from torch's global generator."""

    def __init__(self, spaces: Spaces, network: Network) -> None:
        super().__init__()
        self.spaces = spaces
        actions = spaces.actions
        check_images(spaces.obs, network.encoder)
        self.encoder = _encoder(chosen(spaces.obs, network.actor_keys, "--actor-keys"), network)
        critic_keys = chosen(spaces.obs, network.critic_keys, "--critic-keys")
        self.critic_encoder = None if network.shared_encoder else _encoder(critic_keys, network)
        width = network.hidden_sizes[-1]
        self.memory: Recurrent | None = None
        if network.memory != "none":
            num_encoders = 1 if network.shared_encoder else 2
            size, span = network.memory_size, network.memory_span
            self.memory = Recurrent(network.memory, width, size, num_encoders=num_encoders, span=span)
            width = network.memory_size
        self.actor = Linear(width, actions.num_outputs)
        self.critic = Linear(width, 1)
        num_numbers = sum(key.num_features for key in spaces.obs if key.dtype == "float32")
        self.obs_normalizer = Normalizer(num_numbers) if network.normalize_obs and num_numbers else None
        self.is_flat = not spaces.obs[0].path and spaces.obs[0].dtype == "float32" and len(spaces.obs[0].shape) == 1
        self.return_normalizer = Normalizer(1) if network.normalize_reward else None
        # Ranks update statistics by the same sums; DDP would send them once more before each gradient step.
        buffers = [name for name, _ in self.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, buffers)  # type: ignore[no-untyped-call]
        num_real = actions.noise_size - len(actions.sizes)
        self.log_std = nn.Parameter(torch.full((num_real,), network.log_std_init)) if num_real else None
        if network.ortho_init:
            self._init_orthogonally()
        if self.memory is not None:
            self.memory.init(orthogonal=network.ortho_init)
        self.shapes = shapes_of(self)  # once, since Dynamo takes a second to follow how they are found

    def forward(self, obs: Obs, mask: Mask = (), *past: Tensor) -> Output:
        """The distribution over actions and the value [...] at observations [..., *shape], both in float32.

        They are float32 whatever precision the network computes in, so that losses need not know it. Whoever needs no
        more than the value may leave out the mask. An agent with memory is given what it remembers, and also returns
        what it remembers afterwards: memory [..., M] for single steps; for pieces [B, L, *shape] the memory before them
        [B, M], and where in them episodes begin [B, L].
        """
        floats = self._floats(obs)
        encoded = self.encoder(floats)
        encoded_for_critic = encoded if self.critic_encoder is None else self.critic_encoder(floats)
        after: tuple[Tensor, ...] = ()
        if self.memory is not None:
            features = [encoded] if self.critic_encoder is None else [encoded, encoded_for_critic]
            outputs, *after = self.memory(features, *past)
            encoded, encoded_for_critic = outputs[0], outputs[-1]
        value = self.critic(encoded_for_critic)
        log_std = None if self.log_std is None else bounded(self.log_std.float())
        distribution = distribution_of(self.spaces.actions, self.actor(encoded).float(), log_std, mask)
        return distribution, value.squeeze(-1).float(), *after

    def initial_memory(self, *lead: int) -> Memory:
        """What the agent remembers at the beginning of an episode: zeros [*lead, M], or () if it has no memory."""
        size = 0 if self.memory is None else self.memory.num_numbers
        return torch.zeros(*lead, size, device=self.critic.weight.device) if size else ()

    def _floats(self, obs: Obs) -> Obs:
        """Observations as encoders see them, with normalized numbers."""
        numbers = None
        if self.obs_normalizer is not None:
            numbers = self.obs_normalizer(numbers_of(self.spaces.obs, obs))
        if isinstance(obs, Tensor) and self.is_flat:
            return (obs if numbers is None else numbers).to(self.critic.weight.dtype)
        return as_floats(self.spaces.obs, obs, self.critic.weight.dtype, numbers)

    def scaled(self, reward: Tensor) -> Tensor:
        """Rewards [...] in the critic's unit."""
        if self.return_normalizer is None:
            return reward
        return (reward * self.return_normalizer.scale).clamp(-CLIP, CLIP)

    def normalizers(self) -> list[Normalizer]:
        """Those of observations and returns, where flags ask for them."""
        return [module for module in self.children() if isinstance(module, Normalizer)]

    def _init_orthogonally(self) -> None:
        """Orthogonal weights and zero biases ("The 37 implementation details of PPO", detail 2).

        An encoder of the user's keeps its own.
        """
        own = {part for module in self.modules() if isinstance(module, OwnFeatures) for part in module.modules()}
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d) and module not in own:
                gain = 0.01 if module is self.actor else 1.0 if module is self.critic else 2**0.5
                nn.init.orthogonal_(module.weight, gain)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def bounded(log_std: Tensor) -> Tensor:
    """`log_std` clamped to `LOG_STD_BOUNDS`, with the gradient of the identity.

    Clamping alone has no gradient beyond a bound: a parameter that an optimizer's step has carried there would stay.
    """
    return log_std + (log_std.clamp(*LOG_STD_BOUNDS) - log_std).detach()


def weight_vector(policy: nn.Module) -> Tensor:
    """A copy of all parameters as one vector [P]."""
    return torch.cat([parameter.detach().flatten() for parameter in policy.parameters()])


def weight_views(policy: nn.Module, vector: Tensor) -> dict[str, Tensor]:
    """Views of a vector [P] as the policy's parameters, by name."""
    shapes = policy.shapes if isinstance(policy, Agent) else shapes_of(policy)
    parts = torch.split(vector, [shape.numel() for shape in shapes.values()])
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def call_with(policy: Agent, vector: Tensor, obs: Obs, mask: Mask = (), *past: Tensor) -> Output:
    """The policy's output for observations with `vector` [P] as its parameters."""
    return _call(policy, weight_views(policy, vector), obs, mask, *past)


def copied_for_few_rows(policy: Agent) -> Policy:
    """The policy with copies of its parameters, in the order in which a compiled loop over few rows reads them fast."""
    views = weight_views(policy, weight_vector(policy))
    copies = {name: transposed_in_memory(view) for name, view in views.items()}
    return functools.partial(_call, policy, copies)


def _call(policy: Agent, parameters: dict[str, Tensor], obs: Obs, mask: Mask = (), *past: Tensor) -> Output:
    # No parameter is in two places; to look for some takes longer than all else where Dynamo follows this.
    return cast(Output, functional_call(policy, parameters, (obs, mask, *past), tie_weights=False))


def shapes_of(module: nn.Module) -> dict[str, torch.Size]:
    """The shapes of a module's parameters, by name."""
    return {name: parameter.shape for name, parameter in module.named_parameters()}


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


def _encoder(keys: Keys, network: Network) -> nn.Sequential:
    """The features of an observation, where it is not a vector, and the hidden layers."""
    features, num_features = make_features(keys, network.encoder)
    activation = {"relu": nn.ReLU, "tanh": nn.Tanh}[network.activation_function]
    sizes = (num_features, *network.hidden_sizes)
    layers = [layer for i, o in itertools.pairwise(sizes) for layer in (Linear(i, o), activation())]
    encoder = nn.Sequential(*layers)
    if features is None:
        return encoder
    # Hidden layers have the same names in every agent.
    return nn.Sequential(OrderedDict([("features", features), *encoder.named_children()]))
