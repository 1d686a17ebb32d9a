"""The benchmark of learning writes a file for each run and repeats none; table and curves agree with the files."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
FLAGS = "--total-timesteps 2048 --execution eager --eval-episodes 3"


@pytest.fixture
def learning(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import learning

    return learning


@pytest.fixture
def learning_table(learning: ModuleType) -> ModuleType:
    import learning_table

    return learning_table


def run(task: str, seed: int, greedy_return: float, **other: Any) -> dict[str, Any]:
    """The content of a run's file."""
    results = {
        "greedy_return": greedy_return,
        "sampled_return": 90.0,
        "steps": 1000,
        "cpu_seconds": 20.0,
        "seconds": 25.0,
    }
    machine = {"revision": "abc", "cpu": "CPU", "cores": 2, "jobs": 1, "versions": {"torch": "2.13"}}
    return {"task": task, "seed": seed, "program": "train_fabric.py", "flags": ""} | results | machine | other


def write(folder: Path, *runs: dict[str, Any]) -> None:
    for content in runs:
        (folder / f"{content['program']}_{content['task']}_{content['seed']}.json").write_text(json.dumps(content))


def test_a_run_leaves_a_file_and_is_not_repeated(
    learning: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = learning.Arguments(tasks=["cartpole"], seeds=1, flags=FLAGS, out=tmp_path)
    for _ in range(2):
        learning.main(arguments)
    assert capsys.readouterr().out.count("cartpole, seed 1: greedy return") == 1
    (path,) = tmp_path.iterdir()
    assert path.name == "cartpole_1.json"
    content = json.loads(path.read_text())
    assert content["flags"] == f"{learning.TASKS['cartpole']} {FLAGS}"
    assert content["eval_episodes"] == 3
    steps, seconds, returns = zip(*content["curve"], strict=True)
    assert (steps[-1], returns[-1]) == (content["steps"], pytest.approx(content["sampled_return"], abs=0.01))
    assert list(seconds) == sorted(seconds)
    assert 0 < seconds[0] < seconds[-1] < content["seconds"]
    assert content["greedy_std"] > 0 < content["cpu_seconds"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tasks": ["cartpol"]}, "--tasks cartpol: must be among halfcheetah, "),
        ({"jobs": 1000}, "--jobs 1000 with --ranks 1: there are "),
        ({"flags": "--gamma 0.9"}, "hopper_1.json: was made with the flags "),
        (
            {"tasks": ["cartpole"], "peer": "sb3"},
            "--peer sb3: takes --env-id, --eval-episodes, --total-timesteps alone",
        ),
    ],
)
def test_runs_that_cannot_be_made_or_would_mix_are_refused(
    learning: ModuleType, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    (tmp_path / "hopper_1.json").write_text(json.dumps(run("hopper", 1, 0.0, flags=learning.TASKS["hopper"])))
    with pytest.raises(SystemExit) as stopped:
        learning.main(learning.Arguments(**{"tasks": ["hopper"], "seeds": 1, "out": tmp_path} | changed))
    assert message in str(stopped.value)


def test_a_failed_run_leaves_no_file_and_the_others_go_on(
    learning: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(learning.Arguments, "command", lambda _, task, seed: ["python3", "-c", PEER, str(seed)])
    arguments = learning.Arguments(tasks=["hopper"], seeds=2, peer="sb3", out=tmp_path)
    with pytest.raises(SystemExit, match="1"):
        learning.main(arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["sb3_hopper_2.json"]
    assert "ZeroDivisionError" in capsys.readouterr().out
    content = json.loads((tmp_path / "sb3_hopper_2.json").read_text())
    assert (content["program"], content["steps"], content["eval_episodes"]) == ("sb3", 1_000_000, 20)
    assert (content["greedy_return"], content["cpu_seconds"] < 1000) == (1.0, True)


PEER = """
import json, sys
print(json.dumps({"greedy_return": 1 / (int(sys.argv[1]) - 1), "sampled_return": 2.0, "cpu_seconds": 1000.0}))
"""


def test_the_table_has_statistics_over_seeds_and_says_what_is_missing(
    learning_table: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = (run("hopper", seed, value) for seed, value in enumerate((90.0, 110.0, 130.0)))
    peers = (run("hopper", seed, 2000.0, program="sb3", cpu_seconds=70.0) for seed in range(1))
    write(tmp_path, *ours, *peers, run("custom", 1, 198.97))
    learning_table.main(learning_table.Arguments(results=tmp_path, tasks=["hopper", "swimmer", "custom"]))
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| hopper | 1,000 | 3 | 110.0 ± 20.0 | 90.0 | 90.0 | 20 | 1 | 2,000 | 2,000 | 90.0 | 70 | 3.5 |",
        "| swimmer | – | 0 | – | – | – | – | 0 | – | – | – | – | – |",
        "| custom | 1,000 | 1 | 199.0 | 199.0 | 90.0 | 20 | 0 | – | – | – | – | – |",
        "",
        "CPU, 2 cores, up to 1 runs at once, torch 2.13",
        "revisions abc",
    ]


def test_the_pictures_are_drawn_with_and_without_a_curve_of_the_peer(
    learning_table: ModuleType, tmp_path: Path
) -> None:
    curve = [[0, 0.0, 0.0], [1000, 25.0, 90.0]]
    write(tmp_path, *(run("hopper", seed, 90.0, curve=curve) for seed in (1, 2)), run("hopper", 1, 80.0, program="sb3"))
    write(tmp_path, run("swimmer", 1, 80.0, program="sb3", curve=curve))
    learning_table.main(learning_table.Arguments(results=tmp_path, plot=tmp_path / "all"))
    for name in ("all_steps.png", "all_seconds.png"):
        assert 1000 < (tmp_path / name).stat().st_size < 150_000
