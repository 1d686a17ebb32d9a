"""What a session assembles, and what it leaves behind."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rl.config import Config
from rl.dist.ranks import Ranks
from rl.envs.config import EnvConfig
from rl.envs.tensor_envs import TensorEnvs
from rl.learners.learner import Metrics
from rl.learners.ppo import PPO, PPOConfig, Rows
from rl.returns import gae
from rl.seeding import Shuffle
from rl.session import Session, one_env


def test_the_environment_of_a_rank_that_does_not_play_has_the_form_of_those_that_are_played() -> None:
    """An environment may exist in tensors only."""
    for vectorization, in_tensors in (("tensor", True), ("native", False), ("auto", False)):
        with closing(one_env(Config(env=EnvConfig(num_envs=8, vectorization=vectorization)))) as env:
            assert (isinstance(env, TensorEnvs), env.num_envs) == (in_tensors, 1)


def test_what_a_session_has_opened_is_closed_where_a_later_part_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []
    envs = one_env(Config())
    monkeypatch.setattr(envs, "close", lambda: closed.append("environments"))
    monkeypatch.setattr(Config, "make_envs", lambda self, device: envs)
    config = replace(Config(), exp_name="x")

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr("rl.session.open_folder", fail)
        Session(config, "logs", config.device())
    assert closed == ["environments"]
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr("rl.session.Agent", fail)
        with Session(config, "logs", config.device()) as session:
            patch.setattr(session.folder, "release", lambda: closed.append("folder"))
            session.closing.callback(session.folder.release)
            session.make_agent(None, "32-true")  # type: ignore[arg-type]
    assert closed == ["environments", "folder", "environments"]


def test_later_epochs_learn_from_advantages_of_the_critic_of_that_time() -> None:
    flags = PPOConfig(num_steps=8, num_minibatches=1, recompute_advantages=True, normalize_advantages=False)
    config = Config(env=EnvConfig(env_id="Pendulum-v1", num_envs=2), learner=flags)
    with Session(config, "logs", config.device()) as session:
        agent = session.make_agent(Ranks(), "32-true")
        session.start([])
        with torch.no_grad():
            rollout = session.learner.collect(session.collector)
            estimates = session.estimate(rollout)
            samples, _ = session.learner.prepare(rollout, estimates, estimates.sums)
        epochs: list[Rows] = []
        for epoch in session.minibatches(samples, rollout):
            epochs.append(epoch)
            with torch.no_grad():
                agent.critic.bias += 1.0
    assert len(epochs) == flags.update_epochs
    for number, epoch in enumerate(epochs):
        order = epoch.obs[:, None].eq(rollout.obs.flatten(0, 1)).all(-1).int().argmax(-1)
        # Each epoch raised all values by one; what the actions were and how probable they had been stays.
        expected = gae(
            rollout.reward,
            rollout.value + number,
            rollout.next_value + number,
            terminated=rollout.terminated,
            truncated=rollout.truncated,
            gamma=flags.gamma,
            gae_lambda=flags.gae_lambda,
        ).flatten()[order]
        torch.testing.assert_close(epoch.advantage, expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(epoch.log_prob, rollout.log_prob.flatten()[order])


class Stopping(PPO):
    """A learner that may stop after any gradient step."""

    def should_stop(self, metrics: Metrics, mean_over_ranks: Callable[[Tensor], Tensor]) -> bool:
        return True


@pytest.mark.parametrize("num_parts", [1, 2, 7])
def test_all_minibatches_of_a_compiled_update_come_at_once_with_the_rows_of_single_ones(num_parts: int) -> None:
    flags = PPOConfig(num_steps=6, num_minibatches=4, update_epochs=2)
    config = Config(env=EnvConfig(num_envs=4, vectorization="tensor"), learner=flags, execution="compile")
    samples = Rows(*torch.arange(24.0).repeat(7, 1))
    with Session(config, "logs", config.device()) as session:
        session.make_agent(Ranks(), "32-true")
        session.start([])
        assert len(list(session.minibatches(samples))) == 8  # for an eager step
        session.compiled_step()
        session.shuffle = Shuffle(1, 0, num_parts, shared=True)
        before = session.shuffle.state_dict()
        if num_parts == 7:  # which have not all the same number of rows
            assert len(list(session.minibatches(samples))) == 8
            return
        (epochs,) = session.minibatches(samples)
        session.shuffle.load_state_dict(before)
        single = [batch for _ in range(2) for batch in session.learner.minibatches(samples, session.shuffle)]
    assert len(single[0].obs) == 6 / num_parts
    assert [rows.tolist() for rows in epochs.rows] == [batch.obs.tolist() for batch in single]


def test_minibatches_come_one_by_one_where_something_may_happen_between_them() -> None:
    flags = PPOConfig(num_minibatches=4)
    assert PPO(flags).num_at_once(24) == 4
    assert PPO(flags).num_at_once(26) == 0  # the last ones are smaller
    for learner in (
        Stopping(flags),
        PPO(replace(flags, target_kl=0.1)),
        PPO(replace(flags, recompute_advantages=True)),
    ):
        assert learner.num_at_once(24) == 0
