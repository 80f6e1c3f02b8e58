"""What the peers here do in a round. Written once, for one peer of a process or for all peers of a run.

Gossip mixes what agents of any kind have learned; FedPG-Dec is that with policy gradients and an inner loop of SCSG;
DecByzPG tells gradients and weights to everybody, and trusts only what most of them agree on.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from time import perf_counter
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from agents.fleet import Fleet, Report
from agents.policy_gradient import PolicyGradientFleet
from client import attacks
from client.gossip.medium import F32, Heard, Lies, Medium
from client.session import RunConfig, Session, nothing
from core.errors import Mistake
from core.rows import Rows
from strategies import scsg
from strategies.robust import TooFewError, Verdict, make_rule, minimum_diameter

Notes = dict[str, Any]


class Peers(Rows):
    """The peers here: their agents, what they exchange, and what of it a resume needs (``ROWS``)."""

    def __init__(self, config: RunConfig, session: Session, medium: Medium) -> None:
        assert list(medium.peers) == session.numbers, (medium.peers, session.numbers)
        if config.federation.fraction < 1:
            raise Mistake("who exchanges with whom is said by 'gossip.topology': leave 'federation.fraction' at 1")
        self.config, self.session, self.medium = config, session, medium
        self.parts = exchanged(config, session.fleet)
        if config.gossip.same_start:
            first = session.fleet.parts if session.numbers[0] == 0 else _first(config)
            for name in session.fleet.parts:
                session.fleet.parts[name][...] = first[name][0]

    @abstractmethod
    def round(self, number: int, settle: bool) -> tuple[Report, Notes]:
        """Learn and exchange: what the work was, and what the ledger should know."""

    def keepsakes(self) -> dict[str, dict[str, NDArray[Any]]]:
        """Other weights that a run leaves."""
        return {}

    def join(self, weights: F32) -> None:
        """Begin anew from what neighbours have: (rows, d)."""
        self.load(weights)

    def finish(self) -> None:
        """The last round is over: take in what was still on its way."""
        nothing_left = np.zeros(len(self.session.numbers))
        self.medium.finish(self.weights[:, :0], nothing_left)

    @property
    def weights(self) -> F32:
        """The exchanged parts of every agent in one row (rows, d), as a copy."""
        return np.concatenate([self.session.fleet.parts[name] for name in self.parts], axis=1)

    def load(self, weights: F32) -> None:
        for name, where in self.parts.items():
            self.session.fleet.parts[name][...] = weights[:, where]

    def _lies(self, number: int, honest: F32, came: F32 | None, tag: str) -> Lies | None:
        """What the liars here send to whom instead of these rows; nothing where nobody lies."""
        kinds = {self.session.plan.kind(peer, number) for peer in self.session.numbers}
        if not kinds & attacks.LIES.keys():
            return None
        rows = range(len(honest))

        def made(recipient: int | None) -> dict[int, F32]:
            found: dict[int, list[F32]] = {}
            for name, where in self.parts.items():
                start = None if came is None else came[:, where]
                told = attacks.told(self.session, number, rows, name, honest[:, where], start, recipient, tag)
                for row, lie in told.items():
                    found.setdefault(row, []).append(lie)
            return {row: np.concatenate(lies) for row, lies in found.items()}

        if kinds.isdisjoint(attacks.PER_RECIPIENT):
            everybody = made(None)
            return lambda recipient: everybody
        return cache(made)


class Gossip(Peers):
    """Push-sum of what agents learn: each adds its progress to the biased x, and acts by z = x / y.

    The biased x is what is carried on: beginning each round at z would forget whose mass is where, and the sum of all x
    would no longer be what all have learned.
    """

    ROWS: ClassVar[tuple[str, ...]] = ("x", "y", "refused")

    def __init__(self, config: RunConfig, session: Session, medium: Medium) -> None:
        if config.federation.judges:
            raise Mistake(
                f"{config.strategy} adds up what comes, whoever sent it: 'federation.rule', 'federation.byzantine' and "
                "'federation.mixing' are for strategies that survive liars, here dec-byz-pg"
            )
        super().__init__(config, session, medium)
        self.x, self.y = self.weights, np.ones(len(session.numbers))
        self.refused = np.zeros((len(self.x), config.agents), np.bool_)  # whose share, in the last round

    def round(self, number: int, settle: bool) -> tuple[Report, Notes]:
        came, began = self.x.copy(), self.weights
        report, notes = self._learn(number, settle)
        self.x += self.weights - began
        lies = self._lies(number, self.x, came, "")
        with _timing(notes):
            self.x[...], self.y[...] = self.medium.mix(number, self.x, self.y, lies, self.refused)
        self._debias()
        return report, notes

    def _learn(self, number: int, settle: bool) -> tuple[Report, Notes]:
        return self.session.train(self.session.round_work, None, settle, number), {}

    def join(self, weights: F32) -> None:
        self.load(weights)
        self.x[...], self.y[...], self.refused[...] = weights, 1.0, False

    def finish(self) -> None:
        self.x[...], self.y[...] = self.medium.finish(self.x, self.y)
        self._debias()

    def _debias(self) -> None:
        self.load((self.x / self.y[:, None]).astype(np.float32))


class FedPGDec(Gossip):
    """FedPG without a server: every peer takes SCSG's inner loop by itself, and gossips what came of it.

    B_t and N_t are functions of the run's seed and the round, so all peers draw the same ones and none waits long for
    another; the guard stops each by itself.
    """

    ROWS = (*Gossip.ROWS, "sampled", "picked")

    def __init__(self, config: RunConfig, session: Session, medium: Medium) -> None:
        _gradients(config)
        config.fedpg.check()
        super().__init__(config, session, medium)
        self.sampled = np.zeros(len(session.numbers), np.int64)
        self.picked = session.fleet.parts["policy"].copy()

    def round(self, number: int, settle: bool) -> tuple[Report, Notes]:
        report, notes = super().round(number, settle)
        if np.random.default_rng([self.config.seed, number, 2]).random() < 1.0 / number:
            self.picked[...] = self.session.fleet.parts["policy"]
        return report, notes | {"trajectories": self.sampled.tolist()}

    def keepsakes(self) -> dict[str, dict[str, NDArray[Any]]]:
        """The paper's output: the policies after a round that was picked uniformly."""
        return {"picked": {"policy": self.picked}}

    def _learn(self, number: int, settle: bool) -> tuple[Report, Notes]:
        config, seed = self.config.fedpg, self.config.seed
        batch = config.batch(seed, number)
        length = config.length(batch, seed, number)

        def act(fleet: Fleet, rows: NDArray[np.int64]) -> tuple[F32, Report]:
            assert isinstance(fleet, PolicyGradientFleet)
            report = Report(np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64))
            with report.acting():
                found = fleet.sample(fleet.policy, batch, report)
            self.sampled[rows] += batch

            def look(going: NDArray[np.int64], found: Any) -> None:
                report.steps[going] += found.used
                self.sampled[rows[going]] += config.own_batch

            with report.learning():
                report.updates += scsg.ascend(fleet, fleet.ascent(fleet.policy, found), length, config, look)
            fleet.progress += 1
            return nothing(fleet), report

        report = self.session.work(act, None, settle, number)[1]
        return report, {"batch": batch, "inner-steps": report.updates.tolist()}


