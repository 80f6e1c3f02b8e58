"""Calls whose message has not arrived yet. gRPC would block a thread for as long as the caller likes; we do not."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Hashable, Iterator

import grpc

CALLER = 8  # calls of one caller that may wait for their message; an honest peer has two
WAITING = 48  # such calls in all: beyond that, the call that has waited longest is ended


class Arrivals:
    """A reader of messages. It ends a call without a message after ``patience`` seconds, and the oldest of too many."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._changed = threading.Condition()
        self._waiting: dict[grpc.ServicerContext, float] = {}  # their deadlines; the oldest call first
        self._callers: Counter[Hashable] = Counter()
        self._over = False
        self._thread = threading.Thread(target=self._run, name="arrivals", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def read(self, messages: Iterator[bytes], context: grpc.ServicerContext, caller: Hashable) -> bytes:
        """Return the message of a call, empty if it has none. Raises an error of gRPC if the call is ended."""
        with self._changed:
            full = self._callers[caller] >= CALLER
            if not full:
                self._callers[caller] += 1
                self._waiting[context] = time.monotonic() + self._patience
                self._changed.notify_all()
                for oldest in list(self._waiting)[: len(self._waiting) - WAITING]:
                    self._end(oldest)
        if full:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{CALLER} calls of this caller wait for their messages")
        try:
            return next(messages, b"")
        finally:
            with self._changed:
                self._waiting.pop(context, None)
                self._callers[caller] -= 1
                if not self._callers[caller]:
                    del self._callers[caller]

    def _end(self, context: grpc.ServicerContext) -> None:
        del self._waiting[context]
        context.cancel()

    def _run(self) -> None:
        with self._changed:
            while not self._over:
                now = time.monotonic()
                for context in [call for call, deadline in self._waiting.items() if deadline <= now]:
                    self._end(context)
                first = next(iter(self._waiting.values()), None)
                self._changed.wait(None if first is None else first - now)
