"""Forged rows: what Byzantine agents send in place of what they learned.

A forgery is a function ``(rows, streams, about) -> rows``. ``rows`` (m, d) are what the agents that make the same
attack would honestly send. They see their own rows and nothing else, so they can only guess what honest agents send. An
attacker that is alone with its attack has one row to guess from.

Every random number is a function of the run's seed, the agent, the part and the round. So a run with attacks resumes as
if it had not stopped, and the same attacker sends the same rows in every engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from attacks.attack import F64, About, attack, find
from core.streams import Streams, child

F32 = NDArray[np.float32]


@attack("random-noise")
def random_noise(rows: F64, streams: Streams, about: About) -> F64:
    """Send g + 3 (max g - min g) U(-1, 1), layer by layer; weights and biases are layers of their own."""
    noise = 2.0 * streams.uniform(rows.shape[1]) - 1.0
    for layer in about.layers:
        span = np.ptp(rows[:, layer], axis=1, keepdims=True)
        noise[:, layer] *= about.config.noise_scale * span
    return rows + noise


@attack("per-recipient-noise", per_recipient=True)
def per_recipient_noise(rows: F64, streams: Streams, about: About) -> F64:
    """Send random noise, drawn anew for each neighbour of a peer; to a server it is random noise."""
    return random_noise(rows, _for_recipient(streams, about), about)


@attack("sign-flip")
def sign_flip(rows: F64, streams: Streams, about: About) -> F64:
    """Send -2.5 g."""
    return -about.config.flip_factor * rows


@attack("zero")
def zero(rows: F64, streams: Streams, about: About) -> F64:
    """Send zeros: nothing was learned."""
    return np.zeros_like(rows)


@attack("large-noise", per_recipient=True)
def large_noise(rows: F64, streams: Streams, about: About) -> F64:
    """Send U(-1000, 1000), whatever was learned; drawn anew for each neighbour of a peer."""
    return about.config.large_noise * (2.0 * _for_recipient(streams, about).uniform(rows.shape[1]) - 1.0)


@attack("a-little-is-enough")
def a_little_is_enough(rows: F64, streams: Streams, about: About) -> F64:
    """Send mean - z deviation, coordinate by coordinate (Baruch 2019): no further off than honest rows are."""
    z = about.config.z or hidden_by(about.agents, len(rows))
    return _for_all(rows, rows.mean(axis=0) - z * rows.std(axis=0))


def hidden_by(agents: int, attackers: int) -> float:
    """Return the z of "a little is enough": so far off, enough honest rows lie farther out to hide the forged one.

    phi(z) = (n - f - s) / (n - f), where the f attackers need s = floor(n / 2 + 1) - f honest agents for a majority.
    It is bounded by 0, where few attackers cannot hide, and by 3, where many need nobody.
    """
    honest, needed = max(agents - attackers, 1), agents // 2 + 1 - attackers
    return NormalDist().inv_cdf(min(max((honest - needed) / honest, 0.5), 0.99865))


@attack("inner-product")
def inner_product(rows: F64, streams: Streams, about: About) -> F64:
    """Send -epsilon mean (Xie 2019), so that the average of all points backwards, or nowhere."""
    return _for_all(rows, -about.config.epsilon * rows.mean(axis=0))


@attack("mimic")
def mimic(rows: F64, streams: Streams, about: About) -> F64:
    """Send what the first attacker learned (Karimireddy 2022): the row is honest, but it counts m times."""
    return _for_all(rows, rows[0])


@attack("average-zero")
def average_zero(rows: F64, streams: Streams, about: About) -> F64:
    """Send what makes the average of all agents zero, if honest agents send the mean of the attackers' rows."""
    return _for_all(rows, -(about.agents - len(rows)) / len(rows) * rows.mean(axis=0))


@attack("pairwise-distance")
def pairwise_distance(rows: F64, streams: Streams, about: About) -> F64:
    """Send mean + 1.5 * the largest distance between two attackers * one random unit vector: just inside a radius.

    The attacker with the lowest number draws the vector. An attacker alone knows no distance and sends what it learned.
    """
    widest = max(np.linalg.norm(rows - row, axis=1).max() for row in rows)
    direction = streams.take(slice(0, 1)).normal(rows.shape[1])[0]
    away = about.config.pairwise_factor * widest * direction / np.linalg.norm(direction)
    return _for_all(rows, rows.mean(axis=0) + away)


@attack("nan")
def nan(rows: F64, streams: Streams, about: About) -> F64:
    """Send NaN."""
    return np.full_like(rows, np.nan)


@attack("wrong-shape")
def wrong_shape(rows: F64, streams: Streams, about: About) -> F64:
    """Send one number too few."""
    return rows[:, :-1]


def _for_recipient(streams: Streams, about: About) -> Streams:
    if about.recipient is None:
        return streams
    own = streams.take(slice(None))
    own.keys[...] = [child(int(key), about.recipient) for key in streams.keys]
    return own


def _for_all(rows: F64, one: F64) -> F64:
    return np.repeat(one[None], len(rows), axis=0)


def forge(kind: str, rows: F32, seeds: Sequence[int], number: int, about: About, start: F32 | None = None) -> F32:
    """Return what attackers send in round ``number`` in place of their rows (m, d).

    ``seeds`` are theirs, the lowest agent first. For weights, ``start`` (m, d) are those that the round began with: the
    update is forged, so that an attack does to weights what it does to gradients.
    """
    function = find(kind).forge
    assert function is not None, kind
    begin = np.zeros_like(rows, np.float64) if start is None else start.astype(np.float64)
    forged = function(rows - begin, drawn_in(number, seeds, f"lie {about.part}"), about)
    return (begin[:, : forged.shape[1]] + forged).astype(np.float32)


def drawn_in(number: int, seeds: Sequence[int], purpose: str, lanes: int | None = None) -> Streams:
    """Return the streams of these agents for one round; they do not depend on what was drawn before."""
    streams = Streams(seeds, purpose, lanes)
    streams.counts[...] = np.uint64(number << 32)
    return streams