class DecByzPG(Peers):
    """Policy gradients among peers of whom up to f lie, each of them the same to all (Jordan 2024); all are connected.

    A common coin makes a round large, with a gradient of many trajectories, or small, with a few that correct the last
    direction (PAGE). Gradients are told to everybody, and every peer makes one of them by a rule that survives f lies.
    After its step of Adam it agrees with the others on weights: they are told, and what is kept is the mean of the
    n - f that are nearest to each other, again and again until these are as good as one.
    """

    ROWS = ("then", "direction", "known", "sampled")

    def __init__(self, config: RunConfig, session: Session, medium: Medium) -> None:
        _gradients(config)
        if config.gossip.topology != "complete":
            raise Mistake(
                f"in dec-byz-pg all hear all: 'gossip.topology' is complete then, not {config.gossip.topology}"
            )
        super().__init__(config, session, medium)
        rules = config.federation
        if rules.rule == "auto":
            rules = replace(rules, rule="geometric-median")
        self.rule, self.liars = make_rule(rules, config.agents), rules.byzantine
        make_rule(replace(rules, rule="minimum-diameter"), config.agents)  # refuses more liars than it can survive
        policy = session.fleet.parts["policy"]
        # Where the last direction was measured, and which it was; it is known to those who took part.
        self.then, self.direction = policy.copy(), np.zeros_like(policy)
        self.known = np.zeros(len(policy), np.bool_)
        self.sampled = np.zeros(len(policy), np.int64)

    def round(self, number: int, settle: bool) -> tuple[Report, Notes]:
        fleet, config = self.session.fleet, self.config.gossip
        policy = fleet.parts["policy"]
        coin = np.random.default_rng([self.config.seed, number, 4]).random() < config.coin
        large = coin or number == 1
        began, notes = policy.copy(), Notes(large=int(large))
        measured, report = self._measure(config.large if large else config.small, large, settle, number)
        with _timing(notes):
            heard = self.medium.tell(number, "gradient", 0, measured, self._lies(number, measured, None, ".gradient"))
        for row, verdict in enumerate(self._judged(heard, lambda rows: self.rule(rows, np.ones(len(rows))))):
            self.direction[row] = measured[row] if verdict is None else verdict.row
        self.then[...], self.known[...] = began, True
        fleet.apply("policy", -self.direction)
        with _timing(notes):
            notes |= self._agree(number, began)
        return report, notes | {"trajectories": self.sampled.tolist()}

    def join(self, weights: F32) -> None:
        self.load(weights)
        self.known[...] = False

    def _measure(self, batch: int, large: bool, settle: bool, number: int) -> tuple[F32, Report]:
        """The direction that every peer would go, upwards: from the last one where it can be corrected."""

        def act(fleet: Fleet, rows: NDArray[np.int64]) -> tuple[F32, Report]:
            assert isinstance(fleet, PolicyGradientFleet)
            report = Report(np.zeros(len(rows), np.int64), np.ones(len(rows), np.int64))
            with report.acting():
                found = fleet.sample(fleet.policy, batch, report)
            with report.learning():
                if large:
                    v = fleet.ascent(fleet.policy, found)
                else:
                    change, weight = fleet.correction(self.then[rows], found)
                    alone = fleet.ascent(fleet.policy, found)
                    v = np.where(self.known[rows, None], change + self.direction[rows], alone)
                    report.metrics["page-weight"] = weight
            self.sampled[rows] += batch
            fleet.progress += 1
            return v, report

        return self.session.work(act, None, settle, number)

    def _agree(self, number: int, came: F32) -> Notes:
        """Averaging agreement on the weights; who is done says so and leaves its last word to the others."""
        W, config = self.session.fleet.parts["policy"], self.config.gossip
        done, diameters = np.zeros(len(W), np.bool_), np.full(len(W), np.nan)
        turns = 0
        for turn in range(config.turns):
            lies = self._lies(number, W, came, f".{turn}")
            heard = self.medium.tell(number, "weights", turn, W.copy(), lies, done.copy())
            if done.all():
                break
            turns = turn + 1
            for row, verdict in enumerate(self._judged(heard, lambda rows: minimum_diameter(rows, self.liars))):
                if verdict is not None and not done[row]:
                    W[row], diameters[row] = verdict.row, verdict.notes["diameter"]
            done |= diameters < config.agreed
        return {"turns": turns, "diameter": [None if np.isnan(d) else float(d) for d in diameters]}

    def _judged(self, heard: list[Heard], rule: Callable[[F32], Verdict]) -> Iterator[Verdict | None]:
        """What a rule makes of what each peer has heard; those who have heard the same think the same."""
        known: dict[int, Verdict | None] = {}
        for _, rows in heard:
            if id(rows) not in known:
                try:
                    known[id(rows)] = rule(rows)
                except TooFewError:
                    known[id(rows)] = None
            yield known[id(rows)]


