"""``fedrl peer``: one peer of a network without a server."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from cli.node import check_port
from cli.screen import Plugins, Settings, announce, say
from core.errors import Mistake


def peer(
    conf: Annotated[
        Path, typer.Argument(help="The TOML file that all peers share; its table gossip.roster holds their addresses.")
    ],
    number: Annotated[int, typer.Option("--id", help="The number of this peer in the roster.", min=0)],
    listen: Annotated[str, typer.Option(help="HOST:PORT to listen at (default: its address in the roster).")] = "",
    settings: Settings = None,
    plugin: Plugins = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The directory of its run, where it also continues after a restart (default: out/CONF/peer-K)."
        ),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow plain text to other machines: only for a private network.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")] = False,
) -> None:
    """Learn among peers until the last round or SIGTERM. Weights are saved, and a peer may leave and come back."""
    from cli.screen import round_printer, show
    from core import modules
    from fedrl import running
    from gossip.peer import peer as serve
    from gossip.peer import refuse, roster
    from runs import trackers
    from runs.config import written
    from runs.directory import RunDirectory
    from server.stop import interruptible
    from strategies.messages import is_address

    config, notes = running.from_file(conf, settings or (), plugin or ())
    refuse(config, number)
    addresses = roster(config)
    if listen and not is_address(listen):
        raise Mistake(f"--listen must be HOST:PORT, such as 0.0.0.0:9500, not '{listen}'")
    check_port(f"peer {number}", listen or addresses[number])
    trackers.check(config.wandb)
    path = out or Path("out") / conf.stem / f"peer-{number}"
    directory = RunDirectory(path)
    if directory.metrics.exists():
        done = max((record["round"] for record in directory.read_metrics()), default=0)
        if done >= config.rounds:
            raise Mistake(
                f"peer {number} has finished its {done} rounds in {path}: to continue, give all peers a later end "
                f"(--set rounds=N, N above {config.rounds}), or start another run with another --out"
            )
        directory.write_conf(written(config))
        directory.go_on()
    else:
        directory = RunDirectory.create(path, written(config))
        directory.keep_folders(modules.folders())

    def report(text: str) -> None:
        directory.note(text)
        announce(f"{time.strftime('%H:%M:%S')} {text}")

    for note in notes:
        report(note)
    with interruptible() as stop:
        summary = serve(
            config, number, listen, directory, insecure=insecure, tell=round_printer(config), say=report, stop=stop
        )
    if as_json:
        print(json.dumps(summary))
    else:
        show(summary)
    if summary["interrupted"]:
        say.print(f"stopped before the end; the same command continues in {path}", soft_wrap=True)
        raise typer.Exit(130)
