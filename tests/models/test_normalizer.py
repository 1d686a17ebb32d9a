"""Running statistics against NumPy, stable-baselines3, and the same policy without them."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.running_mean_std import RunningMeanStd
from torch import Tensor

import rl.learners.ppo
import train_torch
from rl import tree
from rl.cli import command_line
from rl.config import CONFIGS
from rl.dist.ranks import Ranks
from rl.envs.actions import DiscreteActions
from rl.envs.observations import vector
from rl.envs.spaces import Spaces
from rl.models.agent import Agent, Network
from rl.models.normalizer import Normalizer
from rl.returns import discounted_returns
from rl.rollout import Rollout
from rl.statistics import Statistics
from tests.ranks import in_ranks

SPACES = Spaces(vector(3), DiscreteActions(2))
NETWORK = Network(normalize_obs=True, normalize_reward=True)
NUM_UPDATES, NUM_STEPS, NUM_ENVS, GAMMA = 5, 16, 12, 0.9


def rollouts() -> list[Rollout]:
    """Rollouts far from 0, with rows that do not count, of 12 environments."""
    generator = torch.Generator().manual_seed(3)
    made = []
    for k in range(NUM_UPDATES):
        fields = dict.fromkeys(Rollout._fields, torch.zeros(NUM_STEPS, NUM_ENVS))
        fields["obs"] = torch.randn(NUM_STEPS, NUM_ENVS, 3, generator=generator) * torch.tensor([1, 100, 0.1]) + 1e3
        fields["reward"] = torch.randn(NUM_STEPS, NUM_ENVS, generator=generator) + k
        fields["terminated"] = torch.rand(NUM_STEPS, NUM_ENVS, generator=generator) < 0.1
        fields["truncated"] = torch.rand(NUM_STEPS, NUM_ENVS, generator=generator) < 0.1
        fields["weight"] = (torch.rand(NUM_STEPS, NUM_ENVS, generator=generator) < 0.8).float()
        made.append(Rollout(**fields))
    return made


def measured() -> dict[str, Tensor]:
    """What this rank's agent knows after its part of all rollouts."""
    ranks, agent = Ranks.of(), Agent(SPACES, NETWORK)
    size = NUM_ENVS // ranks.size
    collector: Any = SimpleNamespace(discounted_return=torch.zeros(size, dtype=torch.float64))
    statistics = Statistics(agent, collector, GAMMA)
    assert statistics.are_missing()
    for k, rollout in enumerate(rollouts()):
        own = tree.map(lambda field: field[:, ranks.rank * size : (ranks.rank + 1) * size], rollout)
        if k == 0:
            statistics.begin(own, ranks.sum, ranks.sum)
        else:
            assert statistics.sum(torch.ones(2), own, ranks.sum).tolist() == [ranks.size] * 2
            statistics.update()
    assert not statistics.are_missing()
    return dict(agent.named_buffers())


def discounted_one_by_one() -> np.ndarray[Any, Any]:
    """The discounted returns [K·T, N] of all rollouts, environment by environment."""
    reward, ended = (
        np.concatenate(part) for part in zip(*((r.reward, r.terminated | r.truncated) for r in rollouts()), strict=True)
    )
    returns = np.zeros(reward.shape, np.float64)
    for n in range(NUM_ENVS):
        running = 0.0
        for t in range(len(reward)):
            running = running * GAMMA + float(reward[t, n])
            returns[t, n] = running
            running *= not ended[t, n]
    return returns


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_statistics_are_those_of_all_rows_that_count_on_all_ranks(num_ranks: int, tmp_path: Path) -> None:
    obs = np.concatenate([rollout.obs.double().numpy() for rollout in rollouts()])
    counts = np.concatenate([rollout.weight.numpy() for rollout in rollouts()]) > 0
    for buffers in [measured()] if num_ranks == 1 else in_ranks(measured, num_ranks, tmp_path):
        count = buffers["obs_normalizer.count"].item()
        assert count == counts.sum() == buffers["return_normalizer.count"].item()
        for name, rows in (
            ("obs_normalizer", obs[counts]),
            ("return_normalizer", discounted_one_by_one()[counts][:, None]),
        ):
            np.testing.assert_allclose(buffers[f"{name}.mean"], rows.mean(0), rtol=1e-12)
            np.testing.assert_allclose(buffers[f"{name}.squares"] / count, rows.var(0), rtol=1e-12)
            np.testing.assert_allclose(buffers[f"{name}.scale"], 1 / np.sqrt(rows.var(0) + 1e-8), rtol=1e-6)


