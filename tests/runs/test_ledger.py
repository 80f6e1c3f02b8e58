"""What the ledger says of a filter when it is known who lied; worked by hand."""

from __future__ import annotations

import pytest

from runs.ledger import over_rounds, truth


def test_some_of_both_are_dropped() -> None:
    # Agents 3 and 4 lie, 0 and 3 are dropped: half of the drops are right, half of the liars found, a third hurt.
    found = truth({"kept.policy": [0, 1, 1, 0, 1]}, {3, 4})
    assert found == {"precision": 0.5, "recall": 0.5, "honest-drop": pytest.approx(1 / 3), "honest-dropped": 1.0}


def test_a_perfect_filter() -> None:
    assert truth({"kept.policy": [1, 1, 0]}, {2}) == {
        "precision": 1.0, "recall": 1.0, "honest-drop": 0.0, "honest-dropped": 0.0,
    }  # fmt: skip


def test_shares_of_nobody_are_left_out() -> None:
    assert truth({"kept.policy": [1, 1]}, set()) == {"honest-drop": 0.0, "honest-dropped": 0.0}
    assert truth({"kept.policy": [1, 1]}, {1}) == {"recall": 0.0, "honest-drop": 0.0, "honest-dropped": 0.0}
    assert truth({"kept.policy": [0, 0]}, {0, 1}) == {"precision": 1.0, "recall": 1.0}


def test_who_never_reached_the_rule_counts_nowhere() -> None:
    # Agent 2 lies and was refused, agent 1 is silent.
    assert truth({"kept.policy": [1, None, None, 0]}, {2, 3}) == {
        "precision": 1.0, "recall": 1.0, "honest-drop": 0.0, "honest-dropped": 0.0,
    }  # fmt: skip


def test_every_part_counts_for_itself() -> None:
    # Agent 1 lies: found out by its actor, not by its critic, where agent 0 is dropped instead.
    assert truth({"kept.actor": [1, 0], "kept.critic": [0, 1]}, {1}) == {
        "precision": 0.5, "recall": 0.5, "honest-drop": 0.5, "honest-dropped": 1.0,
    }  # fmt: skip


def test_where_no_lie_reached_the_rule_there_is_no_precision() -> None:
    kept = {"kept.policy": [1, 0, 1, None]}
    honest = {"honest-drop": pytest.approx(1 / 3), "honest-dropped": 1.0}
    for liars in (set(), {3}):  # nobody lies; the liar is silent
        assert truth(kept, liars) == honest
    assert truth(kept, {0}) == {"precision": 0.0, "recall": 0.0, "honest-drop": 0.5, "honest-dropped": 1.0}


def test_a_round_without_a_rule_has_no_truth() -> None:
    assert truth({"return": [1.0, 2.0]}, {0}) == {}


def test_means_are_over_the_rounds_that_have_a_figure() -> None:
    rounds = [{"recall": 1.0, "precision": 0.5, "honest-drop": 0.1}, {"recall": 0.0, "honest-drop": 0.0}, {}]
    assert over_rounds(rounds) == {"precision": 0.5, "recall": 0.5, "honest_drop": 0.05}
    assert over_rounds([]) == {}
