"""Execution modes: the same results in each, for every shape, and a note if one is not available."""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from rl import tree
from rl.collector import make_collector
from rl.compile import Execution, _Specialized, compiled
from rl.compilers import compiler_missing
from rl.config import Config
from rl.envs.config import EnvConfig
from rl.envs.make import make_envs
from rl.errors import UserError
from rl.learners.ppo import Estimates, PPOConfig
from rl.models.agent import Agent, Network
from rl.models.linear import FEW_ROWS
from rl.rollout import Rollout
from rl.session import Session
from tests import probes  # noqa: F401 (registers them)

CPU = torch.device("cpu")


def collect(env_id: str, vectorization: str, execution: Execution, num_envs: int) -> tuple[list[Rollout], Estimates]:
    """Two rollouts, and the estimates of the second."""
    envs = make_envs(EnvConfig(env_id, num_envs=num_envs, vectorization=vectorization))
    torch.manual_seed(3)
    policy = Agent(envs.spaces, Network(hidden_sizes=(8, 8), ortho_init=False))
    collector = make_collector(envs, policy, seed=1, first_env=0, execution=execution)
    estimate = execution.loop(partial(PPOConfig().build().estimate, policy))
    with torch.no_grad():
        rollouts = [collector.collect(150) for _ in range(2)]
        return rollouts, estimate(rollouts[1])


