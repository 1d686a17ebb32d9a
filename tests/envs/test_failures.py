"""Environments that fail: one line names the environment, the step, the seed to reproduce the episode, and the rank."""

import json
import math
import multiprocessing
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import pytest
import torch

from rl.envs.config import EnvConfig
from rl.envs.custom import CustomVectorEnv
from rl.envs.gym_envs import GymEnvs
from rl.envs.make import make_envs
from rl.envs.seeded import SeededEpisodes
from rl.errors import EnvError, OneEnvError, StopError
from rl.models.agent import Agent, Network
from rl.reporting import exit_file, reported
from rl.run.control import Signals
from rl.run.evaluation import evaluate, record_video
from rl.seeding import environment_seed, episode_seed
from tests.forks import forked
from tests.probes import Obs, Probe

OK = np.zeros(1, np.float32), 1.0, False, False, {}
SEED = environment_seed(7, 0)


class Odd(Probe):
    """Fails at its third step in the way that a test sets."""

    length = 1_000_000
    do: Callable[[], Any] = staticmethod(lambda: OK)

    def step(self, action: Any) -> Any:
        result = super().step(action)
        return Odd.do() if self.elapsed == 3 else result


class Stuck(Probe):
    """Hangs or raises in the method that a test sets."""

    length = 1_000_000
    where = ""
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.stop_at("constructor")

    def stop_at(self, place: str) -> None:
        if Stuck.where == "slow":
            time.sleep(0.2)
        if Stuck.where == place:
            time.sleep(1000)
        if Stuck.where == f"raise in {place}":
            raise ConnectionError("the simulator\nis gone")

    def become(self, where: str) -> None:
        Stuck.where = where

    def reset(self, **kwargs: Any) -> tuple[Obs, dict[str, Any]]:
        self.stop_at("reset")
        return super().reset(**kwargs)

    def observe(self) -> Obs:
        self.stop_at(f"step {self.elapsed}")
        return np.zeros(1, np.float32)

    def render(self) -> Any:
        self.stop_at("render")
        return np.zeros((32, 32, 3), np.uint8)

    def close(self) -> None:
        self.stop_at("close")


class LateToMake(Probe):
    """The second environment of a process cannot be made."""

    def __init__(self) -> None:
        if os.getpid() != LateToMake.pid:
            raise RuntimeError("no licence\nfor two")

    pid = os.getpid()


class Meddling(Probe):
    """Changes global settings of torch."""

    def __init__(self) -> None:
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(3)


for probe in (Odd, Stuck, LateToMake, Meddling):
    gym.register(f"{probe.__name__}-v0", entry_point=probe)


class BadTextError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def throw(error: BaseException) -> Any:
    raise error


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    Odd.do, Stuck.where = staticmethod(lambda: OK), ""


def with_(position: int, value: Any) -> Callable[[], Any]:
    return lambda: (*OK[:position], value, *OK[position + 1 :])


