"""Recorded runs of every strategy: did a change of the code change a run?

    python -m benchmarks.witness record out/before          # in the checkout before the change
    python -m benchmarks.witness record out/after           # in the checkout after it
    python -m benchmarks.witness compare out/before out/after

Runs are equal bit for bit on one machine. Between machines they need not be: BLAS kernels round differently.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
SMALL = ["agents=4", "evaluate-episodes=2", "steps=0", "rounds=4", "tensorboard=false", "work=2"]
PPO = ["algorithm=ppo", "ppo.hidden=16,16", "world.id=CartPole-v1", "world.copies=4", "ppo.rollout=32"]
PG = ["algorithm=policy-gradient", "policy-gradient.batch=4", "fedpg.batch-min=4", "fedpg.batch-max=6"]
TD3 = [
    "algorithm=td3", "td3.hidden=16,16", "world.id=Pendulum-v1", "td3.learning-starts=50", "td3.batch=16",
    "td3.capacity=1000", "work=100",
]  # fmt: skip
SYNC = [*TD3, "rounds=0", "steps=400", "sync.critic-every=50", "sync.actor-every=25"]
ATTACKERS = ["attack.byzantine=1", "attack.kind=random-noise"]
RUNS: dict[str, list[str]] = {
    "alone-ppo": [*PPO, "strategy=alone"],
    "alone-ppo-pendulum": [
        "algorithm=ppo", "world.id=Pendulum-v1", "strategy=alone", "ppo.rollout=32", "world.copies=2",
        "ppo.normalise-observations=true", "ppo.scale-rewards=true",
    ],
    "alone-td3": [*TD3, "strategy=alone"],
    "alone-pg": [*PG[:2], "strategy=alone"],
    "fedavg-ppo": [*PPO, "strategy=fedavg"],
    "fedavg-krum": [*PPO, "strategy=fedavg", "agents=5", "federation.rule=krum", "federation.byzantine=1", *ATTACKERS],
    "fedavg-td3": [*SYNC, "strategy=fedavg-td3"],
    "fedavg-td3-l2": [*SYNC, "strategy=fedavg-td3", "td3.pull=l2", "td3.beta-actor=0.01", "td3.beta-critic=0.01"],
    "fedavg-td3-gradients": [*SYNC, "strategy=fedavg-td3", "sync.exchange=gradients"],
    "central": [*SYNC, "strategy=central"],
    "fedpg-br": [*PG, "strategy=fedpg-br", "agents=5", *ATTACKERS],
    "fedpg-br-action": [*PG, "strategy=fedpg-br", "agents=5", "attack.byzantine=1", "attack.kind=random-action"],
    "kl-ppo": [*PPO, "strategy=kl-ppo", "ppo.penalty=true", "kl.matrix=pairs", "kl.watch=true"],
    "kl-ppo-star": [*PPO, "strategy=kl-ppo", "ppo.penalty=true", "kl.matrix=star"],
    "gossip": [*PPO, "strategy=gossip", "gossip.topology=ring"],
    "gossip-td3": [*TD3, "strategy=gossip", "gossip.topology=exponential"],
    "fedpg-dec": [*PG, "strategy=fedpg-dec", "gossip.topology=random", "gossip.degree=2"],
    "dec-byz-pg": [
        *PG, "strategy=dec-byz-pg", "federation.byzantine=1", "gossip.large=8", *ATTACKERS, "attack.kind=large-noise",
    ],
}  # fmt: skip
ELSEWHERE = {
    "grpc-fedavg": [*RUNS["fedavg-ppo"], "engine=grpc"],
    "grpc-fedpg-br": [*RUNS["fedpg-br"], "engine=grpc"],
    "grpc-kl-ppo": [*RUNS["kl-ppo"], "engine=grpc"],
    "grpc-fedavg-td3": [*RUNS["fedavg-td3"], "engine=grpc"],
    "ray-fedavg": [*RUNS["fedavg-ppo"], "engine=ray"],
    "gossip-peers": [*RUNS["gossip"], "engine=gossip"],
}
# Measured by a clock or named after a place.
ASIDE = ("_s", "run_dir", "words_", "peers.", "lost-handshakes")


def record(out: Path, only: list[str], everywhere: bool) -> None:
    runs = RUNS | (ELSEWHERE if everywhere else {})
    out.mkdir(parents=True, exist_ok=True)
    empty = out / "empty.toml"
    empty.write_text("")
    for name in only or runs:
        settings = [word for setting in [*SMALL, *runs[name]] for word in ("--set", setting)]
        nodes = ["--nodes", "2"] if "engine=grpc" in runs[name] else []
        words = [sys.executable, "-m", "cli.main", "run", str(empty), *settings, *nodes, "--out", str(out / name)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        print(f"{name}: {'ok' if done.returncode == 0 else done.stderr[-2000:]}", flush=True)


def compare(before: Path, after: Path) -> int:
    """The number of runs that differ."""
    different = 0
    for folder in sorted(path for path in before.iterdir() if (path / "metrics.jsonl").exists()):
        other = after / folder.name
        if not (other / "metrics.jsonl").exists():
            different += 1
            print(f"{folder.name}: there is no such run in {after}")
            continue
        found = list(differences(folder, other))
        different += bool(found)
        print(f"{folder.name}: {'; '.join(found[:5]) if found else 'equal'}")
    return different


def differences(before: Path, after: Path) -> list[str]:
    found = []
    one, two = (
        [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()] for path in (before, after)
    )
    if len(one) != len(two):
        found.append(f"{len(one)} and {len(two)} rounds")
    for this, that in zip(one, two, strict=False):
        for key in sorted(this.keys() | that.keys()):
            if not key.endswith(ASIDE) and not key.startswith(ASIDE) and this.get(key) != that.get(key):
                found.append(f"round {this['round']} {key}: {short(this.get(key))}, {short(that.get(key))}")
    for path in sorted(before.glob("*.npz")):
        if not (after / path.name).exists():
            found.append(f"no {path.name}")
            continue
        with np.load(path) as mine, np.load(after / path.name) as theirs:
            for name in sorted(set(mine.files) | set(theirs.files)):
                if name == "__meta__" or "meta" in name:
                    continue
                if name not in mine.files or name not in theirs.files:
                    found.append(f"{path.name}: {name} is in one of them")
                elif not np.array_equal(mine[name], theirs[name], equal_nan=mine[name].dtype.kind == "f"):
                    found.append(f"{path.name}: {name} differs")
    return found


def short(value: Any) -> str:
    return json.dumps(value)[:60]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    inner = parser.add_subparsers(dest="what", required=True)
    one = inner.add_parser("record")
    one.add_argument("out", type=Path)
    one.add_argument("--only", nargs="*", default=[])
    one.add_argument("--everywhere", action="store_true", help="Also over gRPC, in Ray, and as peers.")
    two = inner.add_parser("compare")
    two.add_argument("before", type=Path)
    two.add_argument("after", type=Path)
    given = parser.parse_args()
    if given.what == "record":
        record(given.out, given.only, given.everywhere)
    else:
        sys.exit(bool(compare(given.before, given.after)))


if __name__ == "__main__":
    main()
