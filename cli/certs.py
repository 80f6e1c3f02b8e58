"""``fedrl certs``: certificates and keys of a deployment."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from cli.screen import announce
from core.errors import Failure, Mistake

# Added to every server's certificate: the shipped unit binds the control port to 127.0.0.1, where commands on the
# server itself connect.
LOOPBACK = ("localhost", "127.0.0.1")


def certs(
    folder: Annotated[Path, typer.Argument(help="The folder for all files. Existing files stay.")],
    server: Annotated[
        str | None,
        typer.Option(
            help="Names and addresses by which other machines reach the SuperLink; localhost and 127.0.0.1 are always"
            " added. '' makes no certificate. Default: those two if there is no certificate yet."
        ),
    ] = None,
    nodes: Annotated[str, typer.Option(help="Agents whose nodes get a key: 0,2-4.")] = "",
    peers: Annotated[str, typer.Option(help="Peers that get a certificate, named peer-K: 0,2-4.")] = "",
    days: Annotated[int, typer.Option(help="Days for which certificates are valid.", min=1, max=3650)] = 365,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the named files that exist; the authority stays.")
    ] = False,
) -> None:
    """Create an authority (ca), a server certificate, peer certificates (peer-K) and node keys (node-K).

    A later call for more of them uses the same authority. Give each machine ca.pem and its own files; keep ca.key here.
    """
    from cli.certificates import Authority, general_name, node_key
    from cli.node import parse_agents

    numbers = {"node": parse_agents(nodes) if nodes else [], "peer": parse_agents(peers) if peers else []}
    if server is None:  # adding a node does not need the server's names
        server = "" if (folder / "server.pem").exists() else ",".join(LOOPBACK)
    names = [name.strip() for name in server.split(",") if name.strip()]
    for name in names:
        general_name(name)  # raises Mistake before any file is made
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Failure(f"{folder} cannot be created: {error.strerror}") from None
    has_authority = (folder / "ca.pem").exists()
    authority = Authority.read(folder) if has_authority else Authority.make(folder)
    made, kept = [] if has_authority else ["ca"], []
    names_of = {"server": names} if names else {}
    names_of |= {f"peer-{number}": [f"peer-{number}"] for number in numbers["peer"]}
    for file, hosts in names_of.items():
        path = folder / file
        if path.with_name(f"{file}.pem").exists() and not force:
            if flaw := authority.unfit(path, hosts):
                raise Mistake(f"{path}.pem {flaw}: --force replaces it, and all other files named in this command")
            kept.append(file)
        else:
            every = dict.fromkeys([*hosts, *LOOPBACK]) if file == "server" else hosts
            authority.issue(path, list(every), timedelta(days=days))
            made.append(file)
    for file in (f"node-{number}" for number in numbers["node"]):
        if (folder / file).exists() and not force:
            kept.append(file)
        else:
            node_key(folder / file)
            made.append(file)
    announce(f"{folder}: made {', '.join(made) or 'nothing'}" + (f"; kept {', '.join(kept)}" if kept else ""))
