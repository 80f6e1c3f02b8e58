"""A line of the report of ``fedrl doctor``, and what all checks use."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

ACTIVATE = ". ./activate"
THREADS = "_NUM_THREADS"


@dataclass(frozen=True)
class Finding:
    """A line of the report. The verdict is ok, note (works, but the user should know it) or wrong."""

    name: str
    found: str
    verdict: str = "ok"
    remedy: str = ""


def failure(words: list[str]) -> str | None:
    """Return why a command fails: the last line that it prints. None if it works."""
    try:
        done = subprocess.run(words, capture_output=True, timeout=20, text=True, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return (done.stderr.splitlines() or ["it crashed"])[-1] if done.returncode else None
