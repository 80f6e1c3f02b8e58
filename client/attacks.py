"""What Byzantine parties do, and who of them does what from which round on.

An attack is one of three things. A lie replaces what an agent sends: ``lie(rows, streams, about)``, where ``rows`` are
what those who make the same attack would honestly send. Liars see their own rows and nothing else: what honest agents
send they can only guess from that, and one that is alone with its attack (a node answers for one agent at a time) has
one row to guess from. False worlds (client/false_worlds.py) replace what happens while an agent acts. Silence and
delay are about when an answer goes.

A liar says honestly how much it worked, and lets itself be judged honestly: a curve of returns should mean something.
Running moments are never lied about.

Every random number is a function of the run's seed, the agent, the part and the round. So a run with attacks goes on
after a resume as if it had not stopped, and the same liar tells the same lies in every engine.
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from core.config import option
from core.errors import Mistake
from core.streams import Streams, child

if TYPE_CHECKING:
    from client.session import PartyConfig, Session

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


class Silence(Exception):
    """An agent that will not answer."""


@dataclass(frozen=True)
class AttackConfig:
    """Byzantine agents of a simulated run, and what they do."""

    byzantine: int = option(0, "How many agents attack: the last ones by number.", low=0)
    agents: tuple[int, ...] = option((), "Or which ones, by number, such as 0,3.", low=0)
    kind: str = option(
        "none",
        "What they do: a list of [AGENT:]ATTACK[@ROUND]. random-noise: all of them, always; 0:sign-flip,3:zero: these "
        "two; none@1,random-noise@10,zero@50: changes at those rounds (docs/fedpg_br.md has the attacks).",
    )
    noise_scale: float = option(3.0, "random-noise: its size, in ranges of a layer's numbers.", above=0)
    flip_factor: float = option(2.5, "sign-flip: times this, backwards.", above=0)
    large_noise: float = option(1000.0, "large-noise: the largest number that is sent.", above=0)
    pairwise_factor: float = option(1.5, "pairwise-distance: how far off, in distances between the liars.", above=0)
    z: float = option(0.0, "a-little-is-enough: deviations off the mean; 0: as published, by how many lie.", low=0)
    epsilon: float = option(0.5, "inner-product: times this, against the mean.", above=0)
    delay_s: float = option(5.0, "delay: seconds by which an answer is late.", above=0, high=600)


# Lies ---------------------------------------------------------------------------------------------------------------


class About(NamedTuple):
    """What a liar knows besides rows: how many agents there are, where a row's layers lie, for whom the lie is."""

    agents: int
    layers: Sequence[slice] = (slice(None),)
    config: AttackConfig = AttackConfig()
    recipient: int | None = None
    part: str = ""


Lie = Callable[[F64, Streams, About], F64]


def random_noise(rows: F64, streams: Streams, about: About) -> F64:
    """g + 3 (max g - min g) U(-1, 1), layer by layer; weights and biases are layers of their own."""
    noise = 2.0 * streams.uniform(rows.shape[1]) - 1.0
    for layer in about.layers:
        span = np.ptp(rows[:, layer], axis=1, keepdims=True)
        noise[:, layer] *= about.config.noise_scale * span
    return rows + noise


def per_recipient_noise(rows: F64, streams: Streams, about: About) -> F64:
    """Random noise that is another one for each neighbour of a gossiping liar; for a server it is random noise."""
    return random_noise(rows, _for_recipient(streams, about), about)


def sign_flip(rows: F64, streams: Streams, about: About) -> F64:
    """-2.5 g."""
    return -about.config.flip_factor * rows


def zero(rows: F64, streams: Streams, about: About) -> F64:
    """Nothing learned."""
    return np.zeros_like(rows)


def large_noise(rows: F64, streams: Streams, about: About) -> F64:
    """U(-1000, 1000), whatever was learned; another one for each neighbour of a gossiping liar."""
    return about.config.large_noise * (2.0 * _for_recipient(streams, about).uniform(rows.shape[1]) - 1.0)


def a_little_is_enough(rows: F64, streams: Streams, about: About) -> F64:
    """mean - z deviation, number by number (Baruch 2019): off, but no more so than honest ones are."""
    z = about.config.z or hidden_by(about.agents, len(rows))
    return _for_all(rows, rows.mean(axis=0) - z * rows.std(axis=0))


def hidden_by(agents: int, liars: int) -> float:
    """The z of "a little is enough": at most so many deviations off, enough honest agents stand farther out to hide it.

    phi(z) = (n - f - s) / (n - f), where the f liars need s = floor(n / 2 + 1) - f honest ones for a majority. Where
    few liars could hide nowhere, or many need nobody, it ends at 0 and at 3.
    """
    honest, needed = max(agents - liars, 1), agents // 2 + 1 - liars
    return NormalDist().inv_cdf(min(max((honest - needed) / honest, 0.5), 0.99865))