@pytest.mark.parametrize(
    ("env_id", "vectorization", "num_envs"),
    [("CustomEnv-v0", "tensor", FEW_ROWS + 1), ("Pendulum-v1", "tensor", 3), ("CartPole-v1", "auto", 3)],
)
def test_compiled_rollouts_and_estimates_are_those_of_eager_ones(
    env_id: str, vectorization: str, num_envs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rl.collector.STEPS_AT_ONCE", 2)  # which compiles in less time
    execution = Execution("compile")
    (rollouts, estimates), (eager_rollouts, eager_estimates) = (
        collect(env_id, vectorization, execution, num_envs),
        collect(env_id, vectorization, Execution(), num_envs),
    )
    for rollout, eager in zip(rollouts, eager_rollouts, strict=True):
        for name, field, expected in zip(Rollout._fields, tree.leaves(rollout), tree.leaves(eager), strict=False):
            if env_id == "CustomEnv-v0" and name not in ("log_prob", "value", "next_value"):
                assert torch.equal(field, expected), name
            # Pendulum doubles an error of rounding every few steps.
            assert torch.allclose(field.float(), expected.float(), atol=1e-2 if env_id == "Pendulum-v1" else 1e-4), name
        assert rollout.truncated.any() or rollout.terminated.any() or rollout is rollouts[0]
    for field, expected in zip(estimates, eager_estimates, strict=True):
        assert torch.allclose(field, expected, rtol=1e-2 if env_id == "Pendulum-v1" else 1e-5, atol=1e-2)
    assert execution.compile_seconds > 0


@pytest.mark.parametrize(
    ("env_id", "num_envs", "network"),
    [
        pytest.param("MinAtar/Breakout-v1", 2, Network((8,), shared_encoder=True), id="few images"),
        pytest.param("CustomEnv-v0", FEW_ROWS + 1, Network((8,)), id="many environments"),
        pytest.param("Recall-v0", 2, Network((8,), memory="gru", memory_size=4), id="memory"),
    ],
)
def test_a_traced_rollout_is_that_of_an_eager_loop(
    env_id: str, num_envs: int, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tracing is what could fail, and takes a tenth of the time of compiling.
    traced = partial(torch.compile, fullgraph=True, dynamic=False, backend="eager")
    monkeypatch.setattr("rl.compile.compiled", lambda function, _: traced(function))
    rollouts = []
    for execution in (Execution("compile"), Execution()):
        envs = make_envs(EnvConfig(env_id, num_envs=num_envs, vectorization="tensor"))
        torch.manual_seed(3)
        policy = Agent(envs.spaces, network)
        keeps = not envs.spaces.has_images()
        collector = make_collector(envs, policy, seed=1, first_env=0, execution=execution, keeps_next_obs=keeps)
        with torch.no_grad():
            rollouts += [(collector.collect(32), collector.collect(32))[1]]
    fast, eager = rollouts
    assert (fast.next_obs is None) == (eager.next_obs is None) == envs.spaces.has_images()
    for name, field, expected in zip(Rollout._fields, fast, eager, strict=True):
        for part, other in zip(tree.leaves(field), tree.leaves(expected), strict=True):
            assert part.dtype == other.dtype and torch.allclose(part.float(), other.float(), atol=1e-5), name
    assert (fast.terminated | fast.truncated).any()


def test_a_function_is_compiled_once_and_is_not_taken_for_another() -> None:
    execution = Execution("compile")
    scaled = execution.step(lambda tensor, factor: tensor * factor)
    other = execution.step(lambda tensor, factor: tensor + factor)
    matrix = torch.arange(6.0).view(2, 3)
    assert torch.equal(scaled(matrix, 2), matrix * 2) and torch.equal(other(matrix, 2), matrix + 2)
    seconds = execution.compile_seconds
    assert torch.equal(scaled(matrix + 1, 2), (matrix + 1) * 2)
    assert execution.compile_seconds == seconds


class Sum(NamedTuple):
    value: torch.Tensor


def test_loops_come_from_the_cache_if_their_bodies_and_what_they_close_over_are_the_same() -> None:
    start, numbers = torch.tensor(2.0), torch.arange(1.0, 5)

    def looped(operation: Callable[..., torch.Tensor], factor: float) -> tuple[float, int]:
        """What a loop with this operation gives, and how often the cache had it."""

        def step(before: Sum, number: torch.Tensor) -> tuple[Sum, Sum]:
            after = Sum(operation(before.value, factor * number))
            return after, after

        def loop(start: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
            return tree.scan(step, Sum(start), (numbers,), Sum)[0].value

        torch._dynamo.utils.counters.clear()
        value = Execution("compile").loop(loop)(start, numbers)
        return float(value), torch._dynamo.utils.counters["inductor"]["fxgraph_cache_hit"]

    with torch._inductor.utils.fresh_cache():
        assert looped(torch.add, 1.0) == (12, 0)
        assert looped(torch.sub, 1.0) == (-8, 0)
        assert looped(torch.add, 2.0) == (22, 0)
        assert looped(torch.add, 1.0) == (12, torch.__version__ >= "2.13")
    headers = Path(torch._inductor.codecache._HEADER_DIR)  # compiled in advance, and read unchecked
    assert headers.is_dir()
    assert headers.parent.stat().st_mode & 0o077 == 0


def test_what_cannot_be_compiled_runs_as_it_is_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    numbers = torch.arange(3.0)
    halved = Execution("compile").step(lambda tensor: tensor * (0.5 if tensor.sum().item() > 0 else 1))
    assert torch.equal(halved(numbers), numbers * 0.5) and torch.equal(halved(-numbers), -numbers)
    note = capsys.readouterr().err
    assert note.startswith("note: a part of this run is not compiled, which takes longer: ")
    assert note.count("\n") == 1

    # torch 2.13 fails to trace a gradient through a scan, with an error that is none of its compiler's own.
    def last(start: torch.Tensor) -> torch.Tensor:
        return tree.scan(lambda sum, x: (Sum(sum.value + x), Sum(sum.value)), Sum(start), (numbers,), Sum)[0].value

    slope = Execution("compile").step(torch.func.grad(last))
    assert float(slope(torch.ones(()))) == 1
    assert "is not compiled" in capsys.readouterr().err

    # A compiler that passes the test at the start, and breaks down later.
    compiler = tmp_path / "breaks"
    compiler.write_text('#!/bin/sh\ncase "$*" in *.cpp*) echo "error: disk full" >&2; exit 1;; esac\nexec g++ "$@"\n')
    compiler.chmod(0o700)
    monkeypatch.setenv("CXX", str(compiler))
    assert compiler_missing(CPU) is None
    with torch._inductor.utils.fresh_cache():
        doubled = Execution("compile").step(lambda tensor: tensor.sin() * 2)
        assert torch.equal(doubled(numbers), numbers.sin() * 2)
    assert capsys.readouterr().err == "note: a part of this run is not compiled, which takes longer: error: disk full\n"


def test_without_a_compiler_a_function_runs_once_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    calls: list[torch.Tensor] = []
    noted = Execution("compile").step(calls.append)
    for number in (1, 2):
        noted(torch.zeros(3))
        assert len(calls) == number


def test_an_error_in_what_is_compiled_is_that_of_the_plain_function() -> None:
    multiplied = Execution("compile").step(lambda tensor: tensor @ torch.ones(4))
    with pytest.raises(RuntimeError, match="size mismatch") as raised:
        multiplied(torch.ones(2, 3))
    assert type(raised.value) is RuntimeError and raised.value.__context__ is None


def test_eager_functions_are_themselves() -> None:
    execution = Execution()
    assert execution.step(abs) is execution.loop(abs) is execution.part(abs) is abs


def test_by_default_only_long_runs_are_compiled_on_the_cpu() -> None:
    assert Config(total_timesteps=100_000).make_execution(CPU).mode == "eager"
    assert Config(total_timesteps=100_000_000).make_execution(CPU).mode == "compile"
    one = Config(env=EnvConfig(num_envs=1), learner=PPOConfig(update_epochs=1, num_minibatches=1))
    assert one.make_execution(CPU).mode == "compile"  # a million time steps, although few gradient steps


def test_after_its_first_call_a_compiled_function_is_called_without_dynamo() -> None:
    scale = torch.full((2,), 3.0)
    function = compiled(lambda tensor, others: (tensor * scale, [other + 1 for other in others]), CPU)
    first = function(torch.ones(2), (torch.zeros(1),))
    function.first = None  # type: ignore[attr-defined]
    scale.fill_(5)
    again = function(torch.full((2,), 2.0), (torch.ones(1),))
    assert tree.map(torch.Tensor.tolist, (first, again)) == (([3, 3], [[1]]), ([10, 10], [[2]]))


def test_a_specialised_function_minds_all_that_it_may_depend_on() -> None:
    made: list[int] = []

    def make() -> Callable[[torch.Tensor], torch.Tensor]:
        made.append(1)
        return lambda tensor: tensor

    function, tensor = _Specialized(make, make()), torch.zeros(3)
    calls: list[tuple[torch.Tensor, str | None]] = [(tensor, None), (torch.ones(3, requires_grad=True), None)]
    calls += [(tensor.to("meta"), None), (tensor, "cpu"), (tensor, "cuda"), (tensor.double(), None)]
    calls += [(torch.zeros(2, 3), None), (torch.zeros(3, 2).T, None)]
    for _ in range(2):
        for argument, autocast in calls:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # there is no GPU
                torch.set_autocast_enabled(autocast or "cpu", autocast is not None)
            function(argument)
            torch.set_autocast_enabled(autocast or "cpu", False)
    assert len(made) == 1 + len(calls)


def test_each_rank_records_on_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[torch.device] = []
    monkeypatch.setattr("torch.cuda.set_device", current.append)
    for device in (torch.device("cpu"), torch.device("cuda", 1)):
        with Session(Config(env=EnvConfig(num_envs=1)), "logs", device):
            pass
    assert current == [torch.device("cuda", 1)]


def test_cuda_graphs_on_the_cpu_are_refused() -> None:
    with pytest.raises(UserError, match="--execution cudagraphs: needs a GPU"):
        Config(execution="cudagraphs").check()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_recorded_functions_give_the_eager_results_and_leave_state_as_if_called_once() -> None:
    total = torch.zeros((), device="cuda")

    def add(values: torch.Tensor) -> torch.Tensor:
        total.add_(values.sum())
        return values * 2

    recorded = Execution("cudagraphs", "cuda").step(add, state=[total])
    for number in (1.0, 2.0, 3.0):
        assert torch.equal(recorded(torch.full((4,), number, device="cuda")).cpu(), torch.full((4,), 2 * number))
    assert total.item() == 24
