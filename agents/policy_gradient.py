"""Policy gradient for K agents: REINFORCE and GPOMDP on whole trajectories, and importance weights for SCSG.

g = mean over all timesteps of the batch of grad log pi(a_t|s_t) A_t. No critic, no entropy, no clipping.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from agents.adam import Adam
from agents.equations import estimators, returns
from agents.fleet import Bools, Fleet, Worlds, agent
from agents.networks import Tape
from agents.policies import Policy
from agents.report import Bounds, Episode, Report
from agents.rollout import play
from core.errors import Mistake
from core.options import option
from core.streams import Streams

F32 = NDArray[np.float32]
# Rows of a forward pass at a time: a chunk's activations stay in the cache, and memory does not grow with the fleet.
_CHUNK = 16_384


@dataclass(frozen=True)
class PolicyGradientConfig:
    """Policy gradient on whole trajectories."""

    hidden: tuple[int, ...] = option((16, 16), "Hidden layers of the policy.", low=1)
    activation: str = option("relu", "Hidden activation.", choices=("relu", "tanh"))
    tanh_logits: bool = option(False, "Pass the outputs of the policy through tanh, as FedPG's published settings do.")
    learning_rate: float = option(1e-3, "Step size of Adam.", above=0)
    gamma: float = option(0.999, "Discount.", low=0, high=1)
    batch: int = option(16, "Trajectories per gradient.", low=1)
    estimator: str = option(
        "gpomdp",
        "gpomdp: reward to go, whitened per trajectory; reinforce: whole return, whitened over the batch.",
        choices=("gpomdp", "reinforce"),
    )


class Trajectories(NamedTuple):
    """Whole episodes of every agent, one after the other: (K, L, ...), of which the first used[k] steps count."""

    obs: F32
    action: NDArray[Any]
    reward: F32
    last: Bools
    used: NDArray[np.int64]
    totals: NDArray[np.float64]
    lengths: NDArray[np.int64]


@agent("policy-gradient")
class PolicyGradientFleet(Fleet):
    """K policies. Part: ``policy``. Work is counted in batches of trajectories."""

    Config = PolicyGradientConfig

    ROWS = ("policy", "adam", "worlds", "acting", "progress")

    def __init__(self, config: PolicyGradientConfig, worlds: Worlds, seeds: Sequence[int]) -> None:
        if not worlds.horizon:
            raise Mistake("policy gradient needs episodes that end: set world.horizon")
        self.config, self.worlds, self.seeds = config, worlds, seeds
        self.shape = Policy(
            worlds.observation_space, worlds.action_space, config.hidden, config.activation, config.tanh_logits
        )
        self.policy = self.shape.initial(Streams(seeds, "policy"), gains=None)
        self.adam = Adam(worlds.agents, self.shape.width)
        self.acting = Streams(seeds, "acting", lanes=worlds.copies)
        self.progress = np.zeros(worlds.agents, np.int64)
        self._tape = Tape()

    @property
    def parts(self) -> dict[str, F32]:
        return {"policy": self.policy}

    def act(self, obs: F32, streams: Streams | None = None) -> NDArray[Any]:
        return self.shape.to_world(self.shape.act(self.policy, obs, streams, np.ones(obs.shape[:2], np.bool_))[0])

    def steps_of(self, work: int) -> float:
        return math.inf if work else 0

    def bounds(self, work: int, measured: bool = False) -> Bounds:
        episodes = work if measured else work * self.config.batch
        return Bounds(episodes, episodes * self.worlds.horizon, 1 if measured else work)

    def _train(self, work: int) -> Report:
        report = Report(np.zeros(self.agents, np.int64), np.zeros(self.agents, np.int64))
        for _ in range(work):
            with report.acting():
                found = self.sample(self.policy, self.config.batch, report)
            with report.learning():
                self.apply("policy", -self.ascent(self.policy, found))
            report.updates += 1
        self.progress += work
        report.metrics["trajectories"] = (self.progress * self.config.batch).astype(np.float64)
        return report

    def gradient(self, part: str) -> F32:
        if part != "policy":
            return super().gradient(part)
        return -self.ascent(self.policy, self.sample(self.policy, self.config.batch))

    def measure(self, part: str, work: int) -> tuple[F32, Report]:
        """Return the gradient on ``work`` trajectories of every agent."""
        if part != "policy":
            return super().measure(part, work)
        report = Report(np.zeros(self.agents, np.int64), np.ones(self.agents, np.int64))
        with report.acting():
            found = self.sample(self.policy, work, report)
        with report.learning():
            G = -self.ascent(self.policy, found)
        self.progress += 1
        return G, report

    def apply(self, part: str, G: F32) -> None:
        if part != "policy":
            super().apply(part, G)
        self.adam.step(self.policy, G, self.config.learning_rate)

    def sample(self, W: F32, batch: int, report: Report | None = None) -> Trajectories:
        """Sample ``batch`` whole episodes of every agent with the policies ``W``, one per copy at a time."""
        copies = self.worlds.copies
        waves = [self._wave(W, min(copies, batch - done)) for done in range(0, batch, copies)]
        found = waves[0] if len(waves) == 1 else _joined(waves)
        if report is not None:
            report.steps += found.used
            at = self.worlds.steps
            for k, i in np.ndindex(found.totals.shape):
                report.episodes.append(Episode(k, float(found.totals[k, i]), int(found.lengths[k, i]), int(at[k])))
        return found

    def _wave(self, W: F32, width: int) -> Trajectories:
        """Sample one episode in each of the first ``width`` copies. A copy that has finished is not stepped."""
        worlds = self.worlds
        worlds.reset()
        playing = np.zeros((self.agents, worlds.copies), np.bool_)
        playing[:, :width] = True
        record = play(self.shape, W, worlds, self.acting, worlds.horizon, playing)
        return _packed(record.obs, record.action, record.reward, record.lengths[:, :width])

    def ascent(self, W: F32, found: Trajectories, weight: F32 | None = None) -> F32:
        """Return g (K, d), the mean over timesteps of weight * grad log pi A, at the policies ``W``."""
        advantage = self.advantages(found)
        return self._ascent(W, found, advantage if weight is None else weight * advantage)

    def progress_since(self, then: F32, found: Trajectories) -> tuple[F32, NDArray[np.float64]]:
        """Return g(theta_n) - g_w(theta_0) for trajectories of the current policies, and the mean weights (K,)."""
        weight = estimators.importance_weight(self.log_probs(then, found), self.log_probs(self.policy, found))
        return self._change(then, found, weight), _means(weight, found)

    def correction(self, then: F32, found: Trajectories) -> tuple[F32, NDArray[np.float64]]:
        """Return the same with the weight of a whole trajectory at each of its steps (PAGE)."""
        before, now = self.log_probs(then, found), self.log_probs(self.policy, found)
        weight = estimators.trajectory_weight(before, now, found.last, found.used)
        return self._change(then, found, weight), _means(weight, found)

    def _change(self, then: F32, found: Trajectories, weight: F32) -> F32:
        now, before = self.ascent(self.policy, found), self.ascent(then, found, weight)
        change: F32 = estimators.scsg_direction(now, before, np.zeros_like(now))
        return change

    def scatter(self, W: F32, found: Trajectories) -> float:
        """s^2: the variance of the gradient of one trajectory, summed over the weights, from one agent's batch.

        A batch is a mean over timesteps, so long trajectories weigh more: the estimate is that of a ratio.
        """
        each = _apart(found, self.advantages(found))
        G = self._ascent(np.repeat(W, len(each[0].used), axis=0), *each).astype(np.float64)
        share = found.lengths[0] / found.lengths[0].sum()
        off = ((G - share @ G) ** 2).sum(axis=1)
        n = len(share)
        return float(n / (n - 1) * (share**2 * off).sum() * n)

    def _ascent(self, W: F32, found: Trajectories, pull: F32) -> F32:
        """Return the mean over timesteps of pull * grad log pi."""
        G = np.empty_like(W)
        used = found.used[:, None]
        d: F32 = ((np.arange(pull.shape[1]) < used) / used).astype(np.float32) * pull
        for rows, stretch in self._chunks(found):
            outputs = self.shape.outputs(W[rows], found.obs[rows, stretch], self._tape)
            back = outputs.zeros()
            outputs.log_prob_back(found.action[rows, stretch], d[rows, stretch], back)
            self.shape.backward(W[rows], self._tape, back, G[rows])
        return G

    def log_probs(self, W: F32, found: Trajectories) -> F32:
        """Return log pi_W(a_t|s_t) of every step, (K, L), for importance weights."""
        out = np.zeros(found.reward.shape, np.float32)
        for rows, stretch in self._chunks(found):
            outputs = self.shape.outputs(W[rows], found.obs[rows, stretch], self._tape)
            out[rows, stretch] = outputs.log_prob(found.action[rows, stretch])
        return out

    def advantages(self, found: Trajectories) -> F32:
        """A (K, L): whitened rewards to go, or whitened whole returns."""
        discounted = returns.discounted_returns(found.reward, found.last, self.config.gamma)
        if self.config.estimator == "gpomdp":
            return returns.whitened_rewards_to_go(discounted, found.last, found.used)  # type: ignore[no-any-return]
        return returns.whitened_whole_returns(discounted, found.last, found.used)  # type: ignore[no-any-return]

    def _chunks(self, found: Trajectories) -> Iterator[tuple[slice, slice]]:
        """Yield groups of agents whose steps fit into one pass. An agent is never split between passes."""
        agents, length = found.reward.shape
        group = max(1, _CHUNK // max(length, 1))
        for begin in range(0, agents, group):
            rows = slice(begin, begin + group)
            yield rows, slice(0, int(found.used[rows].max()))


def _means(weight: F32, found: Trajectories) -> NDArray[np.float64]:
    """Return the mean over the first ``used`` steps, (K,)."""
    return np.array([row[:used].mean() for row, used in zip(weight, found.used, strict=True)], np.float64)


def _packed(obs: F32, action: NDArray[Any], reward: F32, lengths: NDArray[np.int64]) -> Trajectories:
    """Convert arrays of parallel episodes (T, K, n, ...) to consecutive episodes (K, L, ...)."""
    used = lengths.sum(axis=1)
    K, L = len(used), int(used.max())
    flat = action.reshape(*action.shape[:3], -1)
    packed_obs, packed_action = (
        np.zeros((K, L, obs.shape[-1]), np.float32),
        np.zeros((K, L, flat.shape[-1]), action.dtype),
    )
    packed_reward, last = np.zeros((K, L), np.float32), np.ones((K, L), np.bool_)
    totals = np.zeros(lengths.shape)
    _pack(obs, flat, reward, lengths, packed_obs, packed_action, packed_reward, last, totals)
    shaped = packed_action[..., 0] if action.ndim == 3 else packed_action
    return Trajectories(packed_obs, shaped, packed_reward, last, used, totals, lengths)


def _apart(found: Trajectories, advantage: F32) -> tuple[Trajectories, F32]:
    """Return one agent's trajectories as those of many agents with one trajectory each, and the advantages likewise."""
    lengths = found.lengths[0]
    L = int(lengths.max())
    begin = np.cumsum(lengths) - lengths
    at = np.minimum(begin[:, None] + np.arange(L), found.used[0] - 1)
    inside = np.arange(L) < lengths[:, None]
    parts = Trajectories(
        found.obs[0][at], found.action[0][at], np.where(inside, found.reward[0][at], 0), found.last[0][at] | ~inside,
        lengths, found.totals.T, lengths[:, None],
    )  # fmt: skip
    return parts, np.where(inside, advantage[0][at], 0).astype(np.float32)


