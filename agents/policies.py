"""Stochastic policies: a network whose outputs are the parameters of a categorical or a diagonal Gaussian."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from numba import njit, uint64
from numpy.typing import NDArray

from agents.equations import distributions
from agents.fleet import Bools, action_range
from agents.networks import MLP, Tape
from core.streams import Streams, uniform01

F32 = NDArray[np.float32]


class Policy:
    """The shape of a policy. A row of weights holds the network and, for continuous actions, a log_std per action."""

    def __init__(
        self,
        observations: spaces.Box,
        actions: spaces.Space[Any],
        hidden: tuple[int, ...],
        activation: str,
        squash: bool,
    ) -> None:
        self.discrete = isinstance(actions, spaces.Discrete)
        if isinstance(actions, spaces.Discrete):
            self.size = int(actions.n)
        else:
            centre, half = action_range(actions)
            self.low, self.high = centre - half, centre + half
            self.size = len(centre)
        self.net = MLP((observations.shape[0], *hidden, self.size), activation, squash=squash)
        self.width = self.net.width + (0 if self.discrete else self.size)

    def initial(self, streams: Streams, gains: tuple[float, float] | None) -> F32:
        net = self.net.initial(streams, gains)
        return net if self.discrete else np.concatenate([net, np.zeros((len(net), self.size), np.float32)], axis=1)

    def split(self, W: F32) -> tuple[F32, F32 | None]:
        """Return the network's weights and the log_std of rows of weights."""
        return W[..., : self.net.width], (None if self.discrete else W[..., self.net.width :])

    def act(self, W: F32, obs: F32, streams: Streams | None, active: Bools) -> tuple[NDArray[Any], F32]:
        """Return actions (K, n[, a]) and the network's outputs (K, n, a).

        With streams, actions are sampled, and only active copies draw from theirs. Without, they are the likeliest.
        """
        outputs = self.net.infer(W, obs, active)
        if self.discrete:
            if streams is None:
                return outputs.argmax(-1), outputs
            actions = np.zeros(outputs.shape[:2], np.int64)
            choose(outputs, streams.keys, streams.counts, active, actions)
            return actions, outputs
        chosen = outputs.copy()
        if streams is not None:
            _, log_std = self.split(W)
            assert log_std is not None
            perturb(chosen, np.exp(log_std), streams.keys, streams.counts, active)
        return chosen, outputs

    def compiled(self, W: F32) -> tuple[Any, ...]:
        """Return what a compiled loop needs to act: the networks and, for continuous actions, deviations and range."""
        net = (W, np.array(self.net.sizes), self.net.activation == "relu", self.net.squash)
        _, log_std = self.split(W)
        return (*net, None, None, None) if log_std is None else (*net, np.exp(log_std), self.low, self.high)

    def to_world(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Return actions as the world takes them: clipped to its range."""
        return actions if self.discrete else np.clip(actions, self.low, self.high)

    def outputs(self, W: F32, obs: F32, tape: Tape | None = None) -> Outputs:
        """Return the distributions of these weights (K, d) on these states (K, b, o)."""
        net, log_std = self.split(W)
        return _distribution(self.net.forward(net, obs, tape), log_std)

    def distribution(self, values: F32, W: F32) -> Outputs:
        """Return the network outputs (K, b, a) of the weights ``W`` as a distribution."""
        return _distribution(values, self.split(W)[1])

    def backward(self, W: F32, tape: Tape, back: Back, G: F32) -> None:
        """Backpropagate a loss from the outputs to the weights. Writes its gradient (K, d) into ``G``."""
        net, log_std = self.split(G)
        self.net.backward(self.split(W)[0], tape, back.values, net)
        if log_std is not None:
            log_std[...] = back.log_std


class Back(NamedTuple):
    """The gradient of a loss with respect to a distribution's parameters, accumulated term by term."""

    values: F32
    log_std: F32


@dataclass(frozen=True)
class Outputs:
    """A distribution per state. The ``_back`` methods add d * derivative to a ``Back``."""

    values: F32

    def zeros(self) -> Back:
        """Return a zero-initialised gradient accumulator."""
        return Back(np.zeros_like(self.values), np.zeros((len(self.values), self.values.shape[-1]), np.float32))

    def log_prob(self, action: NDArray[Any]) -> F32:
        raise NotImplementedError

    def log_prob_back(self, action: NDArray[Any], d: F32, back: Back) -> None:
        raise NotImplementedError

    def entropy(self) -> F32:
        raise NotImplementedError

    def entropy_back(self, entropy: F32, d: F32, back: Back) -> None:
        raise NotImplementedError

    def kl(self, other: Any) -> F32:
        """KL(self || other) on every state."""
        raise NotImplementedError

    def kl_back(self, other: Any, kl: F32, d: F32, back: Back) -> None:
        """Accumulate the gradient of KL(self || other) with respect to the parameters of ``self``."""
        raise NotImplementedError

    def kl_back_other(self, other: Any, d: F32, back: Back) -> None:
        """Accumulate the gradient of KL(self || other) with respect to the parameters of ``other``."""
        raise NotImplementedError


def _distribution(values: F32, log_std: F32 | None) -> Outputs:
    """Return network outputs as a distribution. ``log_std`` (K, a) belongs to continuous actions only."""
    if log_std is None:
        return Categorical(values)
    return Gaussian(values, np.ascontiguousarray(log_std))


class Categorical(Outputs):
    """Categorical distributions. Values are logits."""

    def log_prob(self, action: NDArray[Any]) -> F32:
        return distributions.categorical_log_prob(self.values, action)  # type: ignore[no-any-return]

    def log_prob_back(self, action: NDArray[Any], d: F32, back: Back) -> None:
        distributions.categorical_log_prob_back(self.values, action, d, back.values)

    def entropy(self) -> F32:
        return distributions.categorical_entropy(self.values)  # type: ignore[no-any-return]

    def entropy_back(self, entropy: F32, d: F32, back: Back) -> None:
        distributions.categorical_entropy_back(self.values, entropy, d, back.values)

    def kl(self, other: Categorical) -> F32:
        return distributions.categorical_kl(self.values, other.values)  # type: ignore[no-any-return]

    def kl_back(self, other: Categorical, kl: F32, d: F32, back: Back) -> None:
        distributions.categorical_kl_back_p(self.values, other.values, kl, d, back.values)

    def kl_back_other(self, other: Categorical, d: F32, back: Back) -> None:
        distributions.categorical_kl_back_q(self.values, other.values, d, back.values)


@dataclass(frozen=True)
class Gaussian(Outputs):
    """Diagonal Gaussians. Values are means; each agent has one log_std per action."""

    log_std: F32

    def log_prob(self, action: NDArray[Any]) -> F32:
        return distributions.gaussian_log_prob(self.values, self.log_std, action)  # type: ignore[no-any-return]

    def log_prob_back(self, action: NDArray[Any], d: F32, back: Back) -> None:
        distributions.gaussian_log_prob_back(self.values, self.log_std, action, d, back.values, back.log_std)

    def entropy(self) -> F32:
        return distributions.gaussian_entropy(self.values, self.log_std)  # type: ignore[no-any-return]

    def entropy_back(self, entropy: F32, d: F32, back: Back) -> None:
        distributions.gaussian_entropy_back(d, back.log_std)

    def kl(self, other: Gaussian) -> F32:
        return distributions.gaussian_kl(self.values, self.log_std, other.values, other.log_std)  # type: ignore[no-any-return]

    def kl_back(self, other: Gaussian, kl: F32, d: F32, back: Back) -> None:
        mine, theirs = (self.values, self.log_std), (other.values, other.log_std)
        distributions.gaussian_kl_back_p(*mine, *theirs, d, back.values, back.log_std)

    def kl_back_other(self, other: Gaussian, d: F32, back: Back) -> None:
        mine, theirs = (self.values, self.log_std), (other.values, other.log_std)
        distributions.gaussian_kl_back_q(*mine, *theirs, d, back.values, back.log_std)


@njit(cache=True, fastmath=True, error_model="numpy")
def choose(logits, keys, counts, active, actions):  # type: ignore[no-untyped-def]
    """Sample softmax(logits) by its cumulative sum."""
    size = logits.shape[2]
    p = np.empty(size)
    for k in range(logits.shape[0]):
        for i in range(logits.shape[1]):
            if not active[k, i]:
                continue
            z = logits[k, i]
            largest = z[0]
            for a in range(1, size):
                largest = max(largest, z[a])
            total = 0.0
            for a in range(size):
                total += np.exp(z[a] - largest)
                p[a] = total
            u = uniform01(keys[k, i], counts[k, i]) * total
            counts[k, i] += uint64(1)
            chosen = 0
            while chosen < size - 1 and p[chosen] <= u:
                chosen += 1
            actions[k, i] = chosen


@njit(cache=True)
def perturb(mean, std, keys, counts, active):  # type: ignore[no-untyped-def]
    """mean += std * normal, by Box-Muller on the copy's own stream."""
    for k in range(mean.shape[0]):
        for i in range(mean.shape[1]):
            if not active[k, i]:
                continue
            for a in range(mean.shape[2]):
                radius = np.sqrt(-2.0 * np.log(1.0 - uniform01(keys[k, i], counts[k, i])))
                angle = 2.0 * np.pi * uniform01(keys[k, i], counts[k, i] + uint64(1))
                mean[k, i, a] += std[k, a] * radius * np.cos(angle)
                counts[k, i] += uint64(2)
