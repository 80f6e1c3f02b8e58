"""A peer as a process: its identity from the configuration, and its run among the others."""

from __future__ import annotations

import hashlib
import ipaddress
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from client.answers import layout
from client.pace import cut
from client.session import Session, limit_threads
from core import registry
from core.errors import Mistake
from core.options import flatten
from gossip import gossip_pb2 as pb
from gossip.handshakes import counted
from gossip.local import Identity, Patience, Tls
from gossip.run import gossip
from gossip.wire import Wire
from runs.config import RunConfig, running_code
from runs.directory import RunDirectory
from strategies.messages import is_address
from strategies.method import chosen
from strategies.peers import GossipConfig, slices, topology

Record = dict[str, Any]
# The keys that may differ between the peers of a run: addresses, limits, outputs and attacks.
LOCAL = (
    "engine", "threads", "tensorboard", "wandb", "checkpoint-every", "checkpoints", "world.workers", "gossip.roster",
    "gossip.certificates", "attack.",
)  # fmt: skip


def peer(
    config: RunConfig,
    number: int,
    listen: str,
    directory: RunDirectory,
    *,
    insecure: bool = False,
    tell: Callable[[Record], None] = lambda record: None,
    say: Callable[[str], None] = lambda note: None,
    stop: Callable[[], bool] = lambda: False,
) -> Record:
    """Learn among the others until the run is over or ``stop`` returns True. Returns the summary."""
    refuse(config, number)
    addresses = roster(config)
    listen = listen or addresses[number]
    folder = config.of(GossipConfig).certificates
    if not folder and not insecure and not all(map(loopback, [listen, *addresses.values()])):
        raise Mistake(
            "peers on more than one machine speak TLS: set gossip.certificates (fedrl certs makes them), or give "
            "--insecure if the network between them is private"
        )
    tls = Tls.read(Path(folder), number) if folder else None
    limit_threads(config.threads)
    with closing(Session(config, [number])) as session:
        wire = wired(config, session, addresses, tls, say, stop)
        for note in [] if directory.begun else cut(config, session):
            say(note)
        with serving(wire, listen) as port:
            say(f"peer {number} of {config.agents} serves at {listen.rpartition(':')[0]}:{port}")
            return gossip(config, session, wire, directory, tell, stop)


def wired(
    config: RunConfig,
    session: Session,
    addresses: Mapping[int, str],
    tls: Tls | None,
    say: Callable[[str], None],
    stop: Callable[[], bool],
) -> Wire:
    """Return the wire of the one peer in a session."""
    (number,) = session.numbers
    return Wire(
        identity(config, session, number), topology(config), addresses, _patience(config),
        largest=config.of(GossipConfig).largest, tls=tls, say=say, stop=stop,
        after=lambda turn: session.conduct.delay(0, turn),
    )  # fmt: skip


@contextmanager
def serving(wire: Wire, listen: str) -> Iterator[int]:
    """Serve at an address, and look for the others, until the end of the block. Yields the port."""
    with ExitStack() as open_:
        if wire.local.tls is not None:
            open_.enter_context(counted(lambda: wire.local.refuse(pb.STATUS_NO_CERTIFICATE)))
        open_.callback(wire.close)
        yield wire.open(listen)


def refuse(config: RunConfig, number: int) -> None:
    """Refuse a configuration or a number that no peer can run."""
    if not chosen(config).serverless:
        raise Mistake(f"the strategy {config.strategy} needs a server; peers learn by {', '.join(serverless())}")
    if not 0 <= number < config.agents:
        raise Mistake(f"--id {number}: the run has the peers 0 to {config.agents - 1}")
    countable(config)


def serverless() -> list[str]:
    """Return the names of the strategies without a server."""
    return [thing.name for thing in registry.things("strategy") if thing.value.serverless]


def countable(config: RunConfig) -> None:
    """Refuse a run that is not limited by rounds. No peer knows the steps of all, so each ends after ``rounds``."""
    if not config.rounds or config.steps:
        raise Mistake("peers end together after so many rounds: set 'rounds', and 'steps' to 0")


def roster(config: RunConfig) -> dict[int, str]:
    """Return the address of every peer."""
    addresses: dict[int, str] = {}
    for key, address in config.of(GossipConfig).roster.items():
        if not key.isdecimal() or not is_address(address):
            raise Mistake(f"'gossip.roster' has an entry 0 = \"HOST:PORT\" per peer, not {key} = {address!r}")
        addresses[int(key)] = str(address)
    missing = sorted(set(range(config.agents)) - set(addresses))
    if missing or len(addresses) > config.agents:
        fault = f"has no entry for peer {missing[0]}" if missing else f"has an entry for peer {max(addresses)}"
        raise Mistake(f"'gossip.roster' {fault}: the run has the peers 0 to {config.agents - 1}")
    return dict(sorted(addresses.items()))


def identity(config: RunConfig, session: Session, number: int) -> Identity:
    """Return the identity of a peer, with the digest of the keys that all peers of a run share."""
    # A table that the run does not read may be missing elsewhere: its plugin need not be installed there.
    others = tuple(f"{name}." for name in set(registry.tables()) - config.used_tables())
    shared = {
        key: value
        for key, value in flatten(config).items()
        if not key.startswith((*LOCAL, *others)) and not (key.startswith("gossip.") and key.endswith("-s"))
    }
    conf = int.from_bytes(hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).digest()[:8], "big")
    width = max(where.stop for where in slices(config, session.fleet).values())
    return Identity(number, config.agents, conf, running_code(config), layout(session), width)


def _patience(config: RunConfig) -> Patience:
    limits = config.of(GossipConfig)
    return Patience(limits.deadline_s, limits.dead_s, limits.beat_s, limits.call_s, limits.start_s, limits.end_s)


def loopback(address: str) -> bool:
    """Return whether an address is reached from this machine only."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
