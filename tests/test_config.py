"""The flags: their names, their meaning, and the messages for wrong values."""

import math
import os
import re
import sys
from pathlib import Path

import pytest

import train_torch
from rl.cli import command_line, parse
from rl.config import CONFIGS, Config, DecoupledConfig
from rl.dist.ranks import choose_threads
from rl.envs.tensor_envs import TENSOR_ENVS
from rl.errors import UserError
from rl.keep import Keep
from tests import probes

# fmt: off
FLAGS = [
    "activation_function", "actor_keys", "adam_eps", "allow_import", "capture_video", "checkpoint_every", "clip_coef",
    "clip_rewards", "clip_vloss",
    "config", "critic_keys", "cuda", "desired_kl", "encoder", "ent_coef", "env_id", "env_kwargs",
    "env_timeout", "env_wrapper",
    "eval_episodes", "eval_every", "execution",
    "exp_name", "fp8", "gae_lambda", "gamma", "hidden_sizes", "keep_best", "keep_checkpoints",
    "learning_rate", "log_dir", "log_std_init", "logger", "max_eval_steps", "max_grad_norm", "max_replay_steps",
    "memory", "memory_size", "memory_span",
    "normalize_advantages", "normalize_obs", "normalize_reward", "num_envs", "num_minibatches", "num_steps",
    "num_workers",
    "ortho_init", "per_rank_batch_size", "precision", "quiet", "rank_timeout", "recompute_advantages",
    "report_episodes", "resume",
    "schedule", "seed", "sequence_length",
    "share_data", "shared_encoder", "squash", "target_kl", "terminate_on_life_loss",
    "torch_deterministic",
    "total_episodes", "total_timesteps", "update_epochs", "vectorization", "vf_coef",
]
# fmt: on


def test_the_set_of_flags() -> None:
    assert sorted(Config().flags()) == sorted(FLAGS)
    assert sorted(DecoupledConfig().flags()) == sorted([*FLAGS, "overlap", "player_on_gpu"])


