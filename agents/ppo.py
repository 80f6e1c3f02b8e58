"""PPO (Schulman 2017) for K agents, each with its own policy and its own value function.

An iteration is a rollout of T steps in every copy, and some epochs over it. With neighbours, the loss has a further
term: the KL divergence between an agent's policy and frozen copies of its neighbours' policies.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agents.adam import Adam, norm_cut
from agents.equations import ppo_losses, returns
from agents.fleet import Bools, Fleet, Worlds, agent
from agents.neighbours import Neighbours
from agents.networks import MLP, Tape
from agents.policies import Policy
from agents.report import Bounds, Meter, Report
from agents.rollout import play
from core import registry
from core.errors import Mistake
from core.moments import Moments
from core.options import option
from core.streams import Streams

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class PPOConfig:
    """Options of PPO."""

    hidden: tuple[int, ...] = option((64, 64), "Hidden layers of the policy and of the value function.", low=1)
    activation: str = option("tanh", "Hidden activation.", choices=("relu", "tanh"))
    rollout: int = option(128, "T: steps per copy and iteration.", low=1)
    learning_rate: float = option(2.5e-4, "Step size of Adam.", above=0)
    anneal_over: int = option(0, "Steps of an agent over which the step size falls linearly to 0; 0: constant.", low=0)
    gamma: float = option(0.99, "Discount.", low=0, high=1)
    gae: bool = option(True, "Generalised advantages; false: discounted returns minus the value (lambda = 1).")
    gae_lambda: float = option(0.95, "Lambda of the generalised advantages.", low=0, high=1)
    minibatches: int = option(4, "Updates per epoch.", low=1)
    epochs: int = option(4, "Passes over a rollout.", low=1)
    normalise_advantage: bool = option(True, "Give the advantages of a minibatch mean 0 and deviation 1.")
    objective: str = option(
        "clip",
        "clip: clipped surrogate; kl: surrogate minus beta KL(old || new), beta adapted.",
        choices=("clip", "kl"),
    )
    clip: float = option(0.2, "Epsilon of the clipped surrogate, and of the clipped value loss.", above=0)
    clip_value: bool = option(True, "Clip the change of the value as the surrogate clips that of the policy.")
    entropy_coef: float = option(0.01, "Weight of the entropy bonus.", low=0)
    value_coef: float = option(0.5, "Weight of the value loss.", low=0)
    max_grad_norm: float = option(0.5, "Limit of the gradient norm of policy and value together; 0: none.", low=0)
    target_kl: float = option(
        0.0,
        "objective kl: target of the adaptive beta. objective clip: stop the epochs above 1.5 times it; 0: never stop.",
        low=0,
    )
    beta: float = option(1.0, "objective kl: the first weight of KL(old || new).", above=0)
    normalise_observations: bool = option(
        False, "Normalise observations by their running mean and deviation, clipped at 10."
    )
    scale_rewards: bool = option(
        False, "Scale rewards by the running deviation of the discounted return, clipped at 10."
    )
    penalty: bool = option(
        False, "Penalise the KL between an agent's policy and its neighbours' policies (strategy kl-ppo)."
    )
    penalty_coef: float = option(1.0, "Weight of the sum over neighbours j of C[k][j] KL_kj.", low=0)
    penalty_direction: str = option(
        "forward", "forward: KL(neighbour || own); reverse: KL(own || neighbour).", choices=("forward", "reverse")
    )


class Rollout(NamedTuple):
    """T steps of every agent and copy, flattened to (K, B, ...) with B = T n."""

    obs: F32
    action: NDArray[Any]
    outputs: F32
    log_prob: F32
    advantage: F32
    target: F32
    value: F32


@agent("ppo")
class PPOFleet(Fleet):
    """K PPO learners. Parts: ``policy`` and ``value``. Work is counted in iterations."""

    Config = PPOConfig

    ROWS = (
        "policy", "value", "policy_adam", "value_adam", "beta", "meter", "worlds", "acting", "shuffles", "progress",
        "observations", "returns", "running",
    )  # fmt: skip
    linkable = True
    spare = ("value", "moments.returns")

    @classmethod
    def check(cls, run: Any) -> None:
        if run.learner.penalty and not registry.get("strategy", run.strategy).value.links:
            raise Mistake(
                f"'ppo.penalty' needs neighbours, and the strategy {run.strategy} links none: take kl-ppo, "
                "or set it to false"
            )

    def __init__(self, config: PPOConfig, worlds: Worlds, seeds: Sequence[int]) -> None:
        K, n = worlds.agents, worlds.copies
        if config.rollout * n < config.minibatches:
            raise Mistake(
                f"'ppo.minibatches' ({config.minibatches}) is more than the {config.rollout * n} steps of a rollout "
                "(ppo.rollout times world.copies)"
            )
        if config.objective == "kl" and config.target_kl == 0:
            raise Mistake("'ppo.objective' = kl needs a 'ppo.target-kl' above 0, such as 0.01, for beta to aim at")
        self.config, self.worlds, self.seeds = config, worlds, seeds
        self.shape = Policy(
            worlds.observation_space, worlds.action_space, config.hidden, config.activation, squash=False
        )
        self.value_net = MLP((worlds.observation_space.shape[0], *config.hidden, 1), config.activation)
        self.policy = self.shape.initial(Streams(seeds, "policy"), gains=(2.0**0.5, 0.01))
        self.value = self.value_net.initial(Streams(seeds, "value"), gains=(2.0**0.5, 1.0))
        self.policy_adam = Adam(K, self.policy.shape[1], epsilon=1e-5)
        self.value_adam = Adam(K, self.value.shape[1], epsilon=1e-5)
        self.beta = np.full(K, config.beta, np.float32)
        self.meter = Meter(K, n)
        self.acting, self.shuffles = Streams(seeds, "acting", lanes=n), Streams(seeds, "shuffle")
        self.progress = np.zeros(K, np.int64)
        self.observations = Moments(K, worlds.observation_space.shape[0])
        self.returns, self.running = Moments(K, 1), np.zeros((K, n))
        self.neighbours: Neighbours | None = None
        self._tapes = (Tape(), Tape())
        self._gradients = (np.empty_like(self.policy), np.empty_like(self.value))

    @property
    def parts(self) -> dict[str, F32]:
        return {"policy": self.policy, "value": self.value}

    @property
    def moments(self) -> dict[str, Moments]:
        wanted = {"observations": self.config.normalise_observations, "returns": self.config.scale_rewards}
        return {name: getattr(self, name) for name, used in wanted.items() if used}

    def take(self, rows: Any) -> PPOFleet:
        part: PPOFleet = super().take(rows)
        if self.neighbours is not None:
            part.neighbours = self.neighbours.rows(rows)
        part._tapes = (Tape(), Tape())
        part._gradients = (np.empty_like(part.policy), np.empty_like(part.value))
        return part

    def end_episodes(self) -> None:
        self.meter.clear()
        self.running[...] = 0.0

    def link(self, policies: F32, matrix: F32, known: Bools | None = None, names: Sequence[str] | None = None) -> None:
        """Set the frozen ``policies`` (m, d) that agent k is pulled towards, with the weights ``matrix`` (K, m).

        The KL to all ``known`` policies (K, m) is also measured, under their names. By default these are the policies
        with a weight.
        """
        assert policies.shape == (matrix.shape[1], self.shape.width) and len(matrix) == self.agents, policies.shape
        self.neighbours = Neighbours.of(policies, matrix, known, names)

    def act(self, obs: F32, streams: Streams | None = None) -> NDArray[Any]:
        everyone = np.ones(obs.shape[:2], np.bool_)
        return self.shape.to_world(self.shape.act(self.policy, self.seen(obs), streams, everyone)[0])

    def seen(self, obs: F32, rows: slice = slice(None)) -> F32:
        """Return observations (K, b, o) of these agents as their networks receive them."""
        if not self.config.normalise_observations:
            return obs
        scaled = (obs - self.observations.mean[rows, None]) / self.observations.std[rows, None]
        return np.clip(scaled, -10.0, 10.0).astype(np.float32)

    @property
    def usual_work(self) -> int:
        return 10 if self.worlds.exact else max(10, -(-self.worlds.horizon // self.config.rollout))

    def steps_of(self, work: int) -> float:
        return work * self.config.rollout * self.worlds.copies

    def bounds(self, work: int, measured: bool = False) -> Bounds:
        steps = work * self.config.rollout * self.worlds.copies
        return Bounds(steps, steps, work * self.config.epochs * self.config.minibatches)

    def _train(self, work: int) -> Report:
        if self.config.penalty and self.neighbours is None:
            raise Mistake("'ppo.penalty' needs neighbours, and this run links none: take kl-ppo, or set it to false")
        report = Report(np.zeros(self.agents, np.int64), np.zeros(self.agents, np.int64))
        measured: dict[str, list[NDArray[Any]]] = {}
        for iteration in range(work):
            with report.acting():
                rollout = self.collect(report)
            with report.learning():
                for name, value in self.learn(rollout, report, measure_distances=iteration == 0).items():
                    measured.setdefault(name, []).append(value)
            self.progress += 1
        report.metrics = {name: np.mean(values, axis=0, dtype=np.float64) for name, values in measured.items()}
        return report

    # --- acting -------------------------------------------------------------------------------------------------------

    def collect(self, report: Report) -> Rollout:
        """Collect T steps in every copy, with values and advantages."""
        worlds, (K, n), T = self.worlds, (self.agents, self.worlds.copies), self.config.rollout
        seen = self.seen if self.config.normalise_observations else None
        record = play(self.shape, self.policy, worlds, self.acting, T, seen=seen)
        # Agents come first, then time: the data of an agent is contiguous in memory.
        raw, outputs, action, reward, next_obs = (
            np.ascontiguousarray(np.swapaxes(x, 0, 1))
            for x in (record.obs[:-1], record.outputs, record.action, record.reward, record.next_obs)
        )
        ends = np.ascontiguousarray(record.ends.transpose(1, 2, 0, 3))
        obs = self.seen(raw.reshape(K, T * n, -1)).reshape(raw.shape)
        self.meter.add(record.reward, record.ends[:, 0] | record.ends[:, 1], worlds.steps, report)
        report.steps += T * n
        value, next_value = self._values(obs, next_obs, ends[1])
        ended = ends[0] | ends[1]
        if self.config.scale_rewards:
            reward = self._scaled(reward, ended)
        if self.config.normalise_observations:
            self.observations.add(raw.reshape(K, T * n, -1))
        lam = self.config.gae_lambda if self.config.gae else 1.0
        advantage = returns.gae(reward, value, next_value, ends[0], ended, self.config.gamma, lam)

        def flat(x: NDArray[Any]) -> NDArray[Any]:
            return x.reshape(K, T * n, *x.shape[3:])

        log_prob = self.shape.distribution(flat(outputs), self.policy).log_prob(flat(action))
        rest = flat(advantage), flat(advantage + value), flat(value)
        return Rollout(flat(obs), flat(action), flat(outputs), log_prob, *rest)

    def _values(self, obs: F32, next_obs: F32, truncated: Bools) -> tuple[F32, F32]:
        """Return V(s_t) and V(s'_t), (K, T, n). V(s'_t) is V of the next step, except at a truncation."""
        K, T, n, width = obs.shape
        value = self.value_net.forward(self.value, obs.reshape(K, -1, width))[..., 0].reshape(K, T, n)
        last = self.value_net.forward(self.value, self.seen(next_obs[:, -1]))[..., 0]
        next_value = np.concatenate([value[:, 1:], last[:, None]], axis=1)
        for k in np.flatnonzero(truncated[:, :-1].any(axis=(1, 2))):
            t, i = np.nonzero(truncated[k, :-1])
            own = slice(k, k + 1)
            cut = self.seen(next_obs[k, t, i][None], own)
            next_value[k, t, i] = self.value_net.forward(self.value[own], cut)[0, :, 0]
        return value, next_value

    def _scaled(self, reward: F32, ended: Bools) -> F32:
        discounted = returns.running_returns(reward, ended, self.config.gamma, self.running)
        self.returns.add(discounted.reshape(self.agents, -1, 1))
        scaled = reward / self.returns.std[:, :, None].astype(np.float32)
        return np.clip(scaled, np.float32(-10), np.float32(10))

    # --- learning -----------------------------------------------------------------------------------------------------

    def learn(self, rollout: Rollout, report: Report, measure_distances: bool = False) -> dict[str, NDArray[Any]]:
        """Epochs of minibatches over a rollout; returns metrics per agent.

        ``measure_distances``: the neighbours' policies are new, so the KL to each of them is measured as well. That
        is done before the first update, between policies of the same moment.
        """
        config, (K, B) = self.config, rollout.value.shape
        before = self.policy.copy() if config.objective == "kl" else self.policy
        neighbours = self.neighbour_outputs(rollout.obs)
        distances = self._distances(rollout, neighbours or []) if measure_distances else {}
        going = np.ones(K, np.bool_)
        shares: dict[str, list[F32]] = {}
        norms: list[F32] = []
        edges = np.linspace(0, B, config.minibatches + 1).astype(int)
        k = np.arange(K)[:, None]
        done = np.zeros(K, np.int64)
        # Drawn before any agent stops: how far an agent's stream goes must not depend on how long others go on.
        for order in [self.shuffles.permutation(B) for _ in range(config.epochs)]:
            epoch = Rollout(*(array[k, order] for array in rollout))
            theirs = None if neighbours is None else [outputs[k, order] for outputs in neighbours]
            for begin, end in itertools.pairwise(edges):
                batch = Rollout(*(array[:, begin:end] for array in epoch))
                near = None if theirs is None else [outputs[:, begin:end] for outputs in theirs]
                for name, share in self._backward(batch, before, near).items():
                    shares.setdefault(name, []).append(share)
                norm, cut = norm_cut(config.max_grad_norm, *self._gradients)
                self.policy_adam.step(self.policy, self._gradients[0], self._rate(), cut, going)
                self.value_adam.step(self.value, self._gradients[1], self._rate(), cut, going)
                done += going
                norms.append(norm[:, None])
            if config.objective == "clip" and config.target_kl > 0:
                drift = np.concatenate(shares["approx-kl"][-config.minibatches :], axis=-1).mean(-1)
                going &= drift <= 1.5 * config.target_kl
                if not going.any():
                    break
        report.updates += done
        measured = {name: _mean(parts, done) for name, parts in shares.items()}
        if config.objective == "kl":
            old = self.shape.distribution(rollout.outputs, before)
            measured["kl"] = old.kl(self.shape.outputs(self.policy, rollout.obs)).mean(-1)
            self.beta[...] = ppo_losses.adapted_beta(self.beta, measured["kl"], config.target_kl)
            measured["beta"] = self.beta.copy()
        measured["gradient-norm"] = _mean(norms, done)
        measured["explained-variance"] = returns.explained_variance(rollout.value, rollout.target)
        return measured | self._shares(measured) | distances

    def _shares(self, measured: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the share of each weighted term in the loss, by absolute size."""
        c = self.config
        coefs = {"policy-loss": 1.0, "value-loss": c.value_coef, "entropy": c.entropy_coef, "penalty": c.penalty_coef}
        sizes = {name: coef * np.abs(measured[name]) for name, coef in coefs.items() if name in measured}
        whole = np.maximum(sum(sizes.values()), 1e-12)
        return {f"share-{name.removesuffix('-loss')}": size / whole for name, size in sizes.items()}

    def neighbour_outputs(self, obs: F32) -> list[F32] | None:
        """Return the network outputs of the neighbours on a rollout's states, or None without a penalty."""
        if not self.config.penalty or self.neighbours is None:
            return None
        return self.neighbours.outputs(self.shape, obs)

    def _distances(self, rollout: Rollout, outputs: list[F32]) -> dict[str, NDArray[Any]]:
        if self.neighbours is None:
            return {}
        local = self.shape.distribution(rollout.outputs, self.policy)
        forward = self.config.penalty_direction == "forward"
        return self.neighbours.distances(self.shape, local, rollout.obs, outputs, forward)

    def _rate(self) -> float:
        """Return the step size of this iteration."""
        if not self.config.anneal_over:
            return self.config.learning_rate
        done = float(self.progress[0]) * self.config.rollout * self.worlds.copies
        return self.config.learning_rate * max(0.0, 1.0 - done / self.config.anneal_over)

    def _backward(self, batch: Rollout, before: F32, near: list[F32] | None) -> dict[str, F32]:
        """Write the loss's gradient into the two gradient matrices. Returns the loss's terms per sample (K, b)."""
        config, b = self.config, np.float32(batch.value.shape[1])
        now = self.shape.outputs(self.policy, batch.obs, self._tapes[0])
        back = now.zeros()
        log_ratio = now.log_prob(batch.action) - batch.log_prob
        advantage = returns.standardised(batch.advantage) if config.normalise_advantage else batch.advantage
        if config.objective == "clip":
            policy_loss, slope = ppo_losses.clipped_surrogate(log_ratio, advantage, config.clip)
        else:
            policy_loss, slope = ppo_losses.surrogate(log_ratio, advantage)
            old, beta = self.shape.distribution(batch.outputs, before), self.beta[:, None]
            policy_loss += beta * old.kl(now)
            old.kl_back_other(now, np.broadcast_to(beta / b, policy_loss.shape), back)
        now.log_prob_back(batch.action, slope / b, back)
        entropy = now.entropy()
        now.entropy_back(entropy, np.full_like(entropy, -config.entropy_coef / b), back)
        shares = {"policy-loss": policy_loss, "entropy": entropy}
        if near is not None:
            assert self.neighbours is not None
            direction, coefficient = config.penalty_direction == "forward", config.penalty_coef
            shares["penalty"] = self.neighbours.penalty(self.shape, now, near, coefficient, direction, back)
        self.shape.backward(self.policy, self._tapes[0], back, self._gradients[0])
        value = self.value_net.forward(self.value, batch.obs, self._tapes[1])[..., 0]
        if config.clip_value:
            value_loss, slope = ppo_losses.clipped_value_loss(value, batch.value, batch.target, config.clip)
        else:
            value_loss, slope = ppo_losses.value_loss(value, batch.target)
        dv = slope[..., None] * (np.float32(config.value_coef) / b)
        self.value_net.backward(self.value, self._tapes[1], dv, self._gradients[1])
        clipped = (np.abs(np.expm1(log_ratio)) > config.clip).astype(np.float32)
        return shares | {
            "value-loss": value_loss, "approx-kl": ppo_losses.approximate_kl(log_ratio), "clip-fraction": clipped,
        }  # fmt: skip


def _mean(parts: list[F32], done: NDArray[np.int64]) -> NDArray[Any]:
    """Return the mean over all samples of each agent's first ``done`` minibatches, (K,)."""
    whole = np.concatenate(parts, axis=-1)
    ends = np.cumsum([part.shape[-1] for part in parts])
    if (done == len(parts)).all():
        mean: NDArray[Any] = whole.mean(-1)
        return mean
    return np.array([row[: ends[count - 1]].mean() for row, count in zip(whole, done, strict=True)])
