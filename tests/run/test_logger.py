"""What is shown: scalars in TensorBoard, plain lines outside a terminal."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rl.run.logger import Progress, TensorBoardWriter


def test_scalars_and_hyperparameters_are_in_one_event_file(tmp_path: Path) -> None:
    writer = TensorBoardWriter(tmp_path)
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
    TensorBoardWriter(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize(("num_updates", "num_lines"), [(100, 10), (7, 7), (1, 1)])
def test_outside_a_terminal_there_are_few_lines(
    num_updates: int, num_lines: int, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress(8 * num_updates)
    progress.show(0, {"Rewards/rew_avg": 3.0, "Time/step_per_second": 5.0})
    for update in range(num_updates):
        progress.show(8 * (update + 1), {"Time/step_per_second": 12345.6})
    progress.close()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == num_lines
    assert lines[-1] == f"{8 * num_updates} of {8 * num_updates} steps, return 3.00, 12,346 steps/s"
