"""The commands and the example of docs/quickstart.md run as they stand there, on a run of less than a second."""

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

import rl
from tests.programs.launch import ROOT

# A window stays open as long as an episode (tests/commands/test_evaluate.py opens one), and `rl resume` replaces this
# process (tests/commands/test_runs.py follows it).
ELSEWHERE = ("rl play --last", "rl resume")


def test_the_quick_start_runs(run: Path, rl_: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs/quickstart.md").read_text()
    shutil.copytree(run.parent.parent, "logs")
    lines = [line.partition(" #")[0].strip() for line in re.findall(r"^rl .*", page, re.MULTILINE)]
    played = [line for line in lines if line != ELSEWHERE[0] and not line.startswith(ELSEWHERE[1])]
    assert len(played) == len(lines) - 2
    for line in played:
        rl_(*shlex.split(line)[1:])
    assert all(Path(file).stat().st_size > 1000 for file in ("cartpole.gif", "curves.png", "policy.onnx"))

    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    capsys.readouterr()
    exec(example, {})
    assert float(capsys.readouterr().out) == played_by(rl.load_policy(run / "last.ckpt"))


def played_by(policy: Callable[[Any], Any]) -> float:
    """The return of the example's episode."""
    env, total, done = gym.make("CartPole-v1"), 0.0, False
    obs, _ = env.reset(seed=1)
    while not done:
        obs, reward, terminated, truncated, _ = env.step(policy(obs))
        total, done = total + float(reward), terminated or truncated
    return total
