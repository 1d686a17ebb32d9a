"""Numbers that are not finite: they stop a run with a message that says where, and never reach a weight."""

import math

import pytest
import torch
from torch import nn

import train_torch
from rl.command_line import parse
from rl.config import CONFIGS
from rl.distributed import Ranks
from rl.errors import EnvError, NumericError
from rl.optimization import Weights, gradient_metrics, make_adam
from rl.run.finite import Finite
from tests import probes  # noqa: F401 (registers them)

FLAGS = "--num-envs 5 --num-steps 4 --total-timesteps 2000 --eval-episodes 1 --execution eager"
OK = {"Count/bad_rows": 0.0, "Loss/policy_loss": 1.0, "Info/grad_norm": 2.0}


def train(env_id: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Weights, str]:
    """Runs the program until it stops: the weights that it trained, and what it says."""
    made: list[Weights] = []

    class Kept(Weights):
        def __init__(self, policy: nn.Module) -> None:
            super().__init__(policy)
            made.append(self)

    monkeypatch.setattr(train_torch, "Weights", Kept)
    error = EnvError if env_id == "NotANumber-v0" else NumericError
    with pytest.raises(error) as raised:
        train_torch.main(parse([*FLAGS.split(), "--env-id", env_id], CONFIGS))
    return made[0], str(raised.value)


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("NotANumber-v0", "environment 3 of rank 0 gave an observation or a reward that is not finite at its step 3;"),
        ("HugeReward-v0", "Loss/value_loss is inf in update 1 or just before it; try a lower --learning-rate"),
    ],
)
def test_a_run_stops_and_says_where_while_its_weights_stay_finite(
    env_id: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, said = train(env_id, monkeypatch)
    assert message in said
    assert weights.vector.isfinite().all()


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
    with pytest.raises(NumericError, match=message):
        finite.check(OK | metrics, 7)


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
