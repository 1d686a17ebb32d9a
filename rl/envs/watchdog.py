"""Ends what nothing else can end: a call that does not return."""

import threading
import time
from collections.abc import Callable


class Watchdog:
    """Barks, from a thread of its own, when a call takes too long."""

    def __init__(self, seconds: float, bark: Callable[[], None]) -> None:
        """The thread starts with the first call."""
        self.seconds = seconds
        self.bark = bark
        self.entered_at: float | None = None
        self.closed = threading.Event()
        self.thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts the clock, before a call."""
        self.entered_at = time.monotonic()
        if self.thread is None:
            self.thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self.thread.start()

    def stop(self) -> None:
        """Stops the clock, after it."""
        self.entered_at = None

    def close(self) -> None:
        """Ends the thread."""
        self.closed.set()
        if self.thread is not None:
            self.thread.join()

    def _watch(self) -> None:
        while not self.closed.wait(min(self.seconds / 4, 1.0)):
            entered_at = self.entered_at
            if entered_at is not None and time.monotonic() - entered_at > self.seconds:
                self.bark()
