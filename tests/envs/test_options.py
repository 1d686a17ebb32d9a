"""Arguments and wrappers of environments: where they arrive, and what is said where they cannot."""

import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch

import train_torch
from rl.cli import command_line
from rl.config import CONFIGS, Config
from rl.envs.actions import DiscreteActions
from rl.envs.config import EnvConfig, make_single
from rl.envs.make import has_tensor_form, make_envs, probed
from rl.envs.options import kwargs_of
from rl.envs.seeded import SeededEpisodes
from tests.probes import Probe


class Doubled(gym.RewardWrapper[Any, Any]):
    def reward(self, reward: Any) -> float:
        return 2.0 * float(reward)


class Tripled(gym.RewardWrapper[Any, Any]):
    def reward(self, reward: Any) -> float:
        return 3.0 * float(reward) + 1.0


class Remembering(Probe):
    """Rewards with the number of episodes that the object has had, which only a new one forgets."""

    episodes = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.episodes += 1
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        obs, _, *rest = super().step(action)
        return obs, float(self.episodes), *rest


gym.register("Remembering-v0", entry_point=Remembering, max_episode_steps=3)
WRAPPERS = (f"{__name__}:Doubled", f"{__name__}:Tripled")


def config(env_id: str, vectorization: Any = "sync", kwargs: tuple[str, ...] = (), **flags: Any) -> EnvConfig:
    made = EnvConfig(env_id, 2, vectorization, kwargs, allow_import=True, **flags)
    made.check()
    return made


def rewards(flags: EnvConfig) -> torch.Tensor:
    """The rewards [T, N] of the same actions in the same episodes."""
    with closing(make_envs(flags)) as envs:
        envs.reset(seed=5)
        discrete = isinstance(envs.spaces.actions, DiscreteActions)
        actions = [torch.full((2,), n % 2) if discrete else torch.full((2, 1), 0.1 * n) for n in range(12)]
        return torch.stack([envs.step(action).reward for action in actions])


def test_values_are_yaml_except_that_numbers_may_look_as_in_python() -> None:
    words = "a=true b=-9.8 c=1e-4 d=3 e=left f=[1, 2] g=null h=x=y".replace(", ", ",").split()
    expected = {"a": True, "b": -9.8, "c": 1e-4, "d": 3, "e": "left", "f": [1, 2], "g": None, "h": "x=y"}
    assert kwargs_of(words) == expected


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_arguments_and_wrappers_arrive_in_every_environment(vectorization: str) -> None:
    light, heavy = (rewards(config("Pendulum-v1", vectorization, (f"g={g}",))) for g in (1.0, 10.0))
    assert torch.equal(heavy, rewards(config("Pendulum-v1", vectorization))) and not torch.equal(light, heavy)
    wrapped = rewards(config("Pendulum-v1", vectorization, ("g=1.0",), env_wrapper=WRAPPERS))
    assert torch.allclose(wrapped, 3 * 2 * light + 1)
    flags = config("Pendulum-v1", vectorization, env_wrapper=WRAPPERS)
    assert torch.equal(rewards(flags.for_evaluation(2)), rewards(flags))


@pytest.mark.parametrize("vectorization", ["native", "tensor", "sync"])
def test_a_batched_class_and_a_tensor_form_take_arguments_too(vectorization: str) -> None:
    near, far = (rewards(config("CustomEnv-v0", vectorization, (f"target={x}",))) for x in (0.0, 3.0))
    assert torch.equal(near, rewards(config("CustomEnv-v0", vectorization))) and not torch.equal(near, far)


def test_an_environment_that_is_made_anew_for_each_episode_keeps_its_wrappers() -> None:
    flags = config("Remembering-v0", env_wrapper=WRAPPERS)
    assert probed(flags) == ("episodes", True)
    env = SeededEpisodes(lambda: make_single(flags))
    env.made_anew = True
    for _ in range(3):
        env.reset()
        assert env.step(0)[1] == 3 * 2 * 1 + 1


class Unnamed(gym.Wrapper[Any, Any, Any, Any]):
    """Calls the environment something else than `env`."""

    def __init__(self, inner: gym.Env[Any, Any]) -> None:
        super().__init__(inner)


def test_an_environment_that_is_made_anew_calls_its_wrappers_as_the_first_time() -> None:
    flags = config("Remembering-v0", env_wrapper=(f"{__name__}:Unnamed",))
    assert probed(flags) == ("episodes", True)


