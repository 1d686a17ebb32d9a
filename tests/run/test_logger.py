"""Logging: scalars in TensorBoard, plain lines outside a terminal."""

import io
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train_torch
from rl.cli import command_line
from rl.config import CONFIGS
from rl.dist.ranks import Ranks
from rl.reporting import note
from rl.run.folder import RunFolder
from rl.run.loggers import JsonLines, TensorBoardWriter
from rl.run.metrics import Averages
from rl.run.progress import Episodes, Progress, clock, say


def folder_at(path: Path) -> RunFolder:
    folder = RunFolder(None)
    folder.path = path
    return folder


def test_scalars_and_hyperparameters_are_in_one_event_file(tmp_path: Path) -> None:
    writer = TensorBoardWriter(folder_at(tmp_path))
    for step in (10, 20):
        writer.log_metrics({"Loss/policy_loss": step / 2}, step)
    writer.log_hyperparams(
        {"gamma": 0.9, "env_id": "CartPole-v1", "target_kl": None, "cuda": False}, {"Test/cumulative_reward": 7.0}, 20
    )
    writer.finalize("success")
    assert len(list(tmp_path.iterdir())) == 1
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("Loss/policy_loss")] == [(10, 5), (20, 10)]
    assert [(event.step, event.value) for event in events.Scalars("Test/cumulative_reward")] == [(20, 7)]
    hyperparameters = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"gamma" in hyperparameters and b"CartPole-v1" in hyperparameters


def test_nothing_is_opened_before_something_is_written(tmp_path: Path) -> None:
    for kind in (TensorBoardWriter, JsonLines):
        kind(folder_at(tmp_path / "folder"))
    assert not (tmp_path / "folder").exists()


def ended(number: int, mean_return: float) -> Episodes:
    episodes = Episodes()
    episodes.add(number, mean_return, 20.0)
    return episodes


@pytest.mark.parametrize(("num_updates", "num_lines"), [(100, 10), (7, 7), (1, 1)])
def test_outside_a_terminal_there_are_few_lines(
    num_updates: int, num_lines: int, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress(8 * num_updates)
    progress.show(0, ended(1, 3.0), 5.0)
    for update in range(num_updates):
        progress.show(8 * (update + 1), ended(1, 3.0), 12345.6)
    progress.close()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == num_lines
    assert (
        lines[-1]
        == f"{8 * num_updates} of {8 * num_updates} steps, return 3.00, length 20, 12,346 steps/s, 0:00 in all"
    )


def test_a_line_comes_after_so_many_episodes_each_time(capsys: pytest.CaptureFixture[str]) -> None:
    progress, episodes = Progress(1000, report_episodes=100), Episodes()
    for update in range(10):
        episodes.add(45, float(update), 9.6)
        progress.show(100 * (update + 1), episodes, 7.0)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" episodes")[0] for line in lines] == ["135", "225", "315", "405"]
    assert lines[0] == "135 episodes, 300 of 1,000 steps, return 1.00, length 10, 7 steps/s, 0:00 left"


def test_the_mean_return_is_that_of_the_last_hundred_episodes_or_a_few_more() -> None:
    episodes = Episodes()
    assert math.isnan(episodes.mean_return())
    for number, value in ((1000, 5.0), (60, 1.0), (0, 0.0), (30, 2.0), (40, 4.0)):
        episodes.add(number, value, 10 * value)
    assert episodes.number == 1130 and episodes.num_recent() == 130
    assert episodes.mean_return() == pytest.approx((60 * 1 + 30 * 2 + 40 * 4) / 130)
    assert episodes.mean_length() == pytest.approx(10 * episodes.mean_return())


def test_the_time_left_is_that_of_the_rest_at_the_speed_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("rl.run.progress.time.monotonic", lambda: now[0])
    progress = Progress(1000, first_step=500)
    now[0] += 60
    assert progress.time_left(0.6) == "4:00 left" and progress.time_left(1) == "1:00 in all"
    assert [clock(seconds) for seconds in (0.4, 59.6, 3599, 86400)] == ["0:00", "1:00", "59:59", "24:00:00"]


@pytest.mark.parametrize(
    ("term", "no_color", "is_terminal", "screen", "colors"),
    [
        ("xterm", "", True, True, True),
        ("xterm", "1", True, True, False),
        ("dumb", "", True, False, False),
        ("xterm", "", False, False, False),
    ],
)
def test_what_is_no_screen_gets_lines_and_who_wants_no_colors_gets_none(
    term: str, no_color: str, is_terminal: bool, screen: bool, colors: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    stream.isatty = lambda: is_terminal  # type: ignore[method-assign]
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setattr(sys, "stderr", stream)
    progress = Progress(8)
    progress.show(4, ended(1, 3.0), 5.0)
    progress.close()
    assert ("4.00 of 8.00 steps, return 3.00, length 20, 5 steps/s, 0:00 left" in stream.getvalue()) == screen
    assert ("\033[" in stream.getvalue().replace("\033[A", "")) == colors
    stream.truncate(0)
    note("x")
    assert stream.getvalue().lstrip("\0") == ("\033[33mnote:\033[0m x\n" if colors else "note: x\n")


def test_quiet_leaves_errors_alone(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    small = "--num-envs 2 --num-steps 8 --total-timesteps 32 --hidden-sizes 8 --eval-episodes 1"
    flags = f"--quiet {small} --seed 3 --seed 4"
    monkeypatch.setattr(sys, "argv", ["train_torch.py", *flags.split()])
    command_line(train_torch.main, CONFIGS, train_torch.PROGRAM)
    assert capfd.readouterr() == ("", "") and list(Path("logs/torch_logs").glob("*_seed4_*/last.ckpt"))
    monkeypatch.setattr(sys, "argv", ["train_torch.py", "--quiet", "--gamma", "2"])
    with pytest.raises(SystemExit):
        command_line(train_torch.main, CONFIGS, train_torch.PROGRAM)
    assert capfd.readouterr() == ("", "error: --gamma 2.0: must lie between 0 and 1\n")


def test_counts_are_sums_over_an_update_while_the_rest_are_means() -> None:
    averages = Averages(torch.device("cpu"), Ranks().sum)
    for number in (3.0, 5.0):
        averages.add({"Count/episodes": torch.tensor(number), "Loss/policy_loss": number})
    assert averages.take() == {"Count/episodes": 8.0, "Loss/policy_loss": 4.0}


def test_lowest_and_highest_return_are_those_of_all_ranks() -> None:
    def taken(rank: int, returns: list[float], sum_over_ranks: Callable[[torch.Tensor], torch.Tensor]) -> Any:
        averages, values = Averages(torch.device("cpu"), sum_over_ranks, Ranks(rank, 2)), torch.tensor(returns)
        averages.add({"Count/episodes": 1.0})
        averages.add_episodes(values, ended=values != 0)
        return averages.take()

    for others in ([0.0, -3.0, 7.0], [0.0, 0.0, 0.0]):
        sent: list[torch.Tensor] = []
        taken(1, others, lambda total, sent=sent: sent.append(total) or total)
        means = taken(0, [5.0, 0.0, 2.0], lambda total, sent=sent: total + sent[0])
        assert (means["Rewards/rew_min"], means["Rewards/rew_max"]) == ((-3.0, 7.0) if any(others) else (2.0, 5.0))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="is about a device of Linux")
def test_a_full_disk_under_what_is_printed_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        say("one")
        say("two")
