"""Figures of runs against numbers worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from core.counts import reached
from core.errors import Mistake
from runs import figures


def record(steps, returns, sent=0, wall=1.0, **more):
    """A line of metrics.jsonl, of as many agents as there are returns."""
    agents = len(returns)
    return {
        "round": 1, "steps": [steps] * agents, "return": returns, "bytes_up": [sent] * agents,
        "bytes_down": [2 * sent] * agents, "wall_s": wall, **more,
    }  # fmt: skip


def test_the_curve_of_one_run_has_a_row_per_agent():
    one = figures.curve([[record(10, [1.0, 3.0]), record(20, [2.0, 4.0])]])
    assert one.of == "agents"
    np.testing.assert_array_equal(one.at, [10, 20])
    np.testing.assert_array_equal(one.rows, [[1, 2], [3, 4]])


def test_runs_meet_where_all_of_them_have_been():
    """Mean over agents first: 2 at 0, 6 at 20; the other run 1 at 10, 3 at 30. Common: 10 and 20."""
    first = [record(0, [1.0, 3.0]), record(20, [5.0, 7.0])]
    second = [record(10, [1.0]), record(30, [3.0])]
    both = figures.curve([first, second])
    assert (both.of, both.furthest) == ("seeds", 30)
    np.testing.assert_array_equal(both.at, [10, 20])
    np.testing.assert_allclose(both.rows, [[4, 6], [1, 2]])


def test_runs_of_equal_positions_keep_them():
    runs = [[record(5, [k]), record(9, [k + 1])] for k in (0.0, 10.0)]
    np.testing.assert_array_equal(figures.curve(runs).at, [5, 9])
    np.testing.assert_allclose(figures.curve(runs).rows, [[0, 1], [10, 11]])


def test_many_positions_become_evenly_spaced_ones():
    runs = [[record(step + shift, [float(step)]) for step in range(0, 1000, 2)] for shift in (0, 1)]
    both = figures.curve(runs)
    assert len(both.at) == 200
    assert (both.at[0], both.at[-1]) == (1, 998)
    np.testing.assert_allclose(both.rows[0], both.at)


def test_runs_that_never_meet_are_a_point():
    both = figures.curve([[record(10, [1.0])], [record(20, [3.0])]])
    np.testing.assert_array_equal(both.at, [15])
    np.testing.assert_array_equal(both.rows, [[1], [3]])


def test_rounds_without_an_evaluation_are_left_out():
    records = [record(10, [None, None]), record(20, [5.0, None]), record(30, [None, None]), record(40, [7.0, 9.0])]
    one = figures.curve([records])
    np.testing.assert_array_equal(one.at, [20, 40])
    np.testing.assert_array_equal(one.rows, [[5, 7], [np.nan, 9]])
    # In a group, who was not judged is not missed in the mean.
    np.testing.assert_array_equal(figures.curve([records, records]).rows, [[5, 8], [5, 8]])
    with pytest.raises(Mistake, match="no agent measured it in 1 rounds"):
        figures.curve([[record(10, [None])]])


def test_bytes_add_up_over_agents_and_over_rounds_that_judged_nobody():
    """Two agents, up 100 and down 200 each: 600 a round."""
    records = [record(10, [None, None], 100), record(20, [1.0, 1.0], 100), record(30, [2.0, 2.0], 100)]
    np.testing.assert_array_equal(figures.curve([records], x="bytes").at, [1200, 1800])


def test_runs_that_sent_nothing_stand_at_zero_with_what_they_came_to():
    records = [record(10, [1.0]), record(20, [2.0])]
    both = figures.curve([records, records], x="bytes")
    np.testing.assert_array_equal(both.at, [0])
    np.testing.assert_array_equal(both.rows, [[2], [2]])


def test_seconds_and_trajectories():
    counts = [[2.0, None], [4.0, 3.0], [None, 5.0]]
    records = [record(1, [0.0, 0.0], wall=k + 0.5, trajectories=count) for k, count in enumerate(counts)]
    np.testing.assert_array_equal(figures.positions(records, "wall"), [0.5, 1.5, 2.5])
    # An agent that was not heard of stands where it stood, at first at nothing.
    np.testing.assert_array_equal(figures.positions(records, "trajectories"), [1, 3.5, 4.5])
    with pytest.raises(Mistake, match="has no metric 'trajectories'"):
        figures.positions([record(1, [0.0])], "trajectories")


def test_any_metric_of_agents():
    records = [record(1, [0.0, 0.0], loss=[1.0, 3.0])]
    np.testing.assert_array_equal(figures.curve([records], "loss").rows, [[1], [3]])


def test_final_is_the_last_evaluation():
    records = [record(10, [1.0, 2.0, 3.0]), record(20, [8.0, None, 4.0], wall=2.0), record(30, [None] * 3, wall=3.0)]
    assert figures.final(records) == {
        "agents": 3, "steps": 30, "mean": 6.0, "std": 2.0, "worst": 4.0, "best": 8.0, "returns": [8.0, None, 4.0],
        "wall_s": 3.0,
    }  # fmt: skip
    with pytest.raises(Mistake, match="has not evaluated its agents"):
        figures.final([record(10, [None])])


def test_over_seeds():
    """Finals 1, 2, 3, 10: the middle half is 2 and 3."""
    runs = {str(seed): [record(50, [value, value], wall=2.0)] for seed, value in enumerate((3.0, 1.0, 10.0, 2.0))}
    runs["4"] = [record(50, [None, None], wall=2.0)]
    found = figures.over_seeds(runs)
    assert (found["seeds"], found["mean"], found["iqm"], found["worst"], found["worst_seed"]) == (4, 4, 2.5, 1, "1")
    assert found["std"] == round(float(np.std([1, 2, 3, 10])), 4)
    assert 1 <= found["low"] <= 2.5 <= found["high"] <= 10
    # Of the 256 ways to draw four from 1, 2, 3, 10 with return, 5 have a mean below 1.5 and 243 one below 7.75.
    assert (found["mean_low"], found["mean_high"]) == (1.5, 7.75)
    assert (found["env_steps"], found["wall_s"]) == (500, 10)
    assert found["returns"] == {"0": 3, "1": 1, "2": 10, "3": 2, "4": None}
    uneven = figures.over_seeds({"0": [record(50, [4.0, 2.0])], "1": [record(50, [9.0, None]), record(60, [6.0, 8.0])]})
    assert (uneven["worst_agent"], uneven["worst_agent_std"], uneven["worst"]) == (4, 2, 3)
    nobody = figures.over_seeds({"0": [record(50, [None])]})
    assert (nobody["seeds"], nobody["env_steps"]) == (0, 50)
    assert "mean" not in nobody


def test_a_score_is_the_median_over_agents_or_what_the_server_found_itself():
    claims = record(10, [1.0, None, 3.0, 1e6, float("nan")])
    assert figures.median_return(claims) == figures.score(claims) == 3.0
    assert figures.score(claims | {"score": 2.0}) == 2.0
    assert figures.score(claims | {"score": None}) == figures.score(record(10, [None])) == -np.inf
    summary = figures.summary(
        [one | {"missed": [0], "refused": [0]} for one in (claims, record(20, [2.0, 4.0, 9.0]), record(30, [None]))]
    )
    assert (summary["median_return"], summary["best_return"], summary["final_return"]) == (4.0, 4.0, 5.0)


def test_what_a_share_of_the_agents_has_reached():
    """Half of five are three, half of four are two; fewer than half cannot move it beyond what another one says."""
    assert reached([7]) == 7
    assert reached([1, 2]) == 2
    assert reached([0, 5, 10**9]) == 5
    assert reached([3, 0, 4, 10**9]) == 4
    assert reached([0, 0, 5, 6, 7]) == 5
    assert reached([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], share=0.2) == 9
    assert reached([1, 2, 3], share=1.0) == 1


def test_the_band_of_equal_values_is_a_point():
    low, high = figures.bootstrap_band(np.full((5, 2), 7.0))
    np.testing.assert_array_equal([low, high], [[7, 7], [7, 7]])


def test_a_plain_mean_forgets_what_was_not_measured():
    nan = np.nan
    np.testing.assert_array_equal(figures.plain_mean(np.array([[1.0, nan, nan], [3.0, 4.0, nan]])), [2, 4, nan])
    rows = np.arange(40.0).reshape(10, 4)
    low, high = figures.bootstrap_band(rows, 0.9, middle=figures.plain_mean)
    assert (low < rows.mean(axis=0)).all() and (rows.mean(axis=0) < high).all()
    # A mean of ten numbers 4 apart has a standard error of 3.63: 1.645 of them to either side.
    np.testing.assert_allclose((high - low) / 2, 1.645 * 3.63, rtol=0.1)


def test_where_runs_first_are_as_high():
    """The first run is at 6 at 20 and the second at 9; their mean is 4 at 10 and 7.5 at 20."""
    first = [record(10, [2.0]), record(20, [6.0]), record(30, [4.0])]
    second = [record(10, [6.0]), record(20, [9.0]), record(30, [1.0])]
    assert figures.reach([first, second], 6, "steps") == {"value": 6, "x": "steps", "mean": 20.0, "each": [20.0, 10.0]}
    assert figures.reach([first, second], 8, "steps")["each"] == [None, 20.0]
    assert figures.reach([first, second], 8, "steps")["mean"] is None
    assert figures.reach([first], 6, "steps")["mean"] == 20.0