@pytest.mark.parametrize(
    ("do", "what"),
    [
        (with_(1, "1.0"), "gave '1.0' for reward; must be one number"),
        (with_(1, None), "gave None for reward"),
        (with_(1, 1j), "gave 1j for reward"),
        (with_(1, np.array([1.0, 2.0])), "gave array([1., 2.]) for reward"),
        (with_(2, "no"), "gave 'no' for terminated; must be one number"),
        (with_(3, None), "gave None for truncated"),
        (with_(2, np.array([True, False])), "gave array([ True, False]) for terminated"),
        (with_(2, 2), "gave 2 for terminated; must be True or False"),
        (with_(3, math.nan), "gave nan for truncated; must be True or False"),
        (with_(1, torch.tensor(1.0, requires_grad=True)), "raised RuntimeError: Can't call numpy() on Tensor that"),
        (with_(1, 1e308), "gave an observation or a reward that is not finite: [0.0], inf"),
        (with_(4, None), "instead of an observation, a reward, two booleans and a dictionary"),
        (lambda: OK[:4], "instead of an observation, a reward, two booleans and a dictionary"),
        (lambda: None, "gave None instead of an observation, a reward, two booleans and a dictionary"),
        (with_(0, np.array(["a"])), "gave an observation of <U1, array(['a'], dtype='<U1'); must be numbers"),
        (lambda: (np.array(["a"]), 1.0, True, False, {}), "gave an observation of <U1"),
        (with_(0, [None]), "gave an observation of object"),
        (with_(0, None), "gave an observation of shape (); its space says (1,)"),
        (with_(0, np.array([np.inf], np.float32)), "gave an observation or a reward that is not finite: [inf], 1"),
        (lambda: throw(ValueError("one\ntwo\n\nthree")), "raised ValueError: one two three at "),
        (lambda: throw(ValueError("x" * 300_000)), f"raised ValueError: {'x' * 285}... at "),
        (lambda: throw(BadTextError()), "raised BadTextError: (its message cannot be printed) at "),
        (lambda: throw(type("Odd", (BaseException,), {})("odd")), "raised Odd: odd at "),
        (lambda: sys.exit(0), "raised SystemExit: 0 at "),
        (lambda: sys.exit("licence expired"), "raised SystemExit: licence expired at "),
        (lambda: throw(KeyboardInterrupt()), "raised KeyboardInterrupt at "),
    ],
)
def test_what_an_environment_does_wrong_names_it_in_one_line(do: Callable[[], Any], what: str) -> None:
    envs = make_envs(EnvConfig("Odd-v0", num_envs=2, vectorization="sync"))
    envs.reset(seed=7)
    for _ in range(2):
        envs.step(torch.tensor([0, 1]))
    Odd.do = staticmethod(do)
    with Signals() as requests, pytest.raises(OneEnvError) as raised:
        requests.in_loop = True
        envs.step(torch.tensor([0, 1]))
    message = str(raised.value)
    assert message.startswith("--env-id Odd-v0: environment 0 ") and what in message
    place = f", at step 3 of the episode that reset(seed={SEED}) starts (rank 0, step 3 of the evaluation)"
    assert message.endswith(place) and len(message.splitlines()) == 1 and raised.value.exit_code == 71


@pytest.mark.parametrize(
    "result",
    [with_(1, np.array([2.0])), with_(1, 2), with_(1, np.int32(2)), with_(2, 0), with_(3, np.False_), with_(0, [0.0])],
)
def test_numbers_are_taken_whatever_their_type(result: Callable[[], Any]) -> None:
    envs = make_envs(EnvConfig("Odd-v0", num_envs=1, vectorization="sync"))
    envs.reset(seed=7)
    Odd.do = staticmethod(result)
    steps = [envs.step(torch.tensor([0])) for _ in range(3)]
    assert steps[2].reward.item() == float(np.ravel(result()[1])[0]) and not steps[2].terminated.item()


@pytest.mark.parametrize(
    ("number", "in_loop", "expected"),
    [(signal.SIGTERM, False, StopError), (signal.SIGINT, False, StopError), (signal.SIGINT, True, KeyboardInterrupt)],
)
def test_a_signal_that_comes_while_an_environment_runs_is_not_its_failure(
    number: signal.Signals, in_loop: bool, expected: type[BaseException]
) -> None:
    envs = make_envs(EnvConfig("Odd-v0", num_envs=1, vectorization="sync"))
    envs.reset(seed=7)
    Odd.do = staticmethod(lambda: os.kill(os.getpid(), number) or OK)
    with Signals() as requests, pytest.raises(expected):
        requests.in_loop, requests.stop = in_loop, in_loop and int(number)  # the second time, in the loop
        for _ in range(3):
            envs.step(torch.tensor([0]))


def test_an_interrupt_before_there_is_a_handler_is_not_a_failure_either() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell has its background jobs ignore
    envs = make_envs(EnvConfig("Odd-v0", num_envs=1, vectorization="sync"))
    envs.reset(seed=7)
    Odd.do = staticmethod(lambda: os.kill(os.getpid(), signal.SIGINT) or OK)
    with pytest.raises(KeyboardInterrupt):
        for _ in range(3):
            envs.step(torch.tensor([0]))


class OddBatch(CustomVectorEnv):
    def step(self, actions: Any) -> Any:
        return Odd.do(self.num_envs)


