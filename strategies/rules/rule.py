"""The contract of a rule: it aggregates many rows (n, d) into one row (d,). Rules register by name.

``f`` is how many of the n rows may come from attackers. Weights are a party's own claim, so a rule for parties that may
attack does not use them. A result depends on which rows came, never on their order. Rules keep nothing from one call to
the next, so one rule serves all parts of a fleet, and there is nothing to save.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from core import registry
from core.errors import Mistake
from core.options import option

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
T = TypeVar("T", bound=Callable[..., Any])


class Verdict(NamedTuple):
    """The result of a rule. If no row is kept, the row is nan, so that it cannot be used by mistake."""

    row: F32
    kept: NDArray[np.int64]  # indices of the rows that were used, ascending
    notes: dict[str, float]  # for the ledger: a radius, a number of steps, ...


Rule = Callable[[F32, NDArray[np.float64]], Verdict]

# How many rows a rule needs to survive f attackers.
Needs = Callable[[int], int]


class TooFewError(ValueError):
    """Fewer rows than a rule needs to survive its attackers."""


@dataclass(frozen=True)
class RuleConfig:
    """How the rows of the agents are aggregated."""

    rule: str = option(
        "auto",
        "The rule that aggregates rows; auto: fedpg for fedpg-br, else weighted-mean.",
        choices=("auto",),
        registered="rule",
    )
    byzantine: int = option(0, "f: attackers that the rule must survive (the two means survive none).", low=0)
    mixing: bool = option(False, "Before the rule, replace every row by the mean of the n - f rows nearest to it.")
    keep: int = option(0, "Rows that multi-krum averages (0: n - f).", low=0)
    steps: int = option(100, "Steps of Weiszfeld's iteration (geometric-median).", low=1)
    smoothing: float = option(
        1e-6, "Least distance of a row, as a share of the median distance (geometric-median).", above=0, high=1
    )
    radius: float = option(0.0, "Radius of clipping (0: the median of the distances, computed in every step).", low=0)
    clipping_steps: int = option(3, "Steps of centered-clipping.", low=1)
    sigma: str = option(
        "auto",
        "Deviation of honest gradients from the true one, a number (fedpg); auto: fedpg-br measures it.",
        number_too=True,
    )
    delta: float = option(0.6, "Probability that an honest row is taken for a forged one (fedpg).", above=0, high=1)
    alpha: float = option(0.4, "Upper bound of the share of attackers (fedpg).", low=0, high=0.5)
    batch: int = option(16, "Trajectories behind every row (fedpg; fedpg-br sets it itself).", low=1)

    @property
    def judges(self) -> bool:
        """Whether the conf asks for more than the usual mean. Strategies without a rule refuse that."""
        return self.rule != "auto" or self.byzantine > 0 or self.mixing


def number(sigma: str) -> float:
    """Return a sigma that is given as a number. Refuses anything else."""
    try:
        result = float(sigma)
        if not 0 < result < math.inf:
            raise ValueError
    except ValueError:
        raise Mistake(f"'sigma' is auto or a number above 0, not {sigma!r}") from None
    return result


@dataclass(frozen=True)
class Given:
    """What a rule receives besides the rows: their weights, f, the number of agents asked, and options."""

    weights: F64
    f: int
    parties: int
    config: RuleConfig
    options: Any = None


@dataclass(frozen=True)
class Registered:
    """A rule by name: the function, how many rows it needs for f attackers, and whether it may be given fewer."""

    function: Callable[[F32, Given], Any]
    needs: Needs
    few: bool


def rule(
    name: str, *, needs: Needs = lambda f: 1, few: bool = False, options: type[Any] | None = None
) -> Callable[[T], T]:
    """Register a rule: a function ``(rows, given)`` that returns a row (d,) or a Verdict.

    ``needs`` returns how many rows it takes to survive f attackers; a round with fewer keeps what it had, unless the
    rule can work with ``few``, as when agents are silent. ``options``: a dataclass, which becomes the table
    [name]; the function finds it in ``given.options``.
    """

    def decorate(function: T) -> T:
        if len(inspect.signature(function).parameters) != 2:
            raise Mistake(f"the rule '{name}' takes (rows, given), not {inspect.signature(function)}")
        found = Registered(function, needs, few)
        registry.register("rule", name, found, {name: options} if options else None, function.__module__)
        return function

    return decorate


def needs(name: str, f: int) -> int:
    """Return how many rows a rule needs to survive f attackers."""
    if name == MIXING:
        return 2 * f + 1
    found: Registered = registry.get("rule", name, "federation.rule").value
    return found.needs(f)


MIXING = "mixing"


def enough(name: str, n: int, f: int) -> None:
    """Raise where n rows are too few for a rule with f attackers."""
    if n < (needed := needs(name, f)):
        rows = "one row" if needed == 1 else f"{needed} rows"
        raise TooFewError(f"{name} needs at least {rows} to survive f = {f} attackers, and there are {n}")


def given_rule(name: str, config: RuleConfig, parties: int, options: Any) -> Rule:
    """Return a registered rule as a function of rows and weights."""
    found: Registered = registry.get("rule", name, "federation.rule").value

    def aggregate(rows: F32, weights: F64) -> Verdict:
        if not found.few:
            enough(name, len(rows), config.byzantine)
        made = found.function(rows, Given(weights, config.byzantine, parties, config, options))
        if isinstance(made, Verdict):
            return made
        row = np.asarray(made, np.float32)
        if row.shape != rows.shape[1:]:
            raise Mistake(f"the rule '{name}' returned {list(row.shape)} numbers, and a row has {rows.shape[1]}")
        return Verdict(row, np.arange(len(rows)), {})

    return aggregate
