"""result.json in a run's folder: what came out of the run, for sweeps and tables."""

import json
import math
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from rl.dist.launch import num_cores, world_size
from rl.errors import described
from rl.reporting import COMPLETE
from rl.run.checkpoint import write_whole
from rl.run.evaluation import Evaluation
from rl.run.folder import RESULT
from rl.run.progress import say
from rl.run.summary import EndedRun

LIBRARIES = ("torch", "lightning", "gymnasium", "numpy")


def write_result(run: EndedRun, evaluation: Evaluation | None, error: BaseException | None) -> None:
    """Writes the file, whole or not at all; `error` ended the run, if anything did."""
    text = json.dumps(result(run, evaluation, error), indent=2)
    try:
        write_whole(run.folder.path / RESULT, text.encode())
    except OSError as problem:
        say(f"note: {run.folder.path / RESULT} cannot be written: {problem.strerror}")


def result(run: EndedRun, evaluation: Evaluation | None, error: BaseException | None) -> dict[str, Any]:
    """Plain values; None for what there is not, such as the greedy return of a run that was stopped."""
    config, keeper = run.config, run.keeper
    code, message = COMPLETE
    if error is not None:
        code, message = getattr(error, "exit_code", 1), str(error) if hasattr(error, "exit_code") else described(error)
    return {
        "task": config.env.env_id,
        "learner": config.learner_name(),
        "seed": config.seed,
        "exp_name": config.exp_name,
        "program": run.folder.path.parent.name.removesuffix("_logs"),
        "returns": {
            "sampled": finite(run.episodes.mean_return()),
            "greedy": None if evaluation is None else finite(evaluation.total_return.mean().item()),
            "best": finite(keeper.best_return),
        },
        "best_step": keeper.best_step if math.isfinite(keeper.best_return) else None,
        "steps": run.step,
        "updates": run.update,
        "episodes": run.episodes.number,
        "seconds": run.seconds,
        "evaluation_seconds": keeper.evaluation_seconds,
        "steps_per_second": run.step / max(run.seconds, 1e-9),
        "ranks": world_size(),
        "exit_code": code,
        "ended": message,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES},
        "hardware": hardware(config.cuda),
    }


def hardware(cuda: bool) -> dict[str, Any]:
    """What this rank computes with."""
    device = torch.cuda.get_device_name() if cuda else cpu_name()
    return {"device": device, "cores": num_cores(), "threads": torch.get_num_threads(), "system": platform.platform()}


def cpu_name() -> str:
    """The CPU's model where Linux says it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def finite(value: float) -> float | None:
    """The value, or None, which JSON knows, unlike NaN."""
    return value if math.isfinite(value) else None
