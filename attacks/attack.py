"""What an attack is: it forges rows, replaces worlds, or delays what is sent. Attacks register by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from core import registry
from core.errors import Mistake
from core.options import option
from core.streams import Streams

F64 = NDArray[np.float64]
T = TypeVar("T", bound=Callable[..., Any])


@dataclass(frozen=True)
class AttackConfig:
    """Byzantine agents of a simulated run, and what they do."""

    byzantine: int = option(0, "How many agents attack: the last ones by number.", low=0)
    agents: tuple[int, ...] = option((), "Or which agents attack, by number, such as 0,3.", low=0)
    kind: str = option(
        "none",
        "What they do: a list of [AGENT:]ATTACK[@ROUND]. random-noise: all of them, always; 0:sign-flip,3:zero: these "
        "two; none@1,random-noise@10,zero@50: changes at those rounds (docs/fedpg_br.md has the attacks).",
    )
    noise_scale: float = option(3.0, "random-noise: its size, in ranges of a layer's numbers.", above=0)
    flip_factor: float = option(2.5, "sign-flip: times this, backwards.", above=0)
    large_noise: float = option(1000.0, "large-noise: the largest number that is sent.", above=0)
    pairwise_factor: float = option(1.5, "pairwise-distance: how far off, in distances between attackers.", above=0)
    z: float = option(0.0, "a-little-is-enough: deviations off the mean; 0: as published, by how many attack.", low=0)
    epsilon: float = option(0.5, "inner-product: times this, against the mean.", above=0)
    delay_s: float = option(5.0, "delay: seconds by which a reply is late.", above=0, high=600)


class About(NamedTuple):
    """What an attacker knows besides rows.

    How many agents there are, where the layers of a row lie, the options of the built-in attacks and of its own, and
    for which recipient and part the row is.
    """

    agents: int
    layers: Sequence[slice] = (slice(None),)
    config: AttackConfig = AttackConfig()
    options: Any = None
    recipient: int | None = None
    part: str = ""


@dataclass(frozen=True)
class Attack:
    """One of: a forgery of rows, false worlds, or a delay in seconds (infinite: nothing is sent)."""

    forge: Callable[[F64, Streams, About], F64] | None = None
    per_recipient: bool = False
    worlds: Any = None
    delay: Callable[[AttackConfig], float] | None = None


def attack(name: str, *, per_recipient: bool = False, options: type[Any] | None = None) -> Callable[[T], T]:
    """Register an attack: a function ``(rows, streams, about) -> rows``, or a subclass of ``FalseWorlds``.

    ``per_recipient``: peers are each sent another row. ``options``: a dataclass, which becomes the table [name]; the
    function finds it in ``about.options``.
    """

    def decorate(value: T) -> T:
        if inspect.isclass(value):
            if not hasattr(value, "executed") or not hasattr(value, "rewarded"):
                raise Mistake(f"the attack '{name}' is a class, and no subclass of fedrl.FalseWorlds")
            found = Attack(worlds=value)
        elif len(inspect.signature(value).parameters) == 3:
            found = Attack(forge=value, per_recipient=per_recipient)
        else:
            raise Mistake(f"the attack '{name}' takes (rows, streams, about), not {inspect.signature(value)}")
        registry.register("attack", name, found, {name: options} if options else None, value.__module__)
        return value

    return decorate


def find(kind: str) -> Attack:
    """Return the attack with this name."""
    found = registry.get("attack", kind).value
    assert isinstance(found, Attack)
    return found
