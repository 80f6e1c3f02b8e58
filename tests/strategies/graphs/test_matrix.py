"""Communication matrices: names, JSON, files, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from core.errors import Mistake
from strategies.graphs.matrix import communication, inlined, names


@pytest.mark.parametrize(
    ("name", "agents", "edges"),
    [
        ("ring", 1, []),
        ("ring", 2, [(0, 1), (1, 0)]),
        ("ring", 4, [(0, 1), (0, 3), (1, 0), (1, 2), (2, 1), (2, 3), (3, 0), (3, 2)]),
        ("complete", 1, []),
        ("complete", 3, [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]),
        ("pairs", 1, []),
        ("pairs", 5, [(0, 1), (1, 0), (2, 3), (3, 2)]),
    ],
)
def test_a_name_is_a_matrix(name, agents, edges):
    given = communication(name, agents, normalise=False)
    assert given.shape == (agents, agents)
    assert list(zip(*np.nonzero(given), strict=True)) == edges
    assert (given[given > 0] == 1).all()
    sums = communication(name, agents, normalise=True).sum(axis=1)
    np.testing.assert_allclose(sums, [float(any(k == i for i, _ in edges)) for k in range(agents)])


def test_all_of_it_and_its_edges_are_the_same_and_need_not_be_symmetric():
    rows, edges = "[[0, 2, 1], [0, 0, 0], [0.5, 0, 0]]", '{"edges": [[0, 1, 2], [0, 2, 1.0], [2, 0, 0.5]]}'
    for text in (rows, edges):
        given = communication(text, 3, normalise=False)
        np.testing.assert_array_equal(given, [[0, 2, 1], [0, 0, 0], [0.5, 0, 0]])
        shares = communication(text, 3, normalise=True)
        np.testing.assert_allclose(shares, [[0, 2 / 3, 1 / 3], [0, 0, 0], [1, 0, 0]])


def test_a_file_becomes_what_it_holds(tmp_path):
    path = tmp_path / "graph.json"
    path.write_text('{"edges": [\n [0, 1, 2.5]\n]}\n')
    text = inlined(str(path))
    assert json.loads(text) == {"edges": [[0, 1, 2.5]]}
    assert inlined(text) == text
    assert [inlined(name) for name in names()] == ["ring", "directed-ring", "line", "complete", "pairs", "star"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[0, 1], [1]]", "not square: 2 rows with 1, 2 weights"),
        ("[[0, 1, 0], [1, 0, 0]]", "not square: 2 rows with 3 weights"),
        ("[[0, 1], [1, 0]]", "for 2 agents, and the run has 3"),
        ("[[0, -1, 0], [0, 0, 0], [0, 0, 0]]", r"the weight -1 from 0 to 1: negative"),
        ("[[0, NaN, 0], [0, 0, 0], [0, 0, 0]]", r"the weight NaN from 0 to 1, and weights are finite"),
        ("[[0, Infinity, 0], [0, 0, 0], [0, 0, 0]]", "weights are finite"),
        ('[[0, "a", 0], [0, 0, 0], [0, 0, 0]]', "a weight is a number"),
        ("[[0, true, 0], [0, 0, 0], [0, 0, 0]]", "a weight is a number"),
        ("[[0, 0, 0], [0, 1, 0], [0, 0, 0]]", "links agent 1 to itself"),
        ("[0, 1, 2]", "a list of rows"),
        ("[[0, 1", "no JSON"),
        ('{"edges": [[0, 3, 1]]}', r"an edge \[0, 3, 1\], and agents go from 0 to 2"),
        ('{"edges": [[-1, 0, 1]]}', "agents go from 0 to 2"),
        ('{"edges": [[0.0, 1, 1]]}', "agents go from 0 to 2"),
        ('{"edges": [[0, 1]]}', r"one is \[k, j, weight\]"),
        ('{"edges": [[0, 1, 1], [0, 1, 2]]}', "the edge from 0 to 1 twice"),
        ('{"edges": [[2, 2, 1]]}', "links agent 2 to itself"),
        ('{"edges": [[0, 1, -0.5]]}', "negative"),
        ('{"edges": {}}', "edges"),
        ('{"nodes": []}', "edges"),
    ],
)
def test_a_bad_matrix_is_refused_by_name(text, words):
    with pytest.raises(Mistake, match=words) as refused:
        communication(text, 3, normalise=True)
    assert "'kl.matrix'" in str(refused.value)


def test_what_is_neither_a_name_nor_a_file_is_refused(tmp_path):
    with pytest.raises(Mistake, match=r"ring, directed-ring, .* star, JSON, or a file that holds it, not 'circle'"):
        inlined("circle")
    (tmp_path / "broken.json").write_text("[[0, 1")
    with pytest.raises(Mistake, match=r"broken\.json holds no JSON"):
        inlined(str(tmp_path / "broken.json"))
