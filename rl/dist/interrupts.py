"""A second Ctrl-C: it is heard even by a process that waits for others inside of torch, and ends it."""

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

INTERRUPTED = 128 + signal.SIGINT
SECOND_TIME_SECONDS = 1.0  # a launcher hands a terminal's Ctrl-C on to ranks that have had it already
PATIENCE_SECONDS = 2.0  # for a process to leave by itself


def is_second(first: int, first_at: float, number: int) -> bool:
    """Whether a signal asks again what another asked then; a launcher hands the second Ctrl-C on as SIGTERM."""
    pairs = ((signal.SIGINT, signal.SIGINT), (signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT))
    return (first, number) in pairs and time.monotonic() - first_at > SECOND_TIME_SECONDS


@contextlib.contextmanager
def impatience(leave_at_once: Callable[[], None]) -> Iterator[None]:
    """Has a second Ctrl-C leave a block at once, if the block does not end by itself in a moment.

    Python's own handlers only run once torch returns from waiting for other ranks; a thread hears of signals before.
    """
    ended = threading.Event()
    heard, told = socket.socketpair()

    def listen() -> None:
        first, first_at = 0, 0.0
        while number := ord(heard.recv(1)):
            if is_second(first, first_at, number) and not ended.wait(PATIENCE_SECONDS):
                leave_at_once()
            elif not first and number in (signal.SIGINT, signal.SIGTERM):
                first, first_at = number, time.monotonic()

    told.setblocking(False)
    before = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    with heard, told:
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            ended.set()
            told.send(bytes(1))  # the end of what there is to hear
            listener.join()
