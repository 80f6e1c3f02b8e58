"""Failures of the local side of a neighbour: a full disk, an unexpected error."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.gossip.network import QUICK, network, together, until


def full(note: str) -> None:
    raise OSError(28, "No space left on device")


def test_a_note_that_cannot_be_written_ends_no_thread_and_is_reported_once(capfd: pytest.CaptureFixture[str]) -> None:
    with network("complete", 3, 4, replace(QUICK, dead=0.5), say=full) as net:
        wires = [net.start(k) for k in range(3)]
        together([lambda w=w: w.join(0) for w in wires])
        until(lambda: wires[0].pace.present() == [0, 1, 2])
        for gone in (1, 2):
            net.kill(gone)
            until(lambda gone=gone: gone not in wires[0].pace.present())
        assert all(neighbour._thread.is_alive() for neighbour in wires[0].neighbours.values())
        back = net.start(1)
        until(lambda: wires[0].neighbours[1].life == back.local.identity.life)
        until(lambda: wires[0].pace.present() == [0])  # in another life it has to catch up first
    reports = [line for line in capfd.readouterr().err.splitlines() if line.startswith("peer 0: ")]
    assert len(reports) == 1 and "No space left on device" in reports[0] and "peer 1 is gone" in reports[0]


def test_an_unexpected_error_ends_no_thread_and_is_reported_once() -> None:
    with network("complete", 2, 4) as net:
        wires = [net.start(k) for k in range(2)]
        together([lambda w=w: w.join(0) for w in wires])
        neighbour, calls = wires[0].neighbours[1], list[int]()
        greet = neighbour.stub.Greet

        def fails(*arguments: Any, **options: Any) -> Any:
            calls.append(1)
            if len(calls) < 4:
                raise RuntimeError("broken")
            return greet(*arguments, **options)

        neighbour.stub.Greet = fails
        until(lambda: len(calls) > 4)
        assert neighbour._thread.is_alive() and neighbour.there
    assert [note for note in net.notes if "broken" in note] == ["the exchange with peer 1 failed: RuntimeError: broken"]
