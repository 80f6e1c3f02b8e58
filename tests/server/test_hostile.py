"""Runs in which a minority of the parties says what it likes of its work and of its worth, or says nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message

from runs import checkpoints
from runs.config import configure
from runs.directory import RunDirectory
from server.engines import prepare
from server.federate import federate
from server.grids import LocalGrid
from server.unseen import Unseen
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
    """Some agents answer whatever ``lie`` makes of their honest reply."""

    lie: Lie = staticmethod(lambda said: said)
    liars = (LIAR,)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [reply for reply in super().pull_messages(message_ids) if self._sent(reply)]

    def _sent(self, reply: Message) -> bool:
        if reply.metadata.src_node_id - 1 not in self.liars:
            return True
        said = self.lie(messages.entries(reply.content))
        if said is not None:
            reply.content[messages.RECORD] = ConfigRecord(said)
        return said is not None


def claims(**figures: int) -> Lie:
    """Claim these counts in every reply to a train message."""

    def lie(said: dict[str, Any]) -> dict[str, Any]:
        if "counts" not in said:
            return said
        values = dict(zip(messages.COUNTS, said["counts"], strict=True)) | figures
        return said | {"counts": list(values.values())}

    return lie


def boast(value: float = 1e6, times: int = 1) -> Lie:
    """Claim this return the first few times that one is asked for."""
    left = [times]

    def lie(said: dict[str, Any]) -> dict[str, Any]:
        if "return" not in said or not left[0]:
            return said
        left[0] -= 1
        return said | {"return": value}

    return lie


def silent(said: dict[str, Any]) -> dict[str, Any] | None:
    return None if "counts" in said or "return" in said else said


def run(path: Path, lie: Lie, liars: tuple[int, ...] = (LIAR,), **changes: Any) -> tuple[RunDirectory, dict[str, Any]]:
    given = configure(CONF | changes)
    session, found = prepare(given), RunDirectory.create(path, {})
    grid, rounds = Hostile(session), list[int]()
    grid.lie, grid.liars = lie, liars
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


# --- what a run is worth ----------------------------------------------------------------------------------------------

# Every round leaves a checkpoint, so that a test knows the weights after each.
JUDGED: dict[str, Any] = {"rounds": 8, "steps": 0, "checkpoint-every": 1, "checkpoints": 100}
LEARNS: dict[str, Any] = {"work": 10, "policy-gradient": {"batch": 8, "hidden": [16], "learning-rate": 0.02}}


def best_round(found: RunDirectory, name: str) -> int:
    """The first round after which the weights were those of ``best.npz``."""
    best = checkpoints.load(found.best)[0]["policy"].ravel()
    saved = {number: checkpoints.load(path)[0][name].ravel() for number, path in found.saved_rounds().items()}
    return next(number for number, policy in saved.items() if np.array_equal(policy, best))


def test_the_return_that_one_party_claims_chooses_nothing(tmp_path: Path) -> None:
    """Agent 2 claims a million after the first round, when the policy is as bad as it ever was."""
    found, summary = run(tmp_path / "run", boast(), **JUDGED, **LEARNS)
    returns = np.array([record["return"] for record in found.read_metrics()])
    assert returns[0, LIAR] == 1e6 and returns.mean(axis=1).argmax() == 0
    medians = np.median(returns, axis=1)
    assert medians.argmax() > 0
    assert best_round(found, "strategy.policy") == medians.argmax() + 1
    assert (summary["best_return"], summary["median_return"]) == (medians.max(), medians[-1])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_return_that_is_no_number_is_refused(tmp_path: Path, value: float) -> None:
    found, _ = run(tmp_path / "run", boast(value), **JUDGED | {"rounds": 1})
    (record,) = found.read_metrics()
    assert record["return"][LIAR] is None and record["return"][0] is not None
    assert (record["refused"], record["reasons"]) == ([0, 0, 1], {"no-number": 1})


def test_a_server_that_learns_itself_believes_nobody(tmp_path: Path) -> None:
    """Even if all parties claim a million after the first round: FedPG-BR's server plays its policy itself."""
    changes = JUDGED | LEARNS | {"strategy": "fedpg-br", "fedpg": {"batch-min": 8, "batch-max": 8}}
    found, summary = run(tmp_path / "run", boast(times=3), (0, 1, 2), **changes)
    records = found.read_metrics()
    assert records[0]["return"] == [1e6] * 3
    own = [record["return.server"][0] for record in records]
    assert [record["score"] for record in records] == own
    assert np.argmax(own) > 0
    assert best_round(found, "strategy.server.policy") == np.argmax(own) + 1
    assert summary["best_return"] == max(own)


def test_worlds_that_the_server_has_choose_the_best(tmp_path: Path) -> None:
    """All parties claim a million after the first round, and the server evaluates in two worlds of its own."""
    unseen = {"heavy": {"physics": {"pole-mass": 0.5}}, "long": {"physics": {"length": 1.0}}}
    found, _ = run(tmp_path / "run", boast(times=3), (0, 1, 2), unseen=unseen, **JUDGED, **LEARNS)
    records = found.read_metrics()
    scores = [np.mean([np.median(record["return.heavy"]), np.median(record["return.long"])]) for record in records]
    np.testing.assert_allclose([record["score"] for record in records], scores)
    assert np.argmax(scores) > 0
    assert best_round(found, "strategy.policy") == np.argmax(scores) + 1


def test_a_policy_that_never_came_is_evaluated_nowhere(tmp_path: Path) -> None:
    """One agent that sends none does not keep the server from evaluating the others."""
    given = configure(CONF | {"strategy": "alone", "unseen": {"same": {}}})
    session = prepare(given)
    policies = session.fleet.parts["policy"].copy()
    unseen = Unseen(given, session)
    whole = unseen.evaluate({"policy": policies})
    policies[LIAR] = np.nan
    part = unseen.evaluate({"policy": policies})
    assert part["return.same"][:LIAR] == whole["return.same"][:LIAR] and np.isnan(part["return.same"][LIAR])
    assert part["score"] == np.median(whole["return.same"][:LIAR])
    assert np.isnan(unseen.evaluate({"policy": np.full_like(policies, np.nan)})["score"])
    assert np.isnan(unseen.evaluate({})["score"])


def test_a_figure_under_a_name_of_the_servers_is_dropped(tmp_path: Path) -> None:
    """A party that reports how well the filter did, a score or an evaluation chooses nothing, and ends no run."""

    def lie(said: dict[str, Any]) -> dict[str, Any]:
        names = ("score", "precision", "recall", "kept.policy", "kept.all", "return.server", "mine")
        return said | {messages.MEASURED + name: 1e6 for name in names} if "counts" in said else said

    found, summary = run(tmp_path / "run", lie, **JUDGED | {"rounds": 2})
    for record in found.read_metrics():
        assert record["mine"] == [None, None, 1e6]
        assert record["kept.policy"] == [1, 1, 1]
        assert not {"score", "recall", "kept.all", "return.server"} & set(record)
    assert not {"precision", "recall"} & set(summary)
