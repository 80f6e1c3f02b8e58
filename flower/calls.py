"""Signed calls to the Fleet API of a SuperLink. Every call has a deadline, every retry a bound."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import grpc
from flwr.common.constant import PUBLIC_KEY_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER
from flwr.proto.fleet_pb2_grpc import FleetStub
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.retry import RetryInvoker, exponential
from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata

from flower.errors import meaning
from flower.keys import Address, Key

CALL_S = 10.0  # deadline of a call that carries little
OBJECT_S = 60.0  # deadline of a call that carries an object; Flower's objects are at most 5 MB
RETRY_S = 5.0  # how long a call of a message in progress is retried when the network fails
RETRIED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL)  # the network; a database that is busy for a moment
CONCURRENT = 8  # concurrent calls on a slow connection
SLOW_S = 0.03  # a connection is slow if a small call takes longer
SIGNATURE_S = (
    10.0  # how long a signature is reused (the SuperLink accepts it for 300 s): signing costs more than a call
)


class Calls:
    """The calls of one node. ``stop`` says whether to give up; ``wait`` sleeps that long, or until the node stops."""

    def __init__(self, address: Address, key: Key, stop: Callable[[], bool], wait: Callable[[float], None]) -> None:
        self.address, self.key = address, key
        self.latency = 0.0  # how long the last small call took
        self._headers: tuple[float, list[tuple[str, str | bytes]]] = (0.0, [])
        self._version = list(RuntimeVersionMetadata.from_local_component("SuperNode").as_metadata())
        self._retry = RetryInvoker(
            lambda: exponential(0.05, max_delay=1),
            grpc.RpcError,
            max_tries=None,
            max_time=RETRY_S,
            should_giveup=lambda error: stop() or cast(Any, error).code() not in RETRIED,
            wait_function=wait,
        )
        self._channel: grpc.Channel = None
        self.reopen()

    def reopen(self) -> None:
        """Replace the channel. The old one may hang if the network failed silently."""
        if self._channel is not None:
            self._channel.close()
        self._channel = self.address.open()
        self._stub = FleetStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    def use_key(self, key: Key) -> None:
        """Sign the following calls with another key."""
        self.key, self._headers = key, (0.0, [])

    def once(self, name: str, request: Any, seconds: float = CALL_S) -> Any:
        """Make a call without a retry."""
        try:
            return getattr(self._stub, name)(request, timeout=seconds, metadata=self._signed())
        except grpc.RpcError as error:
            raise meaning(error, self.address) from None

    def retried(self, name: str, request: Any, seconds: float = CALL_S) -> Any:
        """Make a call, and retry it for a while if the network fails."""
        method = getattr(self._stub, name)
        try:
            return self._retry.invoke(lambda: method(request, timeout=seconds, metadata=self._signed()))
        except grpc.RpcError as error:
            raise meaning(error, self.address) from None

    def together(self, name: str, requests: Iterable[Any]) -> Iterator[Any]:
        """Make calls that carry objects; yield the responses in order.

        On a slow connection several calls are in flight, so that the latency is paid once and not per object. On a fast
        connection they run one after the other: the SuperLink uses one core, and concurrent calls cost it 10 % more.
        """
        if self.latency < SLOW_S:
            yield from (self.retried(name, request, OBJECT_S) for request in requests)
            return
        method = getattr(self._stub, name)
        in_flight: deque[tuple[Any, Any]] = deque()
        try:
            for request in requests:
                in_flight.append((request, method.future(request, timeout=OBJECT_S, metadata=self._signed())))
                if len(in_flight) == CONCURRENT:
                    yield self._result(name, *in_flight.popleft())
            while in_flight:
                yield self._result(name, *in_flight.popleft())
        finally:
            for _, call in in_flight:
                call.cancel()

    def _result(self, name: str, request: Any, call: Any) -> Any:
        try:
            return call.result()
        except grpc.RpcError as error:
            if error.code() in RETRIED:
                return self.retried(name, request, OBJECT_S)
            raise meaning(error, self.address) from None

    def _signed(self) -> list[tuple[str, str | bytes]]:
        """Return the headers that Flower requires: our version, and a proof that the key is ours."""
        made, headers = self._headers
        if time.monotonic() - made > SIGNATURE_S or not headers:
            stamp = now().isoformat()
            headers = [
                *self._version,
                (PUBLIC_KEY_HEADER, public_key_to_bytes(self.key.private.public_key())),
                (TIMESTAMP_HEADER, stamp),
                (SIGNATURE_HEADER, sign_message(self.key.private, stamp.encode("ascii"))),
            ]
            self._headers = (time.monotonic(), headers)
        return headers
