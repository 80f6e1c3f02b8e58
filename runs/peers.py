"""Peers leave a directory each; together they are one run, with a row per peer."""

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
# Where the directories of peers are, each under its number: those that one command started in the run's own, those of
# a node in its state.
PEERS = "peers"
# What counts on from round to round: who was away has what it had.
GOES_ON = ("steps", "trajectories")


def joined(runs: Sequence[Sequence[Mapping[str, Any]]]) -> list[Record]:
    """The records of peers as those of one run: lists get an entry per peer, None or 0 where one was away."""
    known: dict[int, dict[int, Mapping[str, Any]]] = {}
    for records in runs:
        for record in records:
            (peer,) = record["peers"]
            known.setdefault(record["round"], {})[peer] = record
    peers = 1 + max((peer for there in known.values() for peer in there), default=-1)
    found: list[Record] = []
    for number in sorted(known):
        found.append(_one(number, known[number], peers, found[-1] if found else {}))
    return found


def _one(number: int, there: Mapping[int, Mapping[str, Any]], peers: int, before: Mapping[str, Any]) -> Record:
    record: Record = {"round": number}
    names = dict.fromkeys(name for one in there.values() for name in one)
    for name in names:
        values = {peer: one[name] for peer, one in there.items() if name in one}
        some = next(iter(values.values()))
        if name in ("round", "peers"):
            continue
        if isinstance(some, list):
            away = [0 if isinstance(some[0], int) else None] * peers
            row = list(before.get(name, away)) if name in GOES_ON else away
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
    """The run of peers that are at work: their rounds are written into its directory as they are done."""

    def __init__(self, directory: RunDirectory, peers: int) -> None:
        self.directory = directory
        self.parts = [RunDirectory(directory.path / PEERS / str(peer)) for peer in range(peers)]
        self.told = max((record["round"] for record in directory.read_metrics()), default=0)
        self._read, self._records = [0] * peers, [list[Record]() for _ in range(peers)]
        # Rounds that the others may be ahead before a round is told without those that have not come to it: in a ring
        # one whom nobody keeps waiting is ahead of the last by as many rounds as there are links between them.
        self.patience = max(8, peers)

    def news(self, working: Sequence[bool]) -> list[Record]:
        """The rounds that have been done since by all peers at work, or by the others long ago."""
        for peer in range(len(self.parts)):
            self._catch_up(peer)
        rounds = [max((record["round"] for record in one), default=0) for one in self._records]
        furthest = max(rounds)
        last = min((number for number, at_work in zip(rounds, working, strict=True) if at_work), default=furthest)
        last = max(last, furthest - self.patience)
        if last <= self.told:
            return []
        new = [record for record in joined(self._records) if self.told < record["round"] <= last]
        for record in new:
            self.directory.log(record)
        self.told = last
        # What was told is not needed again, but for the steps of those who are away.
        self._records = [one[-self.patience - 1 :] for one in self._records]
        return new

    def _catch_up(self, peer: int) -> None:
        """Read what a peer has written since; from the beginning where it was begun anew."""
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
    """Leave the weights that peers have left, a row each; returns who left none."""
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
