"""What the wire of peers costs: a share of 300 KB and its acknowledgement beside a bare gRPC call, and whole rounds.

Times are those of the clock, as a round is mostly waiting. Peers are processes, with one thread of BLAS each. Mixing in
one process is measured in benchmarks/mixing.py.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, Popen

import grpc
import numpy as np

from benchmarks.timing import Row, Spread, one_thread, report
from flower.launch import free_port
from gossip.inbox import Vector
from gossip.local import Identity, Patience
from gossip.wire import Wire
from strategies.graphs.topology import Topology

ROOT = Path(__file__).parents[1]
WIDTH, ROUNDS, CALLS = 75_000, 100, 400  # 300 KB
PATIENCE = Patience(deadline=60.0, dead=60.0)
BARE = "/bare/Call"


def wire(number: int, peers: int, ports: list[int], topology: str) -> Wire:
    identity = Identity(number, peers, conf=1, app="00" * 32, layout=1, width=WIDTH)
    roster = {peer: f"127.0.0.1:{port}" for peer, port in enumerate(ports)}
    made = Wire(identity, Topology(topology, peers), roster, PATIENCE)
    made.open(roster[number])
    return made


class Bare(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Takes bytes, and answers with a few."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        return (
            grpc.unary_unary_rpc_method_handler(lambda request, context: b"taken") if details.method == BARE else None
        )


def peer(number: int, peers: int, ports: list[int]) -> None:
    """A process of the benchmark: mixes as often as it is told, and prints the milliseconds of every round."""
    one_thread()
    made = wire(number, peers, ports, "exponential")
    made.join(0)
    x, y = np.random.default_rng(number).normal(size=(1, WIDTH)).astype(np.float32), np.ones(1)
    took = []
    for turn in range(1, ROUNDS + 1):
        begun = time.perf_counter()
        x, y = made.mix(turn, x, y)
        took.append(1e3 * (time.perf_counter() - begun))
    made.finish(x, y)
    made.close()
    print(" ".join(f"{ms:.3f}" for ms in took[10:]))


def other(bare: int, ports: list[int]) -> None:
    """The process that shares are sent to: a peer that only takes them, and a bare gRPC server beside it."""
    one_thread()
    server = grpc.server(ThreadPoolExecutor(4), handlers=[Bare()], options=[("grpc.so_reuseport", 0)])
    server.add_insecure_port(f"127.0.0.1:{bare}")
    server.start()
    made = wire(1, 2, ports, "ring")
    made.join(0)
    made.local.round = 10**6  # takes whatever comes
    sys.stdin.read()
    made.close()


@contextmanager
def started(*words: str) -> Iterator[Popen[str]]:
    process = Popen([sys.executable, "-m", "benchmarks.gossip", *words], cwd=ROOT, stdin=PIPE, stdout=PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def share() -> list[Row]:
    """One share of 300 KB to a neighbour until its acknowledgement is here, in turn with a bare call of those bytes."""
    ports, bare = [free_port(), free_port()], free_port()
    with started("other", str(bare), *map(str, ports)):
        made = wire(0, 2, ports, "ring")
        made.join(0)
        neighbour = made.neighbours[1]
        call = grpc.insecure_channel(f"127.0.0.1:{bare}").unary_unary(BARE)
        row = np.random.default_rng(0).normal(size=WIDTH).astype(np.float32)
        data = row.tobytes()

        def sent(turn: int) -> None:
            with made.local.changed:
                assert neighbour.put(Vector(turn, row, 0.5))
                while neighbour.outbox.is_busy:
                    made.local.changed.wait(60)

        def called(turn: int) -> None:
            call(data)

        contenders = {"share and acknowledgement": sent, "bare unary call": called}
        found: dict[str, list[float]] = {name: [] for name in contenders}
        for turn in range(CALLS):
            for name, one in contenders.items():
                begun = time.perf_counter()
                one(turn)
                if turn >= 50:
                    found[name].append(1e3 * (time.perf_counter() - begun))
        made.close()
    rows: list[Row] = [{"300 KB to a neighbour": name, "ms": str(Spread.of(took))} for name, took in found.items()]
    ratio = Spread.of(found["share and acknowledgement"]).median / Spread.of(found["bare unary call"]).median
    rows.append({"300 KB to a neighbour": "ratio of the medians", "ms": f"{ratio:.2f}"})
    return rows


def rounds(peers: int = 8) -> list[Row]:
    """A round of push-sum among processes."""
    ports = [free_port() for _ in range(peers)]
    words = [str(peers), *map(str, ports)]
    members = [
        Popen([sys.executable, "-m", "benchmarks.gossip", "peer", str(k), *words], cwd=ROOT, stdout=PIPE, text=True)
        for k in range(peers)
    ]
    try:
        took = [float(ms) for one in members for ms in one.communicate(timeout=300)[0].split()]
    finally:
        for one in members:
            one.kill()
    median, late = np.percentile(took, [50, 99])
    return [{"peers": peers, "topology": "exponential", "KB": 300.0, "median ms": median, "p99 ms": late}]


def main() -> None:
    match [word for word in sys.argv[1:] if word != "--json"]:
        case ["peer", number, peers, *ports]:
            peer(int(number), int(peers), [int(port) for port in ports])
        case ["other", bare, *ports]:
            other(int(bare), [int(port) for port in ports])
        case _:
            one_thread()
            report("gossip_share", "A share and its acknowledgement on loopback, in turn with a bare call", share())
            report("gossip_rounds", f"{ROUNDS - 10} rounds of peers in processes on two cores", rounds())


if __name__ == "__main__":
    main()