STRATEGIES: dict[str, type[Peers]] = {"gossip": Gossip, "fedpg-dec": FedPGDec, "dec-byz-pg": DecByzPG}


def exchanged(config: RunConfig, fleet: Fleet) -> dict[str, slice]:
    """The parts that are exchanged, and where they lie in a row."""
    names = [name.strip() for name in config.federation.parts.split(",") if name.strip()] or list(fleet.parts)
    found, begin = dict[str, slice](), 0
    for name in names:
        if name not in fleet.parts:
            raise Mistake(f"'federation.parts' names '{name}'; {config.algorithm} has {', '.join(fleet.parts)}")
        width = fleet.parts[name].shape[1]
        found[name], begin = slice(begin, begin + width), begin + width
    return found


def _first(config: RunConfig) -> dict[str, F32]:
    """The weights that the first agent begins with."""
    other = Session(replace(config, evaluate_episodes=0), [0])
    other.close()
    return other.fleet.parts


def _gradients(config: RunConfig) -> None:
    if config.algorithm != "policy-gradient":
        raise Mistake(
            f"{config.strategy} works on policy gradients: algorithm is policy-gradient then, not {config.algorithm}; "
            "the strategy gossip mixes agents of any kind"
        )


@contextmanager
def _timing(notes: Notes) -> Iterator[None]:
    begun = perf_counter()
    yield
    notes["exchanging_s"] = notes.get("exchanging_s", 0.0) + perf_counter() - begun
