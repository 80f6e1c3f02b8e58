"""Pictures of agents that pull one another."""

from __future__ import annotations

import numpy as np
import pytest

from core.errors import Mistake
from runs import links
from runs.trackers import scalars

RECORDS = [
    {"round": 1, "steps": [10, 10, 10]},
    {"round": 2, "steps": [20, 20, 20], "kl.0": [None, 0.5, None], "kl.10": [0.1, None, 0.2]},
    {"round": 3, "steps": [30, 30, 30], "kl.0": [None, 0.4, 0.0], "kl.10": [None, None, 0.3], "kl.9": [1.0, 2.0, 3.0]},
]


def test_every_pair_that_was_measured_has_a_row() -> None:
    pairs, at, rows = links.distances(RECORDS)
    assert pairs == [(1, "0"), (2, "0"), (0, "9"), (1, "9"), (2, "9"), (0, "10"), (2, "10")]
    assert at.tolist() == [20, 30]
    np.testing.assert_array_equal(rows[0], [0.5, 0.4])
    assert np.isnan(rows[1]).tolist() == [True, False]


def test_pictures_are_drawn(tmp_path) -> None:
    C = np.array([[0, 1.0, 0], [0.5, 0, 0.5], [0, 0, 0]])
    links.matrix(tmp_path / "matrix.png", C)
    links.matrix(tmp_path / "none.png", np.zeros((1, 1)))
    links.heat(tmp_path / "heat.png", RECORDS[1:], None)
    few = [{"round": 1, "steps": [5, 5], "kl.0": [None, 0.5], "kl.1": [0.1, None], "kl.average": [0.1, 0.2]}]
    links.heat(tmp_path / "few.png", few, np.array([[0, 1.0], [0, 0]]))
    for name in ("matrix", "none", "heat", "few"):
        assert (tmp_path / f"{name}.png").stat().st_size > 1000


def test_what_cannot_be_drawn_is_refused(tmp_path) -> None:
    with pytest.raises(Mistake, match="measured no KL"):
        links.heat(tmp_path / "a.png", RECORDS[:1])
    with pytest.raises(Mistake, match=r"must end in \.png"):
        links.matrix(tmp_path / "a.jpeg", np.zeros((1, 1)))


def test_an_edge_is_a_scalar_of_its_own() -> None:
    assert scalars({"kl.0": [None, 0.5, 0.1], "steps": [1, 1]}) == {"kl.0/1": 0.5, "kl.0/2": 0.1}
