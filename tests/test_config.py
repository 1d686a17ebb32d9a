"""The flags: their names, their meaning, and the messages for wrong values."""

import io
import math
import os
import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import train_fabric
import train_fabric_decoupled
import train_torch
from rl.cli import check_versions, command_line, mend_streams, note_repeated, parse, read_flags
from rl.config import CONFIGS, Config, DecoupledConfig
from rl.dist.ranks import choose_threads
from rl.envs.make import EnvConfig
from rl.envs.tensor_envs import TENSOR_ENVS
from rl.errors import UserError
from rl.keep import Keep
from rl.learners.actor_critic import ActorCriticConfig
from rl.learners.ppo import PPOConfig
from rl.learners.reinforce import ReinforceConfig
from tests import probes

# fmt: off
FLAGS = [
    "activation_function", "adam_eps", "allow_import", "anneal_lr", "capture_video", "checkpoint_every", "clip_coef",
    "clip_vloss", "cuda", "ent_coef", "env_id", "env_timeout", "eval_episodes", "execution",
    "exp_name", "fp8", "gae_lambda", "gamma", "hidden_sizes", "keep_best", "keep_checkpoints",
    "learning_rate", "log_dir", "max_eval_steps", "max_grad_norm", "max_replay_steps", "normalize_advantages",
    "num_envs", "num_minibatches", "num_steps",
    "ortho_init", "per_rank_batch_size", "precision", "rank_timeout", "report_episodes", "resume",
    "seed", "share_data", "shared_encoder", "target_kl", "torch_deterministic", "total_episodes", "total_timesteps",
    "update_epochs", "vectorization", "vf_coef",
]
# fmt: on


def test_the_set_of_flags() -> None:
    assert sorted(Config().flags()) == sorted(FLAGS)
    assert sorted(DecoupledConfig().flags()) == sorted([*FLAGS, "overlap", "player_on_gpu"])


def test_every_flag_is_in_the_help_with_its_meaning_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse(["--help"], CONFIGS)
    assert exit_.value.code == 0
    help_text = capsys.readouterr().out
    for name in FLAGS:
        assert f"--{name.replace('_', '-')}" in help_text
    assert "type: ignore" not in help_text
    for group in ("env options", "network options", "learner options"):
        assert group in help_text
    assert "Discount factor. (default: 0.95)" in " ".join(help_text.replace("│", " ").split())


def test_help_for_a_tiny_terminal_is_forty_letters_wide(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "5")
    with pytest.raises(SystemExit):
        parse(["--help"], CONFIGS)
    assert max(map(len, capsys.readouterr().out.splitlines())) >= 30
    assert os.environ["COLUMNS"] == "5"


def test_the_log_folder_is_absolute_at_once_and_may_be_at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    for flags, folder in (([], tmp_path / "logs"), (["--log-dir", "~/x"], Path("/home/someone/x"))):
        config, _ = read_flags(flags, CONFIGS, "torch_logs")
        assert config.log_dir == str(folder)


def test_a_log_folder_that_the_locale_cannot_read_is_refused() -> None:
    with pytest.raises(UserError, match=r"--log-dir '.udcc3x': cannot be decoded in this locale; set PYTHONUTF8=1"):
        Config(log_dir="\udcc3x").check()


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
    config = parse(
        ["--gamma", "0.5", "--env-id", "CartPole-v1", "--no-anneal-lr", "--hidden-sizes", "8", "4", "--cuda"], CONFIGS
    )
    assert (config.learner.gamma, config.env.env_id, config.learner.anneal_lr) == (0.5, "CartPole-v1", False)
    assert (config.network.hidden_sizes, config.cuda) == ((8, 4), True)


def test_the_table_of_other_libraries_names_flags_that_there_are() -> None:
    table = (Path(__file__).parent.parent / "docs/flags.md").read_text()
    flags = re.findall(r"^\| `--([a-z-]+)", table, re.MULTILINE)
    assert len(flags) >= 30 and {flag.replace("-", "_") for flag in flags} <= Config().flags().keys()


def test_the_readmes_commands_have_flags_that_can_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    commands = re.findall(r"^(?:fabric run|torchrun) .*?(train_\w+\.py)([^#\n]*)", readme, re.MULTILINE)
    assert len(commands) >= 7
    for program, flags in commands:
        choices = {"ppo": DecoupledConfig()} if "decoupled" in program else CONFIGS
        parse(flags.split(), choices).check()


