"""Pictures say what they show."""

from __future__ import annotations

import numpy as np
import pytest

from core.errors import Mistake
from runs import plots
from runs.figures import Curve


@pytest.fixture
def drawn(monkeypatch):
    """The axes of the last picture, which is closed as soon as it is saved."""
    from matplotlib import pyplot

    kept = []
    make = pyplot.subplots

    def subplots(*given, **named):
        figure, axes = make(*given, **named)
        kept.append(axes)
        return figure, axes

    monkeypatch.setattr(pyplot, "subplots", subplots)
    return kept


def curve(rows, of="seeds"):
    rows = np.array(rows, dtype=float)
    return Curve(np.arange(rows.shape[1], dtype=float), rows, of, float(rows.shape[1]))


def test_a_line_per_group_and_with_each_a_thin_one_per_seed(tmp_path, drawn):
    found = {"rule=krum": curve([[1, 2], [3, 4]]), "rule=[mean]": curve([[0, 0], [2, 2]])}
    plots.draw(tmp_path / "a.png", found, x="bytes")
    plots.draw(tmp_path / "b.svg", found, each=True)
    few, many = drawn
    assert [text.get_text() for text in few.get_legend().get_texts()] == [
        "rule=krum (2 seeds)",
        "rule=[mean] (2 seeds)",
    ]
    assert [list(line.get_ydata()) for line in few.lines] == [[2, 3], [1, 1]]
    assert few.get_xlabel() == plots.AXES["bytes"]
    assert (len(many.lines), len(many.collections)) == (6, 2)
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("a.png", "b.svg"))


def test_long_names_do_not_lie_on_the_curves(tmp_path, drawn):
    plots.draw(tmp_path / "a.png", {f"{'x' * 80}={k}": curve([[1, 2], [3, 4]]) for k in range(3)})
    (axes,) = drawn
    (legend,) = axes.figure.legends
    assert axes.get_legend() is None
    assert legend.get_window_extent().y1 <= axes.get_window_extent().y0


def test_long_names_are_whole_within_the_picture(tmp_path, drawn):
    names = [f"algorithm=policy-gradient, {'x' * 40}=1, {'y' * 40}=2, {'z' * 40}={k}" for k in range(12)]
    plots.draw(tmp_path / "a.png", {name: curve([[1, 2], [3, 4]]) for name in names})
    (axes,) = drawn
    (legend,) = axes.figure.legends
    assert [" ".join(text.get_text().split()) for text in legend.get_texts()] == [f"{name} (2 seeds)" for name in names]
    picture, extent = axes.figure.bbox, legend.get_window_extent()
    assert picture.x0 <= extent.x0 and extent.x1 <= picture.x1
    assert picture.y0 <= extent.y0 and extent.y1 <= axes.get_window_extent().y0
    assert axes.get_window_extent().height > 0.4 * 4.5 * axes.figure.dpi


def test_a_plain_mean_is_drawn_where_it_is_asked_for(tmp_path, drawn):
    found = {"run": curve([[0, 0], [0, 0], [0, 0], [8, 4]])}
    plots.draw(tmp_path / "a.png", found)
    plots.draw(tmp_path / "b.png", found, mean=True)
    assert [list(axes.lines[0].get_ydata()) for axes in drawn] == [[0, 0], [2, 1]]
    assert [axes.get_legend().get_title().get_text() for axes in drawn] == [
        "interquartile mean, 95% bootstrap",
        "mean, 90% bootstrap",
    ]


def test_the_curve_of_a_run_is_the_median_which_one_agent_cannot_move(tmp_path, drawn):
    """Agent 2 claims a million; the thin lines show it, the thick one does not."""
    records = [
        {"round": number, "steps": [10 * number] * 3, "return": [value, value + 2, 1e6]}
        for number, value in enumerate([1.0, 5.0], start=1)
    ]
    plots.curves(tmp_path / "curve.png", {"run": records})
    (axes,) = drawn
    assert [list(line.get_ydata()) for line in axes.lines] == [[1, 5], [3, 7], [1e6, 1e6], [3, 7]]
    assert axes.get_legend().get_title().get_text() == "median, 95% bootstrap"


def test_the_agents_of_one_run_are_drawn_and_one_point_is_marked(tmp_path, drawn):
    plots.draw(tmp_path / "a.png", {"run": curve([[1], [3]], "agents")})
    assert len(drawn[0].lines) == 3
    assert drawn[0].lines[-1].get_marker() == "o"


def test_a_dozen_groups_have_a_dozen_colours(tmp_path, drawn):
    plots.draw(tmp_path / "a.png", {str(k): curve([[k, k]]) for k in range(12)})
    assert len({tuple(np.atleast_1d(line.get_color())) for line in drawn[0].lines}) == 12


def test_a_picture_has_a_known_ending(tmp_path):
    with pytest.raises(Mistake, match=r"must end in \.png"):
        plots.draw(tmp_path / "a.jpeg", {})
