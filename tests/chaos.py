"""Kills real runs of the three programs at random moments, resumes them, and compares their final states.

    python -m tests.chaos --faults 100 --seed 1

Every run first runs undisturbed. It is then started again and again under faults, until it is complete; its final state
must equal that of the undisturbed run to the bit. Some runs are then extended, and killed once more.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from rl.errors import CheckpointError
from rl.run.checkpoint import read_checkpoint
from tests.attempts import DECOUPLED, FABRIC, PATIENCE_SECONDS, TORCH, Attempt, Program
from tests.programs.launch import log_of
from tests.states import differences, final_state

EXTENDED = "kill a complete run that goes on"
FAULTS = (
    *("kill rank", "kill launcher", "kill in save", "kill environment"),
    *("SIGTERM rank", "SIGTERM launcher", "SIGINT all", "SIGSTOP rank"),
    EXTENDED,
)


CARTPOLE = "--env-id CartPole-v1 --update-epochs 4"
NORMALIZED = "--normalize-obs --normalize-reward"
PROGRAMS = (
    Program(TORCH, 1, f"{CARTPOLE} --vectorization async --total-timesteps 4096 --checkpoint-every 1"),
    Program(TORCH, 2, f"{CARTPOLE} {NORMALIZED} --vectorization sync --total-timesteps 8192 --checkpoint-every 3"),
    Program(FABRIC, 2, "--vectorization tensor --total-timesteps 12800 --checkpoint-every 2", "actor-critic"),
    Program(DECOUPLED, 3, "--overlap --total-timesteps 4096 --checkpoint-every 2"),
    Program(TORCH, 2, f"{CARTPOLE} --total-timesteps 8192 --checkpoint-every 1", restarts=9),
    Program(FABRIC, 2, "--vectorization sync --total-timesteps 12000 --checkpoint-every 2", "reinforce", restarts=9),
    Program(DECOUPLED, 3, "--vectorization tensor --total-timesteps 4096 --checkpoint-every 2"),
)


@dataclass
class Report:
    """The counts and failures of all faults."""

    faults: Counter[str] = field(default_factory=Counter)
    resumes: int = 0
    failed_resumes: list[str] = field(default_factory=list)
    lost_updates: list[int] = field(default_factory=list)
    too_much_lost: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    complete_runs: int = 0
    different: list[str] = field(default_factory=list)

    def good(self) -> bool:
        """Whether every guarantee was kept."""
        broken = (self.failed_resumes, self.too_much_lost, self.orphans, self.unreadable, self.different)
        return self.faults.total() > 0 and self.complete_runs > 0 and not any(broken)


def inject(fault: str, attempt: Attempt, generator: random.Random) -> bool:
    """Injects the fault; returns whether there was still a process to harm."""
    ranks = attempt.ranks()
    if attempt.launcher.poll() is not None or not ranks:
        return False
    victim = generator.choice(ranks)
    kind, _, whom = fault.partition(" ")
    if whom == "environment":
        victim = generator.choice(victim.children() or [victim])
    number = {"kill": signal.SIGKILL}.get(kind) or getattr(signal, kind)
    try:
        if fault == "SIGSTOP rank" and len(ranks) == 1:
            # No other rank waits for a rank on its own: it only pauses.
            victim.send_signal(signal.SIGSTOP)
            time.sleep(0.5)
            victim.send_signal(signal.SIGCONT)
        elif whom == "all":
            os.killpg(attempt.launcher.pid, number)
        else:
            (attempt.launcher if whom == "launcher" else victim).send_signal(number)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return False
    return True


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints that a run has written, complete or not."""
    return [
        *folder.glob("logs/*/*/last.ckpt"),
        *sorted(folder.glob("logs/*/*/checkpoints/update_*.ckpt"), reverse=True),
    ]


def newest(folder: Path, report: Report) -> dict[str, Any] | None:
    """The content of the newest checkpoint."""
    contents = [read(path, report) for path in checkpoints(folder)]
    return max(filter(None, contents), key=lambda content: content["run"]["update"], default=None)


def read(path: Path, report: Report) -> dict[str, Any] | None:
    """The content of a checkpoint, or None if newer ones have replaced it."""
    try:
        return read_checkpoint(path)
    except CheckpointError as error:
        report.unreadable.append(str(error))
    except FileNotFoundError:
        pass
    return None


def end_of(folder: Path) -> dict[str, Any]:
    """The final state of a complete run."""
    (path,) = folder.glob("logs/*/*/last.ckpt")
    return final_state(path.parent) | {"log": log_of(path.parent)}


def left_alone(program: Program, folder: Path) -> tuple[dict[str, Any], float]:
    """The final state of a run without faults, and how long it trained."""
    attempt = Attempt(program, folder)
    attempt.wait_until_training()
    began_at = time.monotonic()
    attempt.launcher.wait(4 * PATIENCE_SECONDS)
    assert attempt.launcher.returncode == 0, attempt.output.read_text()
    seconds = time.monotonic() - began_at
    assert not attempt.left_over()
    return end_of(folder), seconds


