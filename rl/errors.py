"""Errors that a person reads: one line, printed once, with an exit code other than 0."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator

from rl.distributed import leave_process_group, rank

USAGE_ERROR = 2
ENVIRONMENT_FAILED = 71
NUMBERS_FAILED = 72
INTERRUPTED = 130


class UserError(Exception):
    """What is wrong, with which value, and what would be right."""

    exit_code = USAGE_ERROR


class EnvError(UserError):
    """An environment gave what nobody can learn from."""

    exit_code = ENVIRONMENT_FAILED


class NumericError(UserError):
    """A loss or a gradient is not finite."""

    exit_code = NUMBERS_FAILED


def require(condition: bool, flag: str, value: object, right: str) -> None:
    """Raises `UserError` that names flag, value and what would be right, unless the condition holds."""
    if not condition:
        raise UserError(f"{flag} {value}: {right}")


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Runs a program's body: reports a `UserError` once for all ranks, and leaves no process group behind."""
    try:
        yield
    except UserError as error:
        let_rank_0_speak()
        print(f"error: {error}" if rank() == 0 else f"error on rank {rank()}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        if rank() == 0:
            print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    finally:
        leave_process_group()


def let_rank_0_speak() -> None:
    """Returns at once on rank 0; elsewhere only if rank 0 has nothing to say, since its launcher ends all with one."""
    if rank() != 0 and "TORCHELASTIC_RUN_ID" in os.environ:
        time.sleep(10)
