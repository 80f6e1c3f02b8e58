"""Connections that TLS did not let in. gRPC tells nobody but the standard error of the process, so that is read.

It does not say at whose port they were. Where a process has several, the newest peer counts them all.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

SAID = b"Handshake failed"
STDERR = 2
_lock = threading.Lock()
_counting: list[Callable[[], object]] = []
_read: list[ExitStack] = []  # ends the reading


@contextmanager
def counted(refused: Callable[[], object]) -> Iterator[None]:
    """Calls ``refused`` for each of them until the end of the block; everything else is passed on."""
    with _lock:
        _counting.append(refused)
        if len(_counting) == 1:
            _read.append(ExitStack())
            _read[0].enter_context(_reading())
    try:
        yield
    finally:
        with _lock:
            if len(_counting) == 1:
                _read.pop().close()  # what was said until now still counts
            _counting.remove(refused)


@contextmanager
def _reading() -> Iterator[None]:
    out, into = os.pipe()
    true = os.dup(STDERR)
    os.dup2(into, STDERR)
    os.close(into)

    def read() -> None:
        with os.fdopen(out, "rb") as lines:
            for line in lines:
                if SAID in line:
                    for refused in _counting[-1:]:
                        refused()
                else:
                    os.write(true, line)

    reader = threading.Thread(target=read, name="handshakes", daemon=True)
    reader.start()
    try:
        yield
    finally:
        os.dup2(true, STDERR)  # closes the pipe's end, unless a child holds it
        reader.join(1.0)
