"""``fedrl certs``: certificates and keys of a deployment."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from cli.screen import announce
from core.errors import Failure, Mistake

# Added to every server's certificate. The shipped unit binds the control port to 127.0.0.1, and whoever works on the
# server dials that.
LOOPBACK = ("localhost", "127.0.0.1")


def certs(
    folder: Annotated[Path, typer.Argument(help="Where they are kept. What is there already stays.")],
    server: Annotated[
        str | None,
        typer.Option(
            help="Names and addresses by which other machines reach the SuperLink; localhost and 127.0.0.1 are always"
            " added. '' makes no certificate. Unless told: those two where there is none yet; else it stays as it is."
        ),
    ] = None,
    nodes: Annotated[str, typer.Option(help="Agents whose nodes get a key: 0,2-4.")] = "",
    peers: Annotated[str, typer.Option(help="Peers that get a certificate, named peer-K: 0,2-4.")] = "",
    days: Annotated[int, typer.Option(help="How long certificates last.", min=1, max=3650)] = 365,
    force: Annotated[
        bool, typer.Option("--force", help="Make anew what is named and there already; the authority stays.")
    ] = False,
) -> None:
    """Make an authority (ca), a server's certificate, peers' certificates (peer-K), and nodes' keys (node-K).

    Called again for more of them, the same authority signs. Machines get ca.pem and what is theirs; ca.key stays here.
    """
    from cli.certificates import Authority, general_name, node_key
    from cli.node import parse_agents

    numbers = {"node": parse_agents(nodes) if nodes else [], "peer": parse_agents(peers) if peers else []}
    if server is None:  # to add a node, nobody needs to know the server's names
        server = "" if (folder / "server.pem").exists() else ",".join(LOOPBACK)
    names = [name.strip() for name in server.split(",") if name.strip()]
    for name in names:
        general_name(name)  # or a Mistake, before anything is made
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Failure(f"{folder} cannot be made: {error.strerror}") from None
    there = (folder / "ca.pem").exists()
    authority = Authority.read(folder) if there else Authority.make(folder)
    made, kept = [] if there else ["ca"], []
    answers_to = {"server": names} if names else {}
    answers_to |= {f"peer-{number}": [f"peer-{number}"] for number in numbers["peer"]}
    for what, called in answers_to.items():
        path = folder / what
        if path.with_name(f"{what}.pem").exists() and not force:
            if why := authority.unfit(path, called):
                raise Mistake(f"{path}.pem {why}: --force makes it anew, as all that is named here")
            kept.append(what)
        else:
            held = dict.fromkeys([*called, *LOOPBACK]) if what == "server" else called
            authority.issue(path, list(held), timedelta(days=days))
            made.append(what)
    for what in (f"node-{number}" for number in numbers["node"]):
        if (folder / what).exists() and not force:
            kept.append(what)
        else:
            node_key(folder / what)
            made.append(what)
    announce(f"{folder}: made {', '.join(made) or 'nothing'}" + (f"; kept {', '.join(kept)}" if kept else ""))