def harass(
    program: Program, folder: Path, faults: Sequence[str], seconds: float, generator: random.Random, report: Report
) -> None:
    """Brings one run to its end under at most these faults."""
    interval = int(program.flags.split("--checkpoint-every ")[1].split()[0])
    to_come = list(faults)
    for _ in range(len(faults) + 5):
        before = newest(folder, report)
        fault = to_come.pop(0) if to_come else ""
        attempt = Attempt(program, folder, dies_in_save=generator.randint(1, 3) if fault == "kill in save" else 0)
        try:
            training = attempt.wait_until_training()
            if before is not None:
                resumed = training or attempt.launcher.wait(PATIENCE_SECONDS) == 0
                report.resumes += resumed
                if not resumed:
                    report.failed_resumes.append(
                        f"{program} after {before['run']}: {attempt.output.read_text()[-2000:]}"
                    )
            if training and fault:
                endure(fault, program, attempt, seconds, generator, report)
            elif not fault:
                attempt.launcher.wait(4 * PATIENCE_SECONDS)
            if left := attempt.left_over():
                report.orphans += [f"{program} after {fault}: {process.cmdline()}" for process in left]
        finally:
            attempt.end()
        check_loss(program, attempt, newest(folder, report), interval, report)
        if any(json.loads(path.read_text())["exit_code"] == 0 for path in folder.glob("logs/*/*/exit.json")):
            report.complete_runs += 1
            return
    report.failed_resumes.append(f"{program}: not complete")


def extend(program: Program, folder: Path, report: Report) -> None:
    """Extends a complete run to twice its length, and kills it once it has a checkpoint; it must not lose updates."""
    total = 2 * int(program.flags.split("--total-timesteps ")[1].split()[0])
    longer = replace(program, flags=f"{program.flags} --total-timesteps {total}")
    end = newest(folder, report)
    for killed in (True, False):
        before = newest(folder, report)
        attempt = Attempt(longer, folder)
        try:
            deadline = time.monotonic() + 4 * PATIENCE_SECONDS
            while attempt.launcher.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
                if killed and (newest(folder, report) or before)["run"]["step"] > end["run"]["step"]:
                    attempt.launcher.kill()
                    report.faults[EXTENDED] += 1
                    break
            report.orphans += [f"{program} after {EXTENDED}: {process.cmdline()}" for process in attempt.left_over()]
        finally:
            attempt.end()
        if attempt.steps() and attempt.steps()[0] <= before["run"]["step"]:
            report.failed_resumes.append(f"{program}: went back from {before['run']} to {attempt.steps()[0]}")
    if newest(folder, report)["run"]["step"] < total:
        report.failed_resumes.append(f"{program}: not complete after it went on")


def endure(
    fault: str, program: Program, attempt: Attempt, seconds: float, generator: random.Random, report: Report
) -> None:
    """Injects a fault at a random moment of the training; a launcher that restarts its ranks receives several."""
    for n in range(1 + (3 if program.restarts and "rank" in fault else 0)):
        if fault != "kill in save":
            time.sleep(generator.uniform(0, 0.6) * seconds if n == 0 else generator.uniform(4, 8))
        if fault == "kill in save" or inject(fault, attempt, generator):
            report.faults[fault] += 1


def check_loss(
    program: Program, attempt: Attempt, content: dict[str, Any] | None, interval: int, report: Report
) -> None:
    """Compares the last update that a run printed with the one of its newest checkpoint."""
    spoken, kept = attempt.last_step(), content["run"] if content else {"step": 0, "update": 0}
    if spoken is None or kept["step"] >= spoken:
        report.lost_updates.append(0)
        return
    steps_per_update = max(1, kept["step"] // kept["update"]) if kept["update"] else max(1, spoken)
    lost = round((spoken - kept["step"]) / steps_per_update) if kept["update"] else 1
    report.lost_updates.append(lost)
    if lost > interval:
        report.too_much_lost.append(f"{program}: {lost} updates, from step {kept['step']} to {spoken}")


def main() -> None:
    """Injects faults up to the number given, and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--programs", type=int, nargs="*", default=list(range(len(PROGRAMS))), help="numbers of PROGRAMS"
    )
    arguments = parser.parse_args()
    generator = random.Random(arguments.seed)
    report = Report()
    print(f"seed {arguments.seed}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        references = {}
        round_ = 0
        while report.faults.total() < arguments.faults:
            for number in arguments.programs:
                program = PROGRAMS[number]
                if number not in references:
                    folder = Path(temporary, f"alone{number}")
                    folder.mkdir()
                    references[number] = left_alone(program, folder)
                expected, seconds = references[number]
                folder = Path(temporary, f"run{number}_{round_}")
                folder.mkdir()
                faults = generator.sample(FAULTS, min(3, arguments.faults - report.faults.total()))
                harass(program, folder, [fault for fault in faults if fault != EXTENDED], seconds, generator, report)
                if found := differences(expected, end_of(folder)):
                    report.different.append(f"{program}: {found[:5]}")
                if EXTENDED in faults:
                    extend(program, folder, report)
                print(f"{program.name} {program.ranks} {faults}: {report.faults.total()} faults", flush=True)
                if report.faults.total() >= arguments.faults:
                    break
            round_ += 1
    print_report(report)
    sys.exit(0 if report.good() else 1)


def print_report(report: Report) -> None:
    """Prints the counts."""
    print(f"faults injected                    {report.faults.total()}: {dict(report.faults)}")
    print(f"resumes that worked                {report.resumes} of {report.resumes + len(report.failed_resumes)}")
    print(f"updates lost                       at most {max(report.lost_updates, default=0)}", end="")
    print(f", more than an interval in {len(report.too_much_lost)} cases")
    print(f"orphans                            {len(report.orphans)}")
    print(f"unreadable checkpoints             {len(report.unreadable)}")
    print(
        f"runs that ended as if undisturbed  {report.complete_runs - len(report.different)} of {report.complete_runs}"
    )
    for line in (*report.failed_resumes, *report.too_much_lost, *report.orphans, *report.unreadable, *report.different):
        print(f"BROKEN: {line}")


if __name__ == "__main__":
    main()