@pytest.mark.parametrize(
    ("position", "value", "what"),
    [
        (1, np.array(["1.0", "1.0"]), "the batch of environments gave numbers of type <U3 and shape (2,) for reward"),
        (2, np.array(["no", "no"]), "the batch of environments gave numbers of type <U2 and shape (2,) for terminated"),
        (1, np.ones((2, 1)), "the batch of environments gave numbers of type float64 and shape (2, 1) for reward"),
        (1, np.ones(3), "the batch of environments gave numbers of type float64 and shape (3,) for reward"),
        (4, None, "instead of four arrays and a dictionary"),
        (
            1,
            np.array([1.0, np.nan]),
            "environment 1 gave an observation or a reward that is not finite: [0.0, 0.0], nan",
        ),
        (None, SystemExit(0), "the environments raised SystemExit: 0"),
        (3, np.ones(2, bool), "the environments raised KeyError: 'final_obs'"),
    ],
)
def test_a_batched_class_that_misbehaves_is_named_with_its_seed(position: int | None, value: Any, what: str) -> None:
    def step(num_envs: int) -> Any:
        if position is None:
            raise value
        result = [np.zeros((num_envs, 2)), np.ones(num_envs), np.zeros(num_envs, bool), np.zeros(num_envs, bool), {}]
        return (*result[:position], value, *result[position + 1 :])

    envs = GymEnvs(OddBatch(2), "Batch-v0")
    envs.reset(seed=7)
    Odd.do = staticmethod(step)
    with pytest.raises(OneEnvError) as raised:
        envs.step(torch.tensor([0, 1]))
    assert what in str(raised.value) and f"the batch that reset(seed={SEED}) starts (rank 0, step 1" in str(
        raised.value
    )


class NaNAfterReset(Probe):
    """The first observation of its second episode is NaN."""

    length = 3

    def observe(self) -> Obs:
        self.first = getattr(self, "first", 0) + (self.elapsed == 0)
        return np.float32([np.nan if self.first == self.bad and self.elapsed == 0 else 0.5])


@pytest.mark.parametrize("bad", [1, 2])
def test_the_observation_that_is_not_finite_is_the_one_that_is_printed(bad: int) -> None:
    NaNAfterReset.bad = bad
    vector = gym.vector.SyncVectorEnv([lambda: SeededEpisodes(NaNAfterReset)], autoreset_mode="SameStep")
    envs = GymEnvs(vector, "NaN-v0", seeded=True)
    with pytest.raises(OneEnvError) as raised:
        envs.reset(seed=7)
        for _ in range(3):
            envs.step(torch.tensor([0]))
    seed = episode_seed(SEED, bad - 1)
    assert "is not finite: [nan]" in str(raised.value)
    assert f", at step 0 of the episode that reset(seed={seed}) starts (rank 0" in str(raised.value)


def played(config: EnvConfig, num_steps: int = 5) -> tuple[Any, dict[str, Any]]:
    envs = make_envs(config, training=True)
    envs.reset(seed=7)
    for _ in range(num_steps):
        envs.step(torch.zeros(config.num_envs, 1))
    return envs, envs.state_dict()


def resume_hanging(config: EnvConfig) -> None:
    envs, state = played(config)
    Stuck.where = "step 3"
    envs.load_state_dict(state, 5)


def film(config: EnvConfig) -> None:
    import moviepy  # noqa: F401 (which takes its time)

    policy = Agent(make_envs(config).spaces, Network())
    record_video(policy, config, Path("film.mp4"), seed=7, max_steps=5)


def evaluated(config: EnvConfig) -> None:
    envs = make_envs(config)
    evaluate(Agent(envs.spaces, Network()), envs, seed=7, max_steps=5)


AT_3 = f"at step 3 of the episode that reset(seed={SEED}) starts"
AT_3_RE = re.escape(AT_3)
AT_0 = AT_3.replace("step 3", "step 0")


