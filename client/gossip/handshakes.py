"""Connections that TLS did not let in. gRPC tells nobody but the standard error of the process, so that is read."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SAID = b"Handshake failed"
STDERR = 2


@contextmanager
def counted(refused: Callable[[], object]) -> Iterator[None]:
    """Calls ``refused`` for each of them until the end of the block; everything else is passed on."""
    out, into = os.pipe()
    true = os.dup(STDERR)
    os.dup2(into, STDERR)
    os.close(into)

    def read() -> None:
        with os.fdopen(out, "rb") as lines:
            for line in lines:
                if SAID in line:
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
