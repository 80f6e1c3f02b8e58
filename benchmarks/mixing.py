"""A round of push-sum among a thousand peers of one process, beside the bare product P @ X; and how fast they agree.

The rate is that of push-sum itself: peers begin with random rows, and the distance from their mean is measured round
by round until it is a thousandth. The second eigenvalue says what it should be in the long run.
"""

from __future__ import annotations

import numpy as np

from benchmarks.timing import Row, interleaved, one_thread, report
from gossip.mixing import Network
from strategies.graphs.topology import Topology

PEERS, WIDTH, DEGREE = 1000, 10_000, 4
TOPOLOGIES = ("complete", "exponential", "random", "regular", "ring", "directed-ring")


def speed(name: str, rounds: int = 7) -> Row:
    topology = Topology(name, PEERS, DEGREE)
    network, numbers = Network(topology), iter(range(1, 100_000))
    x = np.random.default_rng(0).standard_normal((PEERS, WIDTH), dtype=np.float32)
    y, P = np.ones(PEERS), topology.matrix(1).astype(np.float32)

    def bare() -> float:
        P @ x
        return 1.0

    def mixed() -> float:
        network.mix(next(numbers), x, y)
        return 1.0

    rates = interleaved({"P @ X": bare, "ours": mixed}, rounds, least=0.5)
    return {
        "topology": name,
        "a round, ms": 1000 / rates.of("ours").median,
        "P @ X, ms": 1000 / rates.of("P @ X").median,
        "of P @ X": str(rates.ratio("P @ X", "ours")),
    }


def agreement(name: str, width: int = 100, most: int = 200) -> Row:
    topology = Topology(name, PEERS, DEGREE)
    network, y = Network(topology), np.ones(PEERS)
    x = np.random.default_rng(0).standard_normal((PEERS, width), dtype=np.float32)
    mean, apart = x.mean(axis=0), [1.0]
    first = np.linalg.norm(x - mean)
    while apart[-1] > 1e-3 and len(apart) <= most:
        x, y = network.mix(len(apart), x, y)
        apart.append(float(np.linalg.norm(x / y[:, None] - mean) / first))
    done = len(apart) - 1
    return {
        "topology": name,
        "rounds to a thousandth": done if apart[-1] <= 1e-3 else f"more than {most}",
        "distance then": apart[-1],
        "rate measured": apart[-1] ** (1 / done),
        "second eigenvalue": topology.rate(4),
    }


def main() -> None:
    one_thread()
    report("mixing", f"Push-sum of {PEERS:,} peers, {WIDTH:,} weights", [speed(name) for name in TOPOLOGIES])
    report("agreement", f"How fast {PEERS:,} peers agree", [agreement(name) for name in TOPOLOGIES])


if __name__ == "__main__":
    main()
