"""The ledger: costs and results of every round, per agent. A record is a line of metrics.jsonl."""

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
    """Counts for K agents. Lists have an entry per agent, which is None where there was nothing to count."""

    def __init__(self, agents: int, training_evaluates: bool = False, wall_before: float = 0.0) -> None:
        """``training_evaluates``: no episodes are played for evaluation; the training episodes stand for them."""
        self.agents, self._training_evaluates = agents, training_evaluates
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
        self._evaluation_bytes = 0
        self._parts: dict[str, dict[str, int]] = {}
        self._measured: dict[str, list[float | None]] = {}
        self._record: dict[str, Any] = {"round": number}

    @contextmanager
    def timing(self, name: str) -> Iterator[None]:
        """Add the seconds of the block to a time. Blocks within it count for the outermost one."""
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
        """Count the bytes that are sent to agents; those for an evaluation are counted apart."""
        for agent, content in contents.items():
            sizes = {name.removeprefix(messages.GRADIENT): size for name, size in messages.arrays(content).items()}
            if kind == MessageType.TRAIN:
                self._counts["bytes_down"][agent] += sum(sizes.values())
                self._add("down", sizes)
            else:
                self._evaluation_bytes += sum(sizes.values())

    def trained(self, replies: Mapping[int, Trained]) -> None:
        """Record the accepted replies to train messages."""
        for agent, reply in replies.items():
            # Counted here, as ``reply.lived`` may be any number; ``steps`` were checked against the order.
            self.lived[agent] += reply.steps
            sizes = {name: row.nbytes for name, row in reply.parts.items()}
            self._counts["bytes_up"][agent] += sum(sizes.values())
            self._add("up", sizes)
        names = sorted({name for reply in replies.values() for name in reply.measured if not _is_ours(name)})
        measured = {
            name: [replies[k].measured.get(name) if k in replies else None for k in range(self.agents)]
            for name in names
        }
        # Agents name their own figures. None may replace a figure of the server.
        self._measured = measured
        self._record |= {
            "steps": list(self.lived),
            "updates": [replies[k].updates if k in replies else None for k in range(self.agents)],
        }

    def judged(self, replies: Mapping[int, Evaluated]) -> None:
        """Record the accepted replies to evaluate messages."""
        self._record["return"] = [replies[k].value if k in replies else None for k in range(self.agents)]

    def note(self, notes: Mapping[str, Any]) -> None:
        self._record |= notes

    def end(self) -> dict[str, Any]:
        """Return the record of the round."""
        now = time.perf_counter()
        took = [seconds for seconds in self._measured.get("took_s", []) if seconds is not None]
        working, round_s = max(took, default=0.0), now - self._round_begun
        times = self._times | {
            "round_s": round_s,
            "working_s": working,
            # The server also waits for the agents' own work, which is not time lost.
            "waiting_s": max(self._times["waiting_s"] - working, 0.0),
            # The rest of a round, without the work of agents and evaluation: messages, waiting, aggregation.
            "exchanging_s": max(round_s - working - self._times["judging_s"], 0.0),
            "wall_s": self._wall_before + now - self._begun,
        }
        unknown = [None] * self.agents
        returns = self._measured.get("training-return", unknown) if self._training_evaluates else unknown
        return (
            self._measured
            | {"return": returns}
            | self._record
            | self._counts
            | {"parts": self._parts, "bytes_judging": self._evaluation_bytes, "reasons": dict(self.reasons)}
            | {name: round(seconds, 6) for name, seconds in times.items()}
        )

    def _add(self, direction: str, sizes: Mapping[str, int]) -> None:
        for name, size in sizes.items():
            part = self._parts.setdefault(name, {"up": 0, "down": 0})
            part[direction] += size


def _is_ours(name: str) -> bool:
    """Return whether only the server may report this: its evaluations, its score, and what its rule did."""
    return name == "score" or name in TRUTH or name.startswith(("kept.", "return."))


def truth(record: Mapping[str, Any], attackers: Collection[int]) -> dict[str, float]:
    """Return how well a round's filter found the known attackers, from the ``kept.PART`` of its record.

    ``precision``: the share of attackers among the dropped agents. ``recall``: the share of attackers that were
    dropped. ``honest-drop``: the share of honest agents that were dropped. ``honest-dropped``: whether any was. Every
    part counts by itself. An agent whose reply never reached the rule (silent, refused) does not count. A share of zero
    agents is left out. So is ``precision`` where no attacker reached the rule, as there was nothing to find.
    """
    verdicts = [
        (agent, kept) for name, row in record.items() if name.startswith("kept.") for agent, kept in enumerate(row)
    ]
    forged = [not kept for agent, kept in verdicts if kept is not None and agent in attackers]
    honest = [not kept for agent, kept in verdicts if kept is not None and agent not in attackers]
    shares = {}
    if forged:
        if dropped := sum(forged) + sum(honest):
            shares["precision"] = sum(forged) / dropped
        shares["recall"] = sum(forged) / len(forged)
    if honest:
        shares |= {"honest-drop": sum(honest) / len(honest), "honest-dropped": float(any(honest))}
    return shares


TRUTH = ("precision", "recall", "honest-drop", "honest-dropped")


def over_rounds(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the mean of each of these shares over the rounds that have it."""
    values = {name: [record[name] for record in records if name in record] for name in TRUTH}
    return {name.replace("-", "_"): sum(shares) / len(shares) for name, shares in values.items() if shares}
