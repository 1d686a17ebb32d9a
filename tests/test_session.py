"""What a session assembles, and what it leaves behind."""

from contextlib import closing
from dataclasses import replace

import pytest

from rl.config import Config
from rl.envs.make import EnvConfig
from rl.envs.tensor_envs import TensorEnvs
from rl.session import Session, one_env


def test_the_environment_of_a_rank_that_does_not_play_has_the_form_of_those_that_are_played() -> None:
    """An environment may exist in tensors only."""
    for vectorization, in_tensors in (("tensor", True), ("native", False), ("auto", False)):
        with closing(one_env(Config(env=EnvConfig(num_envs=8, vectorization=vectorization)))) as env:
            assert (isinstance(env, TensorEnvs), env.num_envs) == (in_tensors, 1)


def test_what_a_session_has_opened_is_closed_where_a_later_part_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []
    envs = one_env(Config())
    monkeypatch.setattr(envs, "close", lambda: closed.append("environments"))
    monkeypatch.setattr(Config, "make_envs", lambda self, device: envs)
    config = replace(Config(), exp_name="x")

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr("rl.session.open_folder", fail)
        Session(config, "logs", config.device())
    assert closed == ["environments"]
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr("rl.session.Agent", fail)
        with Session(config, "logs", config.device()) as session:
            patch.setattr(session.folder, "release", lambda: closed.append("folder"))
            session.closing.callback(session.folder.release)
            session.make_agent(None, "32-true")  # type: ignore[arg-type]
    assert closed == ["environments", "folder", "environments"]
