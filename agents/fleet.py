"""What every fleet can do. A fleet is K learners of one kind whose weights are matrices with a row per agent."""

from __future__ import annotations

import inspect
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import numpy as np
from gymnasium import spaces
from numba import njit
from numpy.typing import NDArray

from core import registry
from core.errors import Mistake
from core.moments import Moments
from core.rows import Rows
from core.streams import Streams, child

F32 = NDArray[np.float32]
Bools = NDArray[np.bool_]


class Step(Protocol):
    """What a step returns, axes (agent, copy); ``next_obs`` is the true successor, ``obs`` what to act on now."""

    obs: F32
    reward: F32
    terminated: Bools
    truncated: Bools
    next_obs: F32


class Worlds(Protocol):
    """What a fleet needs of its worlds: K agents x n copies that reset themselves."""

    agents: int
    copies: int
    horizon: int
    exact: bool
    observation_space: spaces.Box
    action_space: spaces.Space[Any]
    obs: F32
    steps: NDArray[np.int64]

    @property
    def compiled(self) -> tuple[Any, ...] | None: ...
    def reset(self) -> F32: ...
    def settle(self) -> None: ...
    def count(self, lived: NDArray[np.int64] | int) -> None: ...
    def step(self, actions: NDArray[Any], active: Bools | None = None) -> Any: ...
    def take(self, rows: Any) -> Any: ...
    def put(self, rows: Any, part: Any) -> None: ...
    def close(self) -> None: ...


class Episode(NamedTuple):
    """A finished training episode of one agent: its return, its length, and the agent's step count at its end."""

    agent: int
    total: float
    length: int
    at: int


class Bounds(NamedTuple):
    """What some work can take of one agent: environment steps, at least and at most, and updates, at most."""

    fewest: int
    most: int
    updates: int


