"""``fedrl node``: serve a SuperLink, for as many runs as come."""

from __future__ import annotations

import socket
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cli.screen import Plugins
from core.errors import Failure, Mistake


def node(
    superlink: Annotated[
        str, typer.Option(help="HOST:PORT of the SuperLink's Fleet API (9092 unless told otherwise).")
    ],
    agents: Annotated[
        str, typer.Option(help="Which agents live here: 0,2-4. Each is a node of its own to Flower.")
    ] = "",
    claim: Annotated[
        Path | None,
        typer.Option(help="Instead of --agents: the first agent that nobody holds in this shared folder."),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Plain text: for one machine, or a private line.")
    ] = False,
    peers: Annotated[
        str,
        typer.Option(
            help="HOST or HOST:PORT where other nodes reach the agents here, for runs whose weights go from node to "
            "node; several agents have a port each from PORT on, without it free ones."
        ),
    ] = "",
    listen: Annotated[str, typer.Option(help="HOST or HOST:PORT to serve at, if that is not what --peers says.")] = "",
    certificates: Annotated[
        Path | None, typer.Option(help="The folder with ca.pem, peer-K.pem and peer-K.key (fedrl certs --peers).")
    ] = None,
    root_certificates: Annotated[
        Path | None, typer.Option(help="The CA of the SuperLink, a PEM file; the system's otherwise.")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(help="Private key files, comma-separated, one per agent (`fedrl certs`); {} is its number."),
    ] = None,
    state: Annotated[
        Path | None, typer.Option(help="Where agents are saved; FEDRL_STATE or a temporary folder.")
    ] = None,
    give_up: Annotated[float, typer.Option(help="Seconds without a SuperLink until it ends; 0: never.", min=0)] = 0.0,
    grace: Annotated[
        float, typer.Option(help="Seconds that a message in progress has left at SIGTERM.", min=0.1)
    ] = 5.0,
    attack: Annotated[
        str, typer.Option(help="The agents here attack, whatever the run says: sign-flip, or none@1,zero@10.")
    ] = "",
    worlds: Annotated[
        str,
        typer.Option(
            help="Modules, installed or in the working directory, whose worlds a run may name: my_worlds,more."
        ),
    ] = "",
    plugin: Plugins = None,
    alive: Annotated[
        Path | None, typer.Option(help="A file that is touched as often as the SuperLink says that it knows us.")
    ] = None,
    max_message_mb: Annotated[int, typer.Option(help="A larger message is refused.", min=1, max=2000)] = 256,
) -> None:
    """Host agents for a SuperLink: a process that stays, with what it has learned, until SIGTERM."""
    console = Console(stderr=True, highlight=False)
    if bool(agents) == (claim is not None):
        raise Mistake("say which agents live here, by --agents or by --claim")
    numbers = parse_agents(agents) if agents else []
    if insecure and root_certificates is not None:
        raise Mistake("--insecure is plain text: leave --root-certificates away, or --insecure")
    if root_certificates is not None and not root_certificates.is_file():
        raise Mistake(f"--root-certificates: there is no file {root_certificates}")
    check_address("--superlink", superlink, 9092)
    if (listen or certificates is not None) and not peers:
        raise Mistake("--listen and --certificates are for agents that others reach: give --peers HOST as well")
    if certificates is not None and not certificates.is_dir():
        raise Mistake(f"--certificates: there is no folder {certificates}")

    if attack:
        from attacks.plan import schedules

        by_agent = schedules(attack, "--attack")
        if set(by_agent) != {None}:
            raise Mistake(
                "--attack is for all agents of this node: start another node for those that do something else"
            )
        if set(by_agent[None].values()) == {"none"}:
            raise Mistake(f"--attack is '{attack}', which is no attack: name one, or leave --attack away")
        console.print(f"these agents attack: {attack}", markup=False)

    # Seconds of imports, after what can be wrong was looked at.
    from cli.seats import claimed
    from client.client_app import snapshots
    from client.node import Node
    from client.party import run_name
    from core import modules, registry
    from flower.fleet import Address, Key
    from gossip.member import Door, make_party
    from runs import digest
    from strategies.messages import is_address

    for option, text in (("--peers", peers), ("--listen", listen)):
        if text and not is_address(text if door(text, 0) == text else f"{text}:1"):
            raise Mistake(f"{option} is HOST or HOST:PORT, such as 10.0.0.5:9500, not '{text}'")
    plugins = list(plugin or ())
    if worlds or plugins:
        modules.look_in(Path.cwd())
    registry.load(plugins)
    digest.of_plugins(registry.loaded())  # now: files that change later are not what this process runs
    folder = state or snapshots()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Mistake(f"--state: {folder} cannot be made: {error.strerror}") from None
    with ExitStack() as held:
        if claim is not None:
            numbers = [held.enter_context(claimed(claim, folder))]
        doors = {
            number: Door(door(peers, at), listen and door(listen, at), certificates, insecure)
            for at, number in enumerate(numbers)
            if peers
        }
        for number, one in doors.items():
            one.check()
            check_port(f"agent {number}", one.listen or one.address)
            one.tls(number)
        keys = [Key.read(path) for path in key_files(key, numbers)] if key is not None else []
        Node(
            Address(superlink, insecure, root_certificates, max_message_mb * 2**20),
            numbers,
            partial(
                make_party,
                attack=attack,
                modules=[name.strip() for name in worlds.split(",")],
                doors=doors,
                plugins=plugins,
            ),
            run_name,
            folder,
            keys,
            give_up=give_up,
            grace=grace,
            alive=alive,
            say=lambda line: console.print(f"{time.strftime('%H:%M:%S')} {line}", markup=False, soft_wrap=True),
            debug="--debug" in sys.argv,
        ).serve()


def check_address(option: str, text: str, usual: int) -> None:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise Mistake(f"{option} is HOST:PORT, such as 127.0.0.1:{usual}, not '{text}'")


def check_port(who: str, address: str) -> None:
    """Refuse an address at which nothing can listen here; gRPC itself only logs the reason."""
    host, _, port = address.rpartition(":")
    try:
        places = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except OSError as error:
        raise Failure(f"{who} cannot listen at {address}: {error.strerror}") from None
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
        f"{who} cannot listen at {address}: {reason}; give another address of this machine, or end the process that "
        "uses this one"
    )


def door(text: str, place: int) -> str:
    """HOST:PORT of the agent at this place of the node's list; 0 is a free one, where no port is given."""
    host, _, port = text.rpartition(":")
    return f"{host}:{int(port) + place}" if host and port.isdecimal() else f"{text}:0"


def key_files(text: str, numbers: list[int]) -> list[Path]:
    """``keys/node-{}`` is a file per agent."""
    names = [name.replace("{}", str(number)) for name in text.split(",") for number in numbers if "{}" in name]
    paths = [Path(name) for name in names or text.split(",")]
    if len({path.resolve() for path in paths}) < len(paths):
        raise Mistake("--key names a file twice: each agent is a node of its own, and needs a key of its own")
    return paths


def parse_agents(text: str) -> list[int]:
    """``0,2-4`` is 0, 2, 3 and 4."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not (first.isdecimal() and (last.isdecimal() if dash else True)) or (dash and int(last) < int(first)):
            raise Mistake(f"--agents is a list such as 0 or 0,2-4, not '{text}'")
        numbers += range(int(first), int(last or first) + 1)
    if len(set(numbers)) < len(numbers):
        raise Mistake(f"--agents names an agent twice: '{text}'")
    return numbers
