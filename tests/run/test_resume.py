"""A run that is resumed from a checkpoint ends as without the interruption, bit for bit."""

import errno
import os
import re
import shutil
import signal
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.summary.writer import event_file_writer

import rl.run.checkpoint
import rl.run.folder
import rl.run.keeper
import rl.run.run
import train_fabric_decoupled
import train_torch
from rl.cli import command_line
from rl.config import CONFIGS, DecoupledConfig
from rl.run.checkpoint import from_bytes, read_checkpoint, to_bytes, write_checkpoint
from rl.run.run import Run
from rl.run.state import State
from tests import (  # noqa: F401 (registers them)
    masked,
    probes,
    seeing,
)
from tests.programs.launch import log_of, succeeded, torchrun
from tests.states import differences, final_state

FLAGS = ["--num-envs", "3", "--num-steps", "32", "--hidden-sizes", "16", "16", "--eval-episodes", "1"]
FLAGS += ["--execution", "eager", "--no-keep-best"]
NUM_UPDATES = 8
EVALUATED = ["--eval-every", "96"]


def train(monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    monkeypatch.setattr("sys.argv", ["train_torch.py", *flags])
    command_line(train_torch.main, CONFIGS, train_torch.PROGRAM)


def rate_of(folder: Path) -> float:
    """The learning rate at the end of a run."""
    return float(final_state(folder)["ranks"][0]["shared"]["optimizer"]["learning_rate"])


def whole_run(monkeypatch: pytest.MonkeyPatch, *flags: str) -> Path:
    """The folder of a run with a checkpoint after every update."""
    learner = flags[:1] if flags and flags[0] in CONFIGS else ()
    train(monkeypatch, *learner, *FLAGS, "--checkpoint-every", "1", "--keep-checkpoints", "99", *flags[len(learner) :])
    (folder,) = Path("logs/torch_logs").iterdir()
    return folder


def as_it_was(folder: Path, update: int) -> Path:
    """A copy of a run's folder, as if the machine had stopped some time after this update."""
    copy = Path(f"run{update}")
    shutil.copytree(folder, copy)
    for name in ("last.ckpt", "exit.json"):
        (copy / name).unlink()
    for checkpoint in (copy / "checkpoints").iterdir():
        if int(checkpoint.stem.removeprefix("update_")) > update:
            checkpoint.unlink()
    return copy


NORMALIZED = "--normalize-obs --normalize-reward"
ADAPTED = "--squash --schedule adaptive"
STEPS = f"--total-timesteps {NUM_UPDATES * 96}"
VARIANTS = {
    "a batched class": STEPS,
    "a batched class that resets in the next step": f"{STEPS} --env-id CartPole-v1",
    "one after the other": f"{STEPS} --env-id CartPole-v1 --vectorization sync",
    "processes": f"{STEPS} --env-id Acrobot-v1 --vectorization async",
    "images": f"{STEPS} --env-id Frames-v0 --shared-encoder --update-epochs 2 --num-minibatches 2",
    "Atari": f"{STEPS} --env-id ALE/Breakout-v5 --update-epochs 1 --max-eval-steps 20",
    "a Dict, normalized": f"{STEPS} --env-id Everything-v0 --normalize-obs --update-epochs 2 --recompute-advantages",
    "a replay buffer of a Dict": f"actor-critic {STEPS} --env-id Everything-v0 --total-episodes 9999",
    "Box2D": f"{STEPS} --env-id LunarLander-v3",
    "Box2D that has to be made anew": f"{STEPS} --env-id BipedalWalker-v3",
    "continuous tensors, normalized": f"{STEPS} --env-id Pendulum-v1 --vectorization tensor {NORMALIZED} {ADAPTED}",
    "normalized": f"{STEPS} --env-id CartPole-v1 {NORMALIZED} --precision bf16-true",
    "MuJoCo": f"{STEPS} --env-id Hopper-v5",
    "MuJoCo in processes": f"{STEPS} --env-id Ant-v5 --vectorization async --num-workers 2",
    "MuJoCo with many joints": f"{STEPS} --env-id Humanoid-v5",
    "fp16": f"{STEPS} --precision 16-mixed",
    "bf16": f"{STEPS} --precision bf16-true",
    "a replay buffer": f"actor-critic {STEPS} --buffer-size 200 --total-episodes 9999",
    "a replay buffer of tensors": f"actor-critic {STEPS} --vectorization tensor --total-episodes 25",
    "masks of actions of every kind, in processes": f"{STEPS} --env-id TreeOfDoors-v0 --vectorization async",
    "masks in a replay buffer": f"actor-critic {STEPS} --buffer-size 200 --env-id VectorDoors-v0 --total-episodes 9999",
    "memory": f"{STEPS} --env-id CartPole-v1 --memory lstm --memory-size 8 --sequence-length 8 --precision bf16-mixed",
    "memory, in tensors": "reinforce --total-timesteps 2000 --env-id Recall-v0 --vectorization tensor --memory gru",
    "whole episodes": "reinforce --total-timesteps 2000 --vectorization sync",
    "whole episodes in tensors": "reinforce --total-timesteps 2000 --vectorization tensor --baseline",
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resumed_run_ends_with_the_same_bits_and_the_same_log(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if variant.startswith("MuJoCo"):
        pytest.importorskip("mujoco", reason="MuJoCo is not installed")
    if variant == "Atari":
        pytest.importorskip("ale_py", reason="ale-py is not installed")
    folder = whole_run(monkeypatch, *VARIANTS[variant].split())
    expected, expected_log = final_state(folder), log_of(folder)
    for update in (1, NUM_UPDATES // 2):
        copy = as_it_was(folder, update)
        train(monkeypatch, "--resume", str(copy))
        assert differences(expected, final_state(copy)) == []
        assert log_of(copy) == expected_log


def test_the_log_of_a_run_resumed_in_the_same_second_is_read_after_what_it_corrects(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """TensorBoard reads event files in the order of their names: seconds, host, process, and a number (10 before 9)."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(9))
    folder = whole_run(monkeypatch, *STEPS.split())
    copy, began_at = as_it_was(folder, 1), time.time()
    (events,) = copy.glob("events.*")
    events.rename(events.with_name(re.sub(r"\d{10}", str(int(began_at) + 1), events.name)))
    train(monkeypatch, "--resume", str(copy))
    assert log_of(copy) == log_of(folder)
    assert time.time() - began_at < 10


def test_a_checkpoint_between_two_points_of_the_log_keeps_what_was_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rl.run.run, "MAX_LOG_POINTS", 3)  # of 8 updates: after 1, 3, 6 and 8
    folder = whole_run(monkeypatch, *STEPS.split(), "--env-id", "CartPole-v1", "--vectorization", "sync")
    expected_log = log_of(folder)
    assert [step for step, _ in expected_log["Loss/policy_loss"]] == [96, 288, 576, 768]
    for update in (2, 4, 5, 6):
        copy = as_it_was(folder, update)
        train(monkeypatch, "--resume", str(copy))
        assert differences(final_state(folder), final_state(copy)) == []
        assert log_of(copy) == expected_log
    copy = as_it_was(folder, NUM_UPDATES)  # all updates are done, but not the end of the run
    train(monkeypatch, "--resume", str(copy))
    assert differences(final_state(folder), final_state(copy)) == []


def test_an_environment_that_is_random_by_itself_is_found_out_and_its_resume_not_called_exact(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = whole_run(monkeypatch, *STEPS.split(), "--env-id", "Unseeded-v0")
    note = "note: --env-id Unseeded-v0: is not deterministic given seed and actions: a resumed run starts new episodes"
    assert capsys.readouterr().err.count(note) == 1
    copy = as_it_was(folder, 3)
    train(monkeypatch, "--resume", str(copy))
    assert "3 of 3 environments of rank 0 could not be restored" in capsys.readouterr().err
    assert final_state(copy)["run"] == final_state(folder)["run"]


def test_a_resumed_run_uses_its_own_flags_and_says_which_others_it_is_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = whole_run(monkeypatch, *STEPS.split(), "--gamma", "0.8")
    copy = as_it_was(folder, 4)
    train(monkeypatch, "--resume", str(copy), "--learning-rate", "0.5", "--schedule", "constant")
    error = capsys.readouterr().err
    assert "note: resumed with --learning-rate 0.5 instead of 0.005" in error and "--gamma" not in error
    resumed = copy.absolute() / "checkpoints/update_0000000004.ckpt"
    assert f"note: resumes {resumed}, after update 4 and 384 steps\n" in error
    assert rate_of(copy) == 0.5
    assert read_checkpoint(copy / "last.ckpt")["config"]["learner"]["gamma"] == 0.8


def test_a_complete_run_is_left_as_it_is_and_resumed_for_a_larger_total(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = whole_run(monkeypatch, *STEPS.split())
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for shorter in ((), ("--total-timesteps", "192")):
        train(monkeypatch, "--resume", str(folder), *shorter)
        note = "the run is complete after 768 steps; to train it longer, use a larger --total-timesteps"
        assert note in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    train(monkeypatch, "--resume", str(folder), "--total-timesteps", "960")
    assert [step for step, _ in log_of(folder)["Loss/policy_loss"]] == list(range(96, 961, 96))


def dying_at(monkeypatch: pytest.MonkeyPatch, update: int, *flags: str) -> None:
    """A run that dies before it writes the checkpoint of this update."""

    def write(path: Path, content: dict[str, Any]) -> None:
        if content["run"]["update"] == update:
            raise KeyboardInterrupt
        write_checkpoint(path, content)

    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(rl.run.folder, "write_checkpoint", write)
        train(patched, *flags)


def updates_in(folder: Path) -> list[int]:
    return sorted(read_checkpoint(path)["run"]["update"] for path in folder.iterdir())


def test_the_checkpoint_that_a_run_resumes_from_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: Path) -> Any:
        paths.append(path)
        return read_checkpoint(path)

    copy, paths = as_it_was(whole_run(monkeypatch, *STEPS.split()), 2), []
    with monkeypatch.context() as patched:
        patched.setattr(rl.run.checkpoint, "read_checkpoint", read)
        train(patched, "--resume", str(copy))
    newest = copy / "checkpoints/update_0000000002.ckpt"
    assert paths == [newest.absolute()]


def test_a_run_that_was_extended_and_killed_resumes_from_what_it_wrote_last(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = whole_run(monkeypatch, *STEPS.split())
    dying_at(monkeypatch, 12, "--resume", str(folder), "--total-timesteps", "1440")
    assert updates_in(folder / "checkpoints")[-1] == 11
    capsys.readouterr()
    train(monkeypatch, "--resume", str(folder))
    assert "CustomEnv-v0 after 1,440 steps" in (said := capsys.readouterr()).out and "abandoned" not in said.err
    assert read_checkpoint(folder / "last.ckpt")["run"]["update"] == 15
    assert [step for step, _ in log_of(folder)["Loss/policy_loss"]] == list(range(96, 1441, 96))


def test_what_came_after_the_checkpoint_that_a_run_resumes_from_is_set_aside(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = whole_run(monkeypatch, *STEPS.split())
    kept = folder / "checkpoints"
    shutil.copy(kept / "update_0000000006.ckpt", folder / "best.ckpt")
    flags = ("--learning-rate", "0.5", "--schedule", "constant", "--keep-checkpoints", "2")
    dying_at(monkeypatch, 6, "--resume", str(kept / "update_0000000003.ckpt"), *flags)
    assert updates_in(kept) == [4, 5]
    (aside,) = folder.glob("abandoned_*")
    assert sorted(path.name for path in aside.iterdir()) == [
        *("best.ckpt", "last.ckpt"),
        *(f"update_000000000{number}.ckpt" for number in range(4, 9)),
    ]
    note = f"note: resumes after update 3; later checkpoints are now in {aside.absolute()}"
    assert capsys.readouterr().err.count(note) == 1
    train(monkeypatch, "--resume", str(folder))
    assert updates_in(kept) == [7, 8] and read_checkpoint(folder / "last.ckpt")["run"]["update"] == 8
    log = log_of(folder)  # which has rates as long as they change
    assert [step for step, _ in log["Loss/policy_loss"]] == list(range(96, 769, 96)) and rate_of(folder) == 0.5
    assert [step for step, _ in log["Info/learning_rate"]] == [96, 192, 288]


def test_a_checkpoint_that_is_in_no_runs_folder_is_resumed_in_one_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = whole_run(monkeypatch, *STEPS.split(), "--log-dir", "logs")
    content = read_checkpoint(folder / "checkpoints/update_0000000005.ckpt")
    Path("mine/checkpoints").mkdir(parents=True)
    for name in ("config.json", "checkpoints/update_0000000001.ckpt", "exit.json"):
        Path("mine", name).write_text("{}")
    write_checkpoint(Path("mine/last.ckpt"), content | {"config": content["config"] | {"log_dir": "elsewhere"}})
    before = {path: path.read_bytes() for path in Path("mine").rglob("*") if path.is_file()}
    train(monkeypatch, "--resume", "mine/last.ckpt")
    assert {path: path.read_bytes() for path in Path("mine").rglob("*") if path.is_file()} == before
    (own,) = set(Path("logs/torch_logs").iterdir()) - {folder}
    assert f"is in no run's folder; continues in {own.absolute()}" in capsys.readouterr().err
    assert differences(final_state(folder), final_state(own)) == [] and not Path("elsewhere").exists()


def test_a_stop_after_the_last_update_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gather = State.gather

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return gather(*args, **kwargs)

    with monkeypatch.context() as patched, pytest.raises(SystemExit) as exit_:
        patched.setattr(State, "gather", interrupted)
        train(patched, *FLAGS, *STEPS.split(), "--config", "none")
    (last,) = Path.cwd().glob("logs/*/*/last.ckpt")
    said = f"stopped: SIGTERM after update 8; the checkpoint is {last}; to continue: --resume {last.parent}\n"
    assert exit_.value.code == 143 and capsys.readouterr().err == said
    train(monkeypatch, "--resume", str(last.parent))
    assert "greedy policy" in capsys.readouterr().out
    train(monkeypatch, "--resume", "auto", *FLAGS)
    assert "the run is complete" in capsys.readouterr().err


def test_a_longer_run_says_where_its_learning_rate_jumps_to_and_what_keeps_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = whole_run(monkeypatch, *STEPS.split())
    copy = as_it_was(folder, 8)
    train(monkeypatch, "--resume", str(folder), "--total-timesteps", "1536")
    rates = [rate for _, rate in log_of(folder)["Info/learning_rate"]]
    note = re.search(r"the learning rate jumps from (\S+) to (\S+), .*; to keep it, use (.*)", capsys.readouterr().err)
    assert [float(rate) for rate in note.groups()[:2]] == pytest.approx(rates[7:9], rel=1e-5)
    train(monkeypatch, "--resume", str(copy), "--total-timesteps", "1536", *note[3].split())
    assert rate_of(copy) == pytest.approx(rates[7], rel=1e-5)
    assert "the learning rate jumps" not in capsys.readouterr().err


def test_the_speed_of_a_resumed_run_counts_the_seconds_that_no_log_has_counted_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rl.run.run, "MAX_LOG_POINTS", 3)  # of 8 updates: after 1, 3, 6 and 8
    copy = as_it_was(whole_run(monkeypatch, *STEPS.split()), 2)
    path = copy / "checkpoints/update_0000000002.ckpt"
    content = read_checkpoint(path)
    state = from_bytes(content["ranks"][0])
    assert 0 < state["own"]["run"]["unlogged_seconds"] < 60
    state["own"]["run"]["unlogged_seconds"] = 1000.0
    write_checkpoint(path, content | {"ranks": [to_bytes(state)]})
    train(monkeypatch, "--resume", str(copy))
    assert 1000 < final_state(copy)["ranks"][0]["own"]["run"]["seconds"] < 1100


def test_folders_of_runs_are_called_after_a_clock_that_is_never_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "XYZ-9:30")
        time.tzset()
        train(patched, *FLAGS, *STEPS.split())
    time.tzset()
    (folder,) = Path("logs/torch_logs").iterdir()
    began_at = datetime.strptime(folder.name[-20:], "%Y-%m-%d_%H-%M-%SZ").replace(tzinfo=timezone.utc)
    assert 0 < time.time() - began_at.timestamp() < 100


def test_the_folder_of_a_run_stays_where_it_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def record_rollout(run: Run, *args: Any) -> None:
        os.chdir("/")
        record(run, *args)

    record, here = Run.record_rollout, Path.cwd()
    monkeypatch.setattr(Run, "record_rollout", record_rollout)
    train(monkeypatch, *FLAGS, *STEPS.split(), "--checkpoint-every", "4")
    (folder,) = here.glob("logs/torch_logs/*")
    assert {path.name for path in folder.iterdir()} >= {"last.ckpt", "exit.json", "config.json"}
    assert updates_in(folder / "checkpoints") == [4, 8]


@pytest.mark.parametrize("call", ["fsync", "pwrite"])
def test_a_disk_that_is_full_at_the_start_is_one_line_and_no_folder(
    call: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched, pytest.raises(SystemExit) as exit_:
        patched.setattr(os, call, full)
        train(patched, *FLAGS, *STEPS.split(), "--config", "none")
    (line,) = capsys.readouterr().err.splitlines()
    assert exit_.value.code == 73 and line.endswith(": cannot be written: No space left on device")
    assert list(Path("logs/torch_logs").iterdir()) == []


def test_auto_takes_the_newest_run_of_its_kind_and_starts_one_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*FLAGS, *STEPS.split(), "--resume", "auto"]
    train(monkeypatch, *flags)
    assert "note: --resume auto: no run to resume in logs; a new one starts" in capsys.readouterr().err
    train(monkeypatch, *flags)
    assert "the run is complete" in capsys.readouterr().err
    train(monkeypatch, *flags, "--seed", "2")
    assert len(list(Path("logs/torch_logs").iterdir())) == 2


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = whole_run(monkeypatch, *STEPS.split())
    copy = as_it_was(folder, 4)
    newest = copy / "checkpoints/update_0000000004.ckpt"
    newest.write_bytes(newest.read_bytes()[:-100])
    train(monkeypatch, "--resume", str(copy))
    note = f"note: {newest.absolute()}: is incomplete, or is not a checkpoint of this program; trying the one before it"
    assert note in capsys.readouterr().err
    assert differences(final_state(folder), final_state(copy)) == []


def test_the_newest_checkpoints_stay_and_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    returns = iter([3.0, 5.0, 4.0, 5.0])
    played: list[float] = []

    def evaluate_run(*args: object) -> rl.run.keeper.Evaluation:
        played.append(next(returns, 1.0))
        return rl.run.keeper.Evaluation(torch.tensor([played[-1]]), torch.tensor([False]), torch.tensor([1]))

    monkeypatch.setattr(rl.run.keeper, "evaluate_run", evaluate_run)
    train(
        monkeypatch,
        *FLAGS,
        *STEPS.split(),
        "--checkpoint-every",
        "1",
        "--keep-checkpoints",
        "2",
        "--keep-best",
        *EVALUATED,
    )
    (folder,) = Path("logs/torch_logs").iterdir()
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "update_0000000007.ckpt",
        "update_0000000008.ckpt",
    ]
    assert read_checkpoint(folder / "best.ckpt")["run"]["update"] == 4 and len(played) == NUM_UPDATES


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        ("--resume nowhere", 66, "--resume nowhere: does not exist; must be a run's folder, a checkpoint, or auto"),
        ("--resume .", 66, "--resume .: contains no checkpoint"),
        (
            "--resume RUN --vectorization tensor",
            65,
            "the run has --vectorization auto, not tensor; leave the flag out",
        ),
        ("--resume RUN --env-id CartPole-v1", 65, "the run has --env-id CustomEnv-v0, not CartPole-v1; leave the flag"),
        ("--resume RUN --hidden-sizes 8 8", 65, "the run has --hidden-sizes 16 16, not 8 8"),
        ("--resume RUN --num-steps 16", 65, "the run has --num-steps 32, not 16"),
        ("--resume RUN --squash", 65, "the run has --squash False, not True; leave the flag out"),
        ("--resume RUN --schedule adaptive --learning-rate 0.1", 65, "from the rate that the run has reached; leave"),
        ("--resume RUN --seed 2", 65, "the run has --seed 1, not 2"),
        ("--resume RUN --precision bf16-true", 65, "the run has --precision 32-true, whose weights bf16-true cannot"),
        ("--resume RUN --num-envs 5", 65, r"the run has 3 environments \(1 rank × --num-envs 3\), not 1 × 5 = 5"),
        ("reinforce --resume RUN", 65, "--resume: the run is one of ppo, not of reinforce"),
        ("--resume RUN --gamma 2", 2, "--gamma 2.0: must lie between 0 and 1"),
        ("--resume README.md", 65, "README.md: is incomplete, or is not a checkpoint of this program"),
        ("--resume empty.ckpt", 65, "empty.ckpt: is incomplete"),
        (f"--resume {5000 * 'x'}", 66, f"--resume {200 * 'x'}: cannot be opened .*File name too long"),
    ],
)
def test_what_cannot_be_resumed_is_refused_and_nothing_changes(
    flags: str, code: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = whole_run(monkeypatch, *STEPS.split())
    copy = as_it_was(folder, 3)
    Path("README.md").write_text("x" * 500)
    Path("empty.ckpt").touch()
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        train(monkeypatch, *flags.replace("RUN", str(copy)).split())
    error = capsys.readouterr().err
    assert exit_.value.code == code
    assert len([line for line in error.splitlines() if line.startswith("error: ")]) == 1
    assert re.search(message, error), error
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before


def test_another_program_refuses_the_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folder = whole_run(monkeypatch, *STEPS.split())
    monkeypatch.setattr("sys.argv", ["x", "--resume", str(as_it_was(folder, 2))])
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(SystemExit) as exit_:
        command_line(train_fabric_decoupled.main, {"ppo": DecoupledConfig()}, train_fabric_decoupled.PROGRAM)
    assert exit_.value.code == 65
    assert "--resume: is a run of another program" in capsys.readouterr().err


def test_a_run_of_one_rank_is_resumed_by_two_that_have_as_many_environments(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--env-id", "CartPole-v1", "--vectorization", "sync", "--num-envs", "4", "--total-timesteps", "1024"]
    flags += ["--memory", "gru", "--memory-size", "8", "--sequence-length", "2"]
    folder = whole_run(monkeypatch, *flags)
    copy = as_it_was(folder, 4)
    result = torchrun("--resume", str(copy), "--num-envs", "2", ranks=2)
    succeeded(result)
    assert result.stderr.count("note: resumed on 2 ranks instead of 1: the run continues from the same state") == 1
    alone, together = log_of(folder), log_of(copy)
    # The next rollout is the same on any number of ranks; the last bits of what is learned from it are not.
    for tag in ("Rewards/rew_avg", "Game/ep_len_avg", "Info/explained_variance"):
        assert together[tag][:4] == alone[tag][:4]
        assert together[tag][4] == (640, pytest.approx(alone[tag][4][1], rel=1e-4))
    assert [step for step, _ in together["Loss/policy_loss"]] == [step for step, _ in alone["Loss/policy_loss"]]
    assert read_checkpoint(copy / "last.ckpt")["num_players"] == 2


def test_replay_buffers_are_not_divided_among_other_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = whole_run(monkeypatch, "actor-critic", *STEPS.split(), "--num-envs", "4", "--total-episodes", "9999")
    result = torchrun("--resume", str(as_it_was(folder, 4)), "--num-envs", "2", ranks=2)
    error = "error: --resume: each of the run's 1 ranks has a replay buffer, and these cannot be divided among 2 ranks"
    assert result.stderr.count(error) == 1


@pytest.mark.parametrize(("code", "exit_code"), [(71, 70), (72, 70), (69, None), (143, None)])
def test_a_run_that_would_fail_in_the_same_way_is_not_restarted(
    code: int, exit_code: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = as_it_was(whole_run(monkeypatch, *STEPS.split()), 7)
    (copy / "exit.json").write_text(f'{{"exit_code": {code}, "rank": 1, "message": "--env-id x: hangs"}}')
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    if exit_code is None:
        train(monkeypatch, "--resume", str(copy))
        return
    with pytest.raises(SystemExit) as exit_:
        train(monkeypatch, "--resume", str(copy))
    assert exit_.value.code == exit_code
    assert "error: not restarted, since it would fail in the same way: --env-id x: hangs" in capsys.readouterr().err
