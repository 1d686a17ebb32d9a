"""What evaluations during training must not do to a run."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rl.run.keeper
from rl.config import Config
from rl.errors import EnvError
from rl.keep import Keep
from rl.run.control import Signals
from rl.run.evaluation import Evaluation
from rl.run.keeper import Keeper
from rl.run.loggers import Guarded
from tests.run.test_logger import folder_at


def returned(mean_return: float) -> Evaluation:
    return Evaluation(torch.tensor([mean_return]), torch.tensor([False]), torch.tensor([1]))


def keeper_with(monkeypatch: pytest.MonkeyPatch, evaluate_run: Any) -> Keeper:
    monkeypatch.setattr(rl.run.keeper, "evaluate_run", evaluate_run)
    config = Config(keep=Keep(eval_every=100))
    return Keeper(config, folder_at(Path()), torch.nn.Module(), Guarded([]), Signals())


def test_an_evaluation_that_fails_is_noted_and_leaves_out_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(*_: object) -> Evaluation:
        raise EnvError("the port is taken")

    keeper = keeper_with(monkeypatch, failing)
    assert not keeper.is_best(100, 1.0, 0.1)
    assert (
        "note: the evaluation after 100 steps failed" in (said := capsys.readouterr().out) and "port is taken" in said
    )
    monkeypatch.setattr(rl.run.keeper, "evaluate_run", lambda *_: pytest.fail("evaluated again"))
    assert not keeper.is_best(200, 2.0, 0.2) and keeper.evaluation_seconds > 0


def test_an_agent_that_could_not_be_written_is_not_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    returns = iter((1.0, 3.0, 2.0))
    keeper = keeper_with(monkeypatch, lambda *_: returned(next(returns)))
    written: list[float] = []

    def write(name: str, content: Any) -> Path | None:
        if content["run"]["best_return"] == 3.0:
            return None  # the disk is full
        written.append(content["run"]["best_return"])
        return Path(name)

    monkeypatch.setattr(keeper, "_write", write)
    for step in (100, 200, 300):
        assert keeper.is_best(step, 1.0, 0.1)
        content: Any = {"run": {"best_return": keeper.best_return}}
        keeper.write_best(content)
        assert content["run"]["best_return"] == keeper.best_return == written[-1]
    assert (written, keeper.best_step) == ([1.0, 2.0], 300)


def test_an_evaluation_leaves_global_generators_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(*_: object) -> Evaluation:
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        return returned(0.0)

    def drawn() -> tuple[float, float, float]:
        return random.random(), np.random.random(), torch.rand(()).item()

    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = drawn()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    keeper_with(monkeypatch, draw).is_best(100, 1.0, 0.1)
    assert drawn() == expected


def test_a_stop_does_not_wait_for_a_long_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def evaluate_run(config: object, agent: object, gives_up: Any) -> Evaluation:
        now = iter((9.0, 11.0))
        monkeypatch.setattr("time.perf_counter", lambda: keeper.began + next(now, 11.0))
        asked.extend((gives_up(), gives_up()))
        return returned(0.0)._replace(given_up=asked[-1])

    keeper: Any = keeper_with(monkeypatch, evaluate_run)
    for stop, expected in ((0, [False, False]), (15, [False, True])):
        monkeypatch.setattr("time.perf_counter", lambda: 100.0)
        asked.clear()
        keeper.began, keeper.signals.stop = 100.0, stop
        assert keeper.is_best(100, 1.0, 0.1) != expected[-1] and asked == expected
