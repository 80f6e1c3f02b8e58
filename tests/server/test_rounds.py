"""Rounds among parties that are slow, gone, back, wrong: who counts, how long is waited, what the ledger says."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from agents.report import Bounds
from core.errors import Failure, Mistake
from core.options import build
from runs.config import configure
from runs.ledger import Ledger
from server import membership
from server import rounds as rounds_module
from server.engines import prepare
from server.rounds import Interrupted, QuorumError, Rounds
from strategies.federation import FederationConfig
from tests.server.scripted import ODD, Scripted, always, fedavg

EXTRA = {"settle": True, "save": False}


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "LOOK_S", 0.02)


def begun(grid: Scripted, agents: int, stop: Any = lambda: False, **settings: Any) -> Rounds:
    quick = {"wait-s": 0.2, "deadline-s": 0.2, "give-up-s": 1.0} | settings
    found = Rounds(grid, fedavg(agents), build(FederationConfig, quick), 0, Ledger(agents), stop)
    found.gather_parties()
    return found


def weights(rounds: Rounds) -> list[float]:
    return rounds.strategy.learned()["policy"][0].tolist()


@contextmanager
def within(seconds: float) -> Iterator[None]:
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < seconds


def test_a_round_in_any_order_of_replies() -> None:
    found = []
    for backwards in (False, True):
        rounds = begun(Scripted({10 + k: (k, always()) for k in range(3)}, backwards), 3)
        record = rounds.round(1, EXTRA, judge=True)
        assert (record["return"], record["steps"], record["missed"]) == ([0.0, 1.0, 2.0], [10] * 3, [0] * 3)
        assert record["bytes_up"] == record["bytes_down"] == [12] * 3
        assert record["parts"] == {"policy": {"up": 36, "down": 36}}
        found.append(weights(rounds))
    assert found[0] == found[1] == [1.0] * 3


@pytest.mark.parametrize(
    ("what", "reason"),
    [("nan", "not-finite"), ("wide", "wrong-layout"), ("other-layout", "wrong-layout"), ("error", "error-reply"),
     ("empty", "no-arrays"), ("other-name", "wrong-agent"), ("malformed", "malformed"),
     *((odd, "no-number") for odd in ODD)],
)  # fmt: skip
def test_a_bad_answer_has_a_name_is_counted_and_never_reaches_the_rule(what: str, reason: str) -> None:
    rounds = begun(Scripted({10: (0, always(what)), 11: (1, always()), 12: (2, always())}), 3)
    with within(0.15):  # nobody waits for one that has answered
        record = rounds.round(1, EXTRA, judge=False)
    assert weights(rounds) == [1.5] * 3
    assert (record["refused"], record["reasons"]) == ([1, 0, 0], {reason: 1})
    assert record["kept.policy"] == [None, 1, 1]


@pytest.mark.parametrize("what", ["claims-no-step", "claims-a-step", "claims-updates"])
def test_work_that_was_not_asked_for_is_refused(what: str) -> None:
    """The order takes ten steps and at most one update: the mean is weighed by updates, a run may end by steps."""
    rounds = begun(Scripted({10: (0, always(what)), 11: (1, always()), 12: (2, always())}), 3)
    rounds.bounds = lambda work, measured: Bounds(10 * work, 10 * work, work)
    record = rounds.round(1, EXTRA, judge=False)
    assert (record["refused"], record["reasons"]) == ([1, 0, 0], {"impossible-work": 1})
    assert (record["steps"], weights(rounds)) == ([0, 10, 10], [1.5] * 3)


def test_steps_are_counted_by_the_server() -> None:
    """What a party says it has lived through is its own affair: the node of this one says 10 after every round."""
    rounds = begun(Scripted({10: (0, always()), 11: (1, lambda number: "nan" if number == 2 else "answer")}), 2)
    steps = [rounds.round(number, EXTRA, judge=False)["steps"] for number in (1, 2, 3)]
    assert steps == [[10, 10], [20, 10], [30, 20]]


def test_what_a_party_measures_takes_no_place_of_ours() -> None:
    rounds = begun(Scripted({10: (0, always("measures-a-round")), 11: (1, always())}), 2)
    record = rounds.round(1, EXTRA, judge=True)
    assert (record["round"], record["return"], record["steps"]) == (1, [0.0, 1.0], [10, 10])
    assert (record["missed"], type(record["wall_s"])) == ([0, 0], float)
    assert rounds.round(2, EXTRA, judge=False)["return"] == [None, None]


def test_the_deadline_does_not_wait_for_the_slow_whose_answer_is_late_then() -> None:
    grid = Scripted({10: (0, lambda number: 0.3 if number == 1 else "answer"), 11: (1, always()), 12: (2, always())})
    rounds = begun(grid, 3)
    first = rounds.round(1, EXTRA, judge=False)
    assert (first["missed"], first["late"]) == ([1, 0, 0], [0, 0, 0])
    assert weights(rounds) == [1.5] * 3
    time.sleep(0.2)
    second = rounds.round(2, EXTRA, judge=False)
    assert (second["missed"], second["late"]) == ([0, 0, 0], [1, 0, 0])
    assert weights(rounds) == [2.5] * 3


def test_below_quorum_a_round_waits_says_for_whom_and_ends() -> None:
    rounds = begun(Scripted({10: (0, always()), 11: (1, always("silent")), 12: (2, always("nan"))}), 3, quorum=0.6)
    with within(2.0), pytest.raises(QuorumError, match=r"1 of the 2 answers .* from agents 1, 2") as caught:
        rounds.round(1, EXTRA, judge=False)
    assert isinstance(caught.value, Failure)
    assert weights(rounds) == [0.0] * 3


def test_a_quorum_that_comes_back_ends_the_wait() -> None:
    """Below quorum; a killed node returns under another id, is asked at once, and the round goes on."""
    grid = Scripted({10: (0, always()), 11: (1, always("silent"))})
    rounds = begun(grid, 2, quorum=1.0, **{"give-up-s": 5.0})
    born = time.monotonic()

    class Reborn(dict[int, Any]):
        def __iter__(self) -> Iterator[int]:
            return iter([10, 99] if time.monotonic() - born > 0.4 else [10, 11])

    grid.nodes = Reborn(grid.nodes | {99: (1, always())})
    with within(2.0):
        record = rounds.round(1, EXTRA, judge=False)
    assert record["kept.policy"] == [1, 1]
    assert rounds.members == {0: 10, 1: 99}


def test_no_node_takes_the_seat_of_one_that_is_there() -> None:
    """Not even while that one owes an answer, and not beside a seat of its own."""
    grid = Scripted({10: (0, always(0.15)), 11: (1, always(0.3))})
    rounds = begun(grid, 3, **{"deadline-s": 2.0})
    grid.nodes[99] = (0, always())
    time.sleep(0.03)
    record = rounds.round(1, EXTRA, judge=False)
    assert rounds.members == {0: 10, 1: 11}
    assert record["kept.policy"] == [1, 1, None]
    assert (record["refused"], record["reasons"]) == ([0, 0, 0], {"taken": 1})
    assert 0 not in [agent for number, agent in grid.trained[2:] if number == 1]


def test_a_node_is_one_agent_however_often_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The node of agent 0 is asked twice before it answers, and then says that it is agent 1 as well."""
    monkeypatch.setattr(membership, "ASK_AGAIN_S", 0.05)

    class TwoFaced(Scripted):
        asked = 0

        def _push(self, message: Message) -> str:
            if message.metadata.message_type == "query":
                self.asked += 1
                self.nodes[10] = (min(self.asked, 2) - 1, always())
                name = super()._push(message)
                self._due[name] = (time.monotonic() + 0.12, self._due[name][1])
                return name
            return super()._push(message)

    rounds = begun(TwoFaced({10: (0, always())}), 2, **{"wait-s": 0.4})
    assert rounds.members == {0: 10}
    assert rounds.ledger.reasons["taken"] >= 1


