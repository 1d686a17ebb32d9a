"""Batched classes on tensors: the steps of the same environments done another way, without leaving the device."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor

import train_torch
from rl import tree
from rl.cli import command_line
from rl.collector import Collector, make_collector
from rl.config import CONFIGS
from rl.envs.config import EnvConfig
from rl.envs.gym_envs import GymEnvs
from rl.envs.make import make_envs
from rl.envs.tensor_envs import TensorEnvs
from rl.envs.types import Outcomes, Seen, Step, is_reset
from rl.envs.vector_envs import VectorTensorEnvs
from rl.errors import OneEnvError, UserError
from rl.learners.ppo import PPOConfig
from rl.models.agent import Agent, Network
from rl.rollout import decide
from rl.run.checkpoint import read_checkpoint
from rl.seeding import environment_seed
from tests import masked, seeing  # noqa: F401 (registers environments)
from tests.simulated import AsTensors, Simulator, Weightless

MODES = [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP]
SEED = environment_seed(7, 0)


def train(monkeypatch: pytest.MonkeyPatch, flags: str) -> None:
    monkeypatch.setattr("sys.argv", ["train_torch.py", *flags.split()])
    command_line(train_torch.main, CONFIGS, train_torch.PROGRAM)


@torch.no_grad()
def steps_of(envs: GymEnvs | VectorTensorEnvs, num_steps: int = 40) -> list[tuple[Step, Any]]:
    """Steps and masks under a random policy, after the first observation and mask."""
    obs, generator = envs.reset(1), torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    policy = Agent(envs.spaces, Network(hidden_sizes=(8,)))
    seen = [(obs, envs.mask)]
    for _ in range(num_steps):
        noise = torch.rand(envs.num_envs, envs.spaces.actions.noise_size, generator=generator)
        step = envs.step(decide(policy, obs, envs.mask, noise).action)
        obs = step.obs
        seen.append((step, envs.mask))
    return seen


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("env_id", ["Everything-v0", "TreeOfDoors-v0", "ManyDoors-v0", "Pendulum-v1"])
def test_steps_and_masks_are_those_of_the_same_environments_in_numpy(env_id: str, mode: AutoresetMode) -> None:
    limit = {"max_episode_steps": 15} if env_id == "Pendulum-v1" else {}

    def batch() -> SyncVectorEnv:
        return SyncVectorEnv([lambda: gym.make(env_id, **limit)] * 3, autoreset_mode=mode)

    ours = VectorTensorEnvs(AsTensors(batch(), [environment_seed(1, n) for n in range(3)]), env_id)
    theirs = GymEnvs(batch(), env_id)
    here, there = steps_of(ours), steps_of(theirs)
    for pair in zip(tree.leaves(here), tree.leaves(there), strict=True):
        # NumPy's returns are added up in float64.
        torch.testing.assert_close(*pair, rtol=1e-6 if env_id == "Pendulum-v1" else 0, atol=0)
    steps = [step for step, _ in here[1:]]
    assert sum((step.terminated | step.truncated).sum() for step in steps) >= 3
    assert ours.num_ignored == theirs.num_ignored == sum((step.weight == 0).sum() for step in steps)
    assert (ours.num_ignored > 0) == (mode == AutoresetMode.NEXT_STEP)


def test_training_through_the_native_path_ends_with_the_bits_of_the_tensor_form(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = "--num-envs 4 --num-steps 64 --total-timesteps 768 --eval-episodes 1 --hidden-sizes 16 --execution eager"
    train(monkeypatch, f"{flags} --env-id tests.simulated:CartPoles-v0 --allow-import --num-minibatches 4")
    said = capsys.readouterr().err
    why = "its class does not give the state of its environments"
    assert said.count(f"{why}: a resumed run starts new episodes and is not bit-exact") == 1
    reset = TensorEnvs.reset
    taken: list[Step] = []

    def act(envs: TensorEnvs, action: Tensor) -> Seen:
        taken.append(step := envs.step(action))
        return Seen(
            step.obs, step.next_obs, step.terminated | step.truncated, is_reset(step.weight, step.episode_length)
        )

    def outcomes(envs: TensorEnvs) -> Outcomes:
        rows = [Outcomes(*step[2:]) for step in taken]
        taken.clear()
        return tree.stack(rows)

    with monkeypatch.context() as patch:  # which collects step by step, with the seed that a batch gets
        patch.setattr("rl.collector.TensorCollector", Collector)
        patch.setattr(TensorEnvs, "act", act, raising=False)
        patch.setattr(TensorEnvs, "outcomes", outcomes, raising=False)
        patch.setattr(TensorEnvs, "reset", lambda envs, seed, first=0: reset(envs, environment_seed(seed, first)))
        train(patch, f"{flags} --env-id CartPole-v1 --vectorization tensor --config none --num-minibatches 4")
    native, tensor = (
        read_checkpoint(next(Path("logs/torch_logs").glob(f"{name}*")) / "last.ckpt")["agent"]
        for name in ("tests.simulated", "CartPole-v1")
    )
    assert native.keys() == tensor.keys() and all(torch.equal(native[name], tensor[name]) for name in native)


@pytest.mark.parametrize(("mode", "final"), [*((mode, True) for mode in MODES), (MODES[0], False)])
@torch.no_grad()
def test_no_step_looks_at_a_number(mode: AutoresetMode, final: bool) -> None:
    """Tensors on the device "meta" have none: whatever copies one to the host, or waits for it, raises."""
    example = gym.make("TreeOfDoors-v0")
    envs = VectorTensorEnvs(Weightless(example, 3, mode, final), "id").to(torch.device("meta"))
    policy = Agent(envs.spaces, Network(hidden_sizes=(8,))).to("meta")
    obs = envs.reset(1)
    for _ in range(3):
        decision = decide(policy, obs, envs.mask, torch.empty(3, envs.spaces.actions.noise_size, device="meta"))
        step = envs.step(decision.action)
        obs = step.obs
        assert {part.device.type for part in tree.leaves((step, envs.mask))} == {"meta"}
    with pytest.raises(RuntimeError, match="meta"):
        envs.num_ignored  # noqa: B018 (a property that looks, once a rollout)


@pytest.mark.parametrize("final", ["final_obs", "final_observation"])
def test_a_final_observation_is_the_successor(final: str) -> None:
    envs = VectorTensorEnvs(Simulator(final=final), "id")
    assert envs.reset(seed=0).tolist() == [[0], [0]]
    steps = [envs.step(torch.tensor([0, 1])) for _ in range(4)]
    assert [step.next_obs[0, 0].item() for step in steps] == [1, 2, 3, 1]
    assert [step.obs[0, 0].item() for step in steps] == [1, 2, 0, 1]
    assert [step.truncated[0].item() for step in steps] == [False, False, True, False]
    # Rewards are the actions in the environment's own terms: 5 and 6, three times.
    assert [step.episode_return.tolist() for step in steps] == [[0, 0], [0, 0], [15, 18], [0, 0]]
    assert [step.episode_length.tolist() for step in steps] == [[0, 0], [0, 0], [3, 3], [0, 0]]


@pytest.mark.parametrize("keeps_next_obs", [True, False])
@torch.no_grad()
def test_without_a_final_observation_a_truncated_row_is_bootstrapped_from_its_own_value(
    keeps_next_obs: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    envs = VectorTensorEnvs(Simulator(), "Simulator-v0")
    policy = Agent(envs.spaces, Network(hidden_sizes=(8,)))
    collector = make_collector(envs, policy, seed=1, first_env=0, keeps_next_obs=keeps_next_obs)
    for _ in range(2):
        rollout = collector.collect(9)
        advantage = PPOConfig(gamma=0.9, gae_lambda=0.8).build().estimate(policy, rollout).advantage
        truncated, terminated = rollout.truncated, rollout.terminated
        assert (truncated.sum(), terminated.sum()) == (3, 3)
        own = rollout.reward + 0.9 * rollout.value - rollout.value
        torch.testing.assert_close(advantage[truncated], own[truncated])
        torch.testing.assert_close(advantage[terminated], (rollout.reward - rollout.value)[terminated])
    said = "note: --env-id Simulator-v0: its class gives no final observation of an episode that is truncated"
    assert capsys.readouterr().err.count(said) == 1


def bad(position: int, value: Any) -> Callable[..., Any]:
    good = [torch.zeros(2, 1), torch.ones(2), torch.zeros(2).bool(), torch.zeros(2).bool(), {}]
    return lambda _: (*good[:position], value, *good[position + 1 :])


def no_licence(_: Any) -> Any:
    raise RuntimeError("no licence")


@pytest.mark.parametrize(
    ("step", "what"),
    [
        (no_licence, "the environments raised RuntimeError: no licence"),
        (lambda _: None, "the batch of environments gave None instead of four arrays and a dictionary"),
        (bad(4, None), "instead of four arrays and a dictionary"),
        (
            bad(0, torch.zeros(2, 3)),
            "gave torch.float32 of shape (2, 3) for observation; must be numbers of shape (2, 1)",
        ),
        (bad(0, np.zeros((2, 1))), "gave ndarray for observation; must be a tensor"),
        (bad(1, torch.ones(2, 1)), "gave torch.float32 of shape (2, 1) for reward; must be numbers of shape (2,)"),
        (bad(2, torch.zeros(2, dtype=torch.cfloat)), "gave torch.complex64 of shape (2,) for terminated"),
        (bad(4, {"final_obs": torch.zeros(1, 1)}), "gave torch.float32 of shape (1, 1) for observation"),
        (bad(4, {"action_mask": torch.ones(2, 2)}), "gave an action_mask, and none before"),
    ],
)
def test_a_class_that_misbehaves_is_named_with_seed_and_step(step: Callable[..., Any], what: str) -> None:
    simulator = Simulator()
    envs = VectorTensorEnvs(simulator, "Simulator-v0")
    envs.reset(seed=7)
    envs.step(torch.tensor([0, 1]))
    simulator.step = step  # type: ignore[method-assign]
    with pytest.raises(OneEnvError) as raised:
        envs.step(torch.tensor([0, 1]))
    where = f", in the batch that reset(seed={SEED}) starts (rank 0, step 2 of the run)"
    assert what in str(raised.value) and str(raised.value).endswith(where)


def test_an_episode_that_ends_in_the_step_that_resets_is_an_error() -> None:
    simulator = Simulator()
    simulator.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
    simulator.step = bad(2, torch.ones(2).bool())  # type: ignore[method-assign]
    envs = VectorTensorEnvs(simulator, "id")
    envs.reset(1)
    envs.step(torch.tensor([0, 1]))
    assert envs.num_ignored == 0
    envs.step(torch.tensor([0, 1]))
    with pytest.raises(OneEnvError, match="ended an episode in the step that resets, in the batch"):
        envs.num_ignored  # noqa: B018


def test_a_class_that_resets_nothing_is_refused() -> None:
    simulator = Simulator()
    simulator.metadata = {"autoreset_mode": AutoresetMode.DISABLED}
    with pytest.raises(UserError, match=r"--env-id id: its batched class has autoreset_mode .*DISABLED"):
        VectorTensorEnvs(simulator, "id")


def test_a_program_trains_in_it_resumes_with_new_episodes_and_finds_what_is_not_finite(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = "--env-id tests.simulated:Simulator-v0 --allow-import --num-envs 3 --num-steps 32 --eval-episodes 2"
    train(monkeypatch, f"{flags} --total-timesteps 192 --hidden-sizes 8 --execution eager")
    (folder,) = Path("logs/torch_logs").iterdir()
    # Three steps, each of which pays its action, 5 or 6.
    assert re.search(r"greedy policy +return 1[5-8]\.00, from .* in 2 episodes", capsys.readouterr().out)
    train(monkeypatch, f"--resume {folder} --total-timesteps 384 --allow-import")
    assert "3 of 3 environments of rank 0 could not be restored" in capsys.readouterr().err
    assert read_checkpoint(folder / "last.ckpt")["run"]["step"] == 384
    with pytest.raises(SystemExit):
        train(monkeypatch, f"{flags} --total-timesteps 192 --env-kwargs bad_step=40 --exp-name bad")
    assert "environment 1 of rank 0 returned an observation or a reward that is not finite at its step 40" in (
        capsys.readouterr().err
    )


def test_new_episodes_after_a_resume_have_a_seed_that_the_run_has_not_used() -> None:
    simulator = Simulator()
    envs = VectorTensorEnvs(simulator, "id")
    envs.reset(seed=7)
    for num_steps in (32, 64):
        envs.load_state_dict(envs.state_dict(), num_steps)
    assert len(set(simulator.seeds)) == 3 and simulator.seeds[0] == SEED


def test_an_environment_that_exists_as_a_batch_only_is_evaluated_as_one() -> None:
    config = EnvConfig("tests.simulated:Simulator-v0", allow_import=True)
    assert isinstance(make_envs(config.for_evaluation(3)), VectorTensorEnvs)
