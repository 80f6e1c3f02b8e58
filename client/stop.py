"""A stop request that a signal handler can set, and that a thread can wait for with a timeout."""

from __future__ import annotations

import os
import select
from contextlib import suppress


class Stop:
    """A stop request. A ``threading.Event`` would not do: a signal handler may find its lock taken."""

    def __init__(self) -> None:
        self._out, self._in = os.pipe()
        os.set_blocking(self._out, False)
        self.asked = False

    def set(self) -> None:
        """Request the stop."""
        self.asked = True
        self.wake()

    def wake(self) -> None:
        """End one ``wait`` early."""
        os.write(self._in, b"!")

    def wait(self, seconds: float) -> None:
        """Sleep until the stop is requested, ``wake`` is called or the time is over."""
        woken, _, _ = select.select([self._out], [], [], seconds)
        if woken and not self.asked:
            with suppress(BlockingIOError):  # another thread was woken as well
                os.read(self._out, 4096)
            if self.asked:
                self.wake()

    def __call__(self) -> bool:
        """Return whether the stop was requested."""
        return self.asked
