"""The flags: which there are, what they mean, and what the wrong ones are answered."""

import re
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import train_torch
from rl.command_line import command_line, parse
from rl.config import CONFIGS, Config, DecoupledConfig
from rl.envs.stepping import EnvConfig
from rl.errors import UserError
from rl.learners.actor_critic import ActorCritic
from rl.learners.ppo import PPO
from rl.learners.reinforce import Reinforce
from tests import probes  # noqa: F401 (registers them)

# fmt: off
FLAGS = [
    "activation_function", "allow_import", "anneal_lr", "capture_video", "checkpoint_every", "clip_coef",
    "clip_vloss", "cuda", "ent_coef", "env_backend", "env_id", "env_timeout", "eval_episodes", "execution",
    "exp_name", "fp8", "gae_lambda", "gamma", "hidden_layers", "hidden_size", "keep_best", "keep_checkpoints",
    "learning_rate", "log_dir", "max_eval_steps", "max_grad_norm", "normalize_advantages", "num_envs", "num_steps",
    "ortho_init", "per_rank_batch_size", "player_on_gpu", "precision", "rank_timeout", "report_episodes", "resume",
    "seed", "share_data", "shared_encoder", "target_kl", "torch_deterministic", "total_episodes", "total_timesteps",
    "update_epochs", "vectorization", "vf_coef",
]
# fmt: on


def test_the_set_of_flags() -> None:
    assert sorted(Config().flags()) == sorted(FLAGS)
    assert sorted(DecoupledConfig().flags()) == sorted([*FLAGS, "overlap"])


def test_every_flag_is_in_the_help_with_its_meaning_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse(["--help"], CONFIGS)
    assert exit_.value.code == 0
    help_text = capsys.readouterr().out
    for name in FLAGS:
        assert f"--{name.replace('_', '-')}" in help_text
    for group in ("env options", "network options", "learner options"):
        assert group in help_text
    assert "Discount factor. (default: 0.95)" in " ".join(help_text.replace("│", " ").split())


def test_flags_are_flat_and_in_any_order() -> None:
    config = parse(
        ["--gamma", "0.5", "--env-id", "CartPole-v1", "--no-anneal-lr", "--hidden-size", "8", "--cuda"], CONFIGS
    )
    assert (config.learner.gamma, config.env.env_id, config.learner.anneal_lr) == (0.5, "CartPole-v1", False)
    assert (config.network.hidden_size, config.cuda) == (8, True)


def test_the_readmes_commands_have_flags_that_can_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    commands = re.findall(r"^(?:fabric run|torchrun) .*?(train_\w+\.py)([^#\n]*)", readme, re.MULTILINE)
    assert len(commands) >= 7
    for program, flags in commands:
        choices = {"ppo": DecoupledConfig()} if "decoupled" in program else CONFIGS
        parse(flags.split(), choices).check()


def test_a_learner_is_chosen_by_its_name_with_defaults_of_its_own_and_ppo_without_one() -> None:
    assert parse(["--ent-coef", "0.5", "--num-envs", "3"], CONFIGS).learner == PPO(ent_coef=0.5)
    config = parse(["actor-critic", "--buffer-size", "500", "--num-envs", "3"], CONFIGS)
    assert config.learner == ActorCritic(buffer_size=500)
    assert (config.env, config.total_episodes) == (EnvConfig(num_envs=3), 2000)
    config = parse(["reinforce", "--baseline"], CONFIGS)
    assert config.learner == Reinforce(baseline=True)
    assert (config.env.env_id, config.network.hidden_size, config.network.hidden_layers) == ("CartPole-v1", 128, 1)


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


BAD_INPUT = [
    ("--num-envs 0", "--num-envs 0: must be at least 1"),
    ("--num-envs -3", "--num-envs -3: must be at least 1"),
    ("--num-steps 0", "--num-steps 0: must be at least 1"),
    ("--num-envs 2 --num-steps 8 --per-rank-batch-size 17", "--per-rank-batch-size 17: larger than the 16 rows"),
    ("--per-rank-batch-size 0", "--per-rank-batch-size 0: must be at least 1"),
    ("--total-timesteps 8191", "--total-timesteps 8191: less than one rollout .* = 8192 steps"),
    ("--learning-rate nan", "--learning-rate nan: must be a finite number above 0"),
    ("--learning-rate 1e400", "--learning-rate inf: must be a finite number above 0"),
    ("--clip-coef 0", "--clip-coef 0.0: must be a finite number above 0"),
    ("--target-kl -1", "--target-kl -1.0: must be a finite number above 0"),
    ("--max-grad-norm 0", "--max-grad-norm 0.0: must be"),
    ("--gamma 1.5", "--gamma 1.5: must lie between 0 and 1"),
    ("--gae-lambda -0.1", "--gae-lambda -0.1: must lie between 0 and 1"),
    ("--ent-coef inf", "--ent-coef inf: must be a finite number"),
    ("--update-epochs 0", "--update-epochs 0: must be at least 1"),
    ("--hidden-size 0", "--hidden-size 0: must be at least 1"),
    ("--hidden-layers 0", "--hidden-layers 0: must be at least 1"),
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
    ("--player-on-gpu", "--player-on-gpu: every rank of this program plays on the device that it learns on"),
    ("--capture-video --env-id ConstantReward-v0", "--capture-video: ConstantReward-v0 cannot draw itself"),
    ("--total-episodes 0", "--total-episodes 0: must be at least 1"),
    ("--report-episodes 0", "--report-episodes 0: must be at least 1"),
    ("actor-critic --buffer-size 0", "--buffer-size 0: must be at least 1"),
    ("actor-critic --rho-clip 0", "--rho-clip 0.0: must be a finite number above 0"),
    ("actor-critic --share-data", "--share-data: is for the epochs of PPO"),
    ("actor-critic --update-epochs 3", "Unrecognized"),
    ("reinforce --episodes-per-env 0", "--episodes-per-env 0: must be at least 1"),
    ("reinforce --execution compiled", "--execution compiled: whole episodes make rollouts of no fixed length"),
    ("reinforce --gamma 2", "--gamma 2.0: must lie between 0 and 1"),
    ("--precision 8", "precision"),
    ("--seed 3 reinforce", "Move 'reinforce' earlier"),
    ("--numenvs 3", "Unrecognized"),
    ("--num-envs x", "num-envs"),
    ("--share-data true", "true"),
]


@pytest.mark.parametrize(("flags", "message"), BAD_INPUT, ids=[flags for flags, _ in BAD_INPUT])
def test_bad_input_is_answered_with_one_message_and_leaves_nothing(
    flags: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["train_torch.py", *flags.split()])
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(SystemExit) as exit_:
        command_line(train_torch.main, CONFIGS, train_torch.PROGRAM)
    assert exit_.value.code == (73 if "--log-dir" in flags else 2)
    error = capfd.readouterr().err
    words = " ".join(error.replace("│", " ").split())
    assert re.search(message, words), error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("world_size", "flags", "message"),
    [
        (3, "reinforce", "reinforce: this program takes only ppo; the others take that learner"),
        (3, "--total-episodes 5", "--total-episodes: this program counts steps"),
        (1, "", "1 rank: this program needs a player and at least one trainer"),
        (4, "--num-envs 2 --num-steps 1", "--num-steps 1: × --num-envs 2 = 2 rows; each of 3 trainers needs one"),
        (3, "--num-envs 5 --num-steps 1 --per-rank-batch-size 4", "--per-rank-batch-size 4: larger than the 3 rows"),
        (3, "--player-on-gpu", "--player-on-gpu: the trainers are not on GPUs; say --cuda too"),
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
