"""Frozen policies of neighbours, and the KL divergence between an agent's policy and theirs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agents.policies import Back, Outputs, Policy

F32 = NDArray[np.float32]
Bools = NDArray[np.bool_]


class Neighbours(NamedTuple):
    """Frozen policies (m, d). For each agent, ``which`` of them have which ``weight`` in its loss, (K, J) each.

    The largest weights come first. An agent may have fewer than J neighbours: ``known`` (K, J) marks the filled places.
    """

    policies: F32
    names: tuple[str, ...]
    which: NDArray[np.int64]
    weight: F32
    known: Bools

    @classmethod
    def of(cls, policies: F32, matrix: F32, known: Bools | None, names: Sequence[str] | None) -> Neighbours:
        """Return the neighbours that a matrix of weights (K, m) describes; by default those with a weight are known."""
        known = matrix > 0 if known is None else known
        most = int(known.sum(axis=1).max(initial=0))
        which = np.argsort(-np.where(known, matrix, -1.0), axis=1, kind="stable")[:, :most]
        weight = np.take_along_axis(matrix, which, axis=1).astype(np.float32)
        labels = tuple(names) if names is not None else tuple(map(str, range(len(policies))))
        return cls(policies.copy(), labels, which, weight, np.take_along_axis(known, which, axis=1))

    def rows(self, rows: Any) -> Neighbours:
        """Return the neighbours of some agents."""
        return self._replace(which=self.which[rows], weight=self.weight[rows], known=self.known[rows])

    def outputs(self, shape: Policy, obs: F32) -> list[F32]:
        """Return the network outputs of all neighbours that have a weight, on every state of a rollout.

        They are computed once per iteration, not once per minibatch.
        """
        nets, _ = shape.split(self.policies)
        weighted = self.which.T[: (self.weight > 0).any(axis=0).sum()]
        return [shape.net.forward(nets[index], obs) for index in weighted]

    def distances(self, shape: Policy, local: Outputs, obs: F32, outputs: list[F32], forward: bool) -> dict[str, Any]:
        """Return the KL to every known policy on these states, and its mean over the neighbours that have a weight.

        The KL is nan where an agent does not know a policy. ``outputs`` are those of the weighted neighbours.
        """
        if not self.known.any():
            return {}
        result = dict[str, NDArray[Any]]()
        agents = len(self.which)
        total, count = np.zeros(agents), (self.weight > 0).sum(axis=1)
        nets, _ = shape.split(self.policies)
        for at, (index, weight, known) in enumerate(zip(self.which.T, self.weight.T, self.known.T, strict=True)):
            values = outputs[at] if at < len(outputs) else shape.net.forward(nets[index], obs)
            other = shape.distribution(values, self.policies[index])
            kl = (other.kl(local) if forward else local.kl(other)).mean(-1)
            for k in np.flatnonzero(known):
                name = f"kl.{self.names[index[k]]}"
                result.setdefault(name, np.full(agents, np.nan))[k] = kl[k]
            total += np.where(weight > 0, kl, 0.0)
        return result | {"kl-neighbours": np.where(count > 0, total / np.maximum(count, 1), np.nan)}

    def penalty(
        self, shape: Policy, local: Outputs, outputs: list[F32], coefficient: float, forward: bool, back: Back
    ) -> F32:
        """Return sum_j C[k][j] KL_kj on every state, (K, b).

        Accumulates its gradient with respect to the agent's own outputs in ``back``, times ``coefficient``.
        """
        total = np.zeros(local.values.shape[:2], np.float32)
        scale = coefficient / local.values.shape[1]
        for index, weight, values in zip(self.which.T, self.weight.T, outputs, strict=False):
            other = shape.distribution(values, self.policies[index])
            d = np.broadcast_to((scale * weight[:, None]).astype(np.float32), total.shape)
            if forward:
                kl = other.kl(local)
                other.kl_back_other(local, d, back)
            else:
                kl = local.kl(other)
                local.kl_back(other, kl, d, back)
            total += weight[:, None] * kl
        return total