def test_whoever_was_refused_a_seat_is_asked_again_when_it_is_free() -> None:
    """A killed node comes back under another id before the SuperLink has dropped the first: the round in progress is
    its own as soon as that is done."""
    grid = Scripted({10: (0, always()), 11: (1, always("silent")), 99: (1, always())})
    rounds = begun(grid, 2, quorum=1.0, **{"deadline-s": 3.0, "give-up-s": 5.0})
    assert rounds.members == {0: 10, 1: 11}
    born = time.monotonic()

    class Dropped(dict[int, Any]):
        def __iter__(self) -> Iterator[int]:
            return iter([10, 99] if time.monotonic() - born > 0.4 else [10, 11, 99])

    grid.nodes = Dropped(grid.nodes)
    with within(2.0):
        record = rounds.round(1, EXTRA, judge=False)
    assert record["kept.policy"] == [1, 1]
    assert rounds.members == {0: 10, 1: 99}


def test_an_answer_of_a_node_that_was_held_for_gone_is_a_duplicate() -> None:
    """The SuperLink dropped it, another came in its place; what it says afterwards counts for nothing."""
    grid = Scripted({10: (0, always(0.3)), 11: (1, always(0.6))})
    rounds = begun(grid, 2, **{"deadline-s": 2.0})
    born = time.monotonic()

    class Replaced(dict[int, Any]):
        def __iter__(self) -> Iterator[int]:
            return iter([99, 11] if time.monotonic() - born > 0.05 else [10, 11])

    grid.nodes = Replaced(grid.nodes | {99: (0, always())})
    record = rounds.round(1, EXTRA, judge=False)
    assert (rounds.members, record["kept.policy"]) == ({0: 99, 1: 11}, [1, 1])
    assert (record["refused"], record["reasons"]) == ([1, 0], {"duplicate": 1})


