"""All built-in rules by name, each a function of rows and f, and the rule of a configuration.

Where two choices are equally good, the order of the rows' bytes decides (``strategies/rules/geometry.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from core.errors import Mistake
from strategies.rules.clipping import centered_clipping, norm_clipping
from strategies.rules.diameter import MOST_LEFT_OUT, minimum_diameter
from strategies.rules.fedpg import fedpg_filter
from strategies.rules.geometry import F32
from strategies.rules.krum import bulyan, krum, multi_krum
from strategies.rules.means import after_mixing, mean, weighted_mean
from strategies.rules.medians import geometric_median, median, trimmed_mean
from strategies.rules.rule import MIXING, Given, Needs, Rule, RuleConfig, Verdict, given_rule, needs, number, rule


def make_rule(config: RuleConfig, parties: int, measured: Rule | None = None, options: Any = None) -> Rule:
    """Return the rule of a configuration for this many parties.

    ``measured`` is the filter of a strategy that knows its sigma and batch; ``options`` are those of a plugin's rule.
    """
    f = config.byzantine
    name = ("fedpg" if measured else "weighted-mean") if config.rule == "auto" else config.rule
    if name == "fedpg" and not measured and config.sigma == "auto":
        raise Mistake("'sigma' = auto is measured by the strategy fedpg-br; elsewhere the rule fedpg needs a number")
    for one in (name, MIXING) if config.mixing else (name,):
        if parties < (needed := needs(one, f)):
            raise Mistake(
                f"'{one}' needs at least {needed} parties to survive byzantine = {f}, and there are {parties}; "
                "lower byzantine, add parties, or take another rule"
            )
    if name == "minimum-diameter" and f > MOST_LEFT_OUT:
        raise Mistake(
            f"'minimum-diameter' searches for at most {MOST_LEFT_OUT} attackers, not byzantine = {f}; try 'median'"
        )
    if name == "multi-krum" and config.keep > parties - f:
        raise Mistake(
            f"'multi-krum' can keep {parties - f} of {parties} rows with byzantine = {f}, not keep = {config.keep}"
        )
    made = measured if name == "fedpg" and measured else given_rule(name, config, parties, options)
    return after_mixing(made, f) if config.mixing else made


def _fedpg(rows: F32, given: Given) -> Verdict:
    c = given.config
    return fedpg_filter(rows, given.parties, c.batch, number(c.sigma), c.delta, c.alpha)


def _anybody(f: int) -> int:
    return 1


def _majority(f: int) -> int:
    return 2 * f + 1


_RULES: dict[str, tuple[Needs, Callable[[F32, Given], Verdict]]] = {
    "weighted-mean": (_anybody, lambda rows, given: weighted_mean(rows, given.weights)),
    "mean": (_anybody, lambda rows, given: mean(rows)),
    "fedpg": (_majority, _fedpg),
    "median": (_majority, lambda rows, given: median(rows, given.f)),
    "trimmed-mean": (_majority, lambda rows, given: trimmed_mean(rows, given.f)),
    "krum": (lambda f: 2 * f + 3, lambda rows, given: krum(rows, given.f)),
    "multi-krum": (lambda f: 2 * f + 3, lambda rows, given: multi_krum(rows, given.f, given.config.keep)),
    "bulyan": (lambda f: 4 * f + 3, lambda rows, given: bulyan(rows, given.f)),
    "geometric-median": (
        _majority,
        lambda rows, given: geometric_median(rows, given.f, given.config.steps, given.config.smoothing),
    ),
    "centered-clipping": (
        _majority,
        lambda rows, given: centered_clipping(rows, given.f, given.config.radius, given.config.clipping_steps),
    ),
    "minimum-diameter": (_majority, lambda rows, given: minimum_diameter(rows, given.f)),
    "norm-clipping": (_majority, lambda rows, given: norm_clipping(rows, given.f, given.config.radius)),
}
for _name, (_needs, _function) in _RULES.items():
    rule(_name, needs=_needs, few=_name == "fedpg")(_function)  # the filter compares with half of all parties