def inner_product(rows: F64, streams: Streams, about: About) -> F64:
    """-epsilon mean (Xie 2019): the average of all should point backwards, or nowhere."""
    return _for_all(rows, -about.config.epsilon * rows.mean(axis=0))


def mimic(rows: F64, streams: Streams, about: About) -> F64:
    """All send what the first of them learned (Karimireddy 2022): nothing is wrong with it, but it counts m times."""
    return _for_all(rows, rows[0])


def average_zero(rows: F64, streams: Streams, about: About) -> F64:
    """What makes the average of all agents zero, if honest ones send the mean of the liars' rows."""
    return _for_all(rows, -(about.agents - len(rows)) / len(rows) * rows.mean(axis=0))


def pairwise_distance(rows: F64, streams: Streams, about: About) -> F64:
    """mean + 1.5 * the largest distance between two of them * one random unit vector: just inside a filter's radius.

    The liar with the lowest number draws the vector. One alone knows of no distance, and sends what it learned.
    """
    widest = max(np.linalg.norm(rows - row, axis=1).max() for row in rows)
    direction = streams.take(slice(0, 1)).normal(rows.shape[1])[0]
    away = about.config.pairwise_factor * widest * direction / np.linalg.norm(direction)
    return _for_all(rows, rows.mean(axis=0) + away)


def nan(rows: F64, streams: Streams, about: About) -> F64:
    """Not a number."""
    return np.full_like(rows, np.nan)


def wrong_shape(rows: F64, streams: Streams, about: About) -> F64:
    """One number too few."""
    return rows[:, :-1]


def _for_recipient(streams: Streams, about: About) -> Streams:
    if about.recipient is None:
        return streams
    own = streams.take(slice(None))
    own.keys[...] = [child(int(key), about.recipient) for key in streams.keys]
    return own


def _for_all(rows: F64, one: F64) -> F64:
    return np.repeat(one[None], len(rows), axis=0)


LIES: dict[str, Lie] = {
    "random-noise": random_noise,
    "sign-flip": sign_flip,
    "zero": zero,
    "large-noise": large_noise,
    "a-little-is-enough": a_little_is_enough,
    "inner-product": inner_product,
    "mimic": mimic,
    "average-zero": average_zero,
    "pairwise-distance": pairwise_distance,
    "per-recipient-noise": per_recipient_noise,
    "nan": nan,
    "wrong-shape": wrong_shape,
}
# Lies that are others for every recipient, where peers exchange and no server stands between them.
PER_RECIPIENT = ("per-recipient-noise", "large-noise")
FALSE_WORLDS = ("random-action", "constant-action", "reward-flip", "reward-shuffle")
KINDS = ("none", *LIES, *FALSE_WORLDS, "silence", "delay")


def lies(kind: str, rows: F32, seeds: Sequence[int], number: int, about: About, came: F32 | None = None) -> F32:
    """What liars send in round ``number`` instead of their rows (m, d); ``seeds`` are theirs, the lowest agent first.

    Of weights, ``came`` (m, d) are those that a round began with: lies are made on the update, so that an attack does
    to weights what it does to gradients; zero sends back what came.
    """
    start = np.zeros_like(rows, np.float64) if came is None else came.astype(np.float64)
    false = LIES[kind](rows - start, drawn_in(number, seeds, f"lie {about.part}"), about)
    return (start[:, : false.shape[1]] + false).astype(np.float32)


def told(
    session: Session,
    number: int,
    rows: Sequence[int],
    part: str,
    honest: F32,
    came: F32 | None = None,
    recipient: int | None = None,
    tag: str = "",
) -> dict[int, F32]:
    """What the liars among these rows of a session send instead of what they should, by position in ``honest`` (m, d).

    Those who make the same attack know each other. ``tag`` tells apart what is sent of one part in one round.
    """
    kinds = [session.plan.kind(session.numbers[row], number) for row in rows]
    if not LIES.keys() & set(kinds):
        return {}
    layered = layers(session.fleet, part, honest.shape[1])
    about = About(session.config.agents, layered, session.config.attack, recipient, f"{part}{tag}")
    found: dict[int, F32] = {}
    for kind in LIES.keys() & set(kinds):
        liars = [at for at, other in enumerate(kinds) if other == kind]
        liars.sort(key=lambda at: session.numbers[rows[at]])
        seeds = [session.fleet.seeds[rows[at]] for at in liars]
        start = came[liars] if came is not None else None
        found |= zip(liars, lies(kind, honest[liars], seeds, number, about, start), strict=True)
    return found


def drawn_in(number: int, seeds: Sequence[int], purpose: str, lanes: int | None = None) -> Streams:
    """The streams of these agents for one round: what was drawn before does not matter."""
    streams = Streams(seeds, purpose, lanes)
    streams.counts[...] = np.uint64(number << 32)
    return streams


