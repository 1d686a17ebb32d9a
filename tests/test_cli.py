"""The command line: help, old spellings, what launchers say, and what is settled before a program starts."""

import importlib
import io
import re
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

import train_fabric
import train_fabric_decoupled
import train_torch
from rl.cli import check_versions, command_line, mend_streams, note_repeated, parse, read_flags
from rl.commands import COMMANDS
from rl.commands.envs import Known
from rl.commands.runs import Row
from rl.config import CONFIGS, Config, DecoupledConfig
from rl.envs.config import EnvConfig
from rl.errors import UserError
from rl.help import flags_of
from rl.learners.actor_critic import ActorCriticConfig
from rl.learners.ppo import PPOConfig
from rl.learners.reinforce import ReinforceConfig
from rl.spelling import FLAG_OF, MEANT
from tests.test_config import FLAGS


def test_the_long_help_has_every_flag_and_the_short_one_those_that_most_runs_need(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = []
    for word in ("--help-all", "--help"):
        with pytest.raises(SystemExit) as exit_:
            parse([word], CONFIGS)
        assert exit_.value.code == 0
        text = capsys.readouterr().out
        shown.append(set(re.findall(r"^  --(?:\[no-\])?([a-z0-9-]+)", text, re.MULTILINE)))
        assert "The environment:" in text and "Discount factor. (default: 0.99)" in text
    every, short = shown
    assert every == {name.replace("_", "-") for name in FLAGS}
    assert short < every and {"env-id", "total-timesteps", "learning-rate", "num-envs", "resume"} < short
    assert len(short) < 20 and f"{len(every) - len(short)} more flags: --help-all" in text


def test_help_fits_the_terminal_from_forty_columns_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for given, widest in ((5, 62), (80, 80), (120, 110)):
        monkeypatch.setenv("COLUMNS", str(given))
        with pytest.raises(SystemExit):
            parse(["--help"], CONFIGS)
        assert widest - 30 <= max(map(len, capsys.readouterr().out.splitlines())) <= widest


def test_every_flag_of_programs_and_commands_is_described_by_a_sentence() -> None:
    programs = [*CONFIGS.values(), DecoupledConfig()]
    commands = [importlib.import_module(f"rl.commands.{name}") for name in COMMANDS]
    kinds = {kind for module in commands for kind in vars(module).values() if is_dataclass(kind)}
    kinds = {kind for kind in kinds if kind.__module__.startswith("rl.commands.")} - {Known, Row}  # these are no flags
    assert {"Play", "Evaluate", "Export", "Resume", "Runs", "Plot", "Envs"} <= {kind.__name__ for kind in kinds}
    for each in (*programs, *kinds):
        for flag in flags_of(each):
            of = f"{flag.name} of {each}: {flag.text!r}"
            assert re.fullmatch(r"[A-Z].{8,}\.", flag.text, re.DOTALL) and "type:" not in flag.text, of


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--lr", "is not a flag; use --learning-rate"),
        ("--n_envs=8", "is not a flag; use --num-envs"),
        ("--n-steps", "is not a flag; use --num-steps"),
        ("--env", "is not a flag; use --env-id"),
        ("--gpu", "is not a flag; use --cuda"),
        ("--timesteps", "is not a flag; use --total-timesteps"),
        ("--no-norm-obs", "is not a flag; use --normalize-obs"),
        ("--entcoef", "is not a flag; use --ent-coef"),
        ("--render", "is not a flag; rl play RUN opens a window after training"),
        (
            "--devices",
            "is not a flag; the launcher takes it, before the program: fabric run --devices=2 train_fabric.py",
        ),
        ("--zzz", "is not a flag"),
    ],
)
def test_the_flag_that_was_meant_is_named(flag: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        parse([flag, "3"], CONFIGS)
    assert str(error.value) == f"{flag.partition('=')[0]}: {said}"


def test_names_of_other_libraries_stand_for_flags_that_there_are() -> None:
    assert MEANT.keys() <= Config().flags().keys()
    assert not FLAG_OF.keys() & DecoupledConfig().flags().keys()
    assert sum(map(len, map(str.split, MEANT.values()))) == len(FLAG_OF)


def test_the_log_folder_is_absolute_at_once_and_may_be_at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    for flags, folder in (([], tmp_path / "logs"), (["--log-dir", "~/x"], Path("/home/someone/x"))):
        config, _ = read_flags(flags, CONFIGS, "torch_logs")
        assert config.log_dir == str(folder)


def test_printing_never_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setattr(sys, "stderr", None)
    mend_streams()
    print("ünï ☃", flush=True)
    print("☃", file=sys.stderr)
    assert written.getvalue() == b"\\xfcn\\xef \\u2603\n" and not sys.stderr.isatty()
    sys.stderr.close()


def test_a_module_in_the_working_folder_is_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("lives_here.py").write_text("raise ImportError('found')")
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder])
    monkeypatch.setattr(sys, "argv", ["train_torch.py", "--env-id", "lives_here:Env-v0", "--allow-import"])
    with pytest.raises(SystemExit):
        command_line(train_torch.main, CONFIGS, train_torch.PROGRAM)
    assert capsys.readouterr().err == "error: --env-id lives_here:Env-v0: found\n"


