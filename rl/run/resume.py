"""Resuming a run: which checkpoint, the run's own flags, and which of them may change."""

import math
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from rl.config import Config, flat
from rl.dist.launch import world_size
from rl.envs.config import EnvConfig
from rl.errors import CheckpointError, NothingToResumeError, counted
from rl.keep import Keep
from rl.models.agent import Network
from rl.models.encoders import KINDS
from rl.reporting import COMPLETE, how_ended, note
from rl.run.checkpoint import Content, agent_of, check_types, from_bytes, read_once, refused
from rl.run.folder import folder_stem, kept_checkpoints, run_of

ConfigType = TypeVar("ConfigType", bound=Config[Any])

# Changing one of these would make it another run.
FIXED = [
    *("env_id", "env_kwargs", "env_wrapper", "squash", "clip_rewards", "terminate_on_life_loss"),
    *("seed", "num_steps", "buffer_size", "share_data", "overlap"),
    *(field.name for field in fields(Network) if field.name not in ("ortho_init", "log_std_init")),
]
LENGTH = ("total_timesteps", "total_episodes")  # of a run
# Changing these does not change what is learned, so nothing is said about them.
FREE = {field.name for field in fields(Keep)} | {
    *("rank_timeout", "env_timeout", "max_replay_steps", "allow_import", "vectorization", "log_dir", "exp_name"),
    *("config", "quiet", "report_episodes", "capture_video", "eval_episodes", "max_eval_steps"),
}


def find_checkpoint(config: Config[Any], program: str) -> tuple[Path, Content] | None:
    """The checkpoint that `--resume` names, and its content: the newest readable one of a run, or of the newest run.

    Returns None if it is `auto` and no run of this environment, experiment and seed has a checkpoint.

    Raises:
        NothingToResumeError: There is no checkpoint at the path.
        CheckpointError: None of the run's checkpoints can be read.
    """
    wanted = str(config.keep.resume)
    if wanted == "auto":
        for folder in _runs_like(config, program):
            if files := kept_checkpoints(folder):
                return newest_readable(files)
        note(f"--resume auto: no run to resume in {config.log_dir}; a new one starts")
        return None
    path = Path(os.path.abspath(wanted))
    try:
        files = [path] if path.is_file() else kept_checkpoints(path)
        what = "contains no checkpoint" if path.is_dir() else "does not exist"
    except OSError as error:  # the name is too long
        files, what = [], f"cannot be opened ({error.strerror})"
    if not files:
        raise NothingToResumeError(f"--resume {wanted[:200]}: {what}; must be a run's folder, a checkpoint, or auto")
    return newest_readable(files)


