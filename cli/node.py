"""``fedrl node``: host agents for a SuperLink, for any number of runs."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from cli.screen import Plugins
from core.errors import Failure, Mistake

if TYPE_CHECKING:
    from gossip.member import Door


def node(
    superlink: Annotated[str, typer.Option(help="HOST:PORT of the SuperLink's Fleet API, usually port 9092.")],
    agents: Annotated[
        str, typer.Option(help="The agents that this node hosts: 0,2-4. Flower sees each as a node of its own.")
    ] = "",
    claim: Annotated[
        Path | None,
        typer.Option(help="Instead of --agents: take the first agent that no other node holds in this shared folder."),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Plain text: only for one machine or a private network.")
    ] = False,
    peers: Annotated[
        str,
        typer.Option(
            help="HOST or HOST:PORT where other nodes reach these agents, for runs whose weights go from node to node. "
            "Several agents use consecutive ports from PORT on; without PORT, free ports."
        ),
    ] = "",
    listen: Annotated[str, typer.Option(help="HOST or HOST:PORT to listen at (default: that of --peers).")] = "",
    certificates: Annotated[
        Path | None, typer.Option(help="The folder with ca.pem, peer-K.pem and peer-K.key (fedrl certs --peers).")
    ] = None,
    root_certificates: Annotated[
        Path | None, typer.Option(help="The CA of the SuperLink, a PEM file (default: the system's CAs).")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            help="Private key files, comma-separated, one per agent (`fedrl certs`); {} is the agent's number."
        ),
    ] = None,
    state: Annotated[
        Path | None, typer.Option(help="Where agents are saved (default: FEDRL_STATE, or a temporary folder).")
    ] = None,
    give_up: Annotated[
        float, typer.Option(help="Seconds without a SuperLink after which the node ends; 0: never.", min=0)
    ] = 0.0,
    grace: Annotated[
        float, typer.Option(help="Seconds that a message in progress may still take after SIGTERM.", min=0.1)
    ] = 5.0,
    attack: Annotated[
        str, typer.Option(help="Make these agents attack, whatever the run says: sign-flip, or none@1,zero@10.")
    ] = "",
    worlds: Annotated[
        str,
        typer.Option(
            help="Modules whose worlds a run may name, installed or in the working directory: my_worlds,more."
        ),
    ] = "",
    plugin: Plugins = None,
    alive: Annotated[
        Path | None, typer.Option(help="A file to touch whenever the SuperLink confirms that it knows this node.")
    ] = None,
    max_message_mb: Annotated[
        int, typer.Option(help="Refuse messages that are larger than this.", min=1, max=2000)
    ] = 256,
) -> None:
    """Host agents for a SuperLink. The process keeps what they learn in memory, and runs until SIGTERM."""
    console = Console(stderr=True, highlight=False)
    if bool(agents) == (claim is not None):
        raise Mistake("give the agents that this node hosts, either by --agents or by --claim")
    numbers = parse_agents(agents) if agents else []
    check_superlink(superlink, insecure, root_certificates)
    check_folders(peers, listen, certificates)
    if attack:
        check_attack(attack)
        console.print(f"these agents attack: {attack}", markup=False)

    # These imports take seconds, so the options were checked before.
    from client.client_app import snapshots
    from client.node import Node
    from client.party import run_name
    from core import modules, registry
    from flower.keys import Address, Key
    from gossip.member import make_party
    from runs import digest

    check_doors(peers, listen)
    plugins = list(plugin or ())
    if worlds or plugins:
        modules.look_in(Path.cwd())
    registry.load(plugins)
    digest.of_plugins(registry.loaded())  # now: files that change later are not what this process runs
    folder = state or snapshots()
    create(folder)
    with claimed_numbers(claim, folder, numbers) as numbers:
        make = partial(
            make_party,
            attack=attack,
            modules=[name.strip() for name in worlds.split(",")],
            doors=doors(numbers, peers, listen, certificates, insecure),
            plugins=plugins,
        )
        Node(
            Address(superlink, insecure, root_certificates, max_message_mb * 2**20),
            numbers,
            make,
            run_name,
            folder,
            [Key.read(path) for path in key_files(key, numbers)] if key is not None else [],
            give_up=give_up,
            grace=grace,
            alive=alive,
            say=lambda line: console.print(f"{time.strftime('%H:%M:%S')} {line}", markup=False, soft_wrap=True),
            debug="--debug" in sys.argv,
        ).serve()


def check_superlink(superlink: str, insecure: bool, root_certificates: Path | None) -> None:
    """Refuse an address or certificates with which no SuperLink can be reached."""
    if insecure and root_certificates is not None:
        raise Mistake("--insecure is plain text, and --root-certificates is for TLS: remove one of them")
    if root_certificates is not None and not root_certificates.is_file():
        raise Mistake(f"--root-certificates: there is no file {root_certificates}")
    check_address("--superlink", superlink, 9092)


def check_folders(peers: str, listen: str, certificates: Path | None) -> None:
    """Refuse options for agents that other nodes reach, where there are none or no such folder."""
    if (listen or certificates is not None) and not peers:
        raise Mistake("--listen and --certificates are for agents that other nodes reach: add --peers HOST")
    if certificates is not None and not certificates.is_dir():
        raise Mistake(f"--certificates: there is no folder {certificates}")


def check_attack(attack: str) -> None:
    """Refuse a text that is not one attack, or one schedule of attacks, for all agents of the node."""
    from attacks.plan import schedules

    by_agent = schedules(attack, "--attack")
    if set(by_agent) != {None}:
        raise Mistake("--attack is the attack of all agents of this node: start another node for other attacks")
    if set(by_agent[None].values()) == {"none"}:
        raise Mistake(f"--attack is '{attack}', which is no attack: name one, or remove --attack")


def check_doors(peers: str, listen: str) -> None:
    """Refuse addresses of agents that are neither HOST nor HOST:PORT."""
    from strategies.messages import is_address

    for option, text in (("--peers", peers), ("--listen", listen)):
        if text and not is_address(text if door(text, 0) == text else f"{text}:1"):
            raise Mistake(f"{option} must be HOST or HOST:PORT, such as 10.0.0.5:9500, not '{text}'")


def create(folder: Path) -> None:
    """Create the folder in which agents are saved."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Mistake(f"--state: {folder} cannot be created: {error.strerror}") from None


