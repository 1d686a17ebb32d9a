"""The programs with environments in tensors, eager and compiled, and with the environment of the docs."""

import json
import re
from pathlib import Path

import pytest
import torch

from tests.programs.launch import (
    ROOT,
    agent_of,
    decoupled,
    fabric,
    fabric_command,
    run_folder,
    scalars,
    start,
    succeeded,
    torchrun,
)
from tests.programs.test_programs import SMALL

TENSORS = ("--vectorization", "tensor", "--no-shared-encoder")


def test_a_compiled_run_on_two_ranks_ends_near_the_eager_one() -> None:
    # How many evaluations there is time for depends on the speed.
    arguments = [*SMALL, *TENSORS, "--total-timesteps", "2048", "--no-keep-best"]
    succeeded(torchrun(*arguments, "--execution", "eager"))
    output = succeeded(fabric(*arguments, "--execution", "compile"))
    eager, compiled = agent_of(run_folder("torch_logs")), agent_of(run_folder("fabric_logs"))
    assert all(torch.allclose(eager[name], compiled[name], atol=1e-4) for name in eager)
    eager_log, log = scalars(run_folder("torch_logs")), scalars(run_folder("fabric_logs"))
    assert set(log) == {*eager_log, "Time/compile_seconds"}
    for tag in eager_log:
        if not tag.startswith("Time/"):
            assert [value for _, value in log[tag]] == pytest.approx(
                [value for _, value in eager_log[tag]], rel=1e-2, abs=1e-3
            ), tag
    assert re.search(r"steps/s on 2 ranks, after \d+ s of compiling", output)


def test_a_compiled_player_and_trainer_learn_in_bf16() -> None:
    arguments = [*TENSORS, "--execution", "compile", "--num-envs", "32", "--total-timesteps", "250000"]
    succeeded(decoupled(*arguments, ranks=2, options=("--precision=16-mixed",)))
    # Which Fabric takes for fp16 on a CPU.
    assert json.loads((run_folder("fabric_decoupled_logs") / "config.json").read_text())["precision"] == "bf16-mixed"
    log = scalars(run_folder("fabric_decoupled_logs"))
    assert log["Rewards/rew_avg"][-1][1] >= 190
    # Of the seconds that the player waited for a trainer that compiled, its speed knows nothing.
    (steps, speed), (_, waited) = log["Time/step_per_second"][0], log["Time/player_wait_seconds"][0]
    assert speed > steps / waited and log["Time/compile_seconds"][-1][1] > waited / 2


def test_the_environment_of_the_docs_is_learned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = (ROOT / "docs/your_environment.md").read_text()
    (module,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "TensorEnv" in block)
    (tmp_path / "my_envs.py").write_text(module)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    flags = re.search(r"train_fabric.py (--env-id my_envs:.*)$", page, re.MULTILINE).group(1).split()
    # Fewer and larger minibatches than the plain defaults have, whose 16,000 messages between two ranks take minutes.
    quick = "--total-timesteps 400000 --num-envs 64 --update-epochs 4 --num-minibatches 4 --learning-rate 3e-3"
    command = fabric_command("train_fabric.py", *flags, *quick.split(), ranks=2, options=("--accelerator=cpu",))
    succeeded(start(*command))
    returns = [value for _, value in scalars(run_folder("fabric_logs"))["Rewards/rew_avg"]]
    assert returns[0] < 70 < 90 < returns[-1]