def test_nobody_waits_for_a_node_that_is_gone() -> None:
    grid = Scripted({10: (0, always()), 11: (1, always("silent")), 12: (2, always())})
    rounds = begun(grid, 3, **{"deadline-s": 5.0, "give-up-s": 9.0})
    del grid.nodes[11]
    time.sleep(0.03)
    with within(1.0):
        record = rounds.round(1, EXTRA, judge=False)
    assert record["missed"] == [0, 1, 0]
    assert 1 not in rounds.members


def test_a_node_may_join_later() -> None:
    grid = Scripted({10: (0, always()), 11: (1, always())})
    rounds = begun(grid, 3)
    assert rounds.round(1, EXTRA, judge=False)["kept.policy"] == [1, 1, None]
    grid.nodes[12] = (2, always())
    time.sleep(0.03)
    rounds.round(2, EXTRA, judge=False)
    assert rounds.round(3, EXTRA, judge=False)["kept.policy"] == [1, 1, 1]


def test_who_fails_often_is_left_out_and_let_back_in() -> None:
    grid = Scripted({10: (0, lambda number: "nan" if number < 5 else "answer"), 11: (1, always()), 12: (2, always())})
    rounds = begun(grid, 3, patience=2, **{"leave-out": 2})
    out = [rounds.round(number, EXTRA, judge=False)["left-out"][0] for number in range(1, 8)]
    #      spoiled twice, out for two, back: well
    assert out == [0, 0, 1, 1, 0, 0, 0]
    assert [agent for number, agent in grid.trained if number in (3, 4)] == [1, 2, 1, 2]
    assert rounds.health.strikes == {}


def test_an_unreliable_agent_is_asked_rather_than_losing_the_quorum() -> None:
    grid = Scripted({10: (0, lambda number: "nan" if number == 1 else "answer"), 11: (1, always())})
    rounds = begun(grid, 2, patience=1, quorum=0.5, **{"leave-out": 5})
    rounds.round(1, EXTRA, judge=False)
    rounds.config = build(FederationConfig, {"quorum": 1.0, "deadline-s": 0.2})
    assert rounds.round(2, EXTRA, judge=False)["left-out"] == [0, 0]


def test_a_fraction_of_the_agents_is_drawn_from_the_seed() -> None:
    asked = []
    for _ in range(2):
        grid = Scripted({10 + k: (k, always()) for k in range(10)})
        rounds = begun(grid, 10, fraction=0.3)
        for number in range(1, 21):
            rounds.round(number, EXTRA, judge=False)
        asked.append(grid.trained)
    assert asked[0] == asked[1]
    assert len(asked[0]) == 60
    assert {agent for _, agent in asked[0]} == set(range(10))


def test_a_rule_must_survive_its_liars_among_those_who_are_asked() -> None:
    rule = {"rule": "krum", "byzantine": 1}
    given = {"strategy": "fedavg", "agents": 8, "rounds": 1, "world": {"id": "CartPole-v1"}}
    prepare(configure(given | {"federation": rule})).close()
    with pytest.raises(Mistake, match=r"'krum' needs at least 5 parties .* there are 4"):
        prepare(configure(given | {"federation": rule | {"fraction": 0.5}}))


def test_a_federation_begins_without_those_that_do_not_come_and_never_without_a_quorum() -> None:
    assert begun(Scripted({10: (0, always()), 11: (1, always())}), 3).members == {0: 10, 1: 11}
    with within(3.0), pytest.raises(QuorumError, match="agents 1, 2 did not come"):
        begun(Scripted({10: (0, always())}), 3, **{"give-up-s": 0.3})


@pytest.mark.parametrize(("name", "value"), [("layout", 78), ("app", "another")])
def test_a_node_with_other_weights_or_other_code_is_not_a_member(name: str, value: Any) -> None:
    grid = Scripted({10: (0, always())})
    setattr(grid, name, value)
    with pytest.raises(QuorumError):
        begun(grid, 1, **{"give-up-s": 0.2})


