"""Loggers, and the evaluations of a run: each point once, the same after a resume, and every tag documented."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from rl.cli import parse
from rl.config import CONFIGS, Config
from rl.dist.launch import num_cores
from rl.run.checkpoint import read_checkpoint
from rl.run.control import Signals
from rl.run.keeper import MAX_EVALUATION_SHARE, Keeper
from rl.run.loggers import LINES, Guarded
from rl.run.trackers import WandbTracker
from tests.programs.launch import ROOT
from tests.run.test_logger import folder_at
from tests.run.test_resume import EVALUATED, STEPS, as_it_was, train, whole_run
from tests.states import final_state

TAG = re.compile(r"\b(?:Count|Game|Info|Loss|Rewards|Test|Time)/\w+")
# Those that a short run in fp32 on the CPU with one rank, which plays and learns, does not log.
ELSEWHERE = {"Count/skipped_steps", "Info/loss_scale", "Info/transfer_bytes", "Time/compile_seconds"}
ELSEWHERE |= {f"Time/{name}_seconds" for name in ("player_wait", "trainer_wait", "transfer")}
JSONL = ["--logger", "jsonl"]


def lines_of(folder: Path) -> list[dict[str, float]]:
    """The points of a run, without durations."""
    points = map(json.loads, (folder / LINES).read_text().splitlines())
    return [{tag: value for tag, value in point.items() if not tag.startswith("Time/")} for point in points]


def test_lines_and_best_agent_of_a_resumed_run_are_those_of_an_uninterrupted_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    evaluated = ("--keep-best", "--eval-every", "192", "--env-id", "Pendulum-v1")
    folder = whole_run(monkeypatch, *STEPS.split(), *JSONL, *evaluated)
    expected = lines_of(folder)
    tests = [point["step"] for point in expected if "Test/cumulative_reward" in point]
    assert tests == [192, 384, 576, 768] and len(expected) == 8 + len(tests)
    best = max((p["Test/cumulative_reward"], p["step"]) for p in expected if "Test/cumulative_reward" in p)
    std = read_checkpoint(folder / "last.ckpt")["agent"]["log_std"].exp().mean().item()
    assert expected[-2]["Info/action_std"] == pytest.approx(std) and std != 1
    for update in (3, 7):
        copy = as_it_was(folder, update)
        with (copy / LINES).open("a") as file:
            file.write('{"step": 76')  # a machine that stopped while it wrote
        train(monkeypatch, "--resume", str(copy))
        assert lines_of(copy) == expected
        position = read_checkpoint(copy / "best.ckpt")["run"]
        assert (position["best_return"], position["step"]) == best
    result = json.loads((copy / "result.json").read_text())
    assert result["returns"]["best"] == best[0] and result["best_step"] == best[1]
    assert result["returns"]["greedy"] == expected[-1]["Test/cumulative_reward"]
    assert result["returns"]["sampled"] == expected[-2]["Rewards/last_100_episodes"]
    assert (result["task"], result["learner"], result["steps"]) == ("Pendulum-v1", "ppo", 768)
    assert (result["exit_code"], result["ended"], result["hardware"]["cores"]) == (0, "complete", num_cores())


def test_evaluations_do_not_change_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = whole_run(monkeypatch, *STEPS.split(), "--env-id", "CartPole-v1")
    (seen := Path("seen")).mkdir()
    folder.rename(seen / "run")
    other = whole_run(monkeypatch, *STEPS.split(), "--env-id", "CartPole-v1", "--keep-best", *EVALUATED)
    agents = [final_state(path)["agent"] for path in (seen / "run", other)]
    assert all(torch.equal(agents[0][name], agents[1][name]) for name in agents[0])
    assert not (seen / "run/best.ckpt").exists() and (other / "best.ckpt").exists()


@pytest.mark.parametrize(("seconds_each", "expected"), [(0.001, 9), (0.5, 5), (2.0, 1), (100.0, 1)])
def test_evaluations_take_at_most_their_share_of_a_run_of_a_minute(seconds_each: float, expected: int) -> None:
    keeper, played = Keeper(Config(), folder_at(Path()), torch.nn.Module(), Guarded([]), Signals()), 0
    for tenth in range(1, 10):
        limit = keeper._seconds_left(6.0 * tenth, tenth / 10)
        if limit > 0:
            keeper.last_seconds = min(seconds_each, limit)
            keeper.evaluation_seconds += keeper.last_seconds
            played += 1
    assert played == expected and keeper.evaluation_seconds <= MAX_EVALUATION_SHARE * 60 + 1e-9


def test_every_tag_is_documented_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    known = set(ELSEWHERE)
    for learner, env_id in (("ppo", "Pendulum-v1"), ("actor-critic", "CustomEnv-v0"), ("reinforce", "CartPole-v1")):
        flags = f"{learner} --env-id {env_id} --total-timesteps 800 --num-envs 4 --num-steps 32 --hidden-sizes 8"
        train(monkeypatch, *flags.split(), *JSONL, "--execution", "eager", "--log-dir", learner, "--config", "none")
        (lines,) = Path(learner).rglob(LINES)
        points = [json.loads(line) for line in lines.read_text().splitlines()]
        known |= {tag for point in points for tag in point if tag != "step"}
        assert all([*point][1].startswith(("Rewards/", "Test/")) for point in points if "Rewards/rew_avg" in point)
        for tag in known - ELSEWHERE:
            values = [point[tag] for point in points if tag in point]
            assert len(values) < 4 or len({*values}) > 1 or tag in ("Count/episodes", "Game/ep_len_avg"), tag
    page = (ROOT / "docs/logs.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    assert sorted(tag for row in rows for tag in TAG.findall(row)) == sorted(known)
    assert {*TAG.findall(page)} == known


class Wandb:
    """The parts of W&B's package that a logger calls."""

    def __init__(self) -> None:
        self.points: list[tuple[int, dict[str, float]]] = []

    def init(self, **settings: Any) -> SimpleNamespace:
        self.settings = settings
        return SimpleNamespace(id=settings["id"] or "abc", log=self.log, finish=lambda exit_code: None)

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.points.append((step, metrics))


