"""Faults while a program runs: it ends with a message and the right exit code, and leaves no process behind."""

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from rl.run.checkpoint import read_checkpoint
from tests.programs.launch import (
    BIN,
    ROOT,
    fabric_command,
    free_port,
    start,
    started,
    succeeded,
    torchrun,
)

SMALL = "--config none --num-envs 2 --num-steps 32 --hidden-sizes 16 16 --eval-episodes 1 --execution eager"
SMALL += " --update-epochs 4 --num-minibatches 4"
ENDLESS = f"{SMALL} --total-timesteps 100000000 --env-id CartPole-v1 --vectorization sync"
ALONE = (sys.executable, str(ROOT / "train_torch.py"))


def launcher_variables(num_local: int) -> dict[str, str]:
    """The variables that a launcher of two ranks sets, with this number of ranks on this machine."""
    local = {"LOCAL_WORLD_SIZE": str(num_local)}
    return local | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}


def heed_hang_ups() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def wait_for(pattern: str) -> None:
    deadline = time.monotonic() + 30
    while not any(Path().glob(pattern)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def newest_checkpoint() -> Path:
    return max(Path().glob("logs/*/*/checkpoints/*.ckpt"))


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)], ids=lambda n: str(int(n))
)
def test_a_signal_ends_the_update_and_keeps_it(
    number: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ENDLESS.replace("--vectorization sync", "--vectorization async")
    # Where hang-ups are ignored, as under nohup, the program does so too.
    monkeypatch.setattr("tests.programs.launch.subprocess.Popen", partial(subprocess.Popen, preexec_fn=heed_hang_ups))
    with started(*ALONE, *flags.split()) as program:
        program.train()
        for process in program.processes():  # the environments' too, as a terminal or Slurm does it
            process.send_signal(number)
        error = program.end(within=30)
    checkpoint = newest_checkpoint()
    update = read_checkpoint(checkpoint)["run"]["update"]
    assert program.process.returncode == code
    assert (
        f"stopped: {number.name} after update {update:,}" in error
        and f"the checkpoint is {checkpoint.absolute()}" in error
    )
    assert len(error.splitlines()) == 1
    exit_file = json.loads((checkpoint.parent.parent / "exit.json").read_text())
    assert exit_file["exit_code"] == code


def test_sigusr1_keeps_a_checkpoint_and_the_run_goes_on() -> None:
    with started(*ALONE, *ENDLESS.split()) as program:
        program.train()
        program.process.send_signal(signal.SIGUSR1)
        wait_for("logs/*/*/checkpoints/*.ckpt")
        assert program.process.poll() is None
        read_checkpoint(newest_checkpoint())
        program.process.terminate()
        program.end(within=30)
    assert program.process.returncode == 143


def test_a_stop_of_one_rank_ends_all_at_the_same_update_whether_they_play_or_learn() -> None:
    command = fabric_command("train_fabric_decoupled.py", *ENDLESS.split(), ranks=3)
    with started(*command) as program:
        program.train()
        program.rank(2).send_signal(signal.SIGTERM)
        error = program.end(within=40)
    assert error.count("stopped: SIGTERM after update") == 1
    assert len(read_checkpoint(newest_checkpoint())["ranks"]) == 3


def test_a_killed_rank_is_named_and_no_process_is_left() -> None:
    command = (BIN / "torchrun", "--nproc_per_node=2", "--standalone", ROOT / "train_torch.py", *ENDLESS.split())
    with started(*map(str, command)) as program:
        program.train()
        victim = program.rank(1)
        victim.kill()
        error = program.end(within=30)
    line = f"ranks have lost each other: rank 1 (process {victim.pid}) has died"
    assert error.count(f"error: {line}") == 1
    assert (
        program.process.returncode == 69 if "has ended with exit code 69" in error else f"traceback : {line}" in error
    )
    (said,) = Path().glob("logs/*/*/exit.json")
    assert json.loads(said.read_text())["exit_code"] == 69


def test_a_rank_that_is_stopped_is_named_after_the_time_limit() -> None:
    variables = launcher_variables(2)
    with contextlib.ExitStack() as stack:
        stopped, other = (
            stack.enter_context(
                started(*ALONE, *ENDLESS.split(), "--rank-timeout", "5", RANK=str(n), LOCAL_RANK=str(n), **variables)
            )
            for n in (0, 1)
        )
        stopped.train()
        stopped.process.send_signal(signal.SIGSTOP)
        error = other.end(within=40)
        assert stopped.process.wait(10) == -signal.SIGKILL  # nobody waits for what hangs after the end of a run
    assert other.process.returncode == 69
    assert f"error: ranks have lost each other: rank 0 (process {stopped.process.pid}) is stopped" in error


def test_a_second_interrupt_ends_all_ranks_though_one_is_stopped() -> None:
    command = fabric_command("train_fabric_decoupled.py", *ENDLESS.split(), ranks=3)
    with started(*command) as program:
        program.train()
        program.rank(2).send_signal(signal.SIGSTOP)
        for _ in range(2):
            program.process.send_signal(signal.SIGINT)
            time.sleep(1.5)
        error = program.end(within=15)  # launchers wait for 30 s, and ranks for 300
    assert error.count("interrupted\n") == 1


def test_a_launcher_that_is_killed_leaves_no_rank_and_a_checkpoint_though_a_script_stands_between() -> None:
    script = Path("wrap.sh")
    script.write_text(f'#!/bin/bash\nulimit -c 0; {sys.executable} {ROOT / "train_torch.py"} "$@"\n')
    script.chmod(0o755)
    command = (str(BIN / "torchrun"), "--nproc_per_node=2", "--standalone", "--no-python", str(script.absolute()))
    with started(*command, *ENDLESS.split()) as program:
        program.train()
        program.process.kill()
        error = program.end(within=30)
    assert error.count("stopped: SIGTERM after update") == 1
    read_checkpoint(newest_checkpoint())


def test_a_killed_rank_leaves_none_of_its_environments_and_is_started_again_by_torchrun() -> None:
    flags = f"{SMALL} --env-id CartPole-v1 --vectorization async --total-timesteps 25600 --checkpoint-every 5"
    command = [BIN / "torchrun", "--nproc_per_node=2", "--standalone", "--max-restarts=1", ROOT / "train_torch.py"]
    with started(*map(str, command), *flags.split(), "--resume", "auto") as program:
        program.train()
        wait_for("logs/*/*/checkpoints/*.ckpt")
        rank = program.rank(0)
        environments = rank.children()
        rank.kill()
        output, error = program.process.communicate(timeout=90)
        assert not any(process.is_running() for process in environments)
    assert program.process.returncode == 0, error
    assert "CartPole-v1 after 25,600 steps" in output
    (folder,) = Path("logs/torch_logs").iterdir()
    assert json.loads((folder / "exit.json").read_text())["exit_code"] == 0


def test_an_environment_that_hangs_in_the_rank_itself_ends_it_too() -> None:
    arguments = f"{SMALL} --total-timesteps 100000 --checkpoint-every 1 --env-id tests.probes:Hanging-v0 --allow-import"
    result = start(*ALONE, *arguments.split(), "--env-timeout", "1")
    assert result.returncode == 71
    assert result.stderr.count("environment 1 has not answered for --env-timeout 1 s, at step 70 of the episode") == 1
    assert "Traceback" not in result.stderr
    assert read_checkpoint(newest_checkpoint())["run"]["update"] == 2


def test_what_a_program_prints_may_have_no_reader() -> None:
    command = " ".join([*ALONE, SMALL, "--total-timesteps 6400", "| head -n 1"])
    result = start("bash", "-o", "pipefail", "-c", command)
    assert result.returncode == 0 and result.stderr == ""
    assert json.loads(next(Path().glob("logs/*/*/exit.json")).read_text())["exit_code"] == 0


def test_ranks_with_other_flags_are_told_which() -> None:
    variables = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    with contextlib.ExitStack() as stack:
        programs = [
            stack.enter_context(
                started(*ALONE, *SMALL.split(), "--gamma", gamma, RANK=str(n), LOCAL_RANK=str(n), **variables)
            )
            for n, gamma in enumerate(("0.9", "0.95"))
        ]
        errors = [program.end(within=60) for program in programs]
    assert [program.process.returncode for program in programs] == [69, 69]
    assert "error: all ranks need the same flags: --gamma is 0.9 on rank 0 and 0.95 on rank 1" in errors[0]


@pytest.mark.parametrize("here", [True, False], ids=["on this machine", "on another"])
def test_a_rank_that_does_not_come_is_named(here: bool) -> None:
    variables = launcher_variables(2 if here else 1) | {"RANK": "0", "LOCAL_RANK": "0"}
    if here:
        Path("launcher").mkdir(mode=0o700)
        error_file = str(Path("launcher/attempt_0/0/error.json").absolute())
        Path(error_file).parent.mkdir(parents=True)
        variables |= {"TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_ERROR_FILE": error_file}
    with started(*ALONE, *SMALL.split(), "--rank-timeout", "2", **variables) as program:
        error = program.end(within=60)
    assert program.process.returncode == 69
    missing = "rank 1 of 2 has not come" if here else f"ranks have not met at 127.0.0.1:{variables['MASTER_PORT']}"
    assert error.count(f"error: {missing} in 2 s") == 1
    assert not any(Path("logs/torch_logs").iterdir())


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        variables = launcher_variables(1) | {"MASTER_PORT": str(taken.getsockname()[1])}
        with started(*ALONE, *SMALL.split(), "--rank-timeout", "2", RANK="0", LOCAL_RANK="0", **variables) as program:
            error = program.end(within=60)
    assert program.process.returncode == 69
    address = f"127.0.0.1:{variables['MASTER_PORT']}"
    assert error.count(f"error: another program listens on {address}; choose another port") == 1


def test_on_one_machine_nothing_listens_beyond_the_loopback_interface() -> None:
    page = (ROOT / "docs/distributed.md").read_text()
    variable, command = re.search(r"(TORCH_DISABLE_\w+)=1 (torchrun .*store_type=file.*)train_torch", page).groups()
    launcher = command.replace("$(mktemp)", str(Path("rendezvous").absolute())).split()
    program_and_flags = (str(ROOT / "train_torch.py"), *ENDLESS.split())
    with started(str(BIN / launcher[0]), *launcher[1:], *program_and_flags, **{variable: "1"}) as program:
        program.train()
        connections = [connection for process in program.processes() for connection in process.net_connections()]
        listening = [connection.laddr.ip for connection in connections if connection.status == psutil.CONN_LISTEN]
        program.process.terminate()
        program.end(within=30)
    assert listening and set(listening) <= {"127.0.0.1", "::1"}


def test_a_run_is_resumed_by_one_process_at_a_time() -> None:
    succeeded(torchrun(*SMALL.split(), "--total-timesteps", "640", "--checkpoint-every", "2", ranks=1))
    (folder,) = Path("logs/torch_logs").iterdir()
    resumed = ("--resume", str(folder), "--total-timesteps", "100000000")
    with started(*ALONE, *resumed) as program:
        deadline = time.monotonic() + 60
        while len(list(folder.glob("events.*"))) < 2:
            assert time.monotonic() < deadline and program.process.poll() is None
            time.sleep(0.1)
        second = start(*ALONE, *resumed)
        program.process.terminate()
        program.end(within=30)
    assert second.returncode == 73
    assert (
        f"error: --resume: {folder.absolute()} is in use by process {program.process.pid}; stop that first"
        in second.stderr
    )
