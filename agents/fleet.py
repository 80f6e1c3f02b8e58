"""The contract of a learner. A fleet is K learners of one kind whose weights are matrices with a row per agent."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from agents.report import Bounds, Report, merge
from core import registry
from core.errors import Mistake
from core.moments import Moments
from core.rows import Rows
from core.streams import Streams, child

F32 = NDArray[np.float32]
Bools = NDArray[np.bool_]


class Step(Protocol):
    """The result of a step, axes (agent, copy). ``next_obs`` is the true successor, ``obs`` the one to act on now."""

    obs: F32
    reward: F32
    terminated: Bools
    truncated: Bools
    next_obs: F32


class Worlds(Protocol):
    """The interface of worlds for a fleet: K agents x n copies that reset themselves."""

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


class Fleet(Rows):
    """K learners and their worlds.

    ``parts`` are the weights that may be exchanged, one float32 matrix each; write into them, never replace them.
    Everything random is drawn from each agent's own streams, so an agent learns the same alone and in a fleet.

    A subclass needs ``parts``, ``act``, ``_train``, ``steps_of`` and ``bounds``. The other methods serve single
    strategies, and refuse by default. ``train_to``, ``measure``, ``shared``, ``share`` and ``shared_step`` are for
    fedavg-td3, which pauses an update in the middle: of the built-in learners only TD3 has all of them. ``measure`` and
    ``apply`` alone are for strategies that exchange gradients, ``link`` for kl-ppo.
    """

    # Prefixes of learned arrays that acting does not need.
    spare: ClassVar[tuple[str, ...]] = ()
    seeds: Sequence[int]
    worlds: Worlds
    progress: NDArray[np.int64]

    @classmethod
    def check(cls, run: Any) -> None:
        """Refuse a run (``runs.config.RunConfig``) that this learner cannot take part in. Builds nothing."""

    @property
    def agents(self) -> int:
        return len(self.progress)

    @property
    def parts(self) -> dict[str, F32]:
        """The weight matrix (K, d) of each part."""
        raise NotImplementedError

    @property
    def moments(self) -> dict[str, Moments]:
        """The running moments that are exchanged beside the parts. They are added up, never averaged."""
        return {}

    @property
    def learned(self) -> dict[str, NDArray[Any]]:
        """All arrays that acting needs, a row per agent. A run saves them as its weights."""
        arrays: dict[str, NDArray[Any]] = dict(self.parts)
        for name, moments in self.moments.items():
            arrays |= {f"moments.{name}.{key}": array for key, array in moments.state().items()}
        return arrays

    def load_learned(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Load the weights of a fleet of the same shape. ``spare`` arrays may be missing."""
        for name, mine in self.learned.items():
            if name not in arrays and name.startswith(self.spare):
                continue
            # One row is for all agents: a federation saves one set of weights.
            if name not in arrays or arrays[name].shape not in (mine.shape, (1, *mine.shape[1:])):
                found = list(arrays[name].shape) if name in arrays else "missing"
                raise Mistake(f"'{name}' of the weights is {found}, this fleet needs {list(mine.shape)}")
            if unknown := np.flatnonzero(~np.isfinite(arrays[name]).all(axis=1)).tolist():
                raise Mistake(
                    f"'{name}' of the weights has no finite row for the agents {unknown}: they sent no weights"
                )
            mine[...] = arrays[name]

    def act(self, obs: F32, streams: Streams | None = None) -> NDArray[Any]:
        """Return actions (K, n[, a]) for observations (K, n, o): sampled with streams, greedy without."""
        raise NotImplementedError

    @property
    def usual_work(self) -> int:
        """The work of a round if the conf sets none."""
        return 10

    @property
    def standing(self) -> NDArray[np.int64]:
        """The progress of each agent. Agents with equal progress are trained together."""
        return self.progress

    def train(self, work: int) -> Report:
        """Train every agent for ``work`` more units: TD3 steps, PPO iterations, policy-gradient batches."""
        return self.in_groups(lambda group, rows: group._train(work))

    def in_groups(self, act: Callable[[Any, Any], Report]) -> Report:
        """Call ``act`` with each group of agents of equal progress and its rows. Returns one report."""
        standing = np.unique(self.standing, axis=0)
        if len(standing) == 1:
            return act(self, slice(None))
        whole = Report(np.zeros(self.agents, np.int64), np.zeros(self.agents, np.int64))
        # Groups are made first: after training, a group may have the progress that another one begins with.
        groups = [(self.standing == stage).reshape(self.agents, -1).all(axis=1) for stage in standing]
        for rows in map(np.flatnonzero, groups):
            group = self.take(rows)
            merge(whole, rows, act(group, rows), self.agents)
            self.put(rows, group)
        return whole

    def _train(self, work: int) -> Report:
        raise NotImplementedError

    def steps_of(self, work: int) -> float:
        """Return the environment steps of an agent in this much work; infinite if work is whole episodes."""
        raise NotImplementedError

    def bounds(self, work: int, measured: bool = False) -> Bounds:
        """Return what ``train(work)`` can take of one agent; ``measured``: what ``measure`` on ``work`` samples can."""
        raise NotImplementedError

    def gradient(self, part: str) -> F32:
        """Return d loss / d W of a part (K, d) on fresh data, without a step."""
        raise Mistake(f"{type(self).__name__} gives no gradient of '{part}'")

    def measure(self, part: str, work: int) -> tuple[F32, Report]:
        """Return d loss / d W of a part (K, d) on ``work`` fresh samples, and the report of measuring it."""
        raise Mistake(f"{type(self).__name__} measures no gradient of '{part}'")

    def train_to(self, part: str, work: int) -> Report:
        """Train, but pause the last update where the part is exchanged. The next call goes on from there."""
        raise Mistake(f"{type(self).__name__} does not pause at the exchange of '{part}'")

    # Whether this learner has a penalty towards other agents' policies (``link``).
    linkable: ClassVar[bool] = False

    def link(self, policies: F32, weights: F32, known: Bools, names: Sequence[str]) -> None:
        """Set the policies (J, d) that agents are penalised for leaving, each agent with its row of ``weights`` (K, J).

        ``known`` marks the policies that each agent received; ``names`` are their owners.
        """
        raise Mistake(f"{type(self).__name__} has no penalty towards policies of others")

    def shared(self, part: str) -> F32:
        """Return the weights of a part (K, d) that all agents last shared: those that a round begins with."""
        return self.parts[part]

    def share(self, part: str, rows: Any) -> None:
        """Note that these rows have received shared weights of a part."""

    def shared_step(self, part: str, G: F32, rows: Any) -> None:
        """Take the step of a part that these rows paused before, with the shared gradient (d,)."""
        raise Mistake(f"{type(self).__name__} takes no gradient of '{part}'")

    def apply(self, part: str, G: F32) -> None:
        """Take one step of the part's optimiser with a gradient (K, d)."""
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
        """End the episodes that a state cannot hold, and discard their returns."""
        if not self.worlds.exact:
            self.end_episodes()
            self.worlds.settle()

    def state(self) -> dict[str, NDArray[Any]]:
        self.settle()
        return super().state()

    def end_episodes(self) -> None:
        """Discard the returns of the episodes in progress, which are about to be ended."""

    def take(self, rows: Any) -> Any:
        part = super().take(rows)
        part.seeds = [self.seeds[k] for k in np.arange(self.agents)[rows]]
        return part

    def evaluate(self, worlds: Worlds, explore: bool = False) -> NDArray[np.float64]:
        """Return the return of one whole episode in every copy of these worlds, (K, n)."""
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


def action_range(space: spaces.Space[Any]) -> tuple[F32, F32]:
    """Return the centre and the half-width of a bounded Box. Refuses other spaces."""
    if not (isinstance(space, spaces.Box) and np.isfinite([space.low, space.high]).all()):
        raise Mistake(f"this algorithm needs bounded continuous actions, the world has {space}")
    low, high = space.low.astype(np.float32), space.high.astype(np.float32)
    return (high + low) / np.float32(2), (high - low) / np.float32(2)