def test_somebody_asks_to_stop_while_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds_module, "STOP_S", 0.1)
    asked = [False]
    rounds = begun(
        Scripted({10: (0, always("silent"))}), 1, lambda: asked[0], **{"deadline-s": 60.0, "give-up-s": 60.0}
    )
    asked[0] = True
    with within(2.0), pytest.raises(Interrupted):
        rounds.round(1, EXTRA, judge=False)


def test_the_ledger_says_where_the_time_went() -> None:
    rounds = begun(Scripted({10: (0, always(0.1))}), 1, **{"deadline-s": 5.0})
    record = rounds.round(1, EXTRA, judge=True)
    parts = [record[f"{name}_s"] for name in ("serialising", "waiting", "working", "aggregating", "judging")]
    assert 0.09 < record["waiting_s"] < record["round_s"]
    np.testing.assert_allclose(sum(parts), record["round_s"], atol=0.02)


def test_a_node_that_was_mended_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Same id, other code: nobody tells the server that it was upgraded."""
    monkeypatch.setattr(membership, "ASK_AGAIN_S", 0.1)
    grid = Scripted({10: (0, always()), 11: (1, always())})
    rounds = begun(grid, 2)
    right, grid.app = grid.app, "old"
    grid.nodes[12] = (1, always())
    del grid.nodes[11]
    time.sleep(0.15)
    rounds.round(1, EXTRA, judge=False)
    assert 1 not in rounds.members
    grid.app = right
    time.sleep(0.15)
    rounds.round(2, EXTRA, judge=False)
    assert rounds.members[1] == 12


def test_a_node_that_can_have_no_part_ends_no_run_and_as_many_as_there_are_agents_do() -> None:
    def gathered(lacking: set[int]) -> Rounds:
        grid = Scripted({10 + k: (k, always()) for k in range(3)})
        strategy = fedavg(3)

        def admit(who: Any) -> None:
            if who.agent in lacking:
                raise Mistake(f"agent {who.agent} has no address")

        strategy.admit = admit  # type: ignore[method-assign]
        config = build(FederationConfig, {"wait-s": 0.2, "deadline-s": 0.2, "give-up-s": 1.0})
        rounds = Rounds(grid, strategy, config, 0, Ledger(3))
        rounds.gather_parties()
        return rounds

    rounds = gathered({0})
    assert rounds.members == {1: 11, 2: 12}
    assert rounds.round(1, EXTRA, judge=False)["reasons"] == {"no-part": 1}
    with pytest.raises(Mistake, match="has no address"):
        gathered({0, 1, 2})


class Clock:
    """Goes on by being slept on only."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class SlowToFetch(Scripted):
    """A SuperLink from which each reply takes long to fetch."""

    def __init__(self, clock: Clock, nodes: int, seconds: float) -> None:
        super().__init__({10 + k: (k, always(0.05)) for k in range(nodes)})
        self.clock, self.seconds = clock, seconds

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        found = super().pull_messages(message_ids)
        self.clock.sleep(self.seconds * len(found))
        return found


def test_answers_that_are_slow_to_fetch_are_not_asked_for_later_and_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A round learns from the last when answers come, not when they have been fetched."""
    clock = Clock(monkeypatch)
    rounds = begun(SlowToFetch(clock, 8, 0.02), 8, **{"deadline-s": 5.0, "give-up-s": 5.0})
    for number in range(1, 11):
        start = clock.now
        rounds.round(number, EXTRA, judge=False)
    np.testing.assert_allclose(clock.now - start, 0.05 + 8 * 0.02, atol=0.02)


class Counted(Scripted):
    """Counts how often it is asked for replies."""

    looks = 0

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        self.looks += 1
        return super().pull_messages(message_ids)


def test_every_answer_is_looked_for_when_it_came_the_last_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only the first: the last one ends the round."""
    clock = Clock(monkeypatch)
    monkeypatch.setattr(membership, "LOOK_S", 1.0)
    grid = Counted({10: (0, always(1.0)), 11: (1, always(1.33))})
    rounds = begun(grid, 2, **{"deadline-s": 5.0, "give-up-s": 5.0})
    lasted = []
    for number in range(1, 6):
        grid.looks, start = 0, clock.now
        rounds.round(number, EXTRA, judge=False)
        lasted.append(clock.now - start)
    np.testing.assert_allclose(lasted[1:], 1.33, atol=0.011)
    assert grid.looks < 30