def test_flags_are_flat_and_in_any_order() -> None:
    flags = "--gamma 0.5 --env-id CartPole-v1 --schedule constant --hidden-sizes 8 4 --cuda"
    config = parse(flags.split(), CONFIGS)
    assert (config.learner.gamma, config.env.env_id, config.learner.schedule) == (0.5, "CartPole-v1", "constant")
    assert (config.network.hidden_sizes, config.cuda) == ((8, 4), True)


def test_the_table_of_other_libraries_names_flags_that_there_are() -> None:
    table = (Path(__file__).parent.parent / "docs/flags.md").read_text()
    flags = re.findall(r"^\| `--([a-z-]+)", table, re.MULTILINE)
    assert len(flags) >= 30 and {flag.replace("-", "_") for flag in flags} <= Config().flags().keys()


@pytest.mark.parametrize(
    ("old", "new", "note"),
    [
        ("--hidden-size 8 --hidden-layers 3", "--hidden-sizes 8 8 8", "--hidden-sizes 8 8 8"),
        ("--hidden_layers=3 --seed 2 --hidden-size=8", "--seed 2 --hidden-sizes 8 8 8", "--hidden-sizes 8 8 8"),
        ("--hidden-size 8", "--hidden-sizes 8 8", "--hidden-sizes 8 8"),
        ("--no-anneal-lr --seed 2", "--schedule constant --seed 2", "--schedule constant"),
        ("--anneal_lr", "--schedule linear", "--schedule linear"),
        ("reinforce --hidden-size 8", "reinforce --hidden-sizes 8", "--hidden-sizes 8"),
        ("reinforce --hidden-layers 2", "reinforce --hidden-sizes 128 128", "--hidden-sizes 128 128"),
        ("--hidden-size 4 --hidden-size 8", "--hidden-sizes 8 8", "--hidden-sizes 8 8"),
        ("--execution compiled", "--execution compile", "--execution compile"),
        ("--execution=captured --seed 2", "--seed 2 --execution cudagraphs", "--execution cudagraphs"),
        ("--execution eager", "--execution eager", None),
        ("--vectorization sync --env-backend tensor", "--vectorization tensor", "--vectorization tensor"),
        ("--execution eager --execution compiled --execution eager", "--execution eager", "--execution compile"),
        ("--env-backend=gymnasium", "", "--vectorization native or sync"),
    ],
)
def test_flags_of_earlier_versions_mean_what_they_meant(
    old: str, new: str, note: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read_flags(old.split(), CONFIGS, "torch_logs") == read_flags(new.split(), CONFIGS, "torch_logs")
    notes = [line.partition(" is now ")[2] for line in capsys.readouterr().err.splitlines()]
    assert notes == ([] if note is None else [note])


LONG = "--total-timesteps 100000000"


@pytest.mark.parametrize(
    ("flags", "vectorization"),
    [
        ("", "auto"),
        (LONG, "tensor"),
        (f"{LONG} --execution eager", "auto"),
        ("--execution compile", "tensor"),
        (f"{LONG} --vectorization native", "native"),
        (f"{LONG} --env-backend gymnasium", "auto"),
        (f"{LONG} --env-id LunarLander-v3", "auto"),
        (f"reinforce {LONG}", "auto"),
    ],
)
def test_a_run_that_is_compiled_takes_the_tensor_form_of_its_environment(
    flags: str, vectorization: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Config[Any]] = []
    monkeypatch.setattr(sys, "argv", ["train_torch.py", *flags.split()])
    command_line(seen.append, CONFIGS, train_torch.PROGRAM)
    assert seen[0].env.vectorization == vectorization
    took = vectorization == "tensor"
    assert ("so it uses the tensor form of CustomEnv-v0; for Gymnasium's" in capsys.readouterr().err) == took


def test_a_resumed_run_keeps_the_form_of_its_environment_however_long_it_becomes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Config[Any]] = []
    short = "--num-envs 2 --num-steps 8 --total-timesteps 32 --hidden-sizes 8 --eval-episodes 1"
    for flags, main in ((short, train_torch.main), (f"--resume auto {LONG}", seen.append)):
        monkeypatch.setattr(sys, "argv", ["train_torch.py", *flags.split()])
        command_line(main, CONFIGS, train_torch.PROGRAM)
    assert not seen[0].collects_eagerly() and seen[0].env.vectorization == "auto"


