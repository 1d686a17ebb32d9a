"""Rollouts: true successors, behavior probabilities, and one stream of steps, however it is cut."""

import functools
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import train_torch
from rl import tree
from rl.cli import parse
from rl.collector import Collector, TensorCollector, make_collector
from rl.config import CONFIGS
from rl.envs.config import EnvConfig
from rl.envs.gym_envs import GymEnvs
from rl.envs.make import make_envs
from rl.envs.types import Envs
from rl.learners.learner import Metrics
from rl.models.agent import Agent, Network
from rl.rollout import Rollout
from rl.run.checkpoint import read_checkpoint
from rl.run.run import Run
from tests import seeing  # noqa: F401 (registers environments)
from tests.programs.launch import ROOT, scalars, start, succeeded


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def agent_for(envs: Envs) -> Agent:
    torch.manual_seed(3)
    return Agent(envs.spaces, Network(ortho_init=False))


def collector(
    env_id: str, num_envs: int, first_env: int = 0, vectorization: str = "sync"
) -> Collector | TensorCollector:
    envs = make_envs(EnvConfig(env_id, num_envs=num_envs, vectorization=vectorization))
    return make_collector(envs, agent_for(envs), seed=1, first_env=first_env)


def assert_equal(ours: Rollout, theirs: Rollout) -> None:
    for name, *fields in zip(Rollout._fields, ours, theirs, strict=True):
        # The values of final observations come from a pass over as many rows as episodes ended, which may round.
        exact = torch.equal if name != "next_value" else functools.partial(torch.allclose, atol=1e-6)
        assert all(exact(*pair) for pair in zip(*map(tree.leaves, fields), strict=True)), name


def test_a_rollout_is_the_stream_of_steps_wherever_it_is_cut() -> None:
    whole, parts = collector("CartPole-v1", 3), collector("CartPole-v1", 3)
    pieces = [parts.collect(n) for n in (10, 1, 29)]
    assert_equal(whole.collect(40), tree.cat(pieces))


@pytest.mark.parametrize("then", ["collect", "step", "state_dict"])
def test_a_rollout_that_an_error_cuts_short_leaves_nothing_behind(then: str) -> None:
    whole, cut, shorter = (collector("CartPole-v1", 3) for _ in range(3))
    expected = whole.collect(20)
    decide, calls = cut.decide, itertools.count()  # type: ignore[union-attr]

    def fail(*args: Any) -> Any:
        if next(calls) == 12:
            raise MemoryError
        return decide(*args)

    cut.decide = fail  # type: ignore[union-attr]
    with pytest.raises(MemoryError):
        cut.collect(20)
    cut.num_steps += 12
    if then == "collect":
        assert_equal(cut.collect(8), tree.index(expected, slice(12, None)))
    elif then == "step":
        assert cut.envs.step(expected.action[12]).reward.equal(expected.reward[12])
    else:
        shorter.collect(12)
        kept = [each.envs.state_dict()["running_return"] for each in (cut, shorter)]
        assert kept[0].equal(kept[1]) and kept[0].any()


@pytest.mark.parametrize("env_id", ["CustomEnv-v0", "CartPole-v1", "Pendulum-v1", "Everything-v0"])
def test_two_ranks_collect_what_one_rank_with_all_their_environments_does(env_id: str) -> None:
    whole = collector(env_id, 8).collect(230)
    halves = [collector(env_id, 4, first).collect(230) for first in (0, 4)]
    assert_equal(whole, tree.map(lambda *fields: torch.cat(fields, dim=1), *halves))
    assert whole.truncated.any() or whole.terminated.any()


def test_behavior_is_recorded_with_the_policy_that_acted() -> None:
    collecting = collector("CartPole-v1", 4)
    rollout = collecting.collect(50)
    distribution, value = collecting.policy(rollout.obs)
    assert torch.allclose(distribution.log_prob(rollout.action), rollout.log_prob, atol=1e-6)
    assert torch.allclose(value, rollout.value, atol=1e-6)


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_next_observations_are_the_next_rows_within_an_episode_and_the_final_ones_at_its_end(
    mode: AutoresetMode,
) -> None:
    envs = GymEnvs(SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 3, autoreset_mode=mode), "CartPole-v1")
    rollout = make_collector(envs, agent_for(envs), seed=1, first_env=0).collect(120)
    follows = torch.equal(rollout.next_obs[:-1], rollout.obs[1:])
    ended = rollout.terminated | rollout.truncated
    assert ended.sum() > 5
    within = ~ended[:-1]
    assert torch.equal(rollout.next_obs[:-1][within], rollout.obs[1:][within])
    # CartPole ends where the pole leans or the cart is far; a first observation is near 0.
    final = rollout.next_obs[rollout.terminated]
    assert ((final[:, 0].abs() > 2.4) | (final[:, 2].abs() > 0.2094)).all()
    assert follows == (mode == AutoresetMode.NEXT_STEP)
    resets = torch.zeros_like(ended)
    resets[1:] = ended[:-1] if mode == AutoresetMode.NEXT_STEP else False
    assert torch.equal(rollout.weight == 0, resets)


