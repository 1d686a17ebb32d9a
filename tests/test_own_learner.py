"""A learner from outside the package trains, stops, resumes and compiles like those of the package."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import train_torch
from rl.cli import command_line
from rl.config import CONFIGS, Config
from rl.errors import UserError
from rl.learners.learner import Metrics
from rl.rollout import Rollout
from rl.run.run import Run
from rl.session import check_has_masks
from tests.a2c import A2C, A2CConfig
from tests.programs.launch import ROOT, scalars, start, succeeded
from tests.states import differences, final_state

FLAGS = "a2c --num-envs 8 --total-timesteps 1536 --hidden-sizes 16 16 --eval-episodes 1 --vectorization native"


def train(monkeypatch: pytest.MonkeyPatch, flags: str) -> Path:
    """The folder of the newest run, after a run with these flags."""
    monkeypatch.setattr("sys.argv", ["train_torch.py", *flags.split()])
    command_line(train_torch.main, CONFIGS, train_torch.PROGRAM)
    return max(Path("logs/torch_logs").iterdir(), key=lambda folder: folder.stat().st_mtime)


@pytest.mark.parametrize("execution", ["eager", "compile"])
def test_it_stops_on_a_signal_and_resumes_to_the_same_bits(execution: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = f"{FLAGS} --execution {execution} --exp-name"
    expected = final_state(train(monkeypatch, f"{flags} whole"))
    record = Run.record_rollout

    def record_and_stop(run: Run, rollout: Rollout, metrics: Metrics) -> None:
        record(run, rollout, metrics)
        if run.update == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(Run, "record_rollout", record_and_stop)
        train(monkeypatch, f"{flags} cut")
    assert stopped.value.code == 143
    (checkpoint,) = Path("logs/torch_logs").glob("*_cut_*/checkpoints/*")
    assert checkpoint.name == "update_0000000006.ckpt"
    assert differences(expected, final_state(train(monkeypatch, f"a2c --resume {checkpoint}"))) == []


def test_it_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = "--num-envs 32 --total-timesteps 100000 --learning-rate 3e-3 --gamma 0.95"
    folder = train(monkeypatch, f"a2c {flags} --vectorization native --execution eager")
    returns = scalars(folder)["Rewards/last_100_episodes"]
    assert returns[-1][1] > 100  # a random policy's is 18


class Unweighted(NamedTuple):
    obs: Tensor


class Forgetful(A2C):
    def prepare(self, rollout: Rollout, estimates: Any, totals: Tensor) -> tuple[Any, Metrics]:
        return Unweighted(rollout.obs.flatten(0, 1)), {}

    def minibatches(self, samples: Any, shuffle: object) -> Iterator[Any]:
        raise AssertionError("learned from")


def test_samples_without_weights_are_refused_before_anything_is_learned(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class ForgetfulConfig(A2CConfig):
        """Builds a learner whose samples have no weights."""

        def build(self) -> A2C:
            return Forgetful(self)

    monkeypatch.setitem(CONFIGS, "forgetful", Config(learner=ForgetfulConfig()))
    with pytest.raises(SystemExit) as refused:
        train(monkeypatch, FLAGS.replace("a2c", "forgetful"))
    assert refused.value.code == 2
    assert "Forgetful.prepare: returned samples of obs; must have a field `weight`" in capsys.readouterr().err


def test_samples_without_masks_are_refused_where_environments_have_them() -> None:
    rollout: Any = SimpleNamespace(mask=torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(UserError, match=r"Forgetful.prepare: returned samples without masks.* a field `mask`"):
        check_has_masks(Forgetful(A2CConfig()), Unweighted(torch.zeros(2)), rollout)
    check_has_masks(Forgetful(A2CConfig()), Unweighted(torch.zeros(2)), SimpleNamespace(mask=()))  # type: ignore[arg-type]


def test_two_runs_in_one_process_are_like_one_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The replay buffer of the first is not the second's, though both take their flags from the same defaults."""
    flags = "actor-critic --num-envs 4 --total-timesteps 512 --hidden-sizes 16 16 --eval-episodes 1 --exp-name"
    states = [final_state(train(monkeypatch, f"{flags} {name}")) for name in ("first", "second")]
    succeeded(start(sys.executable, ROOT / "train_torch.py", *flags.split(), "alone"))
    (alone,) = Path("logs/torch_logs").glob("*_alone_*")
    for state in states:
        assert differences(state, final_state(alone)) == []
    assert sum(weight.numel() for weight in states[0]["agent"].values()) > 300