def test_a_log_folder_that_the_locale_cannot_read_is_refused() -> None:
    with pytest.raises(UserError, match=r"--log-dir '.udcc3x': cannot be decoded in this locale; set PYTHONUTF8=1"):
        Config(log_dir="\udcc3x").check()


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
    *(
        "learning-rate",
        "gamma",
        "gae-lambda",
        "clip-coef",
        "ent-coef",
        "vf-coef",
        "target-kl",
        "desired-kl",
        "log-std-init",
    ),
    *("desired-kl", "log-std-init", "env-timeout", "rank-timeout"),
]
BAD_INPUT = [
    ("--num-envs 0", "--num-envs 0: must be at least 1"),
    ("--num-envs -3", "--num-envs -3: must be at least 1"),
    ("--num-steps 0", "--num-steps 0: must be at least 1"),
    ("--num-envs 2 --num-steps 8 --per-rank-batch-size 17", "--per-rank-batch-size 17: larger than the 16 rows"),
    ("--num-minibatches 0", "--num-minibatches 0: must be at least 1"),
    ("--adam-eps 0", "--adam-eps 0.0: must be"),
    ("--per-rank-batch-size 0", "--per-rank-batch-size 0: must be at least 1"),
    ("--total-timesteps 2047", "--total-timesteps 2047: must be at least 2048: a rollout of 1 rank"),
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
    ("--hidden-sizes 64 x", "error: --hidden-sizes 64 x: must be whole numbers"),
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
    ("--env-id CustomEnv-v0 --log-dir /dev/null", "--log-dir /dev/null: no folder can be made there"),
    ("--log-dir /proc", "--log-dir /proc: no folder can be made there"),
    ("--cuda", "--cuda: 1 rank on this machine needs a GPU, and torch finds 0 here"),
    ("--player-on-gpu", "error: --player-on-gpu: is a flag of train_fabric_decoupled.py only"),
    ("--capture-video --env-id ConstantReward-v0", "--capture-video: ConstantReward-v0 has no render_mode rgb_array"),
    ("--total-episodes 0", "--total-episodes 0: must be at least 1"),
    ("--report-episodes 0", "--report-episodes 0: must be at least 1"),
    ("actor-critic --buffer-size 0", "--buffer-size 0: must be at least 1"),
    ("actor-critic --rho-clip 0", "--rho-clip 0.0: must be a finite number above 0"),
    ("actor-critic --share-data", "error: --share-data: is a flag of ppo, not of actor-critic"),
    ("actor-critic --update-epochs 3", "error: --update-epochs: is a flag of ppo, not of actor-critic"),
    ("reinforce --episodes-per-env 0", "--episodes-per-env 0: must be at least 1"),
    ("reinforce --execution compile", "--execution compile: whole episodes vary in length; leave the flag out"),
    ("reinforce --gamma 2", "--gamma 2.0: must lie between 0 and 1"),
    ("--precision 8", "error: --precision 8: must be one of 32-true, bf16-mixed, 16-mixed, bf16-true"),
    ("--num-envs 1e3", "error: --num-envs 1e3: must be a whole number"),
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
    ("--env-id TextObs-v0", "--env-id TextObs-v0: its observation space has Text.*supported are Box"),
    ("--env-id TextAction-v0", "--env-id TextAction-v0: its action space is Text.*supported are Discrete"),
    ("--env-id Atari/Pong-v5", "--env-id Atari/Pong-v5: Namespace Atari not found"),
    ("reinforce --terminate-on-life-loss", "--terminate-on-life-loss: reinforce learns from whole episodes; leave the"),
    ("--env-id Ant-v3", "--env-id Ant-v3: .*have been moved to the gymnasium-robotics project"),
    ("--env-id Blackjack-v1 --vectorization tensor", "Blackjack-v1: not written in tensors, .*; available are Acrobot"),
    ("--env-timeout 0", "--env-timeout 0.0: must be a finite number above 0"),
    ("--rank-timeout 0", "--rank-timeout 0.0: must be finite, at least 1"),
    ("--checkpoint-every 0", "--checkpoint-every '0': must be a time above 0 such as 90s"),
    ("--checkpoint-every 0min", "--checkpoint-every '0min': must be a time above 0"),
    ("--checkpoint-every soon", "--checkpoint-every 'soon': must be a time above 0"),
    ("--keep-checkpoints 0", "--keep-checkpoints 0: must be at least 1"),
    ("--resume nowhere", "--resume nowhere: does not exist; must be a run's folder, a checkpoint, or auto"),
    ("--seed 3 reinforce", "error: reinforce: the learner's name comes before all flags"),
    ("--numenvs 3", "error: --numenvs: is not a flag; use --num-envs"),
    ("--num-envs", "error: --num-envs: has no value; must be a whole number"),
    ("--cuda=1", "error: --cuda=1: --cuda takes no value; --no-cuda is its opposite"),
    ("--gamma 0.9 0.8", "error: 0.8: --gamma takes one value"),
    ("CartPole-v1", "error: CartPole-v1: belongs to no flag; use --env-id CartPole-v1"),
    ("--num-envs=x", "error: --num-envs x: must be a whole number"),
    ("--share-data true", "error: true: --share-data takes no value; --no-share-data is its opposite"),
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
    assert re.search(message, " ".join(error.split())), error
    assert "Traceback" not in error and error.count("error: ") == 1
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
        (4, "--cuda", r"--cuda: 3 trainers on this machine need a GPU each, and torch finds 2 here"),
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


def test_more_ranks_than_cores_are_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr("os.sched_setscheduler", lambda *arguments: None)
    choose_threads()
    assert capsys.readouterr().err == "note: 64 ranks of this machine share 2 cores\n"


def test_steps_that_make_no_whole_update_are_left_out() -> None:
    config = parse(["--total-timesteps", "20000"], CONFIGS)
    assert config.num_updates() * config.steps_per_update() == 18432


@pytest.mark.parametrize(
    ("text", "interval"),
    [("3", (3, math.inf)), ("90s", (math.inf, 90)), ("1.5min", (math.inf, 90)), ("2h", (math.inf, 7200))],
)
def test_the_interval_of_checkpoints_is_one_of_updates_or_of_time(text: str, interval: tuple[float, float]) -> None:
    keep = Keep(checkpoint_every=text)
    keep.check()
    assert keep.interval() == interval
