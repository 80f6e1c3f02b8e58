"""Which agent a node is, where nodes are started alike: the lowest number that nobody else holds.

A number is held by a lock on a file in a folder that all of them see. The system lets go of it when its holder ends,
however it ends. Whoever comes back asks for the number it had before: its state is that agent's.
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
    """An agent's number, held until the end of the block and remembered in ``state``."""
    memory = state / "agent"
    before: list[int] = []
    with suppress(OSError, ValueError):
        before = [number for number in [int(memory.read_text())] if 0 <= number < MOST]
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
            memory.write_text(f"{number}\n")
            yield number
            return
    raise Failure(f"all {MOST} numbers in {folder} are held")
