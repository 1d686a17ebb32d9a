"""The package as a library: the training loop of docs/library.md, which is run from the page itself."""

import re
from typing import Any

import gymnasium as gym
import pytest
import torch

import rl
from tests.conftest import ROOT

LOOP, *OWN = re.findall(r"```python\n(.*?)```", (ROOT / "docs/library.md").read_text(), re.DOTALL)


def test_a_loop_of_30_lines_learns_cartpole(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(LOOP.splitlines()) <= 30
    exec(LOOP, {})
    greedy_return = float(capsys.readouterr().out.split()[-1])
    assert greedy_return > 400  # a random policy's is 22


def test_environment_loss_and_log_are_the_readers() -> None:
    page: dict[str, Any] = {"rl": rl, "__name__": "page"}
    try:
        for part in OWN:
            exec(part, page)
        loop = (
            LOOP.replace("CartPole-v1", "Hold-v0").replace("range(25)", "range(1)").replace("rl.PPO(", "EntropyFloor(")
        )
        exec(loop, page)
    finally:
        gym.registry.pop("Hold-v0", None)
    assert page["scalars"](page["rollout"], page["metrics"])["length"] == 50
    assert -150 < page["evaluation"].total_return.mean() < 0
    # Where all entropy is missing, the penalty is what the class adds to the loss of PPO.
    learner, agent, minibatch = page["learner"], page["agent"], page["minibatch"]
    agent.log_std.data.fill_(-3)
    (loss, metrics), (without, _) = learner.loss(agent, minibatch), rl.PPO.loss(learner, agent, minibatch)
    assert metrics["Loss/entropy_penalty"] > 1
    torch.testing.assert_close(loss - without, 0.1 * metrics["Loss/entropy_penalty"])


def test_names_are_there_when_they_are_used() -> None:
    assert [name for name in rl.__all__ if getattr(rl, name).__name__ != name] == []
    assert {*rl.__all__} <= {*dir(rl)}
    with pytest.raises(AttributeError, match="'rl' has no attribute 'nothing'"):
        rl.nothing  # type: ignore[attr-defined]  # noqa: B018
