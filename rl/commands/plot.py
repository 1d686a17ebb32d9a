"""`rl plot`: the learning curves of runs, as mean and spread over the seeds of a task."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from rl.commands.of_run import about, folder_of, read, runs_in
from rl.errors import NothingToResumeError, UserError, require
from rl.run.curves import RETURN, Curve, mean_curve, read_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Axis = Literal["steps", "seconds"]
Curves = dict[str, dict[str, list[Curve]]]  # of each task, of each learner and experiment
MAX_COLUMNS = 3


@dataclass(frozen=True)
class Plot:
    """Draws a panel for each task, with a curve for each learner and --exp-name: mean and spread over its seeds."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs, or folders that hold them; or --last, the run that changed last below --log-dir."""
    out: Path = Path("curves.png")
    """The picture: .png, .svg or .pdf."""
    x: Axis = "steps"
    """What the curves are over; seconds are those of training."""
    tag: str = RETURN
    """The scalar, by its name in TensorBoard."""
    log_dir: Path = Path("logs")
    """Folder that holds the folders of all runs."""


def command(words: Sequence[str]) -> None:
    """Draws the curves into a file."""
    flags = read(Plot, "plot", words)
    require(flags.out.suffix in (".png", ".svg", ".pdf"), "--out", flags.out, "must end with .png, .svg or .pdf")
    require(bool(flags.runs), "RUN", "…", "must be at least one folder of a run, or --last")
    curves = curves_of(flags.runs, flags.tag)
    try:
        draw(curves, flags)
    except ImportError as error:
        raise UserError(f"rl plot: {error}; pip install matplotlib") from error
    except OSError as error:
        raise UserError(f"--out {flags.out}: cannot be written: {error.strerror}") from error
    num_runs = sum(len(group) for panel in curves.values() for group in panel.values())
    print(f"{flags.out}: {num_runs} {'run' if num_runs == 1 else 'runs'} of {', '.join(curves)}")


def curves_of(paths: Sequence[Path], tag: str) -> Curves:
    """The curves of the runs that the paths are, or that are below them.

    Raises:
        NothingToResumeError: There is no run, or none has logged the scalar.
    """
    curves: Curves = defaultdict(lambda: defaultdict(list))
    for path in paths:
        for folder in list(runs_in(path.expanduser())) or [folder_of(path)]:
            of, curve = about(folder), read_curve(folder, tag)
            if len(curve.steps):
                curves[of.task][f"{of.learner}, {of.exp_name}"].append(curve)
    if not curves:
        raise NothingToResumeError(
            f"--tag {tag}: no run has logged it; must be a scalar's name as TensorBoard shows it"
        )
    return curves


def draw(curves: Curves, flags: Plot) -> None:
    """Draws a panel for each task."""
    from matplotlib.figure import Figure

    num_columns = min(MAX_COLUMNS, len(curves))
    num_rows = math.ceil(len(curves) / num_columns)
    figure = Figure(figsize=(1.2 + 3.6 * num_columns, 0.8 + 2.6 * num_rows), layout="constrained")
    for place, (task, groups) in enumerate(sorted(curves.items()), start=1):
        axes = figure.add_subplot(num_rows, num_columns, place)
        axes.set_title(task, fontsize="medium")
        for number, (name, group) in enumerate(sorted(groups.items())):
            seeds = f", {len(group)} seeds" if len(group) > 1 else ""
            draw_curve(axes, group, flags.x, color=f"C{number}", label=f"{name}{seeds}")
        tidy(axes, flags.x)
        axes.legend(frameon=False, fontsize="small")
    figure.supxlabel(flags.x)
    figure.supylabel("return, mean of 100 episodes" if flags.tag == RETURN else flags.tag)
    figure.savefig(flags.out, dpi=140)


def draw_curve(axes: "Axes", curves: Sequence[Curve], axis: Axis, **style: Any) -> None:
    """Draws the mean of curves, and one standard deviation around it."""
    x, middle, spread = mean_curve(curves, axis)
    axes.plot(x, middle, linewidth=1.5, **style)
    if len(curves) > 1:
        axes.fill_between(x, middle - spread, middle + spread, color=style["color"], alpha=0.2, linewidth=0)


def tidy(axes: "Axes", axis: Axis) -> None:
    """Gives axes few, short numbers, and takes away what says nothing."""
    from matplotlib.ticker import EngFormatter, MaxNLocator, StrMethodFormatter

    axes.set_xlim(left=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    axes.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(EngFormatter(sep="") if axis == "steps" else StrMethodFormatter("{x:,g}"))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