@dataclass
class Report:
    """What a stretch of training did: per agent (K,) unless said otherwise."""

    steps: NDArray[np.int64]
    updates: NDArray[np.int64]
    episodes: list[Episode] = field(default_factory=list)
    metrics: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    acting_s: float = 0.0
    learning_s: float = 0.0

    @contextmanager
    def acting(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.acting_s += time.perf_counter() - begin

    @contextmanager
    def learning(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.learning_s += time.perf_counter() - begin


class Meter(Rows):
    """Adds up the returns of the episodes in progress."""

    ROWS = ("total", "length")

    def __init__(self, agents: int, copies: int) -> None:
        self.total = np.zeros((agents, copies))
        self.length = np.zeros((agents, copies), np.int64)

    def add(self, reward: F32, ended: Bools, at: NDArray[np.int64], report: Report) -> None:
        """Count T steps of every copy, (T, K, n), at whose end the agents are ``at``; report episodes that ended."""
        T, _, n = reward.shape
        for t, k, total, length in _ended(reward, ended, self.total, self.length):
            report.episodes.append(Episode(int(k), total, int(length), int(at[k]) - (T - 1 - int(t)) * n))

    def clear(self) -> None:
        self.total[...] = 0.0
        self.length[...] = 0


@njit(cache=True)
def _ended(reward, ended, total, length):  # type: ignore[no-untyped-def]
    found = [(0, 0, 0.0, 0) for _ in range(0)]
    for t in range(reward.shape[0]):
        for k in range(reward.shape[1]):
            for i in range(reward.shape[2]):
                total[k, i] += reward[t, k, i]
                length[k, i] += 1
                if ended[t, k, i]:
                    found.append((t, k, total[k, i], length[k, i]))
                    total[k, i], length[k, i] = 0.0, 0
    return found


class Fleet(Rows):
    """K learners and their worlds.

    ``parts`` are the weights that may be exchanged, one float32 matrix each; write into them, never replace them.
    Everything random is drawn from each agent's own streams, so an agent learns the same alone and in a fleet.
    """

    unit: str = "work"
    # How the names of learned arrays begin that acting can do without.
    spare: ClassVar[tuple[str, ...]] = ()
    seeds: Sequence[int]
    worlds: Worlds
    progress: NDArray[np.int64]

    @classmethod
    def check(cls, run: Any) -> None:
        """Refuse a run that this learner cannot have part in (``runs.config.RunConfig``). Builds nothing."""

    @property
    def agents(self) -> int:
        return len(self.progress)

    @property
    def parts(self) -> dict[str, F32]:
        """The weight matrix (K, d) of each part."""
        raise NotImplementedError

    @property
    def moments(self) -> dict[str, Moments]:
        """Running moments that are exchanged beside the parts: added up, never averaged."""
        return {}

    @property
    def learned(self) -> dict[str, NDArray[Any]]:
        """All that acting needs, a row per agent: what a run leaves for others to use."""
        found: dict[str, NDArray[Any]] = dict(self.parts)
        for name, moments in self.moments.items():
            found |= {f"moments.{name}.{key}": array for key, array in moments.state().items()}
        return found

    def load_learned(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take over what a fleet of the same shape has learned; ``spare`` arrays may be missing."""
        for name, mine in self.learned.items():
            if name not in arrays and name.startswith(self.spare):
                continue
            # One row is for everybody: what a federation leaves is one set of weights.
            if name not in arrays or arrays[name].shape not in (mine.shape, (1, *mine.shape[1:])):
                found = list(arrays[name].shape) if name in arrays else "missing"
                raise Mistake(f"'{name}' of the weights is {found}, this fleet needs {list(mine.shape)}")
            if unknown := np.flatnonzero(~np.isfinite(arrays[name]).all(axis=1)).tolist():
                raise Mistake(f"'{name}' of the weights holds nothing of the agents {unknown}: they sent none")
            mine[...] = arrays[name]

    def act(self, obs: F32, streams: Streams | None = None) -> NDArray[Any]:
        """Actions (K, n[, a]) for observations (K, n, o): explored with the copies' streams, greedy without."""
        raise NotImplementedError

    @property
    def usual_work(self) -> int:
        """The work of a round when a run leaves it to the algorithm."""
        return 10

    @property
    def standing(self) -> NDArray[np.int64]:
        """Where each agent is in its training: those that stand alike are trained together."""
        return self.progress

    def train(self, work: int) -> Report:
        """``work`` more units for every agent (``unit`` says which)."""
        return self.in_groups(lambda group, rows: group._train(work))

    def in_groups(self, act: Callable[[Any, Any], Report]) -> Report:
        """Everybody acts, and agents that do not stand alike do it in groups; ``act`` gets a fleet and its rows."""
        standing = np.unique(self.standing, axis=0)
        if len(standing) == 1:
            return act(self, slice(None))
        whole = Report(np.zeros(self.agents, np.int64), np.zeros(self.agents, np.int64))
        # Who is in which group is settled first: a group that has trained may stand where another one begins.
        groups = [(self.standing == stage).reshape(self.agents, -1).all(axis=1) for stage in standing]
        for rows in map(np.flatnonzero, groups):
            group = self.take(rows)
            merge(whole, rows, act(group, rows), self.agents)
            self.put(rows, group)
        return whole

    def _train(self, work: int) -> Report:
        raise NotImplementedError

    def steps_of(self, work: int) -> float:
        """Environment steps of an agent over all its copies in so much work; infinite where work is whole episodes."""
        raise NotImplementedError

    def bounds(self, work: int, measured: bool = False) -> Bounds:
        """Return what ``train(work)`` can take of one agent; ``measured``: what ``measure`` on ``work`` samples can."""
        raise NotImplementedError

    def gradient(self, part: str) -> F32:
        """d loss / d W of a part (K, d) on fresh data, without a step."""
        raise Mistake(f"{type(self).__name__} gives no gradient of '{part}'")

    def measure(self, part: str, work: int) -> tuple[F32, Report]:
        """d loss / d W of a part (K, d) on ``work`` fresh samples, and what measuring it took: a round's work."""
        raise Mistake(f"{type(self).__name__} measures no gradient of '{part}'")

    def train_to(self, part: str, work: int) -> Report:
        """As ``train``, but the last update pauses where a part is exchanged; training again goes on from there."""
        raise Mistake(f"{type(self).__name__} does not pause at the exchange of '{part}'")

    # Whether policies of other agents can pull on this learner (``link``).
    linkable: ClassVar[bool] = False

    def link(self, policies: F32, weights: F32, known: Bools, names: Sequence[str]) -> None:
        """Be pulled towards these policies (J, d) from now on, each agent with its row of ``weights`` (K, J).

        ``known`` tells which policies each agent was handed; ``names`` say whose they are.
        """
        raise Mistake(f"{type(self).__name__} is pulled towards no policies of others")

    def shared(self, part: str) -> F32:
        """The weights of a part (K, d) that all agents last had in common: those that a round begins with."""
        return self.parts[part]

    def share(self, part: str, rows: Any) -> None:
        """Weights of a part that all share have come for these rows."""

    def shared_step(self, part: str, G: F32, rows: Any) -> None:
        """The step of a part that these rows paused before, down a gradient (d,) that is everybody's."""
        raise Mistake(f"{type(self).__name__} takes no gradient of '{part}'")

    def apply(self, part: str, G: F32) -> None:
        """One step of the part's optimiser down a gradient (K, d), wherever it was measured."""
        raise Mistake(f"{type(self).__name__} takes no gradient of '{part}'")

    def layers(self, part: str, width: int) -> list[slice]:
        """Return where the weights and the biases of each layer lie in a row of a part."""
        shape = getattr(self, "shape", None)
        net = shape.net if part == "policy" and shape is not None else getattr(self, f"{part}_net", None)
        if net is None:
            return [slice(None)]
        one = [array.size for pair in net.layers(np.zeros(net.width, np.float32)) for array in pair]
        sizes = one * (width // net.width)  # twins are two networks in a row
        edges = np.cumsum([0, *sizes, width - sum(sizes)]).tolist()  # a log_std per action comes behind its network
        return [slice(begin, end) for begin, end in itertools.pairwise(edges) if end > begin]

    def settle(self) -> None:
        """End the episodes that a state could not hold; what was measured of them is forgotten."""
        if not self.worlds.exact:
            self.end_episodes()
            self.worlds.settle()

    def state(self) -> dict[str, NDArray[Any]]:
        self.settle()
        return super().state()

    def end_episodes(self) -> None:
        """Forget what was measured of the episodes in progress: they are about to be ended."""

    def take(self, rows: Any) -> Any:
        part = super().take(rows)
        part.seeds = [self.seeds[k] for k in np.arange(self.agents)[rows]]
        return part

    def evaluate(self, worlds: Worlds, explore: bool = False) -> NDArray[np.float64]:
        """The return of one whole episode in every copy of these worlds, (K, n)."""
        own = [child(seed, int(done)) for seed, done in zip(self.seeds, self.progress, strict=True)]
        streams = Streams(own, "judged", lanes=worlds.copies) if explore else None
        obs = worlds.reset()
        total = np.zeros(obs.shape[:2])
        active = np.ones(obs.shape[:2], np.bool_)
        while active.any():
            step = worlds.step(self.act(obs, streams), active)
            total += np.where(active, step.reward, 0.0)
            active &= ~(step.terminated | step.truncated)
            obs = step.obs
        return total


Class = TypeVar("Class", bound=type[Any])


def agent(name: str) -> Callable[[Class], Class]:
    """Register a learner: a subclass of ``Fleet``. Its ``Config``, if it has one, is the table [name] of a conf."""

    def decorate(value: Class) -> Class:
        if not (inspect.isclass(value) and issubclass(value, Fleet)):
            raise Mistake(f"the agent '{name}' is no subclass of fedrl.Fleet")
        for method in ("parts", "act", "_train"):
            if getattr(value, method) is getattr(Fleet, method):
                raise Mistake(f"the agent '{name}' lacks '{method}', which every learner has")
        config = getattr(value, "Config", None)
        registry.register("agent", name, value, {name: config} if config else None, value.__module__)
        return value

    return decorate


def no_gradient(fleet: Fleet) -> F32:
    """Return the gradient of agents that trained and measured none."""
    return np.empty((fleet.agents, 0), np.float32)


def merge(whole: Report, rows: NDArray[np.int64], part: Report, agents: int) -> None:
    """Put the report of some agents into that of all; what the others did not measure is nan."""
    whole.steps[rows], whole.updates[rows] = part.steps, part.updates
    whole.episodes += [episode._replace(agent=int(rows[episode.agent])) for episode in part.episodes]
    for name, values in part.metrics.items():
        whole.metrics.setdefault(name, np.full(agents, np.nan))[rows] = values
    whole.acting_s += part.acting_s
    whole.learning_s += part.learning_s


def action_range(space: spaces.Space[Any]) -> tuple[F32, F32]:
    """The centre and the half-width of a bounded Box; refuses other spaces."""
    if not (isinstance(space, spaces.Box) and np.isfinite([space.low, space.high]).all()):
        raise Mistake(f"this algorithm needs bounded continuous actions, the world has {space}")
    low, high = space.low.astype(np.float32), space.high.astype(np.float32)
    return (high + low) / np.float32(2), (high - low) / np.float32(2)
