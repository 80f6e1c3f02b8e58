"""What the filter of FedPG-BR could see: other margins, and a sigma that nobody can measure.

python -m benchmarks.margin --seeds 8 --memory 0.5 0.9
python -m benchmarks.margin --seeds 2 --look random-action

Whole runs of the conf, nobody lying or three of ten; the gradients of every round are then filtered again with other
margins (what the run would have learned from that is not asked). ``measured`` is sigma = auto: what the server's own
trajectories say. ``known`` is the spread of the honest gradients of that very round, which only the simulation knows:
no estimate can be better than that. ``--look`` shows instead how long the gradients are, those of such attackers too.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np

from benchmarks.fedpg import CONF
from benchmarks.timing import Row, one_thread, report
from core.options import nested, override
from runs.config import configure
from runs.directory import RunDirectory, read_toml
from server import engines
from strategies import fedpg_br
from strategies.fedpg_br import FedPGConfig
from strategies.rules.fedpg import fedpg_filter
from strategies.rules.geometry import F32

AGENTS, ATTACKERS = 10, 3
ATTACKS = ("none", "sign-flip", "average-zero")
V = 2 * math.log(2 * AGENTS / 0.6)  # of the filter, at the delta of the conf


class Heard(NamedTuple):
    """What the filter was given in a round."""

    rows: F32
    batch: int
    sigma: float


class Did(NamedTuple):
    """What a filter did: the share of rounds in which an honest agent was dropped, the share of lies that was found."""

    dropped: float
    found: float


def rounds(attack: str, seed: int, memory: float) -> list[Heard]:
    """Every round of a run whose filter has the margin of the conf."""
    heard: list[Heard] = []

    def listening(rows: F32, parties: int, batch: int, sigma: float, *given: float) -> Any:
        heard.append(Heard(rows.copy(), batch, sigma))
        return fedpg_filter(rows, parties, batch, sigma, *given)

    settings = [f"seed={seed}", f"fedpg.memory={memory}", "evaluate-episodes=0"]
    if attack != "none":
        settings += [f"attack.kind={attack}", f"attack.byzantine={ATTACKERS}"]
    config = configure(override(read_toml(CONF), settings))
    with TemporaryDirectory() as place, patch.object(fedpg_br, "fedpg_filter", listening):
        session = engines.prepare(config)
        directory = RunDirectory.create(Path(place) / "run", nested(config))
        engines.run(config, session, directory, lambda record: None, lambda words: None, lambda: False)
        session.close()
    return heard


def known(heard: Heard, honest: int, margin: float) -> float:
    """The sigma of a margin when the usual distance of two honest gradients is what it is in this round."""
    rows = heard.rows[:honest].astype(np.float64)
    squared = 2 * rows.var(axis=0, ddof=1).sum()
    return margin * math.sqrt(squared * heard.batch / (4 * V))


def again(heard: list[Heard], attackers: int, sigmas: list[float]) -> Did:
    honest = AGENTS - attackers
    dropped = found = 0
    for one, sigma in zip(heard, sigmas, strict=True):
        kept = fedpg_filter(one.rows, AGENTS, one.batch, sigma).kept
        dropped += (kept < honest).sum() < honest
        found += attackers - int((kept >= honest).sum())
    return Did(dropped / len(heard), found / max(attackers * len(heard), 1))


def looked_at(attack: str, seeds: int) -> list[Row]:
    """Medians over rounds and seeds: g is the mean of the honest gradients, the unit their usual distance.

    Of |g|, what n noisy rows leave in their mean is taken off.
    """
    honest = AGENTS - ATTACKERS if attack != "none" else AGENTS
    table: dict[str, list[list[float]]] = {"1 to 10": [], "11 to 20": [], "21 to 40": [], "41 to 60": [], "61 on": []}
    for seed in range(seeds):
        for number, one in enumerate(rounds(attack, seed, 0.5)):
            rows = one.rows.astype(np.float64)
            g, unit = rows[:honest].mean(axis=0), math.sqrt(2 * rows[:honest].var(axis=0, ddof=1).sum())
            length, sent = float(np.linalg.norm(g)), np.linalg.norm(rows, axis=1)
            own = float(np.median(sent[:honest]))
            values_of = [math.sqrt(max(0.0, (length / unit) ** 2 - 1 / (2 * honest)))]
            if attack != "none":
                cosines = rows[honest:] @ g / (sent[honest:] * length)
                away = np.linalg.norm(rows[honest:] - g, axis=1) / unit
                values_of += [float(np.median(values)) for values in (sent[honest:] / own, cosines, away)]
            table[list(table)[int(np.searchsorted([10, 20, 40, 60], number, side="right"))]].append(values_of)
    words = ("|g| / unit", "|lie| / an honest length", "cosine of lie and g", "|lie - g| / unit")
    found: list[Row] = []
    for name, values in table.items():
        medians = np.median(values, axis=0)
        row: Row = {"attack": attack, "rounds": name}
        row.update((word, f"{value:.2f}") for word, value in zip(words, medians, strict=False))
        found.append(row)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--memory", type=float, nargs="+", default=[0.5])
    parser.add_argument("--margins", type=float, nargs="+", default=[1.6, 1.8, 2.0, 2.2])
    parser.add_argument("--look", default="", help="an attack, or none")
    given, _ = parser.parse_known_args()
    one_thread()
    if given.look:
        found = looked_at(given.look, given.seeds)
        report(f"gradients_{given.look}", f"Gradients of FedPG-BR on CartPole, {given.seeds} seeds", found)
        return
    usual = configure(read_toml(CONF)).of(FedPGConfig).margin
    table: list[Row] = []
    for memory in given.memory:
        heard = {
            attack: [one for seed in range(given.seeds) for one in rounds(attack, seed, memory)] for attack in ATTACKS
        }
        for sigma in ("measured", "known") if memory == given.memory[0] else ("measured",):
            for margin in given.margins:
                did: dict[str, Did] = {}
                for attack, every in heard.items():
                    attackers = 0 if attack == "none" else ATTACKERS
                    own = [one.sigma * margin / usual for one in every]
                    best = [known(one, AGENTS - attackers, margin) for one in every]
                    did[attack] = again(every, attackers, own if sigma == "measured" else best)
                table.append(
                    {
                        "sigma": sigma if sigma == "known" else f"measured, memory {memory}",
                        "margin": margin,
                        "rounds with an honest drop, nobody lies": f"{did['none'].dropped:.1%}",
                        **{f"{attack} found": f"{did[attack].found:.0%}" for attack in ATTACKS[1:]},
                    }
                )
    report("margin", f"The filter of FedPG-BR on CartPole, {given.seeds} seeds", table)


if __name__ == "__main__":
    main()
