"""Masks of legal actions, from an environment to the loss."""

from collections.abc import Iterator
from contextlib import closing
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import rl
from rl import tree
from rl.collector import make_collector
from rl.compile import Execution, Mode
from rl.config import CONFIGS
from rl.dist.ranks import Ranks
from rl.envs.config import EnvConfig, make_single
from rl.envs.gym_envs import GymEnvs
from rl.envs.make import make_envs
from rl.envs.masks import MaskInInfo, without_halves
from rl.envs.seeded import SeededEpisodes
from rl.envs.tensor_envs import TensorEnvs
from rl.envs.types import Envs
from rl.errors import EnvError, UserError
from rl.models.agent import Agent, Network
from rl.rollout import Rollout, decide
from rl.run.evaluation import act, evaluate
from rl.run.metrics import Finite
from tests import masked  # registers them

NUM_ENVS, NUM_STEPS = 3, 40
MODES: tuple[Mode, ...] = ("eager", "compile")
BATCHES = ("VectorDoors-v0", "SeenVectorDoors-v0")
SOME = ["Doors-v0", "ManyDoors-v0", "TreeOfDoors-v0"]


def agent_for(envs: Envs) -> Agent:
    torch.manual_seed(0)
    return Agent(envs.spaces, Network(hidden_sizes=(8,)))


@torch.no_grad()
def collect(envs: Envs, num_steps: int = NUM_STEPS) -> Rollout:
    with closing(envs):
        return make_collector(envs, agent_for(envs), seed=1, first_env=0).collect(num_steps)


def made(env_id: str, vectorization: str = "sync", num_envs: int = NUM_ENVS, **more: Any) -> Envs:
    return make_envs(EnvConfig(env_id, num_envs, vectorization, **more), training=True)


def masks_of(env_id: str, rollout: Rollout, n: int) -> Iterator[np.ndarray]:
    """The masks that an environment, stepped by itself, gives before each of its actions in a rollout."""
    envs, env = made(env_id, num_envs=1), make_single(EnvConfig(env_id))
    actions = envs.spaces.actions
    envs.reset(1, first_env=n)
    seeds = [int(seed) for seed in envs.position.environment]
    single = SeededEpisodes(lambda: env)
    _, info = single.reset(seed=seeds[0] * 2**32)
    for action, ended in zip(rollout.action[:, n], (rollout.terminated | rollout.truncated)[:, n], strict=True):
        yield info["action_mask"]
        in_env = actions.to_env(action.numpy())
        *_, info = single.step(actions.flattened(in_env) if isinstance(in_env, dict) else in_env)
        if ended:
            _, info = single.reset()


@pytest.mark.parametrize("env_id", SOME)
def test_rollouts_have_the_masks_that_the_environment_gave_with_each_observation(env_id: str) -> None:
    # The environments raise for an illegal action, so all that were drawn are legal.
    rollout = collect(made(env_id))
    assert rollout.mask.dtype == torch.bool and rollout.mask.shape[:2] == (NUM_STEPS, NUM_ENVS)
    assert (rollout.terminated | rollout.truncated).sum() > 5
    for n in range(NUM_ENVS):
        assert np.array_equal(rollout.mask[:, n].numpy(), np.stack(list(masks_of(env_id, rollout, n))))


@pytest.mark.parametrize("env_id", SOME)
def test_environments_in_processes_give_the_same(env_id: str) -> None:
    here, there = collect(made(env_id)), collect(made(env_id, "async", num_workers=2))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(tree.leaves(here), tree.leaves(there), strict=True))


def test_everything_is_legal_where_the_next_step_only_resets() -> None:
    def vector(mode: AutoresetMode) -> GymEnvs:
        return GymEnvs(SyncVectorEnv([lambda: gym.make("Doors-v0")] * NUM_ENVS, autoreset_mode=mode), "Doors-v0")

    next_step, same_step = (collect(vector(mode)) for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP))
    resets = next_step.weight == 0
    assert resets.sum() > 3 and next_step.mask[resets].all() and not next_step.mask[~resets].all(-1).all()
    assert torch.equal(same_step.mask[:2], next_step.mask[:2])


def test_without_masks_rollouts_have_none() -> None:
    rollout = collect(make_envs(EnvConfig("CartPole-v1", 2, "sync")), 3)
    assert rollout.mask == () and len(list(tree.leaves(rollout))) == len(Rollout._fields) - 2  # nor memory


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        (
            "DoorsEmpty-v0",
            r"--env-id DoorsEmpty-v0: environment 0 gave an action_mask without a legal action: \[0, 0, .*\], at step 3"
            r" of the episode that reset\(seed=\d+\) starts \(rank 0, ",
        ),
        ("DoorsLong-v0", r"environment 0 gave an action_mask of int8 and shape \(9,\); must be 8 numbers, 1 or 0, at"),
        ("DoorsLate-v0", "environment 0 gave an action_mask, and none before; must give"),
    ],
)
@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_an_invalid_mask_is_an_error_that_names_the_environment(env_id: str, message: str, vectorization: str) -> None:
    with pytest.raises(EnvError, match=message):
        collect(make_envs(EnvConfig(env_id, 2, vectorization, num_workers=1)))