def test_without_a_compiler_no_run_takes_a_tensor_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert Config(total_timesteps=100_000_000).collects_eagerly()


@pytest.mark.parametrize(
    ("flags", "eagerly"),
    [
        ("--cuda --total-timesteps 100000", True),
        ("--cuda --player-on-gpu --total-timesteps 100000", False),
        (f"--cuda {LONG}", False),
    ],
)
def test_it_is_the_player_whose_rollouts_are_compiled(
    flags: str, eagerly: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert parse(flags.split(), {"ppo": DecoupledConfig()}).collects_eagerly() == eagerly
    assert not parse(["--cuda"], CONFIGS).collects_eagerly()


def test_a_learner_is_chosen_by_its_name_with_defaults_of_its_own_and_ppo_without_one() -> None:
    assert parse(["--ent-coef", "0.5", "--num-envs", "3"], CONFIGS).learner == PPOConfig(ent_coef=0.5)
    config = parse(["actor-critic", "--buffer-size", "500", "--num-envs", "3"], CONFIGS)
    assert config.learner == ActorCriticConfig(buffer_size=500)
    assert (config.env, config.total_episodes) == (EnvConfig(num_envs=3), 2000)
    config = parse(["reinforce", "--baseline"], CONFIGS)
    assert config.learner == ReinforceConfig(baseline=True)
    assert (config.env.env_id, config.network.hidden_sizes) == ("CartPole-v1", (128,))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_help_of_a_learner_explains_its_flags(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse([name, "--help-all"], CONFIGS)
    words = " ".join(capsys.readouterr().out.replace("[no-]", "").split())
    for field in fields(CONFIGS[name].learner):
        assert re.search(rf"--{field.name.replace('_', '-')} .*?[A-Z].*?\.", words), field.name
    for other in CONFIGS.keys() - {name}:
        own = {field.name for field in fields(CONFIGS[other].learner)} - {f.name for f in fields(CONFIGS[name].learner)}
        assert not any(f"--{flag.replace('_', '-')} " in words for flag in own)


@pytest.mark.parametrize(
    ("variables", "has_gpu", "told"),
    [
        ({"LT_ACCELERATOR": "cuda"}, False, {"cuda": True}),
        ({"LT_ACCELERATOR": "gpu"}, True, {"cuda": True}),
        ({"LT_ACCELERATOR": "auto"}, True, {"cuda": True}),
        ({"LT_ACCELERATOR": "auto"}, False, {}),
        ({"LT_ACCELERATOR": "cpu", "LT_PRECISION": "bf16"}, True, {"precision": "bf16-mixed"}),
        ({"LT_PRECISION": "32"}, True, {"precision": "32-true"}),
        ({"LT_PRECISION": "16-mixed"}, True, {"precision": "16-mixed"}),
        ({}, True, {}),
    ],
)
def test_options_of_fabric_run_are_flags_of_the_program(
    variables: dict[str, str], has_gpu: bool, told: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.cuda.is_available", lambda: has_gpu)
    assert train_fabric.told_to_fabric() == told
    seen: list[Config[Any]] = []
    monkeypatch.setattr(sys, "argv", ["train_fabric.py", "--precision", "bf16-true"])
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    command_line(seen.append, CONFIGS, train_fabric.PROGRAM, train_fabric.told_to_fabric)
    assert (seen[0].precision, seen[0].cuda) == (told.get("precision", "bf16-true"), told.get("cuda", False))


def test_the_decoupled_program_takes_the_trainers_device_from_its_own_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setenv("LT_ACCELERATOR", "auto")
    assert train_fabric_decoupled.told_to_each_fabric() == {}
    monkeypatch.setenv("LT_ACCELERATOR", "cuda")
    with pytest.raises(UserError, match="--accelerator cuda: use --cuda after the program instead"):
        train_fabric_decoupled.told_to_each_fabric()


@pytest.mark.parametrize(
    ("variables", "missing"),
    [
        ({"RANK": "0"}, "WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}, "MASTER_ADDR, MASTER_PORT"),
    ],
)
def test_variables_of_a_launcher_that_are_set_by_half_are_named(
    variables: dict[str, str], missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["train_torch.py"])
    with pytest.raises(SystemExit) as exit_:
        command_line(train_torch.main, CONFIGS, train_torch.PROGRAM)
    assert exit_.value.code == 2
    message = f"error: RANK or WORLD_SIZE is set without {missing}; a launcher sets all of them\n"
    assert capsys.readouterr().err == message


def test_libraries_that_are_too_old_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_versions()
    monkeypatch.setattr("rl.cli.version", lambda name: {"torch": "2.13.0+cpu", "gymnasium": "1.0.2"}[name])
    with pytest.raises(UserError, match=r"gymnasium 1\.0\.2: is too old; must be 1\.4 or later: pip install"):
        check_versions()


def test_a_flag_given_twice_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    note_repeated(["--seed", "1", "--gamma=0.9", "--seed=2", "--schedule", "constant"])
    assert capsys.readouterr().err == "note: --seed is given more than once; the last one holds\n"


@pytest.mark.parametrize(
    ("variables", "flags", "told"),
    [
        ({"LT_ACCELERATOR": "cpu"}, "--cuda", "leave one of the two out"),
        ({"LT_STRATEGY": "fsdp"}, "", "--strategy fsdp: gradients are averaged by ddp here"),
        ({"WORLD_SIZE": "2"}, "", "2 ranks: start this program with fabric run"),
        ({"WORLD_SIZE": "2", "LT_CLI_USED": "1"}, "", {}),
    ],
)
def test_what_fabric_run_was_told_may_be_refused(
    variables: dict[str, str], flags: str, told: dict[str, Any] | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["train_fabric.py", *flags.split()])
    if isinstance(told, str):
        with pytest.raises(UserError, match=told):
            train_fabric.told_to_fabric()
    else:
        assert train_fabric.told_to_fabric() == told
