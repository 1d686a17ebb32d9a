"""`rl evaluate` and `rl play`: the same episodes as the run's own evaluation, and statistics as NumPy has them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio.v3
import numpy as np
import pytest

from rl.commands.evaluate import t_quantile
from tests.programs.launch import scalars

Evaluated = Callable[..., dict[str, Any]]


def test_the_first_episodes_are_those_of_the_runs_own_evaluation(run: Path, evaluated: Evaluated) -> None:
    logged = scalars(run)
    results = evaluated("--episodes", 10)
    assert results["mean"] == pytest.approx(logged["Test/cumulative_reward"][-1][1], rel=1e-6)
    assert results["std"] == pytest.approx(logged["Test/return_std"][-1][1], rel=1e-6)
    assert results["returns"] == evaluated("--episodes", 25)["returns"][:10]


def test_figures_depend_on_the_seed_and_not_on_the_number_of_environments(evaluated: Evaluated) -> None:
    one, again, other = (evaluated("--episodes", 7, *flags) for flags in ((), ("--num-envs", 3), ("--seed", 2)))
    assert one == again and len(set(one["returns"])) > 1
    assert one["returns"] != other["returns"]
    sampled, again = (evaluated("--episodes", 7, "--sampled", "--num-envs", n) for n in (7, 2))
    assert sampled == again and sampled["returns"] != one["returns"]


def test_statistics_are_numpys(evaluated: Evaluated) -> None:
    results = evaluated("--episodes", 20)
    returns, lengths = np.array(results["returns"]), results["lengths"]
    assert lengths == returns.tolist()  # every step of CartPole is worth 1
    for name, value in (("mean", returns.mean()), ("std", returns.std()), ("median", np.median(returns))):
        assert results[name] == pytest.approx(value)
    margin = 2.0930 * returns.std(ddof=1) / 20**0.5
    assert results["confidence_95"] == pytest.approx([returns.mean() - margin, returns.mean() + margin], rel=1e-4)
    assert (results["min"], results["max_length"]) == (returns.min(), max(lengths))


@pytest.mark.parametrize(
    ("freedom", "expected"), [(1, 12.7062), (2, 4.3027), (4, 2.7764), (9, 2.2622), (29, 2.0452), (99, 1.9842)]
)
def test_students_quantile_is_that_of_tables(freedom: int, expected: float) -> None:
    assert t_quantile(freedom) == pytest.approx(expected, rel=0.005)


def test_a_person_reads_lines(run: Path, rl_: Callable[..., str], evaluated: Evaluated) -> None:
    results, said = evaluated("--episodes", 5), rl_("evaluate", run, "--episodes", "5").splitlines()
    assert said[0] == f"CartPole-v1, {run / 'last.ckpt'} after {results['step']:,} steps"
    assert f"return   {results['mean']:.1f} ± {results['std']:.1f} (standard deviation)" in said[2]


@pytest.mark.parametrize(("name", "num_episodes"), [("film.mp4", 2), ("film.gif", 1)])
def test_a_film_shows_the_episodes_that_are_evaluated_first(
    name: str, num_episodes: int, run: Path, rl_: Callable[..., str], evaluated: Evaluated
) -> None:
    lengths = evaluated("--episodes", num_episodes, "--sampled")["lengths"]
    said = rl_("play", run, "--video", f"new/{name}", "--episodes", num_episodes, "--sampled")
    assert [line for line in said.splitlines() if "episode" in line] == [
        f"  episode {n}: return {length:.1f}, {length} steps" for n, length in enumerate(lengths, start=1)
    ]
    frames = imageio.v3.imread(f"new/{name}")
    num_frames = sum(lengths) + num_episodes
    # A .gif shows frames that are alike as one, and ffmpeg may repeat the last one.
    assert num_frames - 1 <= len(frames) <= num_frames + 1 if name.endswith("mp4") else 5 < len(frames) <= num_frames
    assert frames.shape[1:] == (400, 600, 3)
    assert (frames[0] != frames[-1]).any()


def test_an_episode_is_played_in_a_window(
    run: Path, rl_: Callable[..., str], monkeypatch: pytest.MonkeyPatch, evaluated: Evaluated
) -> None:
    import pygame

    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    shown: list[object] = []
    monkeypatch.setattr(pygame.display, "flip", lambda: shown.append(None))
    monkeypatch.setattr(pygame.time, "Clock", lambda: type("Clock", (), {"tick": lambda self, fps: None})())
    length = evaluated("--episodes", 1)["lengths"][0]
    assert f"episode 1: return {length:.1f}, {length} steps" in rl_("play", run, "--episodes", 1)
    assert len(shown) >= length


def test_json_is_one_line(run: Path, rl_: Callable[..., str]) -> None:
    (line,) = rl_("evaluate", run / "last.ckpt", "--json", "--episodes", 1).splitlines()
    assert json.loads(line)["confidence_95"] is None
