"""Ways of running: the same results whichever is chosen, for every shape, and a word where one cannot be had."""

from functools import partial

import pytest
import torch

from rl.agent import Agent, Network
from rl.config import Config
from rl.envs.stepping import EnvConfig, make_envs
from rl.errors import UserError
from rl.execution import Execution
from rl.learners.ppo import PPO, Estimates
from rl.rollout import Rollout, make_collector
from tests import probes  # noqa: F401 (registers them)

CPU = torch.device("cpu")


def collect(env_id: str, backend: str, execution: Execution) -> tuple[list[Rollout], Estimates]:
    """Two rollouts and what an estimate says of the second."""
    envs = make_envs(EnvConfig(env_id, num_envs=3, env_backend=backend))
    torch.manual_seed(3)
    policy = Agent(envs.spaces, Network(hidden_size=8, ortho_init=False))
    collector = make_collector(envs, policy, seed=1, first_env=0, execution=execution)
    estimate = execution.loop(partial(PPO().estimate, policy))
    with torch.no_grad():
        rollouts = [collector.collect(150) for _ in range(2)]
        return rollouts, estimate(rollouts[1])


@pytest.mark.parametrize(
    ("env_id", "backend"), [("CustomEnv-v0", "tensor"), ("Pendulum-v1", "tensor"), ("CartPole-v1", "gymnasium")]
)
def test_compiled_rollouts_and_estimates_are_those_of_eager_ones(env_id: str, backend: str) -> None:
    execution = Execution("compiled")
    (rollouts, estimates), (eager_rollouts, eager_estimates) = (
        collect(env_id, backend, execution),
        collect(env_id, backend, Execution()),
    )
    for rollout, eager in zip(rollouts, eager_rollouts, strict=True):
        for name, field, expected in zip(Rollout._fields, rollout, eager, strict=True):
            if env_id == "CustomEnv-v0" and name not in ("log_prob", "value"):
                assert torch.equal(field, expected), name
            # Pendulum doubles an error of rounding every few steps.
            assert torch.allclose(field.float(), expected.float(), atol=1e-2 if env_id == "Pendulum-v1" else 1e-5), name
        assert rollout.truncated.any() or rollout.terminated.any() or rollout is rollouts[0]
    for field, expected in zip(estimates, eager_estimates, strict=True):
        assert torch.allclose(field, expected, rtol=1e-2 if env_id == "Pendulum-v1" else 1e-5, atol=1e-2)
    assert execution.compile_seconds > 0


def test_a_function_is_compiled_once_for_every_signature() -> None:
    execution = Execution("compiled")
    scaled = execution.step(lambda tensor, factor: tensor * factor)
    other = execution.step(lambda tensor, factor: tensor + factor)
    matrix = torch.arange(6.0).view(2, 3)
    for tensor, factor in ((matrix, 2), (matrix.T, 2), (matrix.double(), 2), (matrix, 3), (matrix, 2)):
        assert torch.equal(scaled(tensor, factor), tensor * factor)
    assert torch.equal(other(matrix, 2), matrix + 2)
    seconds = execution.compile_seconds
    scaled(matrix, 2)
    assert execution.compile_seconds == seconds


def test_eager_functions_are_themselves() -> None:
    execution = Execution()
    assert execution.step(abs) is execution.loop(abs) is execution.part(abs) is abs


def test_by_default_only_long_runs_are_compiled_on_the_cpu() -> None:
    assert Config(total_timesteps=1_000_000).make_execution(CPU).mode == "eager"
    assert Config(total_timesteps=100_000_000).make_execution(CPU).mode == "compiled"


def test_without_a_compiler_the_run_is_eager_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert Config(execution="compiled").make_execution(CPU).mode == "eager"
    assert capsys.readouterr().err == (
        "note: a C++ compiler (no-such-compiler) is missing, so nothing is compiled and the run takes longer\n"
    )


def test_cuda_graphs_on_the_cpu_are_refused() -> None:
    with pytest.raises(UserError, match="--execution captured: CUDA graphs need a GPU"):
        Config(execution="captured").check()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_captured_functions_give_what_they_stand_for_and_leave_state_as_if_called_once() -> None:
    total = torch.zeros((), device="cuda")

    def add(values: torch.Tensor) -> torch.Tensor:
        total.add_(values.sum())
        return values * 2

    captured = Execution("captured", "cuda").step(add, state=[total])
    for number in (1.0, 2.0, 3.0):
        assert torch.equal(captured(torch.full((4,), number, device="cuda")).cpu(), torch.full((4,), 2 * number))
    assert total.item() == 24
