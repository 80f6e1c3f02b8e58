"""The directories of peers, joined to one run with a row per peer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from os import SEEK_END
from typing import Any

import numpy as np

from core.errors import Failure, Mistake
from core.rows import Array
from runs import checkpoints
from runs.directory import RunDirectory

Record = dict[str, Any]
# The folder with the directories of peers, each under its number. It lies in the run's directory if one command started
# all peers, and in the node's state if a node did.
PEERS = "peers"
# Totals over all rounds. A peer that was away keeps its last value.
TOTALS = ("steps", "trajectories")


def joined(runs: Sequence[Sequence[Mapping[str, Any]]]) -> list[Record]:
    """Join the records of peers to those of one run. Lists get an entry per peer: None or 0 if it was away."""
    by_round: dict[int, dict[int, Mapping[str, Any]]] = {}
    for records in runs:
        for record in records:
            (peer,) = record["peers"]
            by_round.setdefault(record["round"], {})[peer] = record
    peers = 1 + max((peer for there in by_round.values() for peer in there), default=-1)
    rounds: list[Record] = []
    for number in sorted(by_round):
        rounds.append(_join_round(number, by_round[number], peers, rounds[-1] if rounds else {}))
    return rounds


def _join_round(number: int, there: Mapping[int, Mapping[str, Any]], peers: int, before: Mapping[str, Any]) -> Record:
    record: Record = {"round": number}
    names = dict.fromkeys(name for one in there.values() for name in one)
    for name in names:
        values = {peer: one[name] for peer, one in there.items() if name in one}
        some = next(iter(values.values()))
        if name in ("round", "peers"):
            continue
        if isinstance(some, list):
            away = [0 if isinstance(some[0], int) else None] * peers
            row = list(before.get(name, away)) if name in TOTALS else away
            for peer, value in values.items():
                row[peer] = value[0]
            record[name] = row
        elif isinstance(some, dict):
            total: dict[str, int] = {}
            for value in values.values():
                for reason, count in value.items():
                    total[reason] = total.get(reason, 0) + count
            record[name] = total
        elif name.endswith("_s"):
            record[name] = max(value for value in values.values() if value is not None)
        else:
            record[name] = some
    return record


class Together:
    """A run of peers at work. It writes their rounds to the run's directory as they are completed."""

    def __init__(self, directory: RunDirectory, peers: int) -> None:
        self.directory = directory
        self.parts = [RunDirectory(directory.path / PEERS / str(peer)) for peer in range(peers)]
        self._reported = max((record["round"] for record in directory.read_metrics()), default=0)
        self._read, self._records = [0] * peers, [list[Record]() for _ in range(peers)]
        # Rounds that the others may be ahead before a round is reported without a slow peer. In a ring, a peer may be
        # ahead of a slow one by as many rounds as there are edges between them.
        self.patience = max(8, peers)

    def news(self, working: Sequence[bool]) -> list[Record]:
        """Return the rounds that all active peers have completed since the last call.

        A round is reported without a slow peer once the others are ``patience`` rounds ahead.
        """
        for peer in range(len(self.parts)):
            self._catch_up(peer)
        rounds = [max((record["round"] for record in one), default=0) for one in self._records]
        furthest = max(rounds)
        last = min((number for number, at_work in zip(rounds, working, strict=True) if at_work), default=furthest)
        last = max(last, furthest - self.patience)
        if last <= self._reported:
            return []
        new = [record for record in joined(self._records) if self._reported < record["round"] <= last]
        for record in new:
            self.directory.log(record)
        self._reported = last
        # Keep a few reported records: the totals of peers that are away come from them.
        self._records = [one[-self.patience - 1 :] for one in self._records]
        return new

    def _catch_up(self, peer: int) -> None:
        """Read the new records of a peer. Read all of them if its file was started again."""
        metrics = self.parts[peer].metrics
        if not metrics.exists():
            return
        with metrics.open("rb") as file:
            if file.seek(0, SEEK_END) < self._read[peer]:
                self._read[peer], self._records[peer] = 0, []
            file.seek(self._read[peer])
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._read[peer] += len(whole)
        self._records[peer] += [json.loads(line) for line in whole.splitlines()]


def save_weights(directory: RunDirectory, parts: Sequence[RunDirectory]) -> list[int]:
    """Write the weights of all peers to one file, a row each. If peers have none, write nothing and return them."""
    rows: list[dict[str, Array]] = []
    about: dict[str, Any] = {}
    without = []
    for peer, part in enumerate(parts):
        try:
            learned, about = checkpoints.load(part.weights)
            rows.append(learned)
        except (Mistake, Failure):
            without.append(peer)
    if rows and not without:
        learned = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        checkpoints.save(directory.weights, learned, about)
    return without
