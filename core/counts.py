"""Counts over many agents."""

from __future__ import annotations

import math
from collections.abc import Sequence


def reached(counts: Sequence[int], share: float = 0.5) -> int:
    """Return the count that at least this share of the agents has reached."""
    needed = max(1, math.ceil(share * len(counts) - 1e-9))
    return sorted(counts)[-needed]
