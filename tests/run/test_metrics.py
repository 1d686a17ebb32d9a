"""Numbers that are not finite: they stop a run with a message that locates them, and never reach a weight."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import rl
import train_torch
from rl.cli import command_line, parse
from rl.config import CONFIGS
from rl.dist.ranks import Ranks
from rl.envs.custom import CustomTensorEnv
from rl.errors import CheckpointError, EnvError, NumericError
from rl.learners.learner import gradient_metrics
from rl.models.agent import Weights
from rl.optimization import make_adam
from rl.run.checkpoint import from_bytes, read_checkpoint, to_bytes, write_checkpoint
from rl.run.metrics import Finite
from rl.seeding import INITIAL, Noise, environment_seed
from tests import probes  # noqa: F401 (registers them)

FLAGS = "--num-envs 5 --num-steps 4 --total-timesteps 2000 --eval-episodes 1 --execution eager"
OK = {"Count/bad_rows": 0.0, "Loss/policy_loss": 1.0, "Info/grad_norm": 2.0}


class NotANumberInTensors(CustomTensorEnv):
    """One environment observes NaN at step 6: the one that started from certain noise, which is environment 3 of 5."""

    def initial(self, noise: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(noise), noise], dim=-1)  # the step, and which it is

    def transition(self, state: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        state = state + torch.tensor([1.0, 0.0])
        chosen = Noise(1, INITIAL, 0, 5, 1).at(torch.tensor(-1), 1)[0, 3]  # before the first step
        return torch.where((state[:, :1] == 6) & (state[:, 1:] == chosen), torch.nan, state)

    def observation(self, state: Tensor) -> Tensor:
        return state * torch.tensor([0.0, 1.0])

    def terminal(self, state: Tensor) -> Tensor:
        return state[:, 0] > 100


rl.register_tensor_env("NotANumberInTensors-v0", NotANumberInTensors)


def train(env_id: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Weights, str]:
    """Runs the program until it stops; returns the weights and the message."""
    made: list[Weights] = []

    class Kept(Weights):
        def __init__(self, policy: nn.Module) -> None:
            super().__init__(policy)
            made.append(self)

    monkeypatch.setattr("rl.session.Weights", Kept)
    error = EnvError if env_id.startswith("NotANumber") else NumericError
    with pytest.raises(error) as raised:
        train_torch.main(parse([*FLAGS.split(), "--env-id", *env_id.split()], CONFIGS))
    return made[0], str(raised.value)


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        (
            "NotANumber-v0",
            "environment 3 gave an observation or a reward that is not finite: [nan], 1, at step 3 of the episode that"
            f" reset(seed={environment_seed(1, 3)}) starts (rank 0, step 3 of the run)",
        ),
        (
            "NotANumberInTensors-v0 --vectorization tensor",
            "environment 3 of rank 0 returned an observation or a reward that is not finite at its step 6; must be",
        ),
        ("HugeReward-v0", "Loss/value_loss is inf in update 1 or just before it; try a lower --learning-rate"),
    ],
)
def test_a_run_stops_and_says_where_while_its_weights_stay_finite(
    env_id: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, said = train(env_id, monkeypatch)
    assert message in said
    assert weights.vector.isfinite().all()


def test_weights_of_a_checkpoint_that_are_not_finite_are_named_and_not_resumed_from(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["x", *FLAGS.split(), "--total-timesteps", "40", "--no-keep-best"])
    command_line(train_torch.main, CONFIGS, train_torch.PROGRAM)
    (path,) = Path("logs").glob("*/*/last.ckpt")
    content = read_checkpoint(path)
    state, agent = from_bytes(content["ranks"][0]), dict(content["agent"])
    state["shared"]["optimizer"]["exp_avg"][3] = math.inf
    agent["critic.bias"] = torch.tensor([math.nan])
    for change, name in (({"ranks": [to_bytes(state)]}, "optimizer/exp_avg"), ({"agent": agent}, "critic.bias")):
        write_checkpoint(path, content | change)
        monkeypatch.setattr("sys.argv", ["x", "--resume", str(path), "--total-timesteps", "60"])
        with pytest.raises(SystemExit) as exit_:
            command_line(train_torch.main, CONFIGS, train_torch.PROGRAM)
        error = f"error: {name} in the checkpoint is not finite; take an older checkpoint"
        assert exit_.value.code == 65 and capsys.readouterr().err.splitlines()[-1] == error
    with pytest.raises(CheckpointError, match=r"critic\.bias in the checkpoint is not finite"):
        rl.load_policy(path)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"Loss/policy_loss": math.nan}, "Loss/policy_loss is nan in update 7"),
        ({"Info/grad_norm": math.inf}, "the gradient's norm is inf in update 7"),
        ({"Info/loss_scale": 2.0**-11}, "--precision 16-mixed: gradients still overflow at a loss scale of 0.00049"),
    ],
)
def test_what_an_update_recorded_is_looked_at(metrics: dict[str, float], message: str) -> None:
    finite = Finite("CartPole-v1", Ranks(), torch.device("cpu"))
    finite.check(OK | {"Info/loss_scale": 65536.0, "Rewards/rew_avg": math.nan}, 7)
    with pytest.raises(NumericError, match=message) as raised:
        finite.check(OK | metrics, 7)
    assert "weights" not in str(raised.value)  # of which nothing is known here


def test_a_gradient_that_is_not_finite_becomes_0_and_any_other_stays() -> None:
    layer = nn.Linear(3, 2)
    weights = Weights(layer)
    adam = make_adam(weights, 0.1, fused=True)
    before = weights.vector.detach().clone()
    for bad in (math.nan, math.inf):
        weights.gradient.fill_(1.0)[2] = bad
        weights.keep_finite(weights.gradient.norm())
        adam.step()
        assert torch.equal(weights.vector, before)
    weights.gradient.fill_(1.0)
    weights.keep_finite(weights.gradient.norm())
    adam.step()
    assert (weights.vector < before).all()


def test_a_step_that_overflowed_is_counted_once_over_all_ranks_and_its_norm_is_no_error() -> None:
    norm = torch.tensor(math.inf)
    metrics = gradient_metrics(norm, Ranks(0, 2), scaled=True)
    assert {name: value.item() for name, value in metrics.items()} == {
        "Info/grad_norm": 0.0,
        "Count/skipped_steps": 0.5,
    }
    assert gradient_metrics(norm, Ranks(), scaled=False)["Info/grad_norm"].isinf()