def test_a_tensor_form_is_taken_only_where_it_can_do_what_the_flags_ask_for() -> None:
    assert has_tensor_form(config("CustomEnv-v0", "auto", ("target=1.0",)))
    assert not has_tensor_form(config("CustomEnv-v0", "auto", ("render_size=1",)))
    assert not has_tensor_form(config("CustomEnv-v0", "auto", env_wrapper=WRAPPERS))


WRONG = [
    ("--env-kwargs continuous", "--env-kwargs 'continuous': must look like continuous=true"),
    ("--env-kwargs a=[1", "--env-kwargs a=[1: ParserError: "),
    ("--env-kwargs num_envs=3", "--env-kwargs num_envs=3: num_envs follows from other flags; leave it out"),
    ("--env-kwargs wind=1", "--env-kwargs wind=1: TypeError: "),
    ("--env-kwargs wind=1 --vectorization sync", "--env-kwargs wind=1: TypeError: "),
    ("--env-kwargs wind=1 --vectorization tensor", "--env-kwargs wind=1: the tensor form of CustomEnv-v0 takes ("),
    ("--env-wrapper Doubled", "--env-wrapper 'Doubled': must look like module:Class"),
    (f"--env-wrapper {WRAPPERS[0]}", f"--env-wrapper {WRAPPERS[0]}: imports, and so runs, the module {__name__}; add"),
    ("--allow-import --env-wrapper nowhere:X", "--env-wrapper nowhere:X: No module named 'nowhere'"),
    ("--allow-import --env-wrapper math:pi", "--env-wrapper math:pi: must be a class derived from gymnasium.Wrapper"),
    (
        f"--allow-import --env-wrapper {WRAPPERS[0]} --vectorization tensor",
        "--vectorization tensor: has no single environments for --env-wrapper to wrap; use sync or async",
    ),
]


@pytest.mark.parametrize(("flags", "message"), WRONG, ids=[flags for flags, _ in WRONG])
def test_what_cannot_work_is_answered_in_one_line(
    flags: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train_torch.py", "--config", "none", *flags.split()])
    with pytest.raises(SystemExit) as exit_:
        command_line(train_torch.main, CONFIGS, train_torch.PROGRAM)
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1
    assert list(Path().iterdir()) == []


SHORT = "--num-envs 2 --num-steps 16 --total-timesteps 64 --hidden-sizes 8 --eval-episodes 1"


def trained(monkeypatch: pytest.MonkeyPatch, flags: str) -> Path:
    """The folder of a new run."""
    monkeypatch.setattr(sys, "argv", ["train_torch.py", *flags.split()])
    command_line(train_torch.main, CONFIGS, train_torch.PROGRAM)
    return max(Path("logs/torch_logs").iterdir(), key=lambda folder: folder.stat().st_mtime_ns)


def test_a_run_with_arguments_is_that_of_the_id_which_has_them_and_resumes_with_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = trained(monkeypatch, f"{SHORT} --env-id LunarLander-v3 --env-kwargs continuous=true")
    same = trained(monkeypatch, f"{SHORT} --env-id LunarLanderContinuous-v3")
    ours, theirs = (torch.load(path / "last.ckpt", weights_only=True)["agent"] for path in (folder, same))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    seen: list[Config[Any]] = []
    monkeypatch.setattr(sys, "argv", ["train_torch.py", "--resume", str(folder), "--total-timesteps", "128"])
    command_line(seen.append, CONFIGS, train_torch.PROGRAM)
    assert seen[0].env.env_kwargs == ("continuous=true",)
    monkeypatch.setattr(sys, "argv", ["train_torch.py", "--resume", str(folder), "--env-kwargs", "continuous=false"])
    with pytest.raises(SystemExit):
        command_line(seen.append, CONFIGS, train_torch.PROGRAM)
    was = "--resume: the run has --env-kwargs continuous=true, not continuous=false; leave the flag out"
    assert was in capsys.readouterr().err


def test_a_resumed_run_imports_wrappers_only_where_the_command_line_permits_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = f"{SHORT} --env-id CartPole-v1 --allow-import --env-wrapper {' '.join(WRAPPERS)}"
    folder = trained(monkeypatch, flags)
    seen: list[Config[Any]] = []
    resumed = ["train_torch.py", "--resume", str(folder), "--total-timesteps", "128"]
    monkeypatch.setattr(sys, "argv", resumed)
    with pytest.raises(SystemExit):
        command_line(seen.append, CONFIGS, train_torch.PROGRAM)
    assert f"--env-wrapper {WRAPPERS[0]}: imports, and so runs, the module" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*resumed, "--allow-import"])
    command_line(seen.append, CONFIGS, train_torch.PROGRAM)
    assert seen[0].env.env_wrapper == WRAPPERS
