"""`Workers`: environments in groups, a process each, do what they do one after the other in the rank's own process."""

import json
import os
import re
import signal
import time
from collections.abc import Callable
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import pytest
import torch

from rl.envs.config import EnvConfig
from rl.envs.make import make_envs
from rl.envs.options import _warn
from rl.envs.seeded import SeededEpisodes
from rl.envs.workers import Workers
from rl.errors import EnvError, OneEnvError, UserError
from rl.reporting import exit_file
from rl.run.checkpoint import from_bytes, to_bytes
from rl.seeding import environment_seed
from tests.forks import forked
from tests.probes import Obs, Probe


class Second(Probe):
    """Does what a test sets at the third step of the second environment of a run."""

    length = 1_000_000
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    do: Callable[[], Any] = staticmethod(lambda: None)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Obs, dict[str, Any]]:
        self.second = seed == environment_seed(7, 1)
        return super().reset(seed=seed, options=options)

    def observe(self) -> Obs:
        if self.second and self.elapsed == 3:
            Second.do()
        return np.zeros(1, np.float32)


class Keeping(Probe):
    """Observes the action before the last, which it has kept."""

    length = 5
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def observe(self) -> Obs:
        return self.actions[-2] if self.elapsed > 1 else np.zeros(1, np.float32)

    def reward(self, action: Any) -> float:
        self.actions = [action] if self.elapsed == 0 else [*self.actions, action]
        return float(action[0])


class Growing(Probe):
    """Every environment of a process has one more action than the one before."""

    made = 0

    def __init__(self) -> None:
        self.action_space = gym.spaces.Discrete(2 + Growing.made)
        Growing.made += os.getpid() != Growing.pid

    pid = os.getpid()


for probe in (Second, Keeping, Growing):
    gym.register(f"{probe.__name__}-v0", entry_point=probe)


def config_of(env_id: str, num_workers: int, **changes: Any) -> EnvConfig:
    """Without workers: one after the other."""
    vectorization = "async" if num_workers else "sync"
    return EnvConfig(env_id, num_envs=5, vectorization=vectorization, num_workers=num_workers or None, **changes)


def rolled(env_id: str, num_workers: int) -> list[torch.Tensor]:
    """All that 60 steps return, half of them after a resume."""
    config, seen = config_of(env_id, num_workers), []
    with closing(make_envs(config, training=True)) as envs, closing(make_envs(config, training=True)) as resumed:
        seen.append(envs.reset(seed=3))
        generator = torch.Generator().manual_seed(0)
        discrete = "CartPole" in env_id
        for number in range(60):
            if number == 30:
                state = from_bytes(to_bytes({"envs": envs.state_dict()}))["envs"]
                assert torch.equal(resumed.load_state_dict(state, 30), seen[-8])
            noise = torch.rand(5, 1, generator=generator)
            action = (noise < 0.5).long().flatten() if discrete else 2 * noise - 1
            seen += (envs if number < 30 else resumed).step(action)
    return seen


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "Keeping-v0"])
def test_rollouts_have_the_same_bits_with_any_number_of_workers(env_id: str) -> None:
    expected = rolled(env_id, num_workers=0)
    for num_workers in (1, 2, 5):
        assert all(map(torch.equal, expected, rolled(env_id, num_workers)))


def test_environments_are_shared_out_among_workers_in_order() -> None:
    with closing(Workers(lambda: SeededEpisodes(Keeping), 7, 3)) as envs:
        assert len(envs.processes) == 3
        assert [n for span in envs.spans for n in span] == list(range(7))
        assert {len(span) for span in envs.spans} == {2, 3} and all(a.stop == b.start for a, b in pairwise(envs.spans))
        envs.set_attr("index", list(range(10, 17)))
        assert envs.call("index") == tuple(range(10, 17))


def test_as_many_workers_as_the_ranks_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl.envs.make.num_cores", lambda: 6)
    for world_size, num_envs, expected in ((1, 64, 6), (2, 64, 3), (8, 64, 1), (1, 2, 2)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(world_size))
        with closing(make_envs(EnvConfig("Keeping-v0", num_envs=num_envs, vectorization="async"))) as envs:
            assert len(envs.envs.processes) == expected
    with pytest.raises(UserError, match="--num-workers 0: must be at least 1"):
        EnvConfig(num_workers=0).check()


def steps(config: EnvConfig) -> None:
    with closing(make_envs(config)) as envs:
        envs.reset(seed=7)
        for _ in range(4):
            envs.step(torch.zeros(5, 1))


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize(
    ("do", "what"),
    [
        (lambda: os._exit(3), "the process of environment 1 ended with code 3"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "the process of environment 1 was killed by signal 9"),
        (lambda: 1 // 0, "environment 1 raised ZeroDivisionError: "),
    ],
)
def test_the_environment_of_a_group_that_fails_is_named(
    do: Callable[[], Any], what: str, num_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Second, "do", staticmethod(do))
    with pytest.raises(OneEnvError, match=f"^--env-id Second-v0: {re.escape(what)}") as raised:
        steps(config_of("Second-v0", num_workers))
    assert str(raised.value).endswith(" starts (rank 0, step 3 of the evaluation)")


@pytest.mark.parametrize("num_workers", [1, 5])
def test_the_environment_of_a_group_that_hangs_is_named(num_workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Second, "do", staticmethod(lambda: time.sleep(1000)))
    exit_file.path = Path("exit.json")
    code, said = forked(lambda: steps(config_of("Second-v0", num_workers, env_timeout=0.5)))
    assert code == 71 and json.loads(exit_file.path.read_text())["exit_code"] == 71
    (line,) = said.splitlines()
    assert line.startswith(
        "error: --env-id Second-v0: environment 1 has not answered for --env-timeout 0.5 s, at step 3 of"
    )


def test_workers_die_with_their_rank() -> None:
    def body() -> None:
        envs = make_envs(config_of("Second-v0", 2))
        Path("pids").write_text(" ".join(str(process.pid) for process in envs.envs.processes))
        os.kill(os.getpid(), signal.SIGKILL)

    assert forked(body)[0] == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while any(map(lives, map(int, Path("pids").read_text().split()))):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def lives(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_environments_with_other_spaces_than_the_first_are_refused() -> None:
    with pytest.raises(EnvError, match=r"environment 1 cannot be made: ValueError: its spaces are .*Discrete\(3\)"):
        make_envs(config_of("Growing-v0", 1))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_mujoco_gives_each_warning_once_and_leaves_no_file(num_workers: int) -> None:
    mujoco = pytest.importorskip("mujoco", reason="MuJoCo is not installed")

    def body() -> None:
        mujoco.set_mju_user_warning(None)
        _warn.cache_clear()
        config = config_of("HalfCheetah-v5", num_workers)
        for which in (config, config.for_evaluation(2)):
            with closing(make_envs(which, training=which is config)) as envs:
                envs.reset(seed=1)
        for _ in range(2):
            mujoco.get_mju_user_warning()("time step is large")

    code, said = forked(body)
    assert (code, said) == (0, "note: MuJoCo: time step is large\n")  # and nothing of 'settotalmass' in its own model
    assert not list(Path().glob("MUJOCO_LOG*"))
