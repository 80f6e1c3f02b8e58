"""kl-ppo: who is handed whose policy, how old it may be, and what the ledger is told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import Message, MessageType, RecordDict

from core.errors import Mistake
from core.options import build
from strategies import messages
from strategies.kl_ppo import KLPPO, KLConfig
from strategies.messages import RefusedError, Trained
from strategies.rules.robust import make_rule
from strategies.rules.rule import RuleConfig

WIDTH, LAYOUT = 3, 7
EXTRA = {"settle": True, "save": False}
# 0 listens to 1 and, more, to 2; 1 listens to 0; nobody listens to 3, who listens to 2; 4 is on its own.
DIRECTED = '{"edges": [[0, 1, 1], [0, 2, 3], [1, 0, 1], [3, 2, 1]]}'


def strategy(agents: int = 5, matrix: str = DIRECTED, moments: int = 0, rule: Any = None, **given: Any) -> KLPPO:
    config = build(KLConfig, {"matrix": matrix} | given)
    rule = rule or make_rule(build(RuleConfig, {}), agents)
    return KLPPO(config, rule, WIDTH, LAYOUT, agents, 2, moments=moments)


def reply(agent: int, **parts: Any) -> Trained:
    rows = {name.replace("_", "."): np.asarray(row, np.float32) for name, row in parts.items()}
    return Trained(agent, rows, 10, 10, 1, {})


def policy(agent: int, number: int) -> np.ndarray:
    return np.full(WIDTH, 10 * number + agent, np.float32)


def play(one: KLPPO, number: int, agents: Any) -> dict[str, Any]:
    """A round in which these agents answer, as far as anybody listens to them."""
    return one.aggregate(
        number, [reply(k, policy=policy(k, number)) if one.heard[k] else reply(k) for k in sorted(agents)]
    )


def sent(one: KLPPO, number: int) -> dict[int, dict[str, tuple[list[float], float]]]:
    """What each agent is handed in a round: by name the policy and its weight."""
    found = {}
    for k, content in one.orders(number, range(one.agents), EXTRA).items():
        names = [name for name in messages.arrays(content) if name.startswith(messages.NEIGHBOUR)]
        message = Message(content, 1, MessageType.TRAIN)
        weights = messages.neighbours(message)
        assert set(weights) == set(names)
        arrays = messages.unpack(message, dict.fromkeys(messages.arrays(content), WIDTH)) if names else {}
        found[k] = {
            name.removeprefix("neighbour."): (arrays[name].tolist(), round(weight, 6))
            for name, weight in weights.items()
        }
    return found


def asked(one: KLPPO, number: int = 1) -> dict[int, list[str]]:
    orders = one.orders(number, range(one.agents), EXTRA)
    return {k: messages.order(Message(content, 1, MessageType.TRAIN)).parts for k, content in orders.items()}


def test_agents_are_handed_exactly_their_neighbours_weighted_by_the_matrix() -> None:
    one = strategy()
    assert sent(one, 1) == {k: {} for k in range(5)}
    play(one, 1, range(5))
    row = {k: policy(k, 1).tolist() for k in range(5)}
    wanted: dict[int, Any] = {
        0: {"1": (row[1], 0.25), "2": (row[2], 0.75)}, 1: {"0": (row[0], 1.0)}, 2: {}, 3: {"2": (row[2], 1.0)}, 4: {},
    }  # fmt: skip
    assert sent(one, 2) == wanted
    given = strategy(normalise=False)
    play(given, 1, range(5))
    assert [weight for _, weight in sent(given, 2)[0].values()] == [1.0, 3.0]


def test_only_who_is_listened_to_sends_its_policy_and_nobody_sends_a_value_function() -> None:
    assert asked(strategy()) == {0: ["policy"], 1: ["policy"], 2: ["policy"], 3: [], 4: []}
    assert strategy().widths == {"policy": WIDTH}


def test_agents_whose_orders_differ_by_their_neighbours_alone_are_asked_the_same() -> None:
    """The local engine trains those whose configs are alike in one step."""
    one = strategy(4, "ring")
    play(one, 1, range(4))
    questions = [messages.request_key(content) for content in one.orders(2, range(4), EXTRA).values()]
    assert all(question == questions[0] for question in questions)
    assert messages.request_key(one.orders(3, [0], EXTRA)[0]) != questions[0]


def answered(agent: int, parts: dict[str, np.ndarray]) -> Message:
    order = Message(RecordDict(), 100 + agent, MessageType.TRAIN)
    order.metadata.__dict__["_message_id"] = "1"
    said = messages.work_report([agent, LAYOUT, 10, 10, 1], [0, 0, 0], {})
    return Message(messages.content(messages.pack(parts), said), reply_to=order)


def test_a_reply_holds_a_policy_if_somebody_listens_and_nothing_otherwise() -> None:
    one, row = strategy(), np.ones(WIDTH, np.float32)
    assert one.read(answered(0, {"policy": row})).agent == 0
    assert one.read(answered(4, {})).parts == {}
    for agent, parts in [(0, {}), (4, {"policy": row}), (0, {"policy": row, "value": row}), (99, {"policy": row})]:
        with pytest.raises(RefusedError):
            one.read(answered(agent, parts))
    with pytest.raises(RefusedError, match="nan"):
        one.read(answered(0, {"policy": row * np.nan}))


def test_a_neighbour_that_is_missing_counts_with_its_last_policy_and_then_not_at_all() -> None:
    one = strategy(4, "complete", **{"max-age": 2})
    play(one, 1, range(4))
    told = [play(one, number, [0, 1, 2]) for number in range(2, 6)]  # 3 stays away
    # Round 2 still has its policy of round 1, which is as new as the others'; then it is one and two rounds old.
    assert [note["neighbours"][0] for note in told] == [3, 3, 3, 2]
    assert [note["neighbours-stale"][0] for note in told] == [0, 1, 1, 0]
    assert [note["neighbours-left-out"][0] for note in told] == [0, 0, 0, 1]
    assert [note["neighbours"][3] for note in told] == [None] * 4
    last = sent(one, 6)[0]
    assert set(last) == {"1", "2"}
    assert [weight for _, weight in last.values()] == [round(1 / 3, 6)] * 2, "others must not take over its weight"
    play(one, 6, range(4))
    assert sent(one, 7)[0]["3"] == (policy(3, 6).tolist(), round(1 / 3, 6))


def test_a_stale_policy_is_the_last_one_that_came() -> None:
    one = strategy(2, "pairs")
    play(one, 1, [0, 1])
    play(one, 2, [0])
    assert sent(one, 3) == {0: {"1": (policy(1, 1).tolist(), 1.0)}, 1: {"0": (policy(0, 2).tolist(), 1.0)}}


def test_in_a_star_everybody_is_pulled_to_the_average() -> None:
    one = strategy(3, "star")
    play(one, 1, range(3))
    assert sent(one, 2) == {k: {"average": ([11.0] * 3, 1.0)} for k in range(3)}
    assert asked(one) == {k: ["policy"] for k in range(3)}
    robust = strategy(3, "star", rule=make_rule(build(RuleConfig, {"rule": "median", "byzantine": 1}), 3))
    robust.aggregate(1, [reply(k, policy=[value] * 3) for k, value in enumerate([1, 2, 1e9])])
    assert sent(robust, 2)[0]["average"] == ([2.0] * 3, 1.0)
    assert sent(strategy(1, "star"), 2) == {0: {}}


def test_a_rule_that_needs_more_than_came_pulls_nobody() -> None:
    one = strategy(3, "star", rule=make_rule(build(RuleConfig, {"rule": "median", "byzantine": 1}), 3))
    play(one, 1, [0, 1])
    assert sent(one, 2) == {0: {}, 1: {}, 2: {}}


def test_watched_policies_come_without_weight() -> None:
    one = strategy(watch=True)
    play(one, 1, range(5))
    found = sent(one, 2)
    assert {k: [weight for _, weight in found[k].values()] for k in found} == {
        0: [0.25, 0.75, 0, 0], 1: [1, 0, 0, 0], 2: [0] * 4, 3: [0, 0, 1, 0], 4: [0] * 4,
    }  # fmt: skip
    star = strategy(3, "star", watch=True)
    play(star, 1, range(3))
    assert {name: weight for name, (_, weight) in sent(star, 2)[0].items()} == {"average": 1, "1": 0, "2": 0}


def test_moments_are_added_up_over_who_is_linked() -> None:
    one = strategy(moments=3)
    assert [len(parts) for parts in asked(one).values()] == [2, 2, 2, 1, 0]
    seen = [2.0, 1.0, 0.5]  # two observations of mean 1
    one.aggregate(1, [reply(0, policy=policy(0, 1), moments_observations=seen), reply(3, moments_observations=seen)])
    content = one.orders(2, [3, 4], EXTRA)
    np.testing.assert_allclose(np.frombuffer(content[3]["fedrl"]["array.moments.observations"], "<f4"), [4, 1, 1])
    assert messages.arrays(content[4]) == {}


def test_it_goes_on_where_it_was_saved() -> None:
    one, other = strategy(), strategy()
    play(one, 1, [0, 1])
    other.load_state({name: array.copy() for name, array in one.state().items()})
    assert sent(other, 2) == sent(one, 2) != sent(strategy(), 2)


def test_what_is_learned_is_every_policy_that_is_known() -> None:
    one = strategy()
    play(one, 1, range(5))
    found = one.learned()
    assert set(found) == {"policy"}
    assert np.isfinite(found["policy"]).all(axis=1).tolist() == [True, True, True, False, False]
    np.testing.assert_array_equal(found["policy"][2], policy(2, 1))


def test_a_matrix_of_another_size_is_refused() -> None:
    with pytest.raises(Mistake, match="for 2 agents, and the run has 3"):
        strategy(3, "[[0, 1], [1, 0]]")
