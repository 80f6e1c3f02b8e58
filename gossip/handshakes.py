"""Connections that TLS rejected. gRPC reports them only on the standard error of the process, which is read here.

The report does not name the port. If a process has several peers, the newest one counts all rejections.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

MARK = b"Handshake failed"
STDERR = 2
_lock = threading.Lock()
_counting: list[Callable[[], object]] = []
_readers: list[ExitStack] = []  # closing it ends the reading


@contextmanager
def counted(refused: Callable[[], object]) -> Iterator[None]:
    """Call ``refused`` for each rejected connection until the end of the block. All other output is passed on."""
    with _lock:
        _counting.append(refused)
        if len(_counting) == 1:
            _readers.append(ExitStack())
            _readers[0].enter_context(_reading())
    try:
        yield
    finally:
        with _lock:
            if len(_counting) == 1:
                _readers.pop().close()  # rejections until now still count
            _counting.remove(refused)


@contextmanager
def _reading() -> Iterator[None]:
    source, sink = os.pipe()
    stderr = os.dup(STDERR)
    os.dup2(sink, STDERR)
    os.close(sink)

    def read() -> None:
        with os.fdopen(source, "rb") as lines:
            for line in lines:
                if MARK in line:
                    for refused in _counting[-1:]:
                        refused()
                else:
                    os.write(stderr, line)

    reader = threading.Thread(target=read, name="handshakes", daemon=True)
    reader.start()
    try:
        yield
    finally:
        os.dup2(stderr, STDERR)  # closes this end of the pipe, unless a child process holds it
        reader.join(1.0)