@pytest.mark.parametrize(
    ("old", "new", "note"),
    [
        ("--hidden-size 8 --hidden-layers 3", "--hidden-sizes 8 8 8", "--hidden-sizes 8 8 8"),
        ("--hidden_layers=3 --seed 2 --hidden-size=8", "--seed 2 --hidden-sizes 8 8 8", "--hidden-sizes 8 8 8"),
        ("--hidden-size 8", "--hidden-sizes 8 8", "--hidden-sizes 8 8"),
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
    ("flags", "eagerly"), [("--cuda", True), ("--cuda --player-on-gpu", False), (f"--cuda {LONG}", False)]
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
        parse([name, "--help"], CONFIGS)
    help_text = capsys.readouterr().out
    words = " ".join(help_text.replace("│", " ").split())
    for field in fields(CONFIGS[name].learner):
        assert re.search(rf"--{field.name.replace('_', '-')}[ ,].*?[A-Z].*?\(default: ", words), field.name
    for other in CONFIGS.keys() - {name}:
        own = {field.name for field in fields(CONFIGS[other].learner)} - {f.name for f in fields(CONFIGS[name].learner)}
        assert not any(f"--{flag.replace('_', '-')} " in words for flag in own)


def test_the_defaults_of_every_learner_can_work() -> None:
    for config in CONFIGS.values():
        config.check()


def test_total_timesteps_count_the_steps_of_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    config = parse(["--total-timesteps", "10000", "--num-envs", "10", "--num-steps", "100"], CONFIGS)
    assert config.steps_per_update() == 3000 and config.num_updates() == 3


HUGE = [
    *("total-timesteps", "total-episodes", "report-episodes", "num-envs", "num-steps", "per-rank-batch-size"),
    *("hidden-sizes", "update-epochs", "eval-episodes", "max-eval-steps", "keep-checkpoints"),
]
REAL = [
    *("learning-rate", "gamma", "gae-lambda", "clip-coef", "ent-coef", "vf-coef", "target-kl"),
    *("env-timeout", "rank-timeout"),
]
BAD_INPUT = [
    ("--num-envs 0", "--num-envs 0: must be at least 1"),
    ("--num-envs -3", "--num-envs -3: must be at least 1"),
    ("--num-steps 0", "--num-steps 0: must be at least 1"),
    ("--num-envs 2 --num-steps 8 --per-rank-batch-size 17", "--per-rank-batch-size 17: larger than the 16 rows"),
    ("--num-minibatches 0", "--num-minibatches 0: must be at least 1"),
    ("--adam-eps 0", "--adam-eps 0.0: must be"),
    ("--per-rank-batch-size 0", "--per-rank-batch-size 0: must be at least 1"),
    ("--total-timesteps 8191", "--total-timesteps 8191: less than one rollout .* = 8192 steps"),
    ("--learning-rate nan", "--learning-rate nan: must be a finite number above 0"),
    ("--learning-rate 1e400", "--learning-rate inf: must be a finite number above 0"),
    ("--clip-coef 0", "--clip-coef 0.0: must be a finite number above 0"),
    ("--target-kl -1", "--target-kl -1.0: must be a finite number above 0"),
    ("--max-grad-norm 0", "--max-grad-norm 0.0: must be"),
    ("--max-grad-norm nan", "--max-grad-norm nan: must be"),
    ("--gamma 1.5", "--gamma 1.5: must lie between 0 and 1"),
    ("--gae-lambda -0.1", "--gae-lambda -0.1: must lie between 0 and 1"),
    ("--ent-coef inf", "--ent-coef inf: must be a finite number"),
    ("--update-epochs 0", "--update-epochs 0: must be at least 1"),
    ("--hidden-sizes 64 0", "--hidden-sizes 0: must be at least 1"),
    ("--hidden-sizes", "--hidden-sizes: 0 layers; must be 1 to 1,000 widths"),
    ("--hidden-sizes 16385", "--hidden-sizes 16385: must be at most 16,384"),
    ("--hidden-sizes 64 x", "hidden-sizes"),
    ("--hidden-layers 0", "--hidden-layers 0: must be 1 to 1,000"),
    ("--hidden-layers", "--hidden-layers : must be a whole number"),
    ("--hidden-size x", "--hidden-size x: must be a whole number"),
    ("--hidden-size 8 --hidden-sizes 8 8", "--hidden-size 8 and --hidden-sizes: say the same; must be only one"),
    ("--eval-episodes 0", "--eval-episodes 0: must be at least 1"),
    ("--max-eval-steps 0", "--max-eval-steps 0: must be at least 1"),
    ("--seed -1", "--seed -1: must lie between 0 and 4294967295"),
    ("--seed 4294967296", "--seed 4294967296: must lie between"),
    ("--exp-name ../../x", "--exp-name '../../x': must be"),
    ("--env-id nope-v0", "--env-id nope-v0: Environment `nope` doesn't exist"),
    ("--env-id LunarLander-v2", "--env-id LunarLander-v2: .*LunarLander-v3"),
    ("--env-id a:b:c", "--env-id 'a:b:c': must look like"),
    ("--env-id no.such.module:Env-v0 --allow-import", "--env-id no.such.module:Env-v0: No module named 'no'"),
    ("--env-id FrozenLake-v1", "--env-id FrozenLake-v1: its observation space is Discrete"),
    ("--env-id CustomEnv-v0 --log-dir /dev/null", "--log-dir /dev/null: no folder can be made there"),
    ("--log-dir /proc", "--log-dir /proc: no folder can be made there"),
    ("--cuda", r"--cuda: 1 rank\(s\) on this machine need a GPU each, and torch finds 0 here"),
    ("--player-on-gpu", "Unrecognized options: --player-on-gpu"),
    ("--capture-video --env-id ConstantReward-v0", "--capture-video: ConstantReward-v0 has no render_mode rgb_array"),
    ("--total-episodes 0", "--total-episodes 0: must be at least 1"),
    ("--report-episodes 0", "--report-episodes 0: must be at least 1"),
    ("actor-critic --buffer-size 0", "--buffer-size 0: must be at least 1"),
    ("actor-critic --rho-clip 0", "--rho-clip 0.0: must be a finite number above 0"),
    ("actor-critic --share-data", "Unrecognized.*note: --share-data is a flag of ppo, not of actor-critic"),
    ("actor-critic --update-epochs 3", "Unrecognized.*note: --update-epochs is a flag of ppo, not of actor-critic"),
    ("reinforce --episodes-per-env 0", "--episodes-per-env 0: must be at least 1"),
    ("reinforce --execution compile", "--execution compile: whole episodes vary in length; leave the flag out"),
    ("reinforce --gamma 2", "--gamma 2.0: must lie between 0 and 1"),
    ("--precision 8", "precision"),
    ("--num-envs 1e3", "num-envs"),
    ("--learning-rate inf", "--learning-rate inf: must be a finite number above 0"),
    ("--learning-rate -1", "--learning-rate -1.0: must be"),
    ("--clip-coef -0.1", "--clip-coef -0.1: must be a finite number above 0"),
    ("--seed 1180591620717411303424", "--seed 1180591620717411303424: must lie between"),
    ("--exp-name a/b", "--exp-name 'a/b': must be 1 to 80 letters"),
    ("--exp-name $HOME", r"--exp-name '\$HOME': must be"),
    (f"--exp-name {'x' * 81}", "must be 1 to 80 letters"),
    ("--env-id ../x", "--env-id '../x': must look like CartPole-v1"),
    ("--env-id=", "--env-id '': must look like"),
    ("--env-id /etc/passwd", "--env-id '/etc/passwd': must look like"),
    ("--env-id this:Env-v0", "--env-id this:Env-v0: imports, and so runs, the module this; add --allow-import"),
    ("--env-id CartPole-v99", "--env-id CartPole-v99: Environment version `v99` for environment `CartPole` doesn't"),
    ("--env-id Blackjack-v1", "--env-id Blackjack-v1: its observation space is Tuple.*supported is a Box"),
    ("--env-id DictObs-v0", "--env-id DictObs-v0: its observation space is Dict.*supported is a Box"),
    ("--env-id TextObs-v0", "--env-id TextObs-v0: its observation space is Text.*supported is a Box"),
    ("--env-id MultiBinaryAction-v0", "--env-id MultiBinaryAction-v0: its action space is MultiBinary.*supported are"),
    ("--env-id ALE/Pong-v5", "--env-id ALE/Pong-v5: Namespace ALE not found"),
    ("--env-id Ant-v5", "--env-id Ant-v5: .*pip install"),
    ("--env-id Blackjack-v1 --vectorization tensor", "Blackjack-v1: not written in tensors, .*; available are Acrobot"),
    ("--env-timeout 0", "--env-timeout 0.0: must be a finite number above 0"),
    ("--rank-timeout 0", "--rank-timeout 0.0: must be finite, at least 1"),
    ("--checkpoint-every 0", "--checkpoint-every '0': must be a time above 0 such as 90s"),
    ("--checkpoint-every 0min", "--checkpoint-every '0min': must be a time above 0"),
    ("--checkpoint-every soon", "--checkpoint-every 'soon': must be a time above 0"),
    ("--keep-checkpoints 0", "--keep-checkpoints 0: must be at least 1"),
    ("--resume nowhere", "--resume nowhere: does not exist; must be a run's folder, a checkpoint, or auto"),
    ("--seed 3 reinforce", "note: reinforce: the learner's name comes before all flags"),
    ("--numenvs 3", "Unrecognized"),
    ("--num-envs x", "num-envs"),
    ("--share-data true", "true"),
    *((f"--{flag} {10**400}", f"--{flag} 1000.*00: must be at most") for flag in HUGE),
    *((f"--{flag} {value}", f"--{flag} {value}.*: must") for flag in REAL for value in ("nan", "inf")),
    (f"--checkpoint-every {'9' * 400}", "--checkpoint-every '9999.*: must be a time above 0"),
    ("--num-envs 1048577", "--num-envs 1048577: must be at most 1,048,576"),
    ("--hidden-layers 1000000", "--hidden-layers 1000000: must be 1 to 1,000"),
    ("actor-critic --updates-per-collection 10001", "--updates-per-collection 10001: must be at most 10,000"),
    (f"--num-steps {10**12} --total-timesteps {10**15}", f"--num-envs 64 × --num-steps {10**12}: takes .* GiB of"),
    (f"actor-critic --buffer-size {10**15}", f"--buffer-size {10**15}: takes .* GiB of memory, but a rank has"),
    ("--hidden-size 16384 --hidden-layers 1000", "--hidden-sizes: takes .* GiB of memory, but a rank has"),
    (
        "--env-id DiscHuge-v0",
        r"--env-id DiscHuge-v0: its action space is Discrete\(10000000000\); .* at most 1,048,576",
    ),
    (
        "--env-id Askew-v0 --vectorization tensor",
        r"Askew.reward: gives shape \(5, 1\); must be \(5,\) with 5 environments",
    ),
    ("--env-id Askew-v0", "Askew.reward: gives shape"),
    ("--env-id Askew-v0 --vectorization sync", "--env-id Askew-v0: exists in tensors only; add --vectorization tensor"),
    ("--env-id Other-v0 --vectorization tensor", "and with module:Name whatever that module registers"),
]


@pytest.mark.parametrize(("flags", "message"), BAD_INPUT, ids=[flags[:60] for flags, _ in BAD_INPUT])
def test_bad_input_is_answered_with_one_message_and_leaves_nothing(
    flags: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["train_torch.py", *flags.split()])
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setitem(TENSOR_ENVS, "Askew-v0", probes.Askew)
    with pytest.raises(SystemExit) as exit_:
        command_line(train_torch.main, CONFIGS, train_torch.PROGRAM)
    assert exit_.value.code == (73 if "--log-dir" in flags else 66 if "--resume" in flags else 2)
    error = capfd.readouterr().err
    words = " ".join(error.replace("│", " ").split())
    assert re.search(message, words), error
    assert "Traceback" not in error
    assert "--capture-video" not in flags or os.environ["SDL_VIDEODRIVER"] == "dummy"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("world_size", "flags", "message"),
    [
        (3, "reinforce", "reinforce: this program takes only ppo; the others take that learner"),
        (3, "--total-episodes 5", "--total-episodes: this program counts steps"),
        (1, "", "1 rank: this program needs a player and at least one trainer"),
        (4, "--num-envs 2 --num-steps 1", "--num-steps 1: × --num-envs 2 = 2 rows; each of 3 trainers needs one"),
        (3, "--num-envs 5 --num-steps 1 --per-rank-batch-size 4", "--per-rank-batch-size 4: larger than the 3 rows"),
        (3, "--player-on-gpu", "--player-on-gpu: the trainers are not on GPUs; add --cuda"),
        (4, "--cuda", r"--cuda: 3 trainer\(s\) on this machine need a GPU each, and torch finds 2 here"),
    ],
)
def test_the_decoupled_program_checks_what_its_ranks_need(
    world_size: int, flags: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, str(world_size))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(UserError, match=message):
        parse(flags.split(), {"ppo": DecoupledConfig()}).check()


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
    note_repeated(["--seed", "1", "--gamma=0.9", "--seed=2", "--no-anneal-lr"])
    assert capsys.readouterr().err == "note: --seed is given more than once; the last one holds\n"


def test_more_ranks_than_cores_are_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr("os.sched_setscheduler", lambda *arguments: None)
    choose_threads()
    assert capsys.readouterr().err == "note: 64 ranks of this machine share 2 cores\n"


def test_steps_that_make_no_whole_update_are_left_out() -> None:
    config = parse(["--total-timesteps", "20000"], CONFIGS)
    assert config.num_updates() * config.steps_per_update() == 16384


@pytest.mark.parametrize(
    ("text", "interval"),
    [("3", (3, math.inf)), ("90s", (math.inf, 90)), ("1.5min", (math.inf, 90)), ("2h", (math.inf, 7200))],
)
def test_the_interval_of_checkpoints_is_one_of_updates_or_of_time(text: str, interval: tuple[float, float]) -> None:
    keep = Keep(checkpoint_every=text)
    keep.check()
    assert keep.interval() == interval


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
