"""The agent of a node, where all nodes start with the same command: the lowest number that no other node holds.

A node holds a number by a lock on a file in a folder that all nodes share. The system releases the lock when the node
ends, however it ends. A node that returns asks for its previous number first, since its state is that agent's.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from core.errors import Failure, Mistake

MOST = 1000


@contextmanager
def claimed(folder: Path, state: Path) -> Iterator[int]:
    """Yield an agent's number: locked until the end of the block, and remembered in ``state``."""
    previous = state / "agent"
    before: list[int] = []
    with suppress(OSError, ValueError):
        before = [number for number in [int(previous.read_text())] if 0 <= number < MOST]
    for number in [*before, *range(MOST)]:
        try:
            file = (folder / f"agent-{number}").open("a")
        except OSError as error:
            raise Mistake(f"--claim: {error.filename} cannot be opened: {error.strerror}") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            previous.write_text(f"{number}\n")
            yield number
            return
    raise Failure(f"all {MOST} numbers in {folder} are held by other nodes")