@pytest.mark.parametrize("vectorization", ["sync", "native", "tensor"])
def test_the_next_value_is_that_of_the_next_observation(vectorization: str) -> None:
    envs = make_envs(EnvConfig(env_id="CartPole-v1", num_envs=3, vectorization=vectorization))
    policy = agent_for(envs)
    rollout = make_collector(envs, policy, seed=1, first_env=0).collect(120)
    assert rollout.terminated.sum() > 3
    with torch.no_grad():
        assert torch.allclose(rollout.next_value, policy(rollout.next_obs)[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("learner", ["ppo", "reinforce"])
def test_a_run_counts_and_takes_real_steps_and_not_those_in_which_environments_only_reset(
    learner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_real: list[float] = []

    recorded = Run.record_rollout

    def record(run: Run, rollout: Rollout, metrics: Metrics) -> None:
        num_real.append(rollout.reward.sum().item())  # CartPole's is 1, and 0 where it resets
        # REINFORCE learns from fewer rows, but the steps after an environment's last whole episode count too.
        assert rollout.weight.sum() == num_real[-1] if learner == "ppo" else rollout.weight.sum() < num_real[-1]
        recorded(run, rollout, metrics)

    monkeypatch.setattr(Run, "record_rollout", record)
    flags = (
        "--env-id CartPole-v1 --num-envs 3 --num-steps 32 --total-timesteps 1920 --eval-episodes 1 --hidden-sizes 8 8"
    )
    flags += " --update-epochs 4 --num-minibatches 4 --shared-encoder --gamma 0.95" if learner == "ppo" else ""
    with torch.enable_grad():
        train_torch.main(parse([learner, *flags.split(), "--learning-rate", "3e-3"], CONFIGS))
    (folder,) = Path("logs/torch_logs").iterdir()
    steps = [step for step, _ in scalars(folder)["Count/episodes"]]
    assert steps == list(itertools.accumulate(num_real))
    assert steps[-2] < 1920 <= steps[-1]
    if learner == "ppo":
        assert all(number < 96 for number in num_real[1:]) and 20 < len(steps) < 24
    assert read_checkpoint(folder / "last.ckpt")["run"]["step"] == steps[-1]
    rates = [rate for _, rate in scalars(folder)["Info/learning_rate"]]
    assert rates == pytest.approx([3e-3 * (1 - step / 1920) for step in (0, *steps[:-1])])


def test_observations_of_images_are_kept_once_and_next_values_stay_the_same() -> None:
    envs = [make_envs(EnvConfig("Frames-v0", num_envs=3)) for _ in range(2)]
    policy = agent_for(envs[0])
    twice, once = (
        make_collector(env, policy, seed=1, first_env=0, keeps_next_obs=keeps).collect(40)
        for env, keeps in zip(envs, (True, False), strict=True)
    )
    assert twice.terminated.sum() > 3 and once.next_obs is None
    assert_equal(once, twice._replace(next_obs=None))
    num_bytes = sum(field.nbytes for field in tree.leaves(once))
    assert 40 * 3 * 2 * 36 * 40 < num_bytes < 1.02 * 40 * 3 * 2 * 36 * 40  # Atari's 64 × 128 × 4 × 84 × 84: 0.23 GB


PEAK = """
import gymnasium, numpy, torch
from rl import tree
from rl.envs.config import EnvConfig
from rl.envs.make import make_envs
from rl.models.agent import Agent, Network
from rl.collector import make_collector
from tests.seeing import Seeing

class Atari(Seeing):
    observation_space = gymnasium.spaces.Box(0, 255, (4, 84, 84), numpy.uint8)

    def observe(self):
        return numpy.full((4, 84, 84), 7, numpy.uint8)

    def step(self, action):
        return self.observe(), 0.0, self.np_random.random() < 0.01, False, {}

def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

gymnasium.register("Atari-v0", Atari)
torch.set_num_threads(1)
envs = make_envs(EnvConfig("Atari-v0", 16))
with torch.no_grad():
    collector = make_collector(envs, Agent(envs.spaces, Network()), seed=1, first_env=0, keeps_next_obs=False)
    collector.collect(2)
    before = peak()
    rollout = collector.collect(64)
print((peak() - before) / sum(field.nbytes for field in tree.leaves(rollout)))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says what memory a process has taken")
def test_collecting_frames_takes_little_more_memory_than_the_rollout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    output = succeeded(start(sys.executable, "-c", PEAK))
    assert 0.8 < float(output) < 1.5  # 6.7 if small tensors of each step are kept between frames


def test_a_dict_gives_the_bits_of_a_vector_of_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = "--num-envs 3 --num-steps 32 --total-timesteps 480 --eval-episodes 1 --normalize-obs --hidden-sizes 16"
    agents = []
    for env_id in ("Whole-v0", "Parts-v0"):
        with torch.enable_grad():
            train_torch.main(parse([*flags.split(), "--env-id", env_id], CONFIGS))
        (folder,) = Path("logs/torch_logs").glob(f"{env_id}*")
        agents.append(read_checkpoint(folder / "last.ckpt")["agent"])
    whole, parts = agents
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)


def test_collecting_leaves_the_global_generator_alone() -> None:
    collecting = collector("CustomEnv-v0", 4)
    before = torch.get_rng_state()
    collecting.collect(20)
    assert torch.equal(torch.get_rng_state(), before)
