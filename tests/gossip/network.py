"""Networks of real peers for tests: each with a service and neighbours, connected by gRPC, in threads of this process.

Between them may stand ``Faults``: a proxy for each peer that loses, repeats, delays and reorders what comes for it.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from flower.launch import free_port
from gossip import gossip_pb2 as pb
from gossip.local import Identity, Patience
from gossip.wire import Wire
from strategies.graphs.topology import Topology

CODE = "ab" * 32  # a digest
# Machines that run tests are slow at times. No living peer should count as dead.
QUICK = Patience(deadline=20.0, dead=20.0, beat=0.2, call=5.0, start=30.0, end=30.0)
KINDS = {"Greet": pb.Greeting, "Give": pb.Piece, "Withdraw": pb.Withdrawal, "Ask": pb.Question}


@dataclass
class Faults:
    """Fractions of the calls that are lost (half of them after they arrived), repeated, delayed or reordered."""

    loss: float = 0.0
    twice: float = 0.0
    delay: float = 0.0
    reorder: float = 0.0
    longest: float = 0.05
    seed: int = 0
    # Pairs (sender, recipient) between which all calls fail.
    cut: set[tuple[int, int]] = field(default_factory=set)
    # Pairs whose calls arrive, but whose answers are lost.
    deaf: set[tuple[int, int]] = field(default_factory=set)
    # Changes a message, by (method, message). None drops it.
    change: Callable[[str, Any], Any] | None = None
    did: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("lost", "twice", "delayed", "reordered"), 0))

    withdrawn: list[int] = field(default_factory=list)  # the answers to withdrawals

    def __post_init__(self) -> None:
        self._random, self._lock = random.Random(self.seed), threading.Lock()

    def before(self, target: str) -> tuple[Any, str]:
        """Start a proxy before an address. Returns its server and its own address."""
        server = grpc.server(
            ThreadPoolExecutor(16), handlers=[_Proxy(self, grpc.insecure_channel(target))],
            options=[("grpc.so_reuseport", 0)],
        )  # fmt: skip
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        return server, address

    def draw(self, share: float, what: str) -> float:
        """Return 0 if the fault does not happen, or else a fraction of the longest time."""
        with self._lock:
            happens, much = self._random.random() < share, self._random.random()
            self.did[what] += happens
        return max(much, 1e-3) if happens else 0.0


class _Proxy(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, faults: Faults, channel: Any) -> None:
        self.faults, self.channel = faults, channel

    def service(self, details: Any) -> Any:
        method = details.method
        forward = self.channel.unary_unary(method)
        faults = self.faults

        def call(request: bytes, context: Any) -> bytes:
            message = KINDS[method.rpartition("/")[2]].FromString(request)
            pair = (message.envelope.sender, message.envelope.recipient)
            if pair in faults.cut:
                context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
            if faults.change is not None:
                message = faults.change(method.rpartition("/")[2], message)
                if message is None:
                    context.abort(grpc.StatusCode.UNAVAILABLE, "dropped")
                request = message.SerializeToString()
            if much := faults.draw(faults.reorder, "reordered"):
                timer = threading.Timer(5 * much * faults.longest, _quietly, [forward, request])
                timer.daemon = True
                timer.start()
                context.abort(grpc.StatusCode.UNAVAILABLE, "will come later")
            if much := faults.draw(faults.delay, "delayed"):
                time.sleep(much * faults.longest)
            lost = faults.draw(faults.loss, "lost")
            if lost > 0.5:
                context.abort(grpc.StatusCode.UNAVAILABLE, "lost on its way there")
            try:
                if faults.draw(faults.twice, "twice"):
                    forward(request, timeout=5)
                answer: bytes = forward(request, timeout=5)
            except grpc.RpcError as error:
                context.abort(error.code(), error.details())
            if pair in faults.deaf or lost:
                context.abort(grpc.StatusCode.UNAVAILABLE, "lost on its way back")
            if method.endswith("Withdraw"):
                faults.withdrawn.append(pb.Receipt.FromString(answer).status)
            return answer

        return grpc.unary_unary_rpc_method_handler(call)


def _quietly(forward: Any, request: bytes) -> None:
    with suppress(grpc.RpcError, ValueError):
        forward(request, timeout=5)


class Net:
    """Peers of one network; each may be started, killed without a goodbye, and started again.

    ``after`` returns the delay of a peer in a round, in seconds; infinity is silence.
    """

    def __init__(
        self,
        topology: str,
        peers: int,
        width: int,
        patience: Patience = QUICK,
        faults: Faults | None = None,
        after: Callable[[int, int], float] = lambda peer, number: 0.0,
        **wire: Any,
    ) -> None:
        self.after = after
        self.name, self.peers, self.width, self.patience, self.wire = topology, peers, width, patience, wire
        self.listen = {k: f"127.0.0.1:{free_port()}" for k in range(peers)}
        self.roster, self._proxies = dict(self.listen), list[Any]()
        if faults is not None:
            made = [faults.before(address) for address in self.listen.values()]
            self.roster, self._proxies = {k: one[1] for k, one in enumerate(made)}, [one[0] for one in made]
        self.wires: dict[int, Wire] = {}
        self.notes: list[str] = []

    def topology(self) -> Topology:
        return Topology(self.name, self.peers, min(2, self.peers - 1), seed=3)

    def start(self, number: int, **changes: Any) -> Wire:
        about = {"number": number, "network": self.peers, "conf": 5, "app": CODE, "layout": 7, "width": self.width}
        options = {"say": self.notes.append, "after": partial(self.after, number)} | self.wire
        identity = Identity(**(about | changes))
        wire = Wire(identity, self.topology(), self.roster, self.patience, **options)
        self.wires[number] = wire
        wire.open(self.listen[number])
        return wire

    def kill(self, number: int) -> None:
        """Kill a peer as kill -9 does: it sends no goodbye and hands over no shares."""
        wire = self.wires.pop(number)
        with wire.local.changed:
            wire.local.closing = True
            for neighbour in wire.neighbours.values():
                neighbour._reached = False
            wire.local.changed.notify_all()
        wire.service._server.stop(None)
        for neighbour in wire.neighbours.values():
            neighbour._channel.close()

    def close(self) -> None:
        for wire in list(self.wires.values()):
            wire.close()
        for proxy in self._proxies:
            proxy.stop(None)


@contextmanager
def network(*arguments: Any, **options: Any) -> Iterator[Net]:
    net = Net(*arguments, **options)
    try:
        yield net
    finally:
        net.close()


def together(jobs: Sequence[Callable[[], Any]], seconds: float = 60.0) -> list[Any]:
    """Run all jobs at once, each in a thread. Returns their results, or raises the first error."""
    with ThreadPoolExecutor(len(jobs)) as pool:
        return [future.result(seconds) for future in [pool.submit(job) for job in jobs]]


def until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait until a condition holds. Fail if it never does."""
    assert within(seconds, true)


def within(seconds: float, true: Callable[[], bool]) -> bool:
    """Return whether a condition holds in time."""
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.005)
    return true()


def starts(peers: int, width: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return the first x and y of all peers."""
    return np.random.default_rng(seed).normal(size=(peers, width)).astype(np.float32), np.ones(peers)