def test_it_agrees_with_stable_baselines3() -> None:
    ours, theirs = Normalizer(3), RunningMeanStd(epsilon=0.0, shape=(3,))
    ours.center(ours.sums(rollouts()[0].obs, torch.ones(NUM_STEPS, NUM_ENVS)))
    for rollout in rollouts():
        ours.update(ours.sums(rollout.obs, torch.ones(NUM_STEPS, NUM_ENVS)))
        theirs.update(rollout.obs.double().flatten(0, 1).numpy())
    np.testing.assert_allclose(ours.mean, theirs.mean, rtol=1e-10)
    np.testing.assert_allclose(ours.squares / ours.count, theirs.var, rtol=1e-10)


def test_the_policy_is_that_of_normalized_observations() -> None:
    torch.manual_seed(0)
    normalizing = Agent(SPACES, NETWORK)
    plain = Agent(SPACES, replace(NETWORK, normalize_obs=False))
    plain.load_state_dict(normalizing.state_dict(), strict=False)
    obs = rollouts()[0].obs
    normalizing.obs_normalizer.update(normalizing.obs_normalizer.sums(obs, torch.ones(obs.shape[:-1])))
    flat = obs.double().flatten(0, 1)
    exact = ((flat - flat.mean(0)) / flat.std(0, correction=0)).view_as(obs).float()
    for ours, theirs in zip(normalizing(obs), plain(exact), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)  # 1000 ± 0.1 has few digits in float32
    far = obs.clone()
    far[..., 1] += 1e9
    clipped = normalizing.obs_normalizer(far)
    assert clipped[..., 1].unique().tolist() == [10]


def test_a_row_that_does_not_count_may_be_anything() -> None:
    normalizer, weight = Normalizer(1), torch.tensor([1.0, 0.0])
    normalizer.update(normalizer.sums(torch.tensor([[2.0], [torch.nan]]), weight))
    assert (normalizer.mean.item(), normalizer.squares.item()) == (2, 0)
    assert normalizer(torch.tensor([[2.0]])).item() == 0


def test_no_precision_of_the_network_touches_them() -> None:
    agent = Agent(SPACES, NETWORK).to(torch.bfloat16)
    assert {buffer.dtype for buffer in agent.buffers()} == {torch.float64, torch.float32}
    assert {parameter.dtype for parameter in agent.parameters()} == {torch.bfloat16}


def test_discounted_returns_go_on_where_the_last_rollout_ended() -> None:
    running, pieces = torch.zeros(NUM_ENVS, dtype=torch.float64), []
    for rollout in rollouts():
        ended = rollout.terminated | rollout.truncated
        piece = discounted_returns(running, rollout.reward, ended, GAMMA)
        running = piece[-1] * ~ended[-1]
        pieces.append(piece)
    np.testing.assert_allclose(torch.cat(pieces), discounted_one_by_one(), rtol=1e-12, atol=1e-12)


def test_the_first_minibatch_of_an_update_sees_the_policy_that_acted(monkeypatch: pytest.MonkeyPatch) -> None:
    log_ratios: list[Tensor] = []
    surrogate = rl.learners.ppo.clipped_surrogate

    def recorded(log_ratio: Tensor, advantage: Tensor, clip_coef: float) -> Tensor:
        log_ratios.append(log_ratio.detach())
        return surrogate(log_ratio, advantage, clip_coef)

    monkeypatch.setattr(rl.learners.ppo, "clipped_surrogate", recorded)
    flags = "--env-id Pendulum-v1 --num-envs 16 --num-steps 32 --total-timesteps 2560 --update-epochs 4"
    flags += " --num-minibatches 4 --execution eager --normalize-obs --normalize-reward"
    monkeypatch.setattr("sys.argv", ["train_torch.py", *flags.split()])
    command_line(train_torch.main, CONFIGS, train_torch.PROGRAM)
    assert len(log_ratios) == 4 * 16  # four updates of 16 gradient steps; the first rollout only measures
    assert [float(first.abs().max()) for first in log_ratios[::16]] == [0, 0, 0, 0]
    assert all(float(second.abs().max()) > 0 for second in log_ratios[1::16])


def test_a_measured_rollout_that_leaves_no_steps_to_learn_from_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = "reinforce --num-envs 4 --num-steps 16 --total-timesteps 128 --normalize-obs --execution eager"
    monkeypatch.setattr("sys.argv", ["train_torch.py", *flags.split()])
    with pytest.raises(SystemExit):
        command_line(train_torch.main, CONFIGS, train_torch.PROGRAM)
    said = capsys.readouterr().err
    assert "error: --total-timesteps 128: the first rollout has " in said and "must be more" in said
