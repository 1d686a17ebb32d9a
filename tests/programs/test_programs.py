"""The programs, in ranks or with the launchers that users start."""

import fcntl
import functools
import itertools
import json
import math
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import gymnasium as gym
import pytest
import torch

import rl
from rl.config import Config
from tests.programs.launch import (
    ROOT,
    agent_of,
    fabric,
    fabric_command,
    hyperparameters,
    run_folder,
    scalars,
    start,
    succeeded,
    torchrun,
    torchrun_command,
)

OPTIMUM = 198.970171
TAGS = {
    "Rewards/rew_avg",
    "Rewards/rew_min",
    "Rewards/rew_max",
    "Rewards/last_100_episodes",
    "Count/episodes",
    "Game/ep_len_avg",
    "Loss/policy_loss",
    "Loss/value_loss",
    "Loss/entropy_loss",
    "Info/learning_rate",
    "Info/approx_kl",
    "Info/clip_fraction",
    "Info/explained_variance",
    "Info/grad_norm",
    "Time/step_per_second",
    "Time/collect_seconds",
    "Time/learn_seconds",
    "Test/cumulative_reward",
    "Test/return_std",
    "Test/ep_len_avg",
}
SMALL = ["--num-envs", "4", "--num-steps", "32", "--hidden-sizes", "16", "16", "--eval-episodes", "2"]


def test_the_bare_command_learns_custom_env_to_its_optimum() -> None:
    readme = (ROOT / "README.md").read_text()
    options = re.search(r"bin/fabric run (.*) train_fabric.py$", readme, re.MULTILINE).group(1).split()
    output = succeeded(start(*fabric_command("train_fabric.py", ranks=2, options=(*options,))))
    folder = run_folder("fabric_logs").absolute()
    for line in (
        "CustomEnv-v0 after 499,712 steps",
        "return 198.97, from 198.97 to 198.97 in 10 episodes",
        f"logs and agent   {folder.absolute()}",
        "tensorboard --logdir logs/fabric_logs",
    ):
        assert output.count(line) == 1
    logged = scalars(folder)
    assert set(logged) == TAGS
    assert logged["Test/cumulative_reward"][-1] == (499_712, pytest.approx(OPTIMUM, abs=1e-4))
    assert logged["Rewards/rew_avg"][-1][1] >= 190
    assert all(math.isfinite(value) for series in logged.values() for _, value in series)
    steps = [step for step, _ in logged["Loss/policy_loss"]]
    assert steps == list(range(4_096, 499_713, 4_096))
    rates = [value for _, value in logged["Info/learning_rate"]]
    assert rates[0] == pytest.approx(5e-3) and rates[-1] == pytest.approx(5e-3 / 122)
    # 128 environments over both ranks, whose episodes take 200 steps once they are learned.
    assert logged["Game/ep_len_avg"][-1][1] == 200

    policy, env = rl.load_policy(folder / "last.ckpt"), gym.make("CustomEnv-v0")
    obs, total = env.reset()[0], 0.0
    for _ in range(200):
        obs, reward, *_ = env.step(policy(obs))
        total += reward
    assert total == pytest.approx(OPTIMUM, abs=1e-4)


