"""The reading of what another peer has published for peers that join late."""

from __future__ import annotations

import time

import grpc
import numpy as np

from gossip import gossip_pb2 as pb
from gossip.inbox import F32
from gossip.local import LocalPeer
from gossip.neighbour import Neighbour


def read_published(local: LocalPeer, neighbour: Neighbour) -> tuple[int, F32] | None:
    """Return the round and the weights that a peer has published, or None.

    Ask again while the peer does not know this one yet, or publishes a newer round while its pieces are read.
    """
    until = time.monotonic() + 3 * local.patience.beat
    published, status = None, pb.STATUS_UNKNOWN
    while published is None and status in (pb.STATUS_UNKNOWN, pb.STATUS_STALE, pb.STATUS_NOTHING):
        if time.monotonic() > until:
            return None
        try:
            published, status = _read_pieces(local, neighbour)
        except grpc.RpcError:
            return None
        if published is None:
            time.sleep(0.05)
    return published


def _read_pieces(local: LocalPeer, neighbour: Neighbour) -> tuple[tuple[int, F32] | None, pb.Status]:
    row: F32 | None = None
    number, done = 0, 0
    while row is None or done < len(row):
        with local.changed:
            envelope = local.envelope(neighbour.number, neighbour.life)
        answer = neighbour.stub.Ask(
            pb.Question(envelope=envelope, round=number, offset=done), timeout=local.patience.call
        )
        if answer.status != pb.STATUS_TAKEN:
            return None, answer.status
        # Take nothing that differs in size from what this peer would publish itself.
        fits = answer.width == local.identity.width and answer.layout == local.identity.layout
        piece = np.frombuffer(answer.data[: len(answer.data) // 4 * 4], "<f4")
        is_sound = 0 < len(piece) <= answer.width - done and bool(np.isfinite(piece).all())
        if not fits or not is_sound or answer.offset != done:
            return None, local.refuse(pb.STATUS_WRONG_LAYOUT, neighbour.number)
        if row is None:
            row, number = np.empty(answer.width, np.float32), answer.round
        row[done : done + len(piece)] = piece
        done += len(piece)
    return (number, row), pb.STATUS_TAKEN
