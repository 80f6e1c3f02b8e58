"""Runs in which a minority of the parties says what it likes of its work and of its worth, or says nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message

from runs.config import configure
from runs.directory import RunDirectory
from server.engines import prepare
from server.federate import federate
from server.grids import LocalGrid
from strategies import messages

LIAR = 2
STEPS = 400
MANY = 60  # rounds after which a test ends a run that does not end by itself
CONF: dict[str, Any] = {
    "algorithm": "policy-gradient", "strategy": "fedavg", "agents": 3, "rounds": 0, "steps": STEPS, "work": 1,
    "evaluate-episodes": 2, "tensorboard": False, "world": {"id": "CartPole-v1", "copies": 2},
    "policy-gradient": {"batch": 2, "hidden": [4]}, "federation": {"deadline-s": 0.01, "patience": 10_000},
}  # fmt: skip
# What a reply says, as the liar would have it instead; None: it is never sent.
Lie = Callable[[dict[str, Any]], dict[str, Any] | None]


class Hostile(LocalGrid):
    """One agent answers whatever ``lie`` makes of its honest reply."""

    lie: Lie = staticmethod(lambda said: said)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [reply for reply in super().pull_messages(message_ids) if self._sent(reply)]

    def _sent(self, reply: Message) -> bool:
        if reply.metadata.src_node_id != LIAR + 1:
            return True
        said = self.lie(messages.entries(reply.content))
        if said is not None:
            reply.content[messages.RECORD] = ConfigRecord(said)
        return said is not None


def claims(**figures: int) -> Lie:
    """Claim these figures of SAID in every reply to a train message."""

    def lie(said: dict[str, Any]) -> dict[str, Any]:
        if "said" not in said:
            return said
        values = dict(zip(messages.SAID, said["said"], strict=True)) | figures
        return said | {"said": list(values.values())}

    return lie


def silent(said: dict[str, Any]) -> dict[str, Any] | None:
    return None if "said" in said or "return" in said else said


def run(path: Path, lie: Lie, **changes: Any) -> tuple[RunDirectory, dict[str, Any]]:
    given = configure(CONF | changes)
    session, found = prepare(given), RunDirectory.create(path, {})
    grid, rounds = Hostile(session), list[int]()
    grid.lie = lie
    summary = federate(
        given, grid, found, session, tell=lambda record: rounds.append(1), stop=lambda: len(rounds) >= MANY
    )
    return found, summary


@pytest.mark.parametrize(
    ("lie", "refused"),
    [
        (claims(steps=0, lived=0), True),
        (claims(steps=2, lived=2), False),  # two episodes of one step: little, and possible
        (claims(steps=10**12, lived=10**12), True),
        (claims(steps=1000, lived=10**12), False),  # two episodes of 500 steps: much, and possible
        (claims(updates=10**9), True),
        (silent, False),
    ],
    ids=["nothing", "little", "beyond-measure", "much", "updates", "silence"],
)
def test_no_party_ends_a_run_or_keeps_it_from_ending(tmp_path: Path, lie: Lie, refused: bool) -> None:
    """The run ends by steps in the round in which an honest party has them: two of three is half, and one may lie."""
    found, summary = run(tmp_path / "run", lie)
    records = found.read_metrics()
    assert not summary["interrupted"] and len(records) < MANY
    honest = [[steps for agent, steps in enumerate(record["steps"]) if agent != LIAR] for record in records]
    assert all(max(steps) < STEPS for steps in honest[:-1])
    assert max(honest[-1]) >= STEPS
    assert records[-1]["reasons"] == ({"impossible-work": len(records)} if refused else {})
    assert summary["refused"] == (len(records) if refused else 0)
    assert [record["kept.policy"] for record in records] == [[1, 1, None if refused or lie is silent else 1]] * len(
        records
    )