def _joined(waves: list[Trajectories]) -> Trajectories:
    """Concatenate the episodes of several waves."""
    used = np.sum([wave.used for wave in waves], axis=0)
    K, L = len(used), int(used.max())
    first = waves[0]
    obs, reward = np.zeros((K, L, first.obs.shape[-1]), np.float32), np.zeros((K, L), np.float32)
    action, last = np.zeros((K, L, *first.action.shape[2:]), first.action.dtype), np.ones((K, L), np.bool_)
    for k in range(K):
        at = 0
        for wave in waves:
            mine, end = int(wave.used[k]), at + int(wave.used[k])
            obs[k, at:end], action[k, at:end] = wave.obs[k, :mine], wave.action[k, :mine]
            reward[k, at:end], last[k, at:end] = wave.reward[k, :mine], wave.last[k, :mine]
            at = end
    totals = np.concatenate([wave.totals for wave in waves], axis=1)
    return Trajectories(obs, action, reward, last, used, totals, np.concatenate([w.lengths for w in waves], axis=1))


@njit(cache=True)
def _pack(obs, action, reward, lengths, packed_obs, packed_action, packed_reward, last, totals):  # type: ignore[no-untyped-def]
    for k in range(lengths.shape[0]):
        at = 0
        for i in range(lengths.shape[1]):
            for t in range(lengths[k, i]):
                packed_obs[k, at] = obs[t, k, i]
                packed_action[k, at] = action[t, k, i]
                packed_reward[k, at] = reward[t, k, i]
                totals[k, i] += reward[t, k, i]
                last[k, at] = t == lengths[k, i] - 1
                at += 1
