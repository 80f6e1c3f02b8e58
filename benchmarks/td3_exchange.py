"""What exchanging costs a federation of two TD3 nodes on loopback: 256-256, batch 256, the critics every 100 updates.

Two real nodes behind a stock SuperLink (conf/fedavg_td3_nodes.toml), by the ledger: exchanging is all of a round but
what the slower node says its answer took. Rounds before anybody learns are left out.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.timing import Row, Spread, report
from runs.directory import RunDirectory

ROOT = Path(__file__).parents[1]


RUNS = 3


def main() -> None:
    rows = [measured() for _ in range(RUNS)]
    report("td3_exchange", "FedAvg-TD3, two nodes over gRPC on loopback: 256-256, batch 256, N = 100, M*L = 200", rows)


def measured() -> Row:
    """One run of the conf."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "run"
        command = [sys.executable, "-m", "cli.main", "run", "conf/fedavg_td3_nodes.toml", "--out", str(out)]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=1200)
        records = RunDirectory.open(out).read_metrics()
    # The first updates are those of a cold process.
    first = next(record["round"] for record in records if sum(record["updates"]) > 0) + 2
    rounds = [record for record in records if record["round"] > first and record["parts"]]
    whole, exchanging = (np.array([record[name] for record in rounds]) for name in ("round_s", "exchanging_s"))
    steps = np.array([sum(record["updates"]) > 0 for record in rounds])
    return {
        "rounds": len(rounds),
        "updates of a node": int(sum(record["updates"][0] for record in rounds)),
        "a round with updates, s": str(Spread.of(list(whole[steps]))),
        "exchanging in it, s": str(Spread.of(list(exchanging[steps]))),
        "share of exchanging in all rounds": f"{100 * exchanging.sum() / whole.sum():.1f}%",
    }


if __name__ == "__main__":
    main()
