"""Going on with a run: its own flags, what may differ from them, and what may not."""

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from typeguard import TypeCheckError

from rl.config import Config, flat
from rl.dist.launch import rank, world_size
from rl.envs.make import EnvConfig
from rl.errors import CheckpointError, NothingToResumeError, how_ended, one_line
from rl.keep import Keep
from rl.models.agent import Network
from rl.run.checkpoint import MISFITS, agent_of, check_types, from_bytes, read_checkpoint
from rl.run.folder import folder_stem, kept_checkpoints, run_of

ConfigType = TypeVar("ConfigType", bound=Config[Any])

# A change of these makes another run of it.
FIXED = [
    *("env_id", "seed", "num_steps", "buffer_size", "share_data", "overlap"),
    *(field.name for field in fields(Network) if field.name != "ortho_init"),
]
LENGTH = ("total_timesteps", "total_episodes")  # of a run
# A change of these changes nothing that is learned.
FREE = {field.name for field in fields(Keep)} | {
    "rank_timeout",
    "env_timeout",
    "max_replay_steps",
    "allow_import",
    "vectorization",
    "log_dir",
    "exp_name",
    "report_episodes",
    "capture_video",
    "eval_episodes",
    "max_eval_steps",
}


def find_checkpoint(config: Config[Any], program: str) -> tuple[Path, dict[str, Any]] | None:
    """What `--resume` goes on from: the newest whole checkpoint of the run, or of the newest run there is for `auto`.

    Nothing for `auto` where no such run has a checkpoint.

    Raises:
        NothingToResumeError: The path leads to no checkpoint.
        CheckpointError: There are checkpoints, and all of them are damaged or foreign.
    """
    wanted = config.keep.resume
    assert wanted is not None
    if wanted != "auto":
        try:
            path = Path(wanted)
            files = [path] if path.is_file() else kept_checkpoints(path)
            what = "holds no checkpoint" if path.is_dir() else "is not there"
        except OSError as error:  # a name that is too long
            files, what = [], f"cannot be looked for ({error.strerror})"
        if not files:
            raise NothingToResumeError(
                f"--resume {wanted[:200]}: {what}; must be a run's folder, a checkpoint, or auto"
            )
        return newest_whole(files)
    # Names end with the time at which the run began; several of one second with a number, longer ones with more digits.
    began = re.compile(re.escape(folder_stem(config)) + r"_(\d{4}-\d\d-\d\d_\d\d-\d\d-\d\dZ)(?:_(\d+))?")
    runs = [
        (match, folder) for folder in _folders(Path(config.log_dir, program)) if (match := began.fullmatch(folder.name))
    ]
    runs.sort(key=lambda run: (run[0][1], int(run[0][2] or 1)), reverse=True)
    for _, folder in runs:
        if files := kept_checkpoints(folder):
            return newest_whole(files)
    if rank() == 0:
        print(
            f"note: --resume auto: there is no run to go on with in {config.log_dir}; a new one starts", file=sys.stderr
        )
    return None


