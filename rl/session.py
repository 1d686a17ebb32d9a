"""Assembles what every program needs, and closes all of it whatever happens."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from typing_extensions import Self

from rl.collector import AnyCollector, make_collector
from rl.compile import Execution
from rl.config import Config
from rl.dist.ranks import Ranks
from rl.envs.make import make_envs
from rl.envs.types import Envs
from rl.errors import UserError
from rl.learners.learner import AnyLearner
from rl.limits import note_slow_precision
from rl.models.agent import Agent, Weights
from rl.models.float8 import to_float8
from rl.models.memory import MOST_COMPILED
from rl.optimization import AUTOCAST, Epochs, GradientStep, make_adam
from rl.rollout import Rollout
from rl.run.folder import RunFolder, open_folder
from rl.run.loggers import Logger
from rl.run.run import Run
from rl.run.state import State, Stateful, learning
from rl.seeding import Shuffle
from rl.statistics import Statistics


def one_env(config: Config[Any]) -> Envs:
    """A single environment, for its spaces and types."""
    return make_envs(config.env.for_evaluation(1))


def check_has_masks(learner: AnyLearner, samples: Any, rollout: Rollout) -> None:
    """Raises `UserError` for a learner that would learn from the probabilities of illegal actions."""
    if isinstance(rollout.mask, torch.Tensor) and not isinstance(getattr(samples, "mask", None), torch.Tensor):
        raise UserError(
            f"{type(learner).__name__}.prepare: returned samples without masks, which the environments have; must have"
            " a field `mask`, from rollout.mask, for its loss to call policy(obs, mask)"
        )


def check_has_past(learner: AnyLearner, samples: Any, rollout: Rollout) -> None:
    """Raises `UserError` for a learner that would leave out what the agent remembers."""
    if isinstance(rollout.memory, torch.Tensor) and not getattr(samples, "past", ()):
        raise UserError(
            f"{type(learner).__name__}.prepare: returned samples without a past, which --memory makes; must have a"
            " field `past`, from rollout.past, cut by `rows_of`, for its loss to call policy(obs, mask, *past)"
        )


class Session:
    """One rank's environments, run folder, agent, optimizer and run; a context that closes them whatever happens.

    A program enters it, joins the ranks, and calls `make_agent` and `start` once it knows device and precision.
    """

    ranks: Ranks
    agent: Agent
    weights: Weights
    autocast: Callable[[], torch.autocast]
    optimizer: torch.optim.Optimizer | None = None
    scaler: torch.amp.GradScaler | None = None
    step: GradientStep | None = None  # of a run that is compiled
    collector: AnyCollector
    statistics: Statistics
    state: State

    def __init__(self, config: Config[Any], program: str, device: torch.device, *, plays: bool = True) -> None:
        """Makes the environments of a rank that plays, and opens the run's folder below `program`'s.

        Raises:
            UserError: The environments or the folder cannot be used; nothing is left behind.
        """
        self.config, self.device, self.plays = config, device, plays
        if device.type == "cuda":
            torch.cuda.set_device(device)  # CUDA graphs are captured on the current one
        self.learner: AnyLearner = config.learner.build()
        self.execution: Execution = config.make_execution(device)
        with contextlib.ExitStack() as stack:
            self.envs: Envs = config.make_envs(device) if plays else one_env(config)
            stack.callback(self.envs.close)
            self.folder: RunFolder = open_folder(config, program)
            stack.callback(self.folder.release)
            self.closing = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self.closing.__exit__(*error)

    def make_agent(
        self, ranks: Ranks, precision: str, scaler: torch.amp.GradScaler | None = None, *, learns: bool = True
    ) -> Agent:
        """The agent on its device, with its weights as one vector, and the optimizer of a rank that learns.

        `precision` is what runs, by Lightning's names; `scaler` is the loss scaler that fp16 needs.
        """
        if self.device.type == ("cuda" if self.config.cuda else "cpu"):  # not for a player apart from its trainers
            self.config = replace(self.config, precision=cast(Any, precision))
        if self.device.type == "cpu":
            note_slow_precision(precision)
        config, self.ranks, self.dtype = self.config, ranks, AUTOCAST.get(precision)
        # Not `fabric.autocast`: in bf16-true it makes all new tensors bf16, also discounts and counts.
        self.autocast = partial(torch.autocast, self.device.type, self.dtype, enabled=self.dtype is not None)
        torch.manual_seed(config.seed)
        agent = Agent(self.envs.spaces, config.network)
        self.agent = agent.to(self.device, torch.bfloat16 if precision == "bf16-true" else None)
        if config.fp8:
            to_float8(self.agent, self.device)
        # Also on a rank that does not learn: where weights lie in memory affects the last bits of a product.
        self.weights = Weights(self.agent)
        ranks.broadcast(self.weights.vector.detach())  # CPUs of different kinds may initialize differently
        if learns:
            self.scaler = scaler if scaler and scaler.is_enabled() else None
            flags = config.learner
            # Fabric refuses to clip gradients that a fused Adam unscales itself.
            fused = self.scaler is None
            self.optimizer = make_adam(self.weights, flags.learning_rate, eps=flags.adam_eps, fused=fused)
        return self.agent

    def start(self, loggers: Sequence[Logger] = (), **own: Stateful) -> Run:
        """The run, restored from its checkpoint if it is resumed; `own` is additional state of this rank."""
        config, ranks = self.config, self.ranks
        state = self.state = State(own=own)
        if self.plays:
            envs = self.envs.to(self.device)
            first_env = ranks.rank * envs.num_envs
            self.collector = make_collector(
                envs,
                self.agent,
                seed=config.seed,
                first_env=first_env,
                execution=self.execution,
                keeps_next_obs=config.learner.keeps_next_obs(envs.spaces),
            )
            self.estimate = self.execution.loop(self._estimate)
            self.statistics = Statistics(self.agent, self.collector, config.learner.gamma)
            state.own["collector"] = self.collector
        if self.optimizer is not None:
            shared = config.learner.share_data
            self.shuffle = Shuffle(config.seed, ranks.rank, ranks.size, shared=shared, device=self.device)
            state.own |= {"shuffle": self.shuffle, "learner": self.learner}
            vector = self.weights.vector
            state.shared = learning(self.agent, vector, self.optimizer, self.scaler)
            adam = (*self.optimizer.state[vector].values(), self.optimizer.param_groups[0]["lr"])
            state.replicas = (vector, *adam, *self.agent.buffers())
        run = Run(self, loggers)
        if self.plays:
            state.own["run"] = run
        return self.closing.enter_context(run)

    def minibatches(self, samples: Any, rollout: Rollout | None = None) -> Iterator[Any]:
        """The minibatches of an update, one for each gradient step; or all as `Epochs`, if these run as one loop.

        With --recompute-advantages all epochs but the first learn from estimates of the present critic, for which they
        need the `rollout`. Actions and their log-probabilities stay those of the policy that acted.
        """
        learner = self.learner
        if rollout is not None:
            check_has_masks(learner, samples, rollout)
            check_has_past(learner, samples, rollout)
        if (epochs := self._at_once(samples)) is not None:
            yield epochs
            return
        for epoch in range(learner.config.update_epochs):
            if epoch > 0 and rollout is not None and learner.config.recompute_advantages:
                with torch.no_grad(), self.autocast():
                    (_, value, *_), (_, next_value, *_) = map(self.agent, (rollout.obs, rollout.next_obs))
                    now = rollout._replace(value=value, next_value=next_value)
                    estimates = self.estimate(now)
                    again, _ = learner.prepare(now, estimates, self.ranks.sum(estimates.sums))
                samples = learner.shared(again, self.ranks)
            yield from learner.minibatches(samples, self.shuffle)

    def _at_once(self, samples: Any) -> Epochs | None:
        """All minibatches of an update, where a compiled loop takes them."""
        if self.step is None:
            return None
        num_rows, num_epochs = len(samples.weight), self.learner.config.update_epochs
        num_own, left = divmod(num_rows, self.shuffle.num_parts)
        number = 0 if left else self.learner.num_at_once(num_own)  # all ranks come to the same
        if number == 0 or not self.step.takes_loops(samples, num_epochs, num_own // number):
            return None
        orders = torch.cat([self.shuffle.order(num_rows) for _ in range(num_epochs)])
        return Epochs(samples, orders.view(num_epochs * number, -1))

    def _estimate(self, rollout: Rollout) -> Any:
        """What the learner estimates from a rollout, whose rewards it sees in the critic's unit."""
        return self.learner.estimate(self.agent, rollout._replace(reward=self.agent.scaled(rollout.reward)))

    def compiled_step(self) -> GradientStep:
        """The gradient step of a compiled run: the same arithmetic, with one all-reduce in place of DDP."""
        adam = cast(torch.optim.Adam, self.optimizer)
        short = self.config.steps_per_row() <= MOST_COMPILED
        parts = (self.learner, self.agent, self.weights, adam, self.ranks, self.execution, self.dtype, self.scaler)
        self.step = GradientStep(*parts, compiles=short)
        return self.step
