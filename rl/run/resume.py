"""Going on with a run: its own flags, what may differ from them, and what may not."""

import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from rl.agent import Network
from rl.config import Config, flat
from rl.envs.stepping import EnvConfig
from rl.errors import CheckpointError, how_ended
from rl.joining import rank, world_size
from rl.run.folder import run_of
from rl.run.keep import Keep

ConfigType = TypeVar("ConfigType", bound=Config[Any])

# A change of these makes another run of it.
FIXED = [
    *("env_id", "env_backend", "seed", "num_steps", "buffer_size", "share_data", "overlap"),
    *(field.name for field in fields(Network) if field.name != "ortho_init"),
]
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


def config_of(content: Mapping[str, Any], choices: Mapping[str, ConfigType]) -> tuple[str, ConfigType]:
    """The learner's name and the flags of the run that a checkpoint is of.

    Raises:
        CheckpointError: This program makes no such runs.
    """
    saved, name = content["config"], content["learner"]
    base = choices.get(name)
    if base is None or {field.name for field in fields(base)} != saved.keys():
        raise CheckpointError(f"--resume: a run of another program, or of another learner ({name})")
    groups = {"env": EnvConfig, "network": Network, "keep": type(base.keep), "learner": type(base.learner)}
    try:
        made = {group: make(**saved[group]) for group, make in groups.items()}
    except TypeError as error:
        raise CheckpointError(f"--resume: a run of another version of this program: {error}") from None
    return name, replace(base, **(saved | made))


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


def is_complete(content: Mapping[str, Any], config: Config[Any]) -> bool:
    """Whether there is nothing left to do; says so."""
    was = content["config"]
    as_long = all(getattr(config, name) == was[name] for name in ("total_timesteps", "total_episodes"))
    ended_well = how_ended(run_of(Path(str(config.keep.resume)))) == (0, "complete")  # its evaluation included
    complete = bool(content["run"]["complete"]) and ended_well and as_long
    if complete and rank() == 0:
        print(
            f"note: --resume: the run is complete after {content['run']['step']:,} steps; a larger --total-timesteps"
            " goes on with it",
            file=sys.stderr,
        )
    return complete
