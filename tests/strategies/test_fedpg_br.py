"""FedPG-BR's server: batches, filter, inner loop, guard, sigma, counts; against numbers worked by hand."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from core import registry
from core.errors import Mistake
from core.options import build
from runs import checkpoints
from runs.config import configure
from runs.directory import RunDirectory
from strategies.federation import FederationConfig
from strategies.fedpg_br import FedPG, FedPGConfig
from strategies.messages import Trained, order
from tests.server.federations import local
from tests.server.scripted import LAYOUT

EXTRA = {"settle": True, "save": False}


class Learner:
    """A server's agent whose every number is known: gradients of 1, weights and scatter as the test says."""

    def __init__(self, weight: float = 1.0, scatter: float = 4.0) -> None:
        self.policy = np.zeros((1, 3), np.float32)
        self.worlds = SimpleNamespace(steps=np.zeros(1, np.int64))
        self.weight, self.spread, self.steps = weight, scatter, []  # type: ignore[var-annotated]

    def sample(self, W: Any, batch: int, report: Any = None) -> int:
        self.worlds.steps += 10 * batch
        return batch

    def ascent(self, W: Any, found: int, weight: Any = None) -> Any:
        return np.ones_like(W)

    def progress_since(self, then: Any, found: int) -> tuple[Any, Any]:
        return self.policy - then, np.array([self.weight])

    def take(self, rows: Any) -> Any:
        raise AssertionError("one agent is never a part of itself")

    def put(self, rows: Any, part: Any) -> None:
        raise AssertionError("one agent is never a part of itself")

    def scatter(self, W: Any, found: int) -> float:
        return self.spread

    def apply(self, part: str, G: Any) -> None:
        self.steps.append(-G[0].copy())
        self.policy -= G

    def state(self) -> dict[str, Any]:
        return {"policy": self.policy}

    def load_state(self, state: Any, where: str = "") -> None:
        self.policy[...] = state[where + "policy"]


def fedpg(learner: Any = None, agents: int = 4, seed: int = 0, rules: Any = None, **config: Any) -> FedPG:
    given = {name.replace("_", "-"): value for name, value in config.items()}
    return FedPG(
        learner or Learner(), build(FedPGConfig, given), build(FederationConfig, rules or {}), LAYOUT, agents, seed
    )


def checked(**tables: Any) -> None:
    FedPG.check(configure({"strategy": "fedpg-br", "algorithm": "policy-gradient", **tables}))


def reply(agent: int, row: list[float]) -> Trained:
    return Trained(agent, {"policy": np.array(row, np.float32)}, 100, 100, 1, {})


def honest(agents: int = 4) -> list[Trained]:
    """d loss / d W of -1 each: upwards is +1."""
    return [reply(agent, [-1, -1, -1]) for agent in range(agents)]


def test_a_round_asks_everybody_for_a_gradient_on_the_same_batch() -> None:
    strategy, seen = fedpg(), set()
    for number in range(1, 200):
        contents = strategy.orders(number, [0, 1, 3], EXTRA)
        asked = [order(SimpleNamespace(content=content)) for content in contents.values()]  # type: ignore[arg-type]
        assert {one.work for one in asked} == {asked[0].work}
        assert asked[0].exchange == "gradients"
        seen.add(asked[0].work)
    assert seen == set(range(12, 21))


def test_the_first_inner_step_goes_along_mu_and_the_next_add_the_own_correction() -> None:
    """v = g(theta_n) - g_w(theta_0) + mu; the learner's correction is theta_n - theta_0, so steps double."""
    learner = Learner()
    notes = fedpg(learner, inner="svrpg").aggregate(1, honest())
    assert notes["inner-steps"] == 3
    np.testing.assert_allclose(learner.steps, [[1] * 3, [2] * 3, [4] * 3])