def test_a_resumed_run_goes_on_at_a_service_and_sends_nothing_twice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", wandb := Wandb())
    for steps in ((96, 192, 192), (192, 288)):  # the second part goes on from a checkpoint at step 96
        tracker = WandbTracker(Config(), folder_at(tmp_path))
        for step in steps:
            tracker.log_metrics({"Loss/value_loss": 1.0}, step)
        tracker.finalize("success")
    assert [step for step, _ in wandb.points] == [96, 192, 192, 288]
    assert (wandb.settings["id"], wandb.settings["resume"]) == ("abc", "allow")


def test_the_sweep_in_the_docs_fits_the_program_and_the_log() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/sweeps.md").read_text(), re.DOTALL)
    sweep = yaml.safe_load(text)
    assert (ROOT / sweep["program"]).exists() and sweep["metric"]["name"] in (ROOT / "docs/logs.md").read_text()
    words = [word for word in sweep["command"] if not word.startswith("${")]
    for name, values in sweep["parameters"].items():
        for value in values.get("values") or [values.get("value", values.get("min"))]:
            parse([*words, f"--{name}={value}"], CONFIGS)


def test_the_optuna_example_in_the_docs_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna", reason="optuna is not installed")
    (text,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/sweeps.md").read_text(), re.DOTALL)
    assert len(text.splitlines()) <= 40
    monkeypatch.syspath_prepend(ROOT)
    for wanted, here in (("n_trials=20", "n_trials=1"), ("100_000", "1_000")):
        assert wanted in text
        text = text.replace(wanted, here)
    Path("tune.py").write_text(text.replace("train_torch.py", str(ROOT / "train_torch.py")))
    exec(compile(Path("tune.py").read_text(), "tune.py", "exec"), {"__name__": "__main__"})
    assert len(list(Path().rglob("result.json"))) == 1
