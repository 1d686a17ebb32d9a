"""The programs solve the probe environments."""

from pathlib import Path

import pytest
import torch

import train_torch
from rl.cli import parse
from rl.config import CONFIGS
from rl.models.distributions import Categorical
from rl.run.checkpoint import agent_of, read_checkpoint
from tests import probes  # noqa: F401 (registers them)

# Actor and critic share no layers: once all values are learned, advantages are noise, which is normalized all the same.
# In shared layers the policy's gradient would then keep values off by some hundredths.
FLAGS = "--num-envs 16 --num-steps 16 --per-rank-batch-size 64 --total-timesteps 10000 --learning-rate 5e-3"
FLAGS += " --no-shared-encoder --eval-episodes 1"
REINFORCE = "--num-steps 4 --gamma 1 --no-normalize-returns --eval-episodes 1"


def train(tmp_path: Path, *flags: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and action parameters of the trained agent at observations 0, 1 and -1."""
    train_torch.main(parse(list(flags), CONFIGS))
    (checkpoint,) = tmp_path.glob("logs/torch_logs/*/last.ckpt")
    with torch.no_grad():
        distribution, value = agent_of(read_checkpoint(checkpoint))(torch.tensor([[0.0], [1.0], [-1.0]]))
    return value, distribution[0].exp() if isinstance(distribution, Categorical) else distribution[0]


@pytest.mark.parametrize("seed", ["1", "2"])
@pytest.mark.parametrize(
    ("env_id", "values"),
    [
        ("ConstantReward-v0", {0: 1.0}),
        ("RewardByObservation-v0", {1: 1.0, 2: -1.0}),
        ("DelayedReward-v0", {0: 0.9, 1: 1.0}),
        ("EndlessReward-v0", {0: 10.0}),
        ("ResetInNextStep-v0", {0: 1.0}),
    ],
)
def test_values_are_learned(tmp_path: Path, env_id: str, values: dict[int, float], seed: str) -> None:
    value, _ = train(tmp_path, *FLAGS.split(), "--env-id", env_id, "--gamma", "0.9", "--seed", seed)
    for index, expected in values.items():
        assert value[index].item() == pytest.approx(expected, abs=0.02 * abs(expected))


@pytest.mark.parametrize("seed", ["1", "2"])
@pytest.mark.parametrize(
    ("env_id", "actions"), [("RewardByAction-v0", {0: 1}), ("RewardByActionAndObservation-v0", {1: 1, 2: 0})]
)
def test_actions_are_learned(tmp_path: Path, env_id: str, actions: dict[int, int], seed: str) -> None:
    _, probability = train(tmp_path, *FLAGS.split(), "--env-id", env_id, "--seed", seed)
    for index, action in actions.items():
        assert probability[index, action] > 0.98


def test_continuous_actions_are_learned(tmp_path: Path) -> None:
    _, mean = train(tmp_path, *FLAGS.split(), "--env-id", "RewardByContinuousAction-v0")
    assert mean[0].item() == pytest.approx(0.5, abs=0.1)  # of 10 seeds the worst is 0.026 off


@pytest.mark.parametrize(
    "flags",
    [
        "--num-envs 1 --total-timesteps 4000 --learning-rate 3e-3",
        "--num-envs 16 --total-timesteps 10000 --learning-rate 2e-2",
    ],
)
def test_reinforce_learns_what_pays_over_an_episode(tmp_path: Path, flags: str) -> None:
    _, probability = train(tmp_path, *f"reinforce {REINFORCE} --env-id StopOrGo-v0 {flags}".split())
    assert probability[1, 1] > 0.9  # continuing to the end returns 25, stopping returns 1
