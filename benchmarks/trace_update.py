"""Counts the files of this project that one eager update of train_fabric.py passes through.

    python benchmarks/trace_update.py
    python benchmarks/trace_update.py --env-id CartPole-v1 --vectorization sync

Arguments are flags of the program, which runs in this process as one rank. An update is what happens between two
moments at which the generator `Run.updates` resumes: it ends one update, logs it, and begins the next. A file counts
if a function of it is entered.
"""

import runpy
import sys
import tempfile
import threading
from collections import defaultdict
from inspect import CO_GENERATOR
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).parent.parent
PROGRAM = "train_fabric.py"
NUM_UPDATES, TRACED_UPDATE = 3, 2  # neither the first update, which allocates, nor the last
COMPREHENSIONS = {"<listcomp>", "<dictcomp>", "<setcomp>", "<genexpr>"}


class Tracer:
    """Notes the functions that are entered during one update."""

    def __init__(self) -> None:
        self.functions: dict[str, set[tuple[int, str]]] = defaultdict(set)
        self.num_resumes = 0
        self.is_ours = {str(ROOT / PROGRAM)} | {str(path) for path in (ROOT / "rl").rglob("*.py")}

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        """Is called by Python for every function that is entered, and for every generator that resumes."""
        code = frame.f_code
        if code.co_filename not in self.is_ours:
            return
        if code.co_name == "updates" and code.co_flags & CO_GENERATOR and is_run(frame):
            self.num_resumes += 1
        # The first entry starts the generator and the next one ends update 1.
        if self.num_resumes == TRACED_UPDATE and code.co_name not in COMPREHENSIONS:
            self.functions[code.co_filename].add((code.co_firstlineno, code.co_name))


def is_run(frame: FrameType) -> bool:
    """Whether a method's object is a `Run`."""
    return type(frame.f_locals.get("self")).__name__ == "Run"


def main() -> None:
    """Runs the program, then prints a row for each file and their totals."""
    tracer = Tracer()
    with tempfile.TemporaryDirectory() as folder:
        steps = NUM_UPDATES * 64 * 128
        flags = f"--execution eager --total-timesteps {steps} --eval-episodes 1 --log-dir {folder}"
        sys.argv[:] = [PROGRAM, *flags.split(), *sys.argv[1:]]
        sys.path.insert(0, str(ROOT))
        threading.settrace(tracer)
        sys.settrace(tracer)
        try:
            runpy.run_path(str(ROOT / PROGRAM), run_name="__main__")
        finally:
            sys.settrace(None)
            threading.settrace(None)  # type: ignore[arg-type]
    if tracer.num_resumes <= TRACED_UPDATE:
        sys.exit(f"error: the run made {tracer.num_resumes} updates; there must be more than {TRACED_UPDATE}")
    print("| file | lines | functions entered |")
    print("|---|---|---|")
    total_lines = 0
    for name, functions in sorted(tracer.functions.items()):
        num_lines = len(Path(name).read_text().splitlines())
        total_lines += num_lines
        print(f"| {Path(name).relative_to(ROOT)} | {num_lines} | {len(functions)} |")
    num_functions = sum(map(len, tracer.functions.values()))
    print(f"| {len(tracer.functions)} files | {total_lines:,} | {num_functions} |")


if __name__ == "__main__":
    main()
