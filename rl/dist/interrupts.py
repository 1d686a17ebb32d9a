"""The second Ctrl-C, which ends even a process that waits for other ranks inside torch.

Python runs signal handlers only between its own instructions, hence not before torch returns. Its wakeup file
descriptor is written to at once, so a thread that reads from it can end the process.
"""

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

INTERRUPTED = 128 + signal.SIGINT
SECOND_TIME_SECONDS = 1.0  # sooner, a signal is a terminal's Ctrl-C that the launcher passes on to ranks that had it
PATIENCE_SECONDS = 2.0  # for a process to end by itself


def is_second(first: int, first_at: float, number: int) -> bool:
    """Whether a signal is a second Ctrl-C after the signal `first`; launchers pass the second one on as SIGTERM."""
    pairs = ((signal.SIGINT, signal.SIGINT), (signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT))
    return (first, number) in pairs and time.monotonic() - first_at > SECOND_TIME_SECONDS


@contextlib.contextmanager
def impatience(leave_at_once: Callable[[], None]) -> Iterator[None]:
    """Calls `leave_at_once` if the block has not ended `PATIENCE_SECONDS` after a second Ctrl-C."""
    ended = threading.Event()
    receiver, sender = socket.socketpair()

    def listen() -> None:
        first, first_at = 0, 0.0
        while number := ord(receiver.recv(1)):
            if is_second(first, first_at, number) and not ended.wait(PATIENCE_SECONDS):
                leave_at_once()
            elif not first and number in (signal.SIGINT, signal.SIGTERM):
                first, first_at = number, time.monotonic()

    sender.setblocking(False)
    before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    with receiver, sender:
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            ended.set()
            sender.send(bytes(1))  # ends the thread
            listener.join()