def layers(fleet: Any, part: str, width: int) -> list[slice]:
    """Where the weights and the biases of each layer lie in a row of a part; the whole row where nobody knows."""
    net = fleet.shape.net if part == "policy" else getattr(fleet, f"{part}_net", None)
    if net is None:
        return [slice(None)]
    one = [array.size for pair in net.layers(np.zeros(net.width, np.float32)) for array in pair]
    sizes = one * (width // net.width)  # twins are two networks in a row
    edges = np.cumsum([0, *sizes, width - sum(sizes)]).tolist()  # a log_std per action comes behind its network
    return [slice(begin, end) for begin, end in itertools.pairwise(edges) if end > begin]


# Who does what, when ------------------------------------------------------------------------------------------------


class Plan:
    """What each agent of a run does in each round; refuses a configuration that makes no sense."""

    def __init__(self, config: AttackConfig, agents: int) -> None:
        self.config, self._kinds = config, schedules(config.kind, "'attack.kind'")
        if config.byzantine and config.agents:
            raise Mistake("'attack.byzantine' says how many attack, 'attack.agents' says who: give one of them")
        if config.byzantine > agents:
            raise Mistake(f"'attack.byzantine' is {config.byzantine}, and the run has {agents} agents")
        chosen = set(config.agents) | set(range(agents - config.byzantine, agents))
        named = {agent for agent in self._kinds if agent is not None}
        for agent in sorted(chosen | named):
            if agent >= agents:
                key = "attack.kind" if agent in named else "attack.agents"
                raise Mistake(f"'{key}' names agent {agent}: the run has the agents 0 to {agents - 1}")
        if None in self._kinds and not chosen and set(self._kinds[None].values()) != {"none"}:
            raise Mistake(f"nobody makes the attack '{config.kind}': set attack.byzantine, or attack.agents")
        if None not in self._kinds and chosen - named:
            raise Mistake(f"'attack.kind' says nothing about agent {min(chosen - named)}, which is to attack")
        self._agents = chosen | named
        if idle := sorted(agent for agent in chosen if self.honest(agent)):
            key = "attack.byzantine" if config.byzantine else "attack.agents"
            raise Mistake(
                f"'{key}' lets agent {idle[0]} attack, and 'attack.kind' is '{config.kind}', which names no attack for "
                f"it: set attack.kind to an attack ({', '.join(kind for kind in KINDS if kind != 'none')}), or leave "
                f"{key} away"
            )

    def kind(self, agent: int, number: int) -> str:
        """What an agent does in a round; ``none``: its work."""
        begun = {first: kind for first, kind in self._schedule(agent).items() if first <= number}
        return begun[max(begun)] if begun else "none"

    def honest(self, agent: int) -> bool:
        """Whether an agent never attacks."""
        return set(self._schedule(agent).values()) <= {"none"}

    def after(self, agent: int, number: int) -> float:
        """Seconds by which an answer is late; infinite when it never goes."""
        return {"silence": math.inf, "delay": self.config.delay_s}.get(self.kind(agent, number), 0.0)

    def attackers(self, number: int) -> set[int]:
        """Who sends in a round what did not come of honest work: a filter should find them. Who is late does not."""
        return {agent for agent in self._agents if self.kind(agent, number) not in ("none", "delay")}

    def schedules(self) -> list[dict[int, str]]:
        """What those who attack do, each by the round it begins at."""
        return [self._schedule(agent) for agent in sorted(self._agents)]

    def _schedule(self, agent: int) -> dict[int, str]:
        if agent not in self._agents:
            return {}
        return self._kinds.get(agent) or self._kinds[None]


def attackers(config: PartyConfig, number: int) -> set[int]:
    """Who sends in round ``number`` of a run what did not come of honest work, as far as the configuration knows.

    It knows the simulated ones; a node that was started with --attack only says that it is not attack-free.
    """
    return Plan(config.attack, config.agents).attackers(number)


def schedules(text: str, where: str) -> dict[int | None, dict[int, str]]:
    """``[AGENT:]ATTACK[@ROUND],...`` as attacks by the round they begin at, by agent; None: of all that are not named.

    An attack without a round begins at the first.
    """
    found: dict[int | None, dict[int, str]] = {}
    for entry in text.split(","):
        match = re.fullmatch(r"(?:(\d+):)?([a-z-]+)(?:@(\d+))?", entry.strip())
        if match is None:
            raise Mistake(
                f"{where} is a list of [AGENT:]ATTACK[@ROUND], such as zero or 0:sign-flip,3:zero@10, not '{text}'"
            )
        agent, kind, first = int(match[1]) if match[1] else None, match[2], int(match[3] or 1)
        if kind not in KINDS:
            near = difflib.get_close_matches(kind, KINDS, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise Mistake(f"{where}: there is no attack '{kind}'{hint} (there are {', '.join(KINDS)})")
        if first < 1:
            raise Mistake(f"{where}: the first round is 1, not '{entry.strip()}'")
        if first in found.setdefault(agent, {}):
            whom = "all" if agent is None else f"agent {agent}"
            raise Mistake(f"{where} says twice what {whom} should do from round {first} on")
        found[agent][first] = kind
    return found
