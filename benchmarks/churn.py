"""Return while peers die and return: peers of a conf as processes; now and then one is killed, and comes back.

    python -m benchmarks.churn conf/gossip_cartpole.toml OUT [--every 60] [--away 20] [--rounds 150] [--seed 0] \\
        [--set KEY=VALUE ...]

``--every 0`` kills nobody: what to compare with. `fedrl plot OUT` and `fedrl table OUT` show what came of it.
"""

from __future__ import annotations

import argparse
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import tomli_w

from core.options import nested, override
from flower.launch import free_port, processes, start_peer
from runs.config import configure
from runs.directory import RunDirectory, read_toml
from strategies.peers import GossipConfig


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("conf", type=Path)
    parser.add_argument("out", type=Path)
    for name, default in (("every", 60.0), ("away", 20.0)):
        parser.add_argument(f"--{name}", type=float, default=default)
    for name, default in (("rounds", 150), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--set", action="append", default=[])
    given = parser.parse_args()
    config = configure(override(read_toml(given.conf), given.set))
    roster = {str(peer): f"127.0.0.1:{free_port()}" for peer in range(config.agents)}
    config = replace(config, rounds=given.rounds, steps=0, seed=given.seed, tensorboard=False)
    config = config.replace_options(replace(config.of(GossipConfig), roster=roster))
    place, generator = given.out.resolve(), random.Random(given.seed)
    place.mkdir(parents=True)
    (place / "peers.toml").write_text(tomli_w.dumps(nested(config)))
    runs = [RunDirectory(place / f"peer-{peer}") for peer in range(config.agents)]

    def reached(peer: int) -> int:
        records = runs[peer].read_metrics() if runs[peer].metrics.exists() else []
        return int(records[-1]["round"]) if records else 0

    with processes() as started:
        here = {}

        def start(peer: int) -> None:
            here[peer] = start_peer(place / "peers.toml", peer, runs[peer].path, place / f"peer-{peer}.log")
            started.append(here[peer])

        for peer in range(config.agents):
            start(peer)
        begun, killed, dead, back_at = 0.0, 0, None, 0.0
        while any(process.poll() is None for process in here.values()) or dead is not None:
            time.sleep(0.5)
            now, furthest = time.monotonic(), max(map(reached, range(config.agents)))
            begun = begun or (now if furthest else 0.0)
            if dead is not None and now > back_at:
                start(dead)
                dead = None
            due = given.every and begun and now > begun + given.every * (killed + 1)
            if due and dead is None and furthest < 0.9 * config.rounds:
                dead, back_at, killed = generator.randrange(config.agents), now + given.away, killed + 1
                here[dead].send_signal(signal.SIGKILL)
                print(f"after {now - begun:.0f} s, in round {furthest}: peer {dead} killed", flush=True)
    print(f"{killed} killed; rounds done: {[reached(peer) for peer in range(config.agents)]}")
    print(f"exit codes: {[here[peer].returncode for peer in range(config.agents)]}")


if __name__ == "__main__":
    main()