def test_the_guard_stops_before_the_step() -> None:
    for weight, steps in ((1.004, 3), (1.006, 1), (0.994, 1)):
        learner = Learner(weight)
        assert fedpg(learner, inner="svrpg").aggregate(1, honest())["inner-steps"] == steps
        assert len(learner.steps) == steps


def test_without_anybody_to_trust_the_server_steps_on_its_own_gradient() -> None:
    learner = Learner(scatter=1e-6)
    apart = [reply(agent, [float(10**agent), 0, 0]) for agent in range(4)]
    notes = fedpg(learner, inner="none").aggregate(1, apart)
    assert (notes["regime.policy"], notes["kept.policy"]) == (0, [0, 0, 0, 0])
    np.testing.assert_allclose(learner.steps, [[1, 1, 1]])


def test_no_rule_s_note_takes_the_place_of_another_figure() -> None:
    """The geometric median counts its steps, which are not those of the agents."""
    for rule in ("auto", *registry.names("rule")):
        strategy = fedpg(agents=10, inner="none", rules={"rule": rule, "byzantine": 1})
        notes = strategy.aggregate(1, honest(10))
        assert len(notes["kept.policy"]) == 10
        assert not set(notes) & {"round", "steps", "updates", "return", "episodes", "missed", "parts"}, rule


def test_the_length_of_the_inner_loop_is_geometric_with_the_right_mean() -> None:
    strategy = fedpg(batch_min=16, batch_max=16)
    lengths = [strategy.config.length(16, 0, number) for number in range(4000)]
    assert min(lengths) == 1
    # std of the mean: sqrt(1 - p) / p / sqrt(4000) = 0.07
    assert abs(np.mean(lengths) - 5.0) < 0.25
    assert abs(np.mean(np.array(lengths) == 1) - 0.2) < 0.02


def test_sigma_auto_is_measured_on_the_servers_own_trajectories_alone() -> None:
    """T = 2 sigma sqrt(V/B) is the margin times sqrt(2 s^2 / B), the usual distance of honest gradients."""
    found = []
    for replies in (honest(), [*honest(3), reply(3, [1e9, 0, 0])]):
        notes = fedpg(Learner(scatter=4.0), batch_min=16, batch_max=16, margin=1.5).aggregate(1, replies)
        assert math.isclose(notes["threshold.policy"], 1.5 * math.sqrt(2 * 4.0 / 16), rel_tol=1e-6)
        found.append(notes["sigma"])
    assert found[0] == found[1]


def test_batches_of_one_trajectory_have_a_measured_sigma(tmp_path: Path) -> None:
    """One trajectory has no variance: the server measures it on ``own-batch`` of them, two at least."""
    tiny = {
        "algorithm": "policy-gradient", "strategy": "fedpg-br", "agents": 4, "rounds": 3, "steps": 0,
        "evaluate-episodes": 0, "tensorboard": False, "world": {"id": "CartPole-v1", "copies": 4, "horizon": 50},
        "policy-gradient": {"hidden": [4]}, "fedpg": {"batch-min": 1, "batch-max": 1, "own-batch": 2},
    }  # fmt: skip
    records = local(tmp_path / "run", configure(tiny)).read_metrics()
    assert [record["batch"] for record in records] == [1, 1, 1]
    assert all(0 < record["sigma"] < math.inf for record in records)
    V, threshold = 2 * math.log(2 * 4 / 0.6), records[0]["threshold.policy"]
    assert math.isclose(threshold, 2 * records[0]["sigma"] * math.sqrt(V), rel_tol=1e-6)  # B = 1
    assert all(math.isfinite(value) for value in checkpoints.load(tmp_path / "run" / "weights.npz")[0]["policy"][0])


def test_sigma_follows_what_is_measured_with_memory() -> None:
    learner = Learner(scatter=4.0)
    strategy = fedpg(learner, memory=0.5, inner="none")
    strategy.aggregate(1, honest())
    learner.spread = 8.0
    strategy.aggregate(2, honest())
    assert strategy.variance[0, 0] == 6.0


