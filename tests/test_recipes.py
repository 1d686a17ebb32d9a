"""Recipes: those of the package, files of the user's, and which flags hold."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import yaml

import train_torch
from rl.cli import command_line, parse, read_flags
from rl.config import CONFIGS, LEARNER_NAME, Config, DecoupledConfig
from rl.envs.families import register_family
from rl.envs.options import kwargs_of
from rl.errors import UserError
from rl.recipes import SHIPPED, note_recipe, recipe_for, shipped

DECOUPLED = {"ppo": DecoupledConfig()}


def read(flags: str, choices: Any = CONFIGS) -> Config[Any]:
    return read_flags(flags.split(), choices, "torch_logs")[0]


def values(config: Config[Any]) -> dict[str, Any]:
    """The flags, except that which names the recipe."""
    return {name: value for name, value in config.flags().items() if name != "config"}


@pytest.mark.parametrize("name", shipped())
def test_every_recipe_of_the_package_can_work_in_every_program(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read(f"--config {name}").check()
    monkeypatch.setenv("WORLD_SIZE", "4")
    read(f"--config {name}", DECOUPLED).check()
    env_ids = yaml.safe_load((SHIPPED / f"{name}.yaml").read_text())["env-id"]
    for env_id in [env_ids] if isinstance(env_ids, str) else env_ids:
        register_family(env_id)
        assert env_id in gym.registry and recipe_for(env_id).name == name


def test_the_package_has_recipes_for_what_many_people_train() -> None:
    ids = """CustomEnv-v0 CartPole-v1 Acrobot-v1 MountainCarContinuous-v0 Pendulum-v1 LunarLander-v3 BipedalWalker-v3
    LunarLanderContinuous-v3 HalfCheetah-v5 Hopper-v5 Walker2d-v5 Ant-v5 Humanoid-v5 Swimmer-v5 Reacher-v5
    InvertedDoublePendulum-v5 MinAtar/Asterix-v1 MinAtar/Breakout-v1 MinAtar/Freeway-v1 MinAtar/Seaquest-v1
    MinAtar/SpaceInvaders-v1 CartPoleNoVel-v1 Taxi-v4 FrozenLake-v1 Blackjack-v1 MiniGrid-Empty-8x8-v0"""
    assert [env_id for env_id in ids.split() if recipe_for(env_id) is None] == []
    assert recipe_for("MountainCar-v0") is None


def test_the_flags_of_a_recipe_are_those_of_a_command_line() -> None:
    same = "--num-envs 64 --num-steps 32 --update-epochs 4 --num-minibatches 4 --learning-rate 5e-3 --gamma 0.9"
    plain = parse([*same.split(), "--shared-encoder", "--total-timesteps", "500000"], CONFIGS)
    assert values(read("")) == values(replace(plain, log_dir=str(Path("logs").absolute())))


def test_a_recipe_is_taken_by_itself_and_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--env-id CartPole-v1 --learning-rate=1e-4 --shared_encoder --hidden-size 8"
    config = read(flags)
    assert capsys.readouterr().err == "note: --hidden-size 8 is now --hidden-sizes 8 8\n"
    note_recipe(config, flags.split())
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("note: recipe cartpole: total-timesteps 100000, num-envs 8, ")
    assert said[0].endswith("; --config none for the plain defaults")
    assert "learning-rate" not in said[0] and "encoder" not in said[0]  # since what the user gives holds
    assert (config.config, config.env.num_envs, config.learner.gae_lambda) == ("cartpole", 8, 0.9)
    assert (config.learner.learning_rate, config.network.shared_encoder) == (1e-4, True)
    named = "--config cartpole --learning-rate 1e-4 --shared-encoder --hidden-sizes 8 8"
    assert values(config) == values(read(named))
    note_recipe(config, named.split())
    assert capsys.readouterr().err == ""


def test_a_note_says_which_recipe_is_not_taken(capsys: pytest.CaptureFixture[str]) -> None:
    Path("my.yaml").write_text("seed: 3")
    for flags, said in (
        (
            "--env-id CartPole-v1 --config my.yaml",
            "--config my.yaml takes the place of the recipe cartpole, and is not",
        ),
        (
            "--env-id HalfCheetah-v4",
            "no recipe for HalfCheetah-v4, .* the recipe halfcheetah is for HalfCheetah-v5, and",
        ),
        ("--env-id HalfCheetah-v4 --config halfcheetah", None),
        ("--env-id CartPole-v1 --config none", None),
        ("--env-id Other-v0", None),
        ("reinforce --env-id CartPole-v1", None),
    ):
        note_recipe(read(flags), flags.split())
        error = capsys.readouterr().err
        assert re.match(f"note: {said}", error) and error.count("\n") == 1 if said else error == ""


def test_help_shows_the_plain_defaults_and_says_nothing_of_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read("--env-id CartPole-v1 --help")
    shown = capsys.readouterr()
    assert "(default: 5e-4)" in shown.out.replace("0.0005", "5e-4") and shown.err == ""


@pytest.mark.parametrize("flags", ["--config none", "--env-id Other-v0", "actor-critic", "reinforce"])
def test_without_a_recipe_the_plain_defaults_hold(flags: str, capsys: pytest.CaptureFixture[str]) -> None:
    parsed = parse(flags.split(), CONFIGS)
    assert read(flags) == replace(parsed, log_dir=str(Path("logs").absolute()))
    assert capsys.readouterr().err == ""


def test_the_number_of_minibatches_is_that_of_the_user_whatever_size_a_recipe_gives_them() -> None:
    Path("my.yaml").write_text("per-rank-batch-size: 32")
    assert read("--config my.yaml").learner.per_rank_batch_size == 32
    assert read("--config my.yaml --num-minibatches 2").learner.per_rank_batch_size is None


def test_values_of_a_file_are_read_as_those_of_flags() -> None:
    Path("my.yaml").write_text(
        "env_id: [Pendulum-v1, Other-v0]\nlearning-rate: 1e-4\nmax-grad-norm: inf\nclip-vloss: true\n"
        "hidden-sizes: [8, 4]\nenv-kwargs: {g: 9.0}\ntarget-kl: null\ntotal-episodes:\nexp-name: --allow-import\n"
    )
    flags = "--env-id Pendulum-v1 --learning-rate 1e-4 --max-grad-norm inf --clip-vloss --env-kwargs g=9.0"
    flags = f"{flags} --env-kwargs g=9.0 --hidden-sizes 8 4 --exp-name=--allow-import"
    expected = parse(flags.split(), CONFIGS)
    assert values(read("--config my.yaml")) == values(replace(expected, log_dir=str(Path("logs").absolute())))


def test_arguments_of_environments_in_a_file_keep_their_types() -> None:
    text = "env-kwargs: {n: 1e-4, s: '1', l: [1, 2.5], d: {a: 1e3}, t: 'true', b: true, q: 'a: b', e: '', o: null}"
    Path("my.yaml").write_text(text)
    expected = {
        "n": 1e-4,
        "s": "1",
        "l": [1, 2.5],
        "d": {"a": 1e3},
        "t": "true",
        "b": True,
        "q": "a: b",
        "e": "",
        "o": None,
    }
    kwargs = kwargs_of(read("--config my.yaml").env.env_kwargs)
    assert kwargs == expected and [*map(type, kwargs.values())] == [*map(type, expected.values())]


def test_a_file_may_name_the_learner() -> None:
    Path("my.yaml").write_text("learner: reinforce\nbaseline: true")
    assert read("--config my.yaml") == read("reinforce --config my.yaml")
    assert read("--config=./my.yaml --no-baseline").learner == CONFIGS["reinforce"].learner
    with pytest.raises(UserError, match=r"--config my.yaml: is for reinforce, not for ppo; leave one of them out"):
        read("ppo --config my.yaml")
    with pytest.raises(UserError, match="reinforce: this program takes only ppo"):
        read("--config my.yaml", DECOUPLED)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("learning-rat: 1", "--config my.yaml: learning-rat: is not a flag; use learning-rate"),
        ("buffer-size: 1", "--config my.yaml: buffer-size: is a flag of actor-critic, not of ppo"),
        ("clip-vloss: 1", "--config my.yaml: clip-vloss 1: must be true or false"),
        ("allow-import: true", "--config my.yaml: allow-import: only the command line can say this; leave it out"),
        ("hidden-sizes: [8, --allow-import]", "--config my.yaml: hidden-sizes: must be values, not flags"),
        ("learner: [ppo]", "--config my.yaml: learner ['ppo']: must be one of ppo, "),
        ("learner: reinforce\nclip-coef: 0.1", "--config my.yaml: clip-coef: is a flag of ppo, not of reinforce"),
        ("learning-rate: 1e-4\nlearning_rate: 1e-3", "--config my.yaml: has a key twice, once with - and once with _"),
        ("gamma: {a: 1}", "--config my.yaml: gamma {'a': '1'}: must be a value, or a list of values"),
        ("num-envs: 1e3", "--config my.yaml: num-envs 1e3: must be a whole number"),
        ("schedule: cosine", "--config my.yaml: schedule cosine: must be one of constant, linear, adaptive"),
        ("gamma: 2", "--config my.yaml: gamma 2.0: must lie between 0 and 1"),
        ("learner: sac", "--config my.yaml: learner sac: must be one of ppo, "),
        ("gamma 0.9", "--config my.yaml: must hold flags and their values, such as"),
        ("gamma: [0.9", "--config my.yaml: is not YAML: ParserError: "),
        ("gamma: \xff", "--config my.yaml: is not YAML: UnicodeDecodeError: "),
        (None, "--config my.yaml: does not exist; must be a file, none, or one of acrobot, ant, "),
    ],
)
def test_a_file_that_cannot_work_is_answered_in_one_line(
    content: str | None, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        Path("my.yaml").write_bytes(content.encode("latin-1"))
    monkeypatch.setattr(sys, "argv", ["train_torch.py", "--config", "my.yaml"])
    with pytest.raises(SystemExit) as exit_:
        command_line(train_torch.main, CONFIGS, train_torch.PROGRAM)
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1


def test_a_flag_of_the_decoupled_program_alone_is_left_out_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    Path("my.yaml").write_text("overlap: true\nplayer-on-gpu: false")
    assert values(read("--config my.yaml")) == values(read("--config none"))
    assert capsys.readouterr().err == "note: --config my.yaml: overlap: this program has no such flag\n"
    decoupled: Any = read("--config my.yaml", DECOUPLED)
    assert (decoupled.overlap, decoupled.player_on_gpu) == (True, False)


SHORT = "--num-envs 2 --num-steps 8 --total-timesteps 32 --hidden-sizes 8 --eval-episodes 1 --execution eager"


def test_a_resumed_run_keeps_its_flags_and_its_config_json_gives_them_to_another(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Config[Any]] = []
    for flags, main in (
        (f"--config cartpole --gamma 0.9 {SHORT} --resume auto", train_torch.main),
        ("--env-id CartPole-v1 --resume auto --total-timesteps 64", seen.append),
    ):
        monkeypatch.setattr(sys, "argv", ["train_torch.py", *flags.split()])
        command_line(main, CONFIGS, train_torch.PROGRAM)
    assert "recipe" not in capsys.readouterr().err
    (folder,) = Path("logs/torch_logs").iterdir()
    assert (seen[0].config, seen[0].learner.gamma, seen[0].learner.gae_lambda) == ("cartpole", 0.9, 0.9)
    again = read(f"--config {folder}/config.json --total-timesteps 64")
    assert values(again) == values(seen[0]) | {"resume": None}
    saved = json.loads((folder / "config.json").read_text())
    assert saved["config"] == "cartpole" and saved[LEARNER_NAME] == "ppo"


@pytest.mark.parametrize("is_named", [True, False], ids=["named", "of an earlier version"])
@pytest.mark.parametrize("learner", CONFIGS)
def test_config_json_of_any_learner_names_it_or_tells_it_by_its_flags(learner: str, is_named: bool) -> None:
    saved = replace(CONFIGS[learner], env=replace(CONFIGS[learner].env, allow_import=True), log_dir="/elsewhere")
    named = {LEARNER_NAME: learner} if is_named else {}
    Path("config.json").write_text(json.dumps(named | saved.to_dict()))
    config = read("--config config.json")
    assert config == replace(CONFIGS[learner], config="config.json", log_dir=str(Path("logs").absolute()))


def test_config_json_of_a_learner_that_is_not_here_is_refused() -> None:
    Path("config.json").write_text(json.dumps({LEARNER_NAME: "sac"} | Config().to_dict()))
    with pytest.raises(UserError, match=r"is of a learner that this program does not have \(sac\)"):
        read("--config config.json")


def test_where_there_is_no_run_to_resume_the_recipe_is_taken_and_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Config[Any]] = []
    monkeypatch.setattr(sys, "argv", ["train_torch.py", "--env-id", "CartPole-v1", "--resume", "auto"])
    command_line(seen.append, CONFIGS, train_torch.PROGRAM)
    assert seen[0].config == "cartpole" and seen[0].keep.resume is None
    assert len(re.findall("recipe cartpole: ", capsys.readouterr().err)) == 1