def test_a_batch_that_allows_nothing_is_an_error_that_names_the_environment() -> None:
    envs = SyncVectorEnv([lambda: gym.make("DoorsEmpty-v0")] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    with pytest.raises(EnvError, match=r"environment [01] gave an action_mask without a legal action, at .*rank 0"):
        collect(GymEnvs(envs, "id"))


def test_a_mask_in_the_observation_moves_to_the_info() -> None:
    env = make_single(EnvConfig("SeenDoors-v0"))
    assert isinstance(env, MaskInInfo) and list(env.observation_space.spaces) == ["observation"]
    for obs, info in (env.reset(seed=1), env.step(1 + int(env.unwrapped.legal.argmax()))[::4]):
        assert list(obs) == ["observation"] and info["action_mask"].sum() == env.unwrapped.legal.sum()


def test_a_batch_may_observe_its_masks_too() -> None:
    rollout, seen = (collect(make_envs(EnvConfig(name, 4), training=True)) for name in BATCHES)
    assert seen.terminated.any() and torch.equal(seen.mask, rollout.mask) and not seen.mask.all()
    assert seen.obs.keys() == {"observation"} and torch.equal(seen.obs["observation"], rollout.obs)
    assert torch.equal(seen.next_obs["observation"], rollout.next_obs) and torch.equal(seen.action, rollout.action)


def test_a_batch_with_masks_comes_back_from_its_attributes() -> None:
    with closing(make_envs(EnvConfig("VectorDoors-v0", 4), training=True)) as envs:
        assert envs.memory == "snapshot"  # which is tried by legal actions


def test_tensor_environments_have_masks_by_a_function_of_their_state() -> None:
    rl.check_env(masked.TensorDoors)
    rollout = collect(make_envs(EnvConfig("TensorDoors-v0", 4, "tensor")))
    assert torch.equal(rollout.mask, masked.TensorDoors().mask(rollout.obs.flatten(0, 1)).view(NUM_STEPS, 4, 3))
    assert rollout.reward.min() >= 0  # no action was illegal
    vector = rl.TensorVectorEnv(masked.TensorDoors(), 4)
    obs, info = vector.reset(seed=1)
    assert torch.equal(info["action_mask"], masked.TensorDoors().mask(obs)) and info["_action_mask"].all()
    with pytest.raises(UserError, match=r"TensorDoors.mask: gives a row without a legal action; must allow one"):
        rl.check_env(masked.TensorDoors("empty"))
    rollout = collect(TensorEnvs(masked.TensorDoors("empty"), 4))
    finite = Finite("id", Ranks(), torch.device("cpu"))
    metrics = {name: float(value) for name, value in finite.look(rollout).items()}
    step, env = divmod(int((~rollout.mask.any(-1)).flatten().int().argmax()), 4)
    with pytest.raises(
        EnvError, match=rf"environment {env} of rank 0 .*without a legal action, at its step {step + 1};"
    ):
        finite.check(metrics, 1)


def test_a_choice_without_an_alternative_empties_the_row() -> None:
    mask = torch.tensor([[1, 0, 0, 1], [1, 1, 0, 0]]).bool()
    assert without_halves(mask, (2, 2)).tolist() == [[True, False, False, True], [False] * 4]
    assert without_halves(mask, (4,)) is mask


@pytest.mark.parametrize("learner", CONFIGS)
@pytest.mark.parametrize("env_id", SOME)
def test_every_learner_learns_from_legal_actions_only(learner: str, env_id: str) -> None:
    envs = made(env_id)
    agent, learner = agent_for(envs), CONFIGS[learner].learner.build()
    learner.replay = None
    with torch.no_grad(), closing(envs):
        rollout = learner.collect(make_collector(envs, agent, seed=1, first_env=0))
        estimates = learner.estimate(agent, rollout)
        rows, _ = learner.prepare(rollout, estimates, estimates.sums)
    assert torch.equal(rows.mask, rollout.mask.flatten(0, 1))
    # The same loss and gradient, whatever the logits of illegal actions: bias outputs that are illegal in all rows.
    rows = tree.index(rows, ~rows.mask[:, 0])
    loss, _ = learner.loss(agent, rows)
    agent.zero_grad()
    loss.backward()
    first = agent.actor.bias.grad[2 if env_id == "TreeOfDoors-v0" else 0]
    with torch.no_grad():
        agent.actor.bias[2 if env_id == "TreeOfDoors-v0" else 0] += 5
    assert first == 0 and learner.loss(agent, rows)[0] == loss and loss.isfinite()


def test_the_policy_of_a_user_obeys_a_mask_and_evaluation_does() -> None:
    envs = made("ManyDoors-v0", num_envs=4)
    agent = agent_for(envs)
    with closing(envs):
        evaluation = evaluate(agent, envs, seed=3, max_steps=100)
    assert not evaluation.unfinished.any()
    mask = np.array([[0, 1, 0, 0, 1, 0, 0, 1], [1, 0, 0, 1, 0, 0, 1, 0]], np.int8)
    obs = np.zeros((2, 3), np.float32)
    assert act(agent, obs, mask).tolist() == [[1, 6, 1], [0, 5, 0]]
    assert act(agent, obs[0], mask[0]).tolist() == [1, 6, 1]
    assert act(agent, obs[0], (mask[0, :3], mask[0, 3:5], mask[0, 5:])).tolist() == [1, 6, 1]
    for wrong in (mask[0], mask[:, 1:], np.zeros_like(mask)):
        with pytest.raises(ValueError, match="action_mask"):
            act(agent, obs, wrong)


def test_compiled_decisions_with_masks_are_the_eager_ones() -> None:
    envs = made("TreeOfDoors-v0")
    envs.close()
    agent, noise = agent_for(envs), torch.rand(50, envs.spaces.actions.noise_size)
    obs, mask = torch.rand(50, 3), torch.rand(50, 8) < 0.5
    mask[:, [0, 4, 6]] = True
    with torch.no_grad():
        eager, compiled = (Execution(mode).step(partial(decide, agent))(obs, mask, noise) for mode in MODES)
    pairs = zip(tree.leaves(eager), tree.leaves(compiled), strict=True)
    assert all(torch.allclose(ours, theirs, atol=1e-5) for ours, theirs in pairs)
