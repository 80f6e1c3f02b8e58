"""The whole federation of FedPG-BR, ten agents and their server, beside the usual way to take its steps.

Ours is a run as a user starts it, from the first round to the last: making the fleet, rounds, messages, filter, the
server's inner loop, ledger, checkpoint. The peer is one scalar environment, one torch forward a step and one autograd
gradient per trajectory, at a good policy, where episodes are long and its gradients are cheapest. It has no server, no
messages and no filter, and it is one process: a pool of ten would do the same work and pay for the pool besides.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.policy_gradient import peer
from benchmarks.timing import Row, interleaved, one_thread, report
from client.session import RunConfig
from core.config import build, nested, override
from runs.directory import RunDirectory, read_toml
from server import engines

CONF = Path(__file__).parents[1] / "conf" / "fedpg_cartpole.toml"


def federation(*settings: str) -> Callable[[], float]:
    """A run of the conf; returns the environment steps of all agents and of the server."""
    config = build(RunConfig, override(read_toml(CONF), ["evaluate-episodes=0", *settings]))

    def run() -> float:
        with TemporaryDirectory() as place:
            session = engines.prepare(config)
            directory = RunDirectory.create(Path(place) / "run", nested(config))
            engines.run(config, session, directory, lambda record: None, lambda words: None, lambda: False)
            session.close()
            records = directory.read_metrics()
        return float(sum(records[-1]["steps"]) + sum(record["server-steps"] for record in records))

    return run


def main() -> None:
    one_thread()
    contenders = {
        "federation": federation(),
        "liars": federation("attack.byzantine=3", "attack.kind=sign-flip"),
        "peer": peer(1),
    }
    rates = interleaved(contenders, rounds=5)
    rows: list[Row] = [
        {
            "work": work,
            "steps per core-second": str(rates.of(name)),
            "ratio to the peer": str(rates.ratio(name, "peer")),
        }
        for work, name in (
            ("10 agents and their server, 92 rounds from a random policy", "federation"),
            ("the same, three of them flip signs", "liars"),
            ("peer: one scalar environment, one torch forward a step, good policy", "peer"),
        )
    ]
    report("fedpg", "FedPG-BR on CartPole, whole runs", rows)


if __name__ == "__main__":
    main()