@pytest.mark.parametrize(
    ("body", "where", "vectorization", "message"),
    [
        (make_envs, "constructor", "sync", "has not answered for --env-timeout 0.5 s while it was made and tried"),
        (played, "reset", "sync", "has not answered for --env-timeout 0.5 s while it was made and tried"),
        (evaluated, "reset", "sync", f"environment 0 has not answered for --env-timeout 0.5 s, {AT_0}"),
        (evaluated, "reset", "async", f"environment 0 has not answered for --env-timeout 0.5 s, {AT_0}"),
        (evaluated, "step 3", "sync", f"environment 0 has not answered for --env-timeout 0.5 s, {AT_3}"),
        (evaluated, "step 3", "async", f"environment 0 has not answered for --env-timeout 0.5 s, {AT_3}"),
        (resume_hanging, "", "sync", f"environment 0 has not answered for --env-timeout 0.5 s, {AT_3}"),
        (film, "render", "sync", f"environment 0 has not answered for --env-timeout 0.5 s, {AT_0}"),
    ],
)
def test_an_environment_that_hangs_ends_the_run_wherever_it_does(
    body: Callable[[EnvConfig], None], where: str, vectorization: str, message: str
) -> None:
    Stuck.where = where
    config = EnvConfig("Stuck-v0", num_envs=2, vectorization=vectorization, env_timeout=0.5)
    began_at = time.monotonic()
    exit_file.path = Path("exit.json")
    code, said = forked(lambda: body(config))
    assert json.loads(exit_file.path.read_text())["exit_code"] == 71
    assert code == 71 and time.monotonic() - began_at < 60
    (line,) = said.splitlines()
    assert line.startswith(f"error: --env-id Stuck-v0: {message}")


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_what_makes_progress_is_not_hung_however_long_it_takes(vectorization: str) -> None:
    def body() -> None:
        Stuck.where = "slow"
        config = EnvConfig("Stuck-v0", num_envs=4, vectorization=vectorization, env_timeout=1.5)
        with closing(make_envs(config)) as envs:  # 1.6 s in all, and so is each step of sync
            envs = GymEnvs(envs.envs, "Stuck-v0", seeded=True, memory="episodes", timeout_seconds=1.5)
            envs.reset(seed=7)
            for _ in range(3):
                envs.step(torch.zeros(4, 1))
            envs.load_state_dict(envs.state_dict(), 3)

    assert forked(body) == (0, "")


def test_an_episode_that_cannot_be_played_again_ends_the_resume() -> None:
    envs, state = played(EnvConfig("Stuck-v0", num_envs=2, vectorization="sync"))
    Stuck.where = "raise in step 3"
    with pytest.raises(
        OneEnvError, match=rf"environment 0 raised ConnectionError: the simulator is gone at .*, {AT_3_RE}"
    ):
        envs.load_state_dict(state, 5)


@pytest.mark.parametrize("where", ["close", "raise in close"])
@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_an_environment_that_does_not_close_is_left(where: str, vectorization: str) -> None:
    def body() -> None:
        envs = make_envs(EnvConfig("Stuck-v0", num_envs=2, vectorization=vectorization, env_timeout=0.5))
        envs.envs.call("become", where)
        processes = [child.pid for child in multiprocessing.active_children()]
        envs.close()
        # Not `active_children`: the abandoned call waits for them too, and may have reaped one without noting it yet.
        assert not any(map(psutil.pid_exists, processes))

    how = "has not returned for 0.5 s" if where == "close" else "raised ConnectionError: the simulator is gone"
    code, said = forked(body)
    assert code == 0, said
    assert said.startswith(f"note: --env-id Stuck-v0: close() {how}") and said.count("\n") == 1


def test_an_environment_whose_process_cannot_make_it_keeps_its_reason(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        EnvError, match=r"--env-id LateToMake-v0: environment . cannot be made: RuntimeError: no licence"
    ):
        make_envs(EnvConfig("LateToMake-v0", num_envs=2, vectorization="async"))
    assert capfd.readouterr().err == ""


def test_what_goes_wrong_before_the_run_names_seed_and_rank_too() -> None:
    Odd.do = staticmethod(lambda: throw(SystemExit(0)))
    with pytest.raises(
        EnvError, match=r"environment 0 raised SystemExit: 0 at .*, at step 3 .* starts \(rank 0, before"
    ):
        make_envs(EnvConfig("Odd-v0", num_envs=1, vectorization="sync"), training=True)


def test_too_few_open_files_are_one_line() -> None:
    def body() -> None:
        num_open = len(os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (num_open + 12, num_open + 12))
        with reported():
            make_envs(EnvConfig("Odd-v0", num_envs=16, vectorization="async", num_workers=16))

    code, said = forked(body)
    assert code == 71 and said.splitlines() == [
        "error: --env-id Odd-v0: cannot be made: OSError: [Errno 24] Too many open files"
    ]


def test_torch_is_as_it_was_after_an_environment_is_made() -> None:
    make_envs(EnvConfig("Meddling-v0", num_envs=1, vectorization="sync"), training=True)
    assert torch.is_grad_enabled() and torch.get_default_dtype() is torch.float32 and torch.get_num_threads() == 1
