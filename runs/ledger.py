"""The ledger: what every round cost and brought, per agent. One record of it is a line of metrics.jsonl."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from flwr.app import MessageType, RecordDict

from strategies import messages
from strategies.messages import Evaluated, Trained

_TIMES = ("serialising_s", "waiting_s", "aggregating_s", "judging_s")


class Ledger:
    """Counts for K agents; lists have an entry per agent, None where there was nothing to count."""

    def __init__(self, agents: int, training_judges: bool = False, wall_before: float = 0.0) -> None:
        """``training_judges``: no episodes are played for judging, those of the training stand for them."""
        self.agents, self._training_judges = agents, training_judges
        self.lived = [0] * agents
        self.reasons: Counter[str] = Counter()
        self._begun, self._wall_before = time.perf_counter(), wall_before
        self.begin(0)

    def begin(self, number: int) -> None:
        self._round_begun = time.perf_counter()
        self._times = dict.fromkeys(_TIMES, 0.0)
        self._timed = False
        self._counts: dict[str, list[int]] = {
            name: [0] * self.agents for name in ("missed", "refused", "late", "left-out", "bytes_up", "bytes_down")
        }
        self._judging_bytes = 0
        self._parts: dict[str, dict[str, int]] = {}
        self._measured: dict[str, list[float | None]] = {}
        self._record: dict[str, Any] = {"round": number}

    @contextmanager
    def timing(self, name: str) -> Iterator[None]:
        """Seconds of something; what happens within it belongs to it."""
        if self._timed:
            yield
            return
        self._timed, begun = True, time.perf_counter()
        try:
            yield
        finally:
            self._timed = False
            self._times[name] += time.perf_counter() - begun

    def count(self, name: str, agent: int) -> None:
        self._counts[name][agent] += 1

    def refuse(self, agent: int, reason: str) -> None:
        self.count("refused", agent)
        self.reasons[reason] += 1

    def left_out(self, agents: set[int]) -> None:
        for agent in agents:
            self.count("left-out", agent)

    def sent(self, kind: str, contents: Mapping[int, RecordDict]) -> None:
        """Bytes of weights on their way to agents; those for judging are counted apart."""
        for agent, content in contents.items():
            sizes = {name.removeprefix(messages.GRADIENT): size for name, size in messages.arrays(content).items()}
            if kind == MessageType.TRAIN:
                self._counts["bytes_down"][agent] += sum(sizes.values())
                self._add("down", sizes)
            else:
                self._judging_bytes += sum(sizes.values())

    def trained(self, got: Mapping[int, Trained]) -> None:
        for agent, reply in got.items():
            # Counted here, as ``reply.lived`` may be any number; ``steps`` were checked against the order.
            self.lived[agent] += reply.steps
            sizes = {name: row.nbytes for name, row in reply.parts.items()}
            self._counts["bytes_up"][agent] += sum(sizes.values())
            self._add("up", sizes)
        names = sorted({name for reply in got.values() for name in reply.measured if not _is_ours(name)})
        measured = {
            name: [got[k].measured.get(name) if k in got else None for k in range(self.agents)] for name in names
        }
        # What a party names its figures is its affair: none takes the place of one of ours.
        self._measured = measured
        self._record |= {
            "steps": list(self.lived),
            "updates": [got[k].updates if k in got else None for k in range(self.agents)],
        }

    def judged(self, got: Mapping[int, Evaluated]) -> None:
        self._record["return"] = [got[k].value if k in got else None for k in range(self.agents)]

    def note(self, notes: Mapping[str, Any]) -> None:
        self._record |= notes

    def end(self) -> dict[str, Any]:
        """The record of the round."""
        now = time.perf_counter()
        took = [seconds for seconds in self._measured.get("took_s", []) if seconds is not None]
        working, round_s = max(took, default=0.0), now - self._round_begun
        times = self._times | {
            "round_s": round_s,
            "working_s": working,
            # The agents' own work is waited for as well, and is no wait that could be saved.
            "waiting_s": max(self._times["waiting_s"] - working, 0.0),
            # All of a round that is neither their work nor a judgement: messages, waiting, and making one of many.
            "exchanging_s": max(round_s - working - self._times["judging_s"], 0.0),
            "wall_s": self._wall_before + now - self._begun,
        }
        nothing = [None] * self.agents
        judged = self._measured.get("training-return", nothing) if self._training_judges else nothing
        return (
            self._measured
            | {"return": judged}
            | self._record
            | self._counts
            | {"parts": self._parts, "bytes_judging": self._judging_bytes, "reasons": dict(self.reasons)}
            | {name: round(seconds, 6) for name, seconds in times.items()}
        )

    def _add(self, way: str, sizes: Mapping[str, int]) -> None:
        for name, size in sizes.items():
            part = self._parts.setdefault(name, {"up": 0, "down": 0})
            part[way] += size


def _is_ours(name: str) -> bool:
    """Return whether only the server may report this: its evaluations, its score, and what its rule did."""
    return name == "score" or name in TRUTH or name.startswith(("kept.", "return."))


def truth(record: Mapping[str, Any], liars: Collection[int]) -> dict[str, float]:
    """How a round's filter did, for those who know who lied: from the ``kept.PART`` of its record.

    ``precision``: of the agents that were dropped, the share that lied. ``recall``: of those that lied, the share that
    was dropped. ``honest-drop``: of those that did not, the share that was dropped, and ``honest-dropped``: whether any
    was. Every part counts for itself. An agent whose reply never reached the rule (silent, refused) counts nowhere. A
    share of nobody is left out. So is ``precision`` where no lie reached the rule: 0 would blame the filter for lies
    that it could not find.
    """
    said = [(agent, kept) for name, row in record.items() if name.startswith("kept.") for agent, kept in enumerate(row)]
    lies = [not kept for agent, kept in said if kept is not None and agent in liars]
    honest = [not kept for agent, kept in said if kept is not None and agent not in liars]
    found = {}
    if lies:
        if dropped := sum(lies) + sum(honest):
            found["precision"] = sum(lies) / dropped
        found["recall"] = sum(lies) / len(lies)
    if honest:
        found |= {"honest-drop": sum(honest) / len(honest), "honest-dropped": float(any(honest))}
    return found


TRUTH = ("precision", "recall", "honest-drop", "honest-dropped")


def over_rounds(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean of each of these figures over the rounds that have it."""
    values = {name: [record[name] for record in records if name in record] for name in TRUTH}
    return {name.replace("-", "_"): sum(those) / len(those) for name, those in values.items() if those}