def test_a_number_for_sigma_is_the_papers_rule() -> None:
    strategy = fedpg(rules={"sigma": 0.06}, batch_min=16, batch_max=16)
    notes = strategy.aggregate(1, honest())
    V = 2 * math.log(2 * 4 / 0.6)
    assert math.isclose(notes["threshold.policy"], 2 * 0.06 * math.sqrt(V / 16), rel_tol=1e-6)
    with pytest.raises(Mistake, match="auto or a number"):
        fedpg(rules={"sigma": "large"})


def test_a_liar_is_dropped_and_any_rule_can_stand_in() -> None:
    lies = [*honest(), reply(4, [50.0, 50, 50])]
    learner = Learner(scatter=1.0)
    assert fedpg(learner, 5, inner="none").aggregate(1, lies)["kept.policy"] == [1, 1, 1, 1, 0]
    np.testing.assert_allclose(learner.steps, [[1, 1, 1]])
    learner = Learner()
    fedpg(learner, 5, rules={"rule": "median", "byzantine": 1}, inner="none").aggregate(1, lies)
    np.testing.assert_allclose(learner.steps, [[1, 1, 1]])
    learner = Learner()
    fedpg(learner, 5, rules={"rule": "mean"}, inner="none").aggregate(1, lies)
    np.testing.assert_allclose(learner.steps, [[-9.2] * 3], rtol=1e-5)


@pytest.mark.parametrize("rule", ["auto", "fedpg"])
def test_its_own_filter_is_refused_what_other_rules_are(rule: str) -> None:
    with pytest.raises(Mistake, match=r"'fedpg' needs at least 17 parties .* there are 10"):
        fedpg(agents=10, rules={"rule": rule, "byzantine": 8})
    with pytest.raises(Mistake, match=r"'fedpg' needs at least 7 parties .* there are 5"):
        fedpg(agents=10, rules={"rule": rule, "byzantine": 3, "fraction": 0.5})
    fedpg(agents=10, rules={"rule": rule, "byzantine": 4})
    with pytest.raises(Mistake, match=r"leave out 'federation.batch'"):
        checked(federation={"rule": rule, "batch": 64})
    with pytest.raises(Mistake, match=r"'federation.parts' cannot be 'value'"):
        checked(federation={"rule": rule, "parts": "value"})


def test_mixing_comes_before_the_filter() -> None:
    """0, 0.6, 1.2, 1.8 and a lie at 50, f = 1: each becomes the mean of the four nearest, the liar that of its own."""
    rows, learner = [*[reply(k, [-0.6 * k, 0, 0]) for k in range(4)], reply(4, [-50, 0, 0])], Learner()
    near = {"sigma": 0.2}  # T = 0.24: without mixing nobody has anyone near; mixed, four are at 0.9
    alone = fedpg(Learner(), 5, rules=near, inner="none").aggregate(1, rows)
    assert (alone["regime.policy"], alone["kept.policy"]) == (0, [0] * 5)
    mixed = fedpg(learner, 5, rules=near | {"mixing": True, "byzantine": 1}, inner="none").aggregate(1, rows)
    assert (mixed["regime.policy"], mixed["kept.policy"]) == (1, [1, 1, 1, 1, 0])
    np.testing.assert_allclose(learner.steps, [[0.9, 0, 0]], rtol=1e-6)