@contextmanager
def claimed_numbers(claim: Path | None, state: Path, numbers: list[int]) -> Iterator[list[int]]:
    """Yield the numbers of the node's agents: those given, or the one that it claims in a shared folder."""
    if claim is None:
        yield numbers
        return
    from cli.seats import claimed

    with claimed(claim, state) as number:
        yield [number]


def doors(numbers: list[int], peers: str, listen: str, certificates: Path | None, insecure: bool) -> dict[int, Door]:
    """Return where each agent is reached by other nodes; empty where none is. Refuses ports that are in use."""
    from gossip.member import Door

    if not peers:
        return {}
    by_agent = {
        number: Door(door(peers, place), listen and door(listen, place), certificates, insecure)
        for place, number in enumerate(numbers)
    }
    for number, one in by_agent.items():
        one.check()
        check_port(f"agent {number}", one.listen or one.address)
        one.tls(number)
    return by_agent


def check_address(option: str, text: str, usual: int) -> None:
    """Refuse a text that is not HOST:PORT; ``usual`` is the port of the example."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise Mistake(f"{option} must be HOST:PORT, such as 127.0.0.1:{usual}, not '{text}'")


def check_port(name: str, address: str) -> None:
    """Refuse an address at which nothing can listen here; gRPC itself only logs the reason."""
    host, _, port = address.rpartition(":")
    try:
        places = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except OSError as error:
        raise Failure(f"{name} cannot listen at {address}: {error.strerror}") from None
    reason = ""
    for family, kind, protocol, _, place in places:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(place)
                return
        except OSError as error:
            reason = error.strerror or str(error)
    raise Failure(
        f"{name} cannot listen at {address}: {reason}; give another address of this machine, or end the process that "
        "uses this one"
    )


def door(text: str, place: int) -> str:
    """Return HOST:PORT of the agent at this place of the node's list; port 0 (a free one) where none is given."""
    host, _, port = text.rpartition(":")
    return f"{host}:{int(port) + place}" if host and port.isdecimal() else f"{text}:0"


def key_files(text: str, numbers: list[int]) -> list[Path]:
    """Return the key file of each agent; ``keys/node-{}`` stands for one file per agent."""
    names = [name.replace("{}", str(number)) for name in text.split(",") for number in numbers if "{}" in name]
    paths = [Path(name) for name in names or text.split(",")]
    if len({path.resolve() for path in paths}) < len(paths):
        raise Mistake("--key names a file twice: Flower sees each agent as a node, so each needs a key of its own")
    return paths


def parse_agents(text: str) -> list[int]:
    """Return the numbers in a text: ``0,2-4`` is 0, 2, 3 and 4."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not (first.isdecimal() and (last.isdecimal() if dash else True)) or (dash and int(last) < int(first)):
            raise Mistake(f"--agents must be a list such as 0 or 0,2-4, not '{text}'")
        numbers += range(int(first), int(last or first) + 1)
    if len(set(numbers)) < len(numbers):
        raise Mistake(f"--agents names an agent twice: '{text}'")
    return numbers
