"""Grids: how a server reaches its parties. Flower's strategies talk to a Grid; each engine is one."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable
from typing import Any, cast

import grpc
from flwr.app import Message
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from agents.fleet import Fleet
from client.answers import answer, exchangeable
from client.session import Session
from strategies import messages
from strategies.messages import OVERSIZED

# Bytes of a reply that are not weights: metrics, names, Flower's own.
_WORDS = 1_000_000


class LocalGrid(Grid):
    """All agents in this process. The messages that ask the same are answered by one step of one fleet."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._open: dict[str, Message] = {}
        self._late: dict[str, tuple[float, Message]] = {}  # answers that an attack keeps back, and until when
        self._ids = map(str, itertools.count(1))

    def get_node_ids(self) -> list[int]:
        return [number + 1 for number in self.session.numbers]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            name = next(self._ids)
            message.metadata.__dict__["_message_id"] = name
            self._open[name] = message
            ids.append(name)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        names = list(message_ids)
        asked = [self._open.pop(name) for name in names if name in self._open]
        alike: dict[Any, list[Message]] = {}
        known: dict[int, Any] = {}  # most messages of a round share one content
        for message in asked:
            content = id(message.content)
            if content not in known:
                asks = messages.question(message.content) if message.has_content() else ""
                known[content] = message.metadata.message_type, asks
            alike.setdefault(known[content], []).append(message)
        found = [reply for group in alike.values() for reply in self._answer(group)]
        due = [name for name in names if name in self._late and self._late[name][0] <= time.monotonic()]
        return found + [self._late.pop(name)[1] for name in due]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        names, begun = self.push_messages(messages), time.monotonic()
        found = self.pull_messages(names)
        while any(name in self._late for name in names) and (timeout is None or time.monotonic() - begun < timeout):
            time.sleep(0.01)
            found += self.pull_messages(names)
        return found

    def _answer(self, asked: list[Message]) -> list[Message]:
        """The answers that go at once; those that an attack delays are kept back, and silence is no answer."""
        rows = [self.session.numbers.index(message.metadata.dst_node_id - 1) for message in asked]
        answers, now = answer(self.session, list(zip(rows, asked, strict=True))), time.monotonic()
        found = []
        for (content, after), message in zip(answers, asked, strict=True):
            if not after:
                found.append(Message(content, reply_to=message))
            elif math.isfinite(after):
                self._late[message.metadata.message_id] = now + after, Message(content, reply_to=message)
        return found

    def set_run(self, run: Run) -> None:
        raise NotImplementedError("a local grid belongs to no run of Flower's")

    @property
    def run(self) -> Run:
        raise NotImplementedError("a local grid belongs to no run of Flower's")

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError("use Message(...)")


def quicken(grid: Grid, fleet: Fleet, patience: float) -> None:
    """Make Flower's gRPC grid fit for short rounds, and refuse replies that hold more than such a fleet can send.

    A reply is announced before its objects have come; Flower then waits a second, we a hundredth. The waiting times
    are bound where its function is defined, so the function is what has to be replaced. ``patience`` is how many
    seconds after the announcement they may come: a sender that died in between stays silent. Objects come over a
    connection of their own, which takes none that is too large: its size is known before its bytes are.
    """
    if isinstance(grid, LocalGrid):
        return
    # Here and not above: a database's library comes with it, two seconds that the local engine need not wait.
    from flwr.proto.runtime_pb2_grpc import RuntimeStub
    from flwr.supercore.grpc import create_channel
    from flwr.supercore.inflatable import inflatable_utils
    from flwr.supercore.interceptors import RuntimeTokenClientInterceptor, RuntimeVersionClientInterceptor
    from flwr.supercore.retry import wrap_stub
    from flwr.superlink.grid import GrpcGrid, grpc_grid

    limit = sum(4 * rows.shape[1] for rows in exchangeable(fleet).values()) + _WORDS

    def pull(object_ids: list[str], pull_object_fn: Callable[[str], bytes]) -> dict[str, bytes]:
        came = 0

        def bounded(name: str) -> bytes:
            nonlocal came
            try:
                found = pull_object_fn(name)
            except grpc.RpcError as error:
                if cast(grpc.Call, error).code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise
                came = limit + 1
            else:
                came += len(found)
            if came > limit:
                raise inflatable_utils.ObjectPullError(name, f"{OVERSIZED}: more than {limit:,} bytes")
            return found

        return inflatable_utils.pull_objects(
            object_ids, bounded, initial_backoff=0.01, backoff_cap=0.2, max_time=patience
        )

    grpc_grid.pull_objects = pull  # type: ignore[assignment,attr-defined]
    if isinstance(grid, GrpcGrid):
        badges = [RuntimeVersionClientInterceptor("flwr-serverapp"), RuntimeTokenClientInterceptor(grid._token)]
        channel = create_channel(grid._addr, grid._insecure, grid._cert, limit, badges)
        objects = RuntimeStub(channel)
        wrap_stub(objects, grid._retry_invoker)
        grid._stub.PullObject = objects.PullObject