def _runs_like(config: Config[Any], program: str) -> list[Path]:
    """The folders of this program's runs with the same environment, experiment and seed, the newest first."""
    # Names end with the time at which the run began, and a number if several began in one second.
    began = re.compile(re.escape(folder_stem(config)) + r"_(\d{4}-\d\d-\d\d_\d\d-\d\d-\d\dZ)(?:_(\d+))?")
    parent = Path(os.path.abspath(config.log_dir), program)
    folders = [path for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []
    runs = [(match[1], int(match[2] or 1), path) for path in folders if (match := began.fullmatch(path.name))]
    return [path for *_, path in sorted(runs, reverse=True)]


def newest_readable(files: list[Path]) -> tuple[Path, Content]:
    """The first of the files that can be read, and its content; says why the ones before it cannot.

    Raises:
        CheckpointError: None can.
    """
    newest, *older = files
    try:
        return newest, read_once(newest)
    except (CheckpointError, OSError) as error:
        if not older:
            raise CheckpointError(f"--resume: no checkpoint can be read: {error}") from None
        note(f"{error}; trying the one before it")
        return newest_readable(older)


def config_of(content: Content, choices: Mapping[str, ConfigType]) -> tuple[str, ConfigType]:
    """The learner's name and the flags of the run that a checkpoint is of.

    --allow-import, which lets code run, and --log-dir are not taken from it: only the command line sets them.

    Raises:
        CheckpointError: The checkpoint is of another program, or contains what no run of this one would have saved.
    """
    saved, name = content["config"], content["learner"]
    base = choices.get(name)
    if base is None or {field.name for field in fields(base)} != saved.keys():
        raise CheckpointError(f"--resume: is a run of another program, or of a learner that it does not have ({name})")
    groups = {"env": EnvConfig, "network": Network, "keep": type(base.keep), "learner": type(base.learner)}
    with refused("--resume: is not a run of this version of the program"):
        made: dict[str, Any] = {group: make(**saved[group]) for group, make in groups.items()}
        config = replace(base, **(saved | made))
        check_types(config)
        counts = (content["run"]["update"], content["run"]["step"])
        if config.to_dict() != saved or not content["ranks"] or not all(0 <= count < 2**53 for count in counts):
            raise ValueError("a flag or the ranks' states are missing, or a count is impossible")
        replace(config, env=replace(config.env, allow_import=True)).check_names()
        config.keep.check()
        config.learner.check(sys.maxsize)
    if config.network.encoder in KINDS:  # another one is imported only if --allow-import permits it
        agent_of(content)
    for part in content["ranks"]:
        from_bytes(part)
    return name, replace(config, log_dir=base.log_dir, env=replace(config.env, allow_import=False))


def check_goes_on(content: Content, config: Config[Any]) -> None:
    """Checks the flags of a resumed run against those that it had, and says which have changed.

    Raises:
        CheckpointError: A change would make it another run.
    """
    was, now = flat(content["config"]), config.flags()
    changed = {name for name in now if was.get(name) != now[name]} - FREE
    for name in FIXED:
        if name in changed:
            flag = f"--{name.replace('_', '-')}"
            raise CheckpointError(f"--resume: the run has {flag} {was[name]}, not {now[name]}; leave the flag out")
    if "learning_rate" in changed and now["schedule"] == "adaptive":
        raise CheckpointError(
            "--resume: --schedule adaptive goes on from the rate that the run has reached; leave --learning-rate out"
        )
    forms = was["vectorization"], now["vectorization"]
    if {"tensor", "envpool"} & {*forms} and forms[0] != forms[1]:  # these are other environments with the same id
        raise CheckpointError(f"--resume: the run has --vectorization {forms[0]}, not {forms[1]}; leave the flag out")
    if "precision" in changed and "bf16-true" in (was["precision"], now["precision"]):
        raise CheckpointError(
            f"--resume: the run has --precision {was['precision']}, whose weights {now['precision']} cannot take over"
        )
    num_before, num_now = content["num_players"] * was["num_envs"], config.num_players() * now["num_envs"]
    if num_before != num_now:
        num_each, rest = divmod(num_before, config.num_players())
        right = "another number of ranks" if rest else f"--num-envs {num_each}"
        raise CheckpointError(
            f"--resume: the run has {num_before} environments ({counted(content['num_players'], 'rank')} × --num-envs"
            f" {was['num_envs']}), not {config.num_players()} × {now['num_envs']} = {num_now}; use {right}"
        )
    for name in sorted(changed - {"num_envs"}):
        note(f"resumed with --{name.replace('_', '-')} {now[name]} instead of {was[name]}")
    if len(content["ranks"]) != world_size():
        note(
            f"resumed on {counted(world_size(), 'rank')} instead of {len(content['ranks'])}: the run continues from the"
            " same state, but not bit for bit as it would have"
        )


def note_resumed(content: Content, config: Config[Any]) -> None:
    """Says which checkpoint a run goes on from."""
    position = content["run"]
    note(f"resumes {config.keep.resume}, after update {position['update']:,} and {position['step']:,} steps")


def note_learning_rate(content: Content, config: Config[Any], fraction: float) -> None:
    """Says that an annealed learning rate jumps, if the run has been given another length."""
    was, learner = flat(content["config"]), config.learner
    same_length = all(getattr(config, name) == was[name] for name in LENGTH)
    if learner.schedule == was["schedule"] == "linear" and not same_length and fraction < 1:
        before = was["learning_rate"] * (1 - content["run"]["fraction"])
        note(
            f"the learning rate jumps from {before:.6g} to {learner.learning_rate_at(fraction):.6g}, since the run's"
            f" length has changed; to keep it, use --schedule constant --learning-rate {before:.6g}"
        )


def is_complete(content: Content, config: Config[Any]) -> bool:
    """Whether the run has nothing left to do, its evaluation included; says so."""
    was = content["config"]
    longer = any((getattr(config, name) or math.inf) > (was[name] or math.inf) for name in LENGTH)
    folder = run_of(Path(str(config.keep.resume)))
    complete = content["run"]["complete"] and not longer and folder is not None and how_ended(folder) == COMPLETE
    if complete:
        note(
            f"--resume: the run is complete after {content['run']['step']:,} steps; to train it longer, use a larger"
            f" --total-timesteps{' and --total-episodes' if was['total_episodes'] else ''}"
        )
    return complete