def test_of_a_fraction_half_means_half_of_those_asked() -> None:
    """Ten agents, five asked, one of whom lies: K = 5, and who was not asked has sampled nothing."""
    rules, learner = {"fraction": 0.5}, Learner(scatter=1.0)
    strategy = fedpg(learner, 10, rules=rules, inner="none", batch_min=16, batch_max=16)
    notes = strategy.aggregate(1, [reply(k, [-1, -1, -1]) for k in (1, 3, 6, 8)] + [reply(9, [50, 50, 50])])
    assert notes["kept.policy"] == [None, 1, None, 1, None, None, 1, None, 1, 0]
    np.testing.assert_allclose(learner.steps, [[1, 1, 1]])
    assert (
        notes["trajectories"] == [(5 * 16 + 16 + 4) / 11] * 10
    )  # the server: to begin with, and where no step sampled
    V = 2 * math.log(2 * 5 / 0.6)
    assert math.isclose(notes["threshold.policy"], 2 * notes["sigma"] * math.sqrt(V / 16), rel_tol=1e-6)


def test_trajectories_per_agent_count_the_servers() -> None:
    """(K B + b N) / (K + 1), the server's own at the calibration and in the steps after the first."""
    strategy = fedpg(batch_min=16, batch_max=16, inner="svrpg")
    first = strategy.aggregate(1, honest())["trajectories"][0]
    assert first == (4 * 16 + 16 + 2 * 4) / 5
    assert strategy.aggregate(2, honest())["trajectories"][0] == first + (4 * 16 + 2 * 4) / 5


def test_the_picked_policy_is_uniform_over_rounds() -> None:
    """One of four rounds each time; every round is picked about as often."""
    picked = []
    for seed in range(400):
        learner = Learner()
        strategy = fedpg(learner, seed=seed, inner="none")
        for number in range(1, 5):
            strategy.aggregate(number, honest())
        picked.append(round(float(strategy.extra_weights()["picked"]["policy"][0, 0])))
    counts = np.bincount(picked, minlength=5)[1:]
    assert counts.sum() == 400
    assert counts.min() > 65  # 100 expected, std 8.7


def test_a_loaded_state_goes_on_where_it_was() -> None:
    def play(rounds: range, strategy: FedPG) -> FedPG:
        for number in rounds:
            strategy.aggregate(number, honest())
        return strategy

    whole, half = play(range(1, 5), fedpg(seed=3)), play(range(1, 3), fedpg(seed=3))
    again = fedpg(seed=3)
    again.load_state({name: array.copy() for name, array in half.state().items()})
    play(range(3, 5), again)
    for name, array in whole.state().items():
        np.testing.assert_array_equal(array, again.state()[name])


def test_a_run_leaves_what_it_picked_and_nothing_to_the_next_seed(tmp_path: Path) -> None:
    """Seeds 0, 1 and 0 again in one process, whole runs among liars: the two of one seed are the same, bit for bit."""

    def run(name: str, seed: int) -> RunDirectory:
        tiny = {
            "algorithm": "policy-gradient", "strategy": "fedpg-br", "agents": 4, "rounds": 6, "seed": seed,
            "evaluate-episodes": 2, "tensorboard": False, "world": {"id": "CartPole-v1", "copies": 4, "horizon": 50},
            "policy-gradient": {"hidden": [4]}, "attack": {"kind": "random-noise", "byzantine": 1},
            "fedpg": {"batch-min": 4, "batch-max": 8, "own-batch": 2},
        }  # fmt: skip
        return local(tmp_path / name, configure(tiny))

    one, other, again = run("one", 0), run("other", 1), run("again", 0)
    for name in ("weights.npz", "best.npz", "picked.npz"):
        first, second, third = (checkpoints.load(run.path / name)[0]["policy"] for run in (one, other, again))
        assert first.shape == (1, 4 * 4 + 4 + 4 * 2 + 2) and np.isfinite(first).all()
        np.testing.assert_array_equal(first, third, err_msg=name)
        assert not np.array_equal(first, second)
    lines = [
        [{key: said for key, said in record.items() if not key.endswith("_s")} for record in run.read_metrics()]
        for run in (one, again)
    ]
    assert lines[0] == lines[1]


def test_batches_the_wrong_way_round_are_refused() -> None:
    with pytest.raises(Mistake, match="batch-min"):
        checked(fedpg={"batch-min": 20, "batch-max": 10})
