"""What agents remember, against loops of PyTorch's own cells, and against the same steps taken in another way."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rl
from rl import tree
from rl.config import CONFIGS, Config
from rl.dist.ranks import Ranks
from rl.envs.actions import DiscreteActions
from rl.envs.config import EnvConfig
from rl.envs.observations import vector
from rl.envs.spaces import Spaces
from rl.errors import UserError
from rl.learners.actor_critic import ActorCriticConfig
from rl.learners.ppo import PPOConfig
from rl.learners.reinforce import ReinforceConfig
from rl.models.agent import Agent, Network
from rl.models.memory import Recurrent, stepped
from rl.rollout import Rollout
from rl.run.checkpoint import content_of, write_checkpoint
from rl.session import Session
from tests.a2c import A2CConfig
from tests.programs.launch import agent_of, succeeded, torchrun

SPACES = Spaces(vector(3), DiscreteActions(4))
KINDS = pytest.mark.parametrize("kind", ["gru", "lstm"])


def agent(kind: str, **network: Any) -> Agent:
    torch.manual_seed(1)
    return Agent(SPACES, Network(hidden_sizes=(8,), memory=kind, memory_size=5, ortho_init=False, **network))


def looped(cell: nn.GRUCell | nn.LSTMCell, features: Tensor, memory: list[Tensor], start: Tensor) -> Tensor:
    """The outputs [L, H] of one piece, step by step; an episode that begins starts with new zeros."""
    outputs = []
    for now, begins in zip(features, start.tolist(), strict=True):
        if begins:
            memory = [torch.zeros_like(part) for part in memory]
        after = cell(now[None], memory[0][None] if len(memory) == 1 else tuple(part[None] for part in memory))
        memory = [part[0] for part in (after if isinstance(after, tuple) else (after,))]
        outputs.append(memory[0])
    return torch.stack(outputs)


@KINDS
def test_outputs_and_gradients_of_pieces_are_those_of_torchs_cells_where_episodes_begin_inside(kind: str) -> None:
    torch.manual_seed(0)
    layers = Recurrent(kind, 3, 5, num_encoders=2)
    features = [torch.randn(4, 9, 3, requires_grad=True) for _ in range(2)]
    memory = torch.randn(4, layers.num_numbers, requires_grad=True)
    start = torch.rand(4, 9) < 0.3
    assert start.any(1).all() and not start.all()
    wanted = [*layers.parameters(), *features, memory]
    ours, _ = layers(features, memory, start)
    parts = memory.split(5, dim=-1)
    theirs = [
        torch.stack([looped(cell, x[b], [part[b] for part in own], start[b]) for b in range(4)])
        for cell, x, own in zip(
            layers.cells, features, (parts[: len(parts) // 2], parts[len(parts) // 2 :]), strict=True
        )
    ]
    weights = torch.randn(2, 4, 9, 5)
    gradients = [
        torch.autograd.grad(sum((w * x).sum() for w, x in zip(weights, outputs, strict=True)), wanted)
        for outputs in (ours, theirs)
    ]
    for one, other in (*zip(ours, theirs, strict=True), *zip(*gradients, strict=True)):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@KINDS
def test_units_remember_at_first_for_as_many_steps_as_are_asked_for(kind: str) -> None:
    for span in (1, 100):
        memory = Agent(SPACES, Network((8,), memory=kind, memory_size=500, memory_span=span)).memory
        assert memory is not None
        cell = memory.cells[0]
        ones = torch.ones(1, 500)
        with torch.no_grad():
            cell.weight_ih.zero_()
            cell.weight_hh.zero_()
            kept = stepped(cell, torch.zeros(1, 8), [ones] * memory.parts)[-1]
            steps = 1 / (1 - kept)  # until 1/e is left, about
            if span == 1:
                assert torch.equal(kept, ones / 2)
            else:  # evenly from 2 to 100
                assert 2 <= steps.min() < 4 < 98 < steps.max() <= 100.1 and 47 < steps.mean() < 55
            if kind == "lstm":  # lets in what it does not keep
                cell.bias_ih[1000:1500] = 100.0
                assert torch.allclose(stepped(cell, torch.zeros(1, 8), [ones] * 2)[-1], ones)


@KINDS
def test_a_piece_cut_in_two_or_into_steps_has_the_same_outputs_if_the_memory_is_handed_on(kind: str) -> None:
    policy, obs, start = agent(kind), torch.randn(4, 6, 3), torch.rand(4, 6) < 0.3
    memory = torch.randn(4, policy.memory.num_numbers)
    distribution, value, last = policy(obs, (), memory, start)
    for cuts in ([0, 4, 6], list(range(7))):
        now, log_probs, values = memory, [], []
        for a, b in itertools.pairwise(cuts):
            part, part_value, now = policy(obs[:, a:b], (), now, start[:, a:b])
            log_probs.append(part.log_probs)
            values.append(part_value)
        torch.testing.assert_close(torch.cat(log_probs, 1), distribution.log_probs)
        torch.testing.assert_close(torch.cat(values, 1), value)
        torch.testing.assert_close(now, last)


def session_of(vectorization: str, learner: Any, **network: Any) -> Session:
    flags = {"hidden_sizes": (8,), "memory": "gru", "memory_size": 5, "ortho_init": False} | network
    env = EnvConfig(env_id="CartPole-v1", num_envs=4, vectorization=vectorization)
    config = Config(env=env, learner=learner, network=Network(**flags), execution="eager")
    return Session(config, "logs", config.device())


FORMS = pytest.mark.parametrize("vectorization", ["sync", "native", "tensor"])  # native ones reset in the next step


@FORMS
@pytest.mark.parametrize("network", [{"memory": "gru"}, {"memory": "lstm", "shared_encoder": True}])
def test_the_policy_that_learns_is_at_first_the_one_that_acted_in_every_rollout(
    vectorization: str, network: dict[str, Any]
) -> None:
    """Memory is handed over the borders of rollouts and of pieces, and reset where episodes begin."""
    flags = PPOConfig(num_steps=32, sequence_length=8, num_minibatches=4, learning_rate=0.02)
    with session_of(vectorization, flags, **network) as session:
        session.make_agent(Ranks(), "32-true")
        session.start([])
        step, ends = session.compiled_step(), 0  # in eager mode
        for _ in range(3):
            with torch.no_grad():
                rollout = session.learner.collect(session.collector)
                estimates = session.estimate(rollout)
                samples, _ = session.learner.prepare(rollout, estimates, estimates.sums)
                distribution, *_ = session.agent(samples.obs, samples.mask, *samples.past)
            ratio = (distribution.log_prob(samples.action) - samples.log_prob).exp()
            assert ((ratio - 1).abs() * (samples.weight > 0)).max() <= 1e-6
            ends += int(rollout.terminated.sum())
            for minibatch in session.minibatches(samples, rollout):
                step(minibatch)
        assert ends > 5 and session.collector.memory.abs().max() > 0.01


@FORMS
def test_values_are_those_of_an_episode_played_again_also_that_of_its_last_observation(vectorization: str) -> None:
    with session_of(vectorization, PPOConfig(num_steps=60)) as session, torch.no_grad():
        policy = session.make_agent(Ranks(), "32-true")
        session.start([])
        rollout = tree.cat([session.collector.collect(60) for _ in range(2)])
    num_ends = 0
    for n in range(4):
        memory, begins = policy.initial_memory(1), True
        for t in range(120):
            if begins:
                memory = policy.initial_memory(1)
            now: Rollout = tree.index(rollout, (t, slice(n, n + 1)))
            _, value, memory = policy(now.obs, (), memory)
            _, next_value, _ = policy(now.next_obs, (), memory)
            ended = bool(now.terminated or now.truncated)
            if now.weight:  # a step that only resets has observations of two episodes
                torch.testing.assert_close(now.value, value, rtol=1e-5, atol=1e-6)
                torch.testing.assert_close(now.next_value, next_value, rtol=1e-5, atol=1e-6)
            begins = not now.weight if vectorization == "native" else ended
            num_ends += ended
    assert num_ends > 10


@pytest.mark.parametrize("learner", [PPOConfig(num_steps=12, sequence_length=4), ReinforceConfig(num_steps=12)])
def test_rows_are_pieces_of_one_environment_with_the_memory_before_them(learner: Any) -> None:
    with session_of("tensor", learner) as session, torch.no_grad():
        session.make_agent(Ranks(), "32-true")
        session.start([])
        rollout = session.learner.collect(session.collector)
        estimates = session.estimate(rollout)
        samples, _ = session.learner.prepare(rollout, estimates, estimates.sums)
    length, (memory, start) = learner.steps_per_piece(), samples.past
    assert len(samples.weight) == len(memory) == len(rollout.weight) * 4 // length
    ended = rollout.terminated | rollout.truncated
    for row in range(len(memory)):
        t, n = row // 4 * length, row % 4
        assert torch.equal(samples.obs[row], rollout.obs[t : t + length, n])
        assert torch.equal(memory[row], rollout.memory[t, n])
        if isinstance(learner, PPOConfig):
            assert torch.equal(start[row, 1:], ended[t : t + length - 1, n])


def test_two_ranks_learn_what_one_with_all_their_environments_does() -> None:
    flags = "--env-id CartPole-v1 --vectorization sync --num-steps 16 --sequence-length 8 --num-minibatches 1"
    flags += " --memory lstm --memory-size 8 --hidden-sizes 16 --update-epochs 3 --learning-rate 3e-3 --eval-episodes 1"
    flags += " --config none --execution eager --total-timesteps 128 --no-keep-best"
    for ranks in (1, 2):
        succeeded(torchrun(*flags.split(), "--num-envs", str(4 // ranks), "--exp-name", f"ranks{ranks}", ranks=ranks))
    alone, together = (agent_of(run) for run in sorted(Path("logs/torch_logs").iterdir()))
    assert sum(name.startswith("memory") for name in alone) == 8
    for name, parameter in alone.items():
        torch.testing.assert_close(together[name], parameter, rtol=1e-4, atol=1e-5)


def test_a_loaded_policy_remembers_until_it_is_reset(tmp_path: Path) -> None:
    policy = agent("lstm")
    config = replace(CONFIGS["ppo"], network=Network(hidden_sizes=(8,), memory="lstm", memory_size=5))
    position: Any = {"update": 1, "step": 7, "fraction": 0.0, "complete": True, "best_return": 0.0}
    write_checkpoint(tmp_path / "last.ckpt", content_of(policy, config, position, []))
    obs, start = 3 * torch.randn(2, 40, 3), torch.zeros(2, 40, dtype=torch.bool)
    start[:, 20], start[1, 30] = True, True
    with torch.no_grad():
        distribution, *_ = policy(obs, (), policy.initial_memory(2), start)
    acts = rl.load_policy(tmp_path / "last.ckpt")
    taken = []
    for t in range(40):
        if t == 20:
            acts.reset()
        acts.reset(start[:, t].numpy())
        taken.append(acts(obs[:, t].numpy()))
    assert np.array_equal(np.stack(taken, 1), distribution.mode().numpy())
    with pytest.raises(ValueError, match=r"observations one: the policy remembers \[2\]; call its reset\(\) first"):
        acts(obs[0, 0].numpy())
    acts.reset()
    assert acts(obs[0, 0].numpy()) == taken[0][0]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"learner": ActorCriticConfig()}, "--memory gru: the actor-critic learns from single steps; use ppo or"),
        ({"learner": PPOConfig(recompute_advantages=True)}, "--memory gru: the values of later epochs would need"),
        (
            {"learner": PPOConfig(sequence_length=48)},
            "--sequence-length 48: must be at least 1, and divide --num-steps",
        ),
        ({"network": Network(memory="gru", memory_size=0)}, "--memory-size 0: must lie between 1 and 16,384"),
        ({"network": Network(), "learner": PPOConfig(sequence_length=8)}, "--sequence-length 8: needs an agent with"),
    ],
)
def test_what_cannot_be_is_answered_in_one_line(flags: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Config(**{"network": Network(memory="gru")} | flags).check()


def test_a_learner_that_leaves_out_what_is_remembered_is_told_so() -> None:
    with session_of("tensor", A2CConfig()) as session, torch.no_grad():
        session.make_agent(Ranks(), "32-true")
        session.start([])
        rollout = session.learner.collect(session.collector)
        estimates = session.estimate(rollout)
        samples, _ = session.learner.prepare(rollout, estimates, estimates.sums)
        with pytest.raises(
            UserError, match=r"A2C.prepare: returned samples without a past, which --memory makes; must"
        ):
            next(session.minibatches(samples, rollout))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_float32_whatever_the_network_runs_in(dtype: torch.dtype) -> None:
    policy, obs = agent("gru"), torch.randn(2, 3)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        mixed = policy(obs, (), policy.initial_memory(2))
    pure = policy.to(dtype)(obs, (), policy.initial_memory(2))
    assert {output.dtype for output in (*mixed[1:], *pure[1:])} == {torch.float32}