VARIANTS = {
    "defaults": (2, ""),
    "shared-data-and-next-step-autoreset": (2, "--share-data --env-id CartPole-v1 --precision bf16-true"),
    "uneven-minibatches": (3, "--share-data --num-envs 1 --num-steps 5 --per-rank-batch-size 2 --total-timesteps 150"),
    "everything-else": (
        2,
        "--env-id Pendulum-v1 --clip-vloss --ent-coef 0.01 --schedule constant --no-normalize-advantages"
        " --no-ortho-init --no-shared-encoder --activation-function relu --target-kl 0.001 --torch-deterministic"
        " --seed 7 --vectorization async --num-envs 2",
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_fabric_and_torch_end_with_the_same_parameters(variant: str) -> None:
    ranks, flags = VARIANTS[variant]
    arguments = [*SMALL, "--total-timesteps", "3000", "--eval-every", "1024", *flags.split()]
    succeeded(fabric(*arguments, ranks=ranks))
    succeeded(torchrun(*arguments, ranks=ranks))
    ours, theirs = agent_of(run_folder("fabric_logs")), agent_of(run_folder("torch_logs"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    first, second = scalars(run_folder("fabric_logs")), scalars(run_folder("torch_logs"))
    untimed = [tag for tag in first if not tag.startswith("Time/")]
    assert {tag: first[tag] for tag in untimed} == {tag: second[tag] for tag in untimed}
    assert set(second) == set(first)
    for folder in (run_folder("fabric_logs"), run_folder("torch_logs")):
        assert hyperparameters(folder) == set(Config().flags())
        assert json.loads((folder / "config.json").read_text())["total_timesteps"] in (150, 3000)
        steps, num_updates = [step for step, _ in scalars(folder)["Loss/policy_loss"]], 3000 // (ranks * 128)
        if variant != "uneven-minibatches":  # steps that only reset do not count
            assert steps[-1] >= num_updates * ranks * 128
            numbers = {after - before for before, after in itertools.pairwise([0, *steps])}
            assert (len(numbers) > 1) == ("CartPole" in flags)


def test_on_a_cpu_fabric_says_that_it_takes_bf16_for_fp16_and_learns() -> None:
    result = fabric(*SMALL, "--total-timesteps", "60000", "--num-envs", "32", options=("--precision=16-mixed",))
    succeeded(result)
    assert "bf16-mixed" in result.stderr
    assert json.loads((run_folder("fabric_logs") / "config.json").read_text())["precision"] == "bf16-mixed"
    agent = agent_of(run_folder("fabric_logs"))
    assert all(parameter.dtype == torch.float32 and parameter.isfinite().all() for parameter in agent.values())
    # Any precision soon keeps the mass on the track longer than a random policy, which gets 18.
    assert scalars(run_folder("fabric_logs"))["Rewards/rew_avg"][-1][1] > 40


def test_shared_data_changes_the_training_and_not_the_experience_before_it() -> None:
    for flags in ((), ("--share-data",)):
        succeeded(torchrun(*SMALL, "--total-timesteps", "1024", "--exp-name", f"x{len(flags)}", *flags))
    runs = sorted(Path("logs/torch_logs").iterdir())
    own, shared = (scalars(run) for run in runs)
    assert own["Info/explained_variance"][0] == shared["Info/explained_variance"][0]
    agents = [agent_of(run) for run in runs]
    assert any(not torch.equal(agents[0][name], agents[1][name]) for name in agents[0])


def test_videos_are_filmed_during_training_and_after_it() -> None:
    succeeded(torchrun(*SMALL, "--capture-video", "--total-timesteps", "1024", ranks=1))
    films = {str(path.relative_to(run_folder("torch_logs"))) for path in run_folder("torch_logs").rglob("*.mp4")}
    steps = [128, 256, 512, 1024]
    assert films == {"test_videos/greedy.mp4", *(f"train_videos/step_{step}.mp4" for step in steps)}


def test_in_a_terminal_there_is_a_progress_bar() -> None:
    shown = _output_in_a_terminal([sys.executable, ROOT / "train_torch.py", *SMALL, "--total-timesteps", "12800"])
    assert re.search(
        r"100% \|.*\| 12\.8k of 12\.8k steps, return -?\d+\.\d\d, length \d+, [\d,]+ steps/s, 0:\d\d in all", shown
    )
    assert "of 12,800 steps" not in shown
    assert shown.count("greedy policy") == 1


def _output_in_a_terminal(command: list[object]) -> str:
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 110, 0, 0))  # rows and columns
    process = subprocess.Popen(list(map(str, command)), stdout=terminal, stderr=terminal)
    os.close(terminal)
    shown = b""
    while True:
        try:
            chunk = os.read(controller, 65536)
        except OSError:  # the terminal's last holder has gone
            break
        if not chunk:
            break
        shown += chunk
    os.close(controller)
    assert process.wait() == 0
    return shown.decode()


def test_a_strategy_that_is_not_data_parallel_is_refused(tmp_path: Path) -> None:
    result = fabric(options=("--strategy=fsdp",))
    assert (
        result.returncode != 0
        and result.stderr.count("error: --strategy fsdp: gradients are averaged by ddp here") == 1
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("program", "flags", "message"),
    [
        ("train_torch.py", "--env-id nope-v0", "error: --env-id nope-v0: Environment `nope` doesn't exist"),
        ("train_torch.py", "--numenvs 3", "error: --numenvs: is not a flag; use --num-envs"),
        ("train_fabric.py", "--log-dir /dev/null", "error: --log-dir /dev/null: no folder can be made there"),
    ],
)
def test_two_ranks_answer_bad_input_once(
    program: str, flags: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{plug_in(tmp_path / 'site')}")
    command = torchrun_command if program == "train_torch.py" else functools.partial(fabric_command, program)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    result = start(*command(*flags.split(), ranks=2))
    code = result.returncode
    assert code in (2, 73)
    assert result.stderr.count(message) == 1, result.stderr
    lines = [line for line in result.stderr.splitlines() if not line.startswith("note: recipe")]
    assert lines[1:] == [f"rank 0 of {program} has ended with exit code {code}"]
    assert list(Path.cwd().iterdir()) == []


def plug_in(folder: Path) -> Path:
    """A folder in which the plug-in for launchers is installed, wherever the package itself is."""
    (about := folder / "launcher-0.dist-info").mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: launcher\nVersion: 0\n")
    (about / "entry_points.txt").write_text("[torchrun.handlers]\nlauncher = rl_launcher:plug_in\n")
    return folder
