"""The directories of peers, joined into one run with a row per peer."""

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
# The folder that holds the directories of peers, each under its number. It is in the run's directory for peers that one
# command started, and in the state of a node for those of the node.
PEERS = "peers"
# Counts that accumulate over rounds: a peer that is away keeps its last count.
CUMULATIVE = ("steps", "trajectories")


def joined(runs: Sequence[Sequence[Mapping[str, Any]]]) -> list[Record]:
    """Return the records of one run from those of its peers. Lists have an entry per peer: None or 0 if it was away."""
    by_round: dict[int, dict[int, Mapping[str, Any]]] = {}
    for records in runs:
        for record in records:
            (peer,) = record["peers"]
            by_round.setdefault(record["round"], {})[peer] = record
    peers = 1 + max((peer for present in by_round.values() for peer in present), default=-1)
    merged: list[Record] = []
    for number in sorted(by_round):
        merged.append(_merge(number, by_round[number], peers, merged[-1] if merged else {}))
    return merged


def _merge(number: int, present: Mapping[int, Mapping[str, Any]], peers: int, before: Mapping[str, Any]) -> Record:
    """Return the record of one round from those of the peers that were present."""
    record: Record = {"round": number}
    names = dict.fromkeys(name for one in present.values() for name in one)
    for name in names:
        values = {peer: one[name] for peer, one in present.items() if name in one}
        example = next(iter(values.values()))
        if name in ("round", "peers"):
            continue
        if isinstance(example, list):
            absent = [0 if isinstance(example[0], int) else None] * peers
            row = list(before.get(name, absent)) if name in CUMULATIVE else absent
            for peer, value in values.items():
                row[peer] = value[0]
            record[name] = row
        elif isinstance(example, dict):
            total: dict[str, int] = {}
            for value in values.values():
                for reason, count in value.items():
                    total[reason] = total.get(reason, 0) + count
            record[name] = total
        elif name.endswith("_s"):
            record[name] = max(value for value in values.values() if value is not None)
        else:
            record[name] = example
    return record


class Together:
    """The run of several peers: each round is written into its directory when the peers have completed it."""

    def __init__(self, directory: RunDirectory, peers: int) -> None:
        self.directory = directory
        self.parts = [RunDirectory(directory.path / PEERS / str(peer)) for peer in range(peers)]
        self.done = max((record["round"] for record in directory.read_metrics()), default=0)
        self._read, self._records = [0] * peers, [list[Record]() for _ in range(peers)]
        # How many rounds some peers may be ahead before a round is written without the slow ones. In a ring, a peer may
        # be ahead of another by as many rounds as there are edges between them.
        self.patience = max(8, peers)

    def news(self, working: Sequence[bool]) -> list[Record]:
        """Return the rounds completed since the last call: by all active peers, or long ago by the faster ones."""
        for peer in range(len(self.parts)):
            self._catch_up(peer)
        rounds = [max((record["round"] for record in one), default=0) for one in self._records]
        furthest = max(rounds)
        last = min((number for number, works in zip(rounds, working, strict=True) if works), default=furthest)
        last = max(last, furthest - self.patience)
        if last <= self.done:
            return []
        new = [record for record in joined(self._records) if self.done < record["round"] <= last]
        for record in new:
            self.directory.log(record)
        self.done = last
        # Written records are not needed again, except for the counts of peers that are away.
        self._records = [one[-self.patience - 1 :] for one in self._records]
        return new

    def _catch_up(self, peer: int) -> None:
        """Read what a peer has written since the last call; from the beginning if its file has become shorter."""
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
    """Save the weights of all peers, a row each; returns the peers that have saved none."""
    rows: list[dict[str, Array]] = []
    about: dict[str, Any] = {}
    missing = []
    for peer, part in enumerate(parts):
        try:
            learned, about = checkpoints.load(part.weights)
            rows.append(learned)
        except (Mistake, Failure):
            missing.append(peer)
    if rows and not missing:
        learned = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        checkpoints.save(directory.weights, learned, about)
    return missing