def _folders(parent: Path) -> list[Path]:
    return [path for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []


def newest_whole(files: list[Path]) -> tuple[Path, dict[str, Any]]:
    """The first of the files that can be read, and its content; rank 0 says of the others why not.

    Raises:
        CheckpointError: None can.
    """
    newest, *older = files
    try:
        return newest, read_checkpoint(newest)
    except (CheckpointError, OSError) as error:
        if not older:
            raise CheckpointError(f"--resume: no checkpoint can be read: {error}") from None
        if rank() == 0:
            print(f"note: {error}; trying the one before it", file=sys.stderr)
        return newest_whole(older)


def config_of(content: Mapping[str, Any], choices: Mapping[str, ConfigType]) -> tuple[str, ConfigType]:
    """The learner's name and the flags of the run that a checkpoint is of.

    What lets code run (--allow-import), and where to write (--log-dir), is for the command line to say.

    Raises:
        CheckpointError: This program makes no such runs.
    """
    saved, name = content["config"], content["learner"]
    base = choices.get(name)
    if base is None or {field.name for field in fields(base)} != saved.keys():
        raise CheckpointError(f"--resume: a run of another program, or of another learner ({name})")
    groups = {"env": EnvConfig, "network": Network, "keep": type(base.keep), "learner": type(base.learner)}
    try:
        made: dict[str, Any] = {group: make(**saved[group]) for group, make in groups.items()}
        config = replace(base, **(saved | made))
        check_types(config)
        counts = [content["run"][name] for name in ("update", "step")]
        if config.to_dict() != saved or not content["ranks"] or not all(0 <= count < 2**53 for count in counts):
            raise ValueError("a flag or a rank is missing, or a count is none")
        replace(config, env=replace(config.env, allow_import=True)).check_names()
        config.keep.check()
        config.learner.check(sys.maxsize)
    except (*MISFITS, TypeCheckError) as error:
        raise CheckpointError(f"--resume: not a run of this version of the program: {one_line(repr(error))}") from None
    agent_of(content)
    for part in content["ranks"]:
        from_bytes(part)
    return name, replace(config, log_dir=base.log_dir, env=replace(config.env, allow_import=False))


def check_goes_on(content: Mapping[str, Any], config: Config[Any]) -> None:
    """Says what differs from the run's own flags; raises where the run cannot go on so.

    Raises:
        CheckpointError: What differs makes another run of it.
    """
    was, now = flat(content["config"]), config.flags()
    changed = {name for name in now if was.get(name) != now[name]} - FREE
    for name in FIXED:
        if name in changed:
            flag = f"--{name.replace('_', '-')}"
            raise CheckpointError(f"--resume: the run has {flag} {was[name]}, not {now[name]}; leave the flag out")
    forms = was["vectorization"], now["vectorization"]
    if "tensor" in forms and forms[0] != forms[1]:  # these are other environments with the same id
        raise CheckpointError(f"--resume: the run has --vectorization {forms[0]}, not {forms[1]}; leave the flag out")
    if "precision" in changed and "bf16-true" in (was["precision"], now["precision"]):
        raise CheckpointError(
            f"--resume: the run has --precision {was['precision']}, whose weights {now['precision']} cannot take over"
        )
    had, has = content["num_players"] * was["num_envs"], config.num_players() * now["num_envs"]
    if had != has:
        each = f"--num-envs {had // config.num_players()}" if had % config.num_players() == 0 else "other ranks"
        raise CheckpointError(
            f"--resume: the run has {had} environments ({content['num_players']} rank(s) × --num-envs"
            f" {was['num_envs']}), not {config.num_players()} × {now['num_envs']} = {has}; with these ranks say {each}"
        )
    if rank() != 0:
        return
    for name in sorted(changed - {"num_envs"}):
        print(f"note: resumed with --{name.replace('_', '-')} {now[name]} instead of {was[name]}", file=sys.stderr)
    if len(content["ranks"]) != world_size():
        print(
            f"note: resumed on {world_size()} ranks instead of {len(content['ranks'])}: the run goes on like the"
            " first one, and not exactly as it would have",
            file=sys.stderr,
        )


def note_learning_rate(content: Mapping[str, Any], config: Config[Any], fraction: float) -> None:
    """Says that the annealed learning rate jumps, since the run is longer (or shorter) than it was to be."""
    was, learner = flat(content["config"]), config.learner
    same_length = all(getattr(config, name) == was[name] for name in LENGTH)
    if learner.anneal_lr and was["anneal_lr"] and not same_length and fraction < 1 and rank() == 0:
        before = was["learning_rate"] * (1 - content["run"]["fraction"])
        print(
            f"note: the learning rate goes from {before:.6g} to {learner.learning_rate_at(fraction):.6g}, as the run"
            f" now has another end; to keep it say --no-anneal-lr --learning-rate {before:.6g}",
            file=sys.stderr,
        )


def is_complete(content: Mapping[str, Any], config: Config[Any]) -> bool:
    """Whether there is nothing left to do; says so."""
    was = content["config"]
    longer = any((getattr(config, name) or math.inf) > (was[name] or math.inf) for name in LENGTH)
    folder = run_of(Path(str(config.keep.resume)))
    ended_well = folder is not None and how_ended(folder) == (0, "complete")  # its evaluation included
    complete = bool(content["run"]["complete"]) and ended_well and not longer
    if complete and rank() == 0:
        print(
            f"note: --resume: the run is complete after {content['run']['step']:,} steps; a larger --total-timesteps"
            " goes on with it",
            file=sys.stderr,
        )
    return complete
