"""Rollouts: T steps of every copy of a world, recorded.

A world with a compiled step is played in one compiled loop: with few copies, calls between Python and compiled code
cost more than policy and physics together. Every other world is played step by step, by the same functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from agents.fleet import Bools, Worlds
from agents.networks import infer_rows
from agents.policies import Policy, choose, perturb
from core.streams import Streams

F32 = NDArray[np.float32]


class Record(NamedTuple):
    """A recorded rollout, axes (T, K, n, ...). Of an inactive copy only ``obs`` has a meaning.

    ``obs`` has one step more than the rest: the observation to act on next. ``ends`` is (T, 2, K, n): terminated,
    truncated. ``lengths`` (K, n) are the steps that each copy took.
    """

    obs: F32
    outputs: F32
    action: NDArray[Any]
    reward: F32
    ends: Bools
    next_obs: F32
    lengths: NDArray[np.int64]


def play(
    policy: Policy,
    W: F32,
    worlds: Worlds,
    streams: Streams,
    steps: int,
    playing: Bools | None = None,
    seen: Callable[[F32], F32] | None = None,
) -> Record:
    """Play ``steps`` steps in every copy with the policies ``W``, or one episode in each copy that is ``playing``.

    ``seen`` maps observations to the input of the networks, for example by normalising them. Of whole episodes neither
    outputs nor successors are recorded: they are long, and no caller uses them.
    """
    (K, n), once = worlds.obs.shape[:2], playing is not None
    active = np.ones((K, n), np.bool_) if playing is None else playing.copy()
    deep, width, size = 1 if once else steps, worlds.obs.shape[-1], policy.size
    record = Record(
        obs=np.empty((steps + 1, K, n, width), np.float32),
        outputs=np.empty((deep, K, n, size), np.float32),
        action=np.empty((steps, K, n), np.int64) if policy.discrete else np.empty((steps, K, n, size), np.float32),
        reward=np.empty((steps, K, n), np.float32),
        ends=np.empty((steps, 2, K, n), np.bool_),
        next_obs=np.empty((deep, K, n, width), np.float32),
        lengths=np.zeros((K, n), np.int64),
    )
    record.obs[0] = worlds.obs
    compiled = worlds.compiled if seen is None else None
    if compiled is not None:
        random = streams.keys, streams.counts
        done = _play(*compiled, *policy.compiled(W), *random, active, once, *record)  # type: ignore[call-arg]
        worlds.obs = record.obs[done].copy()
        worlds.count(record.lengths.sum(axis=1))
        return record
    for t in range(steps):
        if not active.any():
            break
        obs = record.obs[t] if seen is None else seen(record.obs[t])
        record.action[t], record.outputs[t % deep] = policy.act(W, obs, streams, active)
        step = worlds.step(policy.to_world(record.action[t]), active if once else None)
        record.obs[t + 1], record.reward[t], record.next_obs[t % deep] = step.obs, step.reward, step.next_obs
        record.ends[t, 0], record.ends[t, 1] = step.terminated, step.truncated
        record.lengths[active] += 1
        if once:
            active &= ~(step.terminated | step.truncated)
    return record


@njit(cache=True)
def _play(  # type: ignore[no-untyped-def]
    kernel, state, clock, physics, world_keys, world_counts, horizon,
    W, sizes, relu, squash, std, low, high,
    keys, counts, active, once,
    obs, outputs, action, reward, ends, next_obs, lengths,
):  # fmt: skip
    K, n = lengths.shape
    deep = outputs.shape[0]
    commands = np.empty_like(action[0])
    for t in range(reward.shape[0]):
        if once and not active.any():
            return t
        logits = outputs[t % deep]
        infer_rows(W, obs[t], sizes, relu, squash, active, logits)
        if std is None:
            choose(logits, keys, counts, active, action[t])
            commands = action[t]
        else:
            action[t] = logits
            perturb(action[t], std, keys, counts, active)
            for k in range(K):
                for i in range(n):
                    for j in range(len(low)):
                        commands[k, i, j] = min(max(action[t, k, i, j], low[j]), high[j])
        obs[t + 1] = obs[t]
        # fmt: off
        kernel(state, clock, physics, world_keys, world_counts, active, commands, horizon,
               obs[t + 1], next_obs[t % deep], reward[t], ends[t])
        # fmt: on
        for k in range(K):
            for i in range(n):
                if active[k, i]:
                    lengths[k, i] += 1
                    if once:
                        active[k, i] = not (ends[t, 0, k, i] or ends[t, 1, k, i])
    return reward.shape[0]
