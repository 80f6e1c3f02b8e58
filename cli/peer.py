"""``fedrl peer``: one party of a network without a server."""

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
        Path, typer.Argument(help="The TOML file that all peers share; its table gossip.roster has their addresses.")
    ],
    number: Annotated[int, typer.Option("--id", help="Which peer of the roster this is.", min=0)],
    listen: Annotated[str, typer.Option(help="HOST:PORT to serve at; its address in the roster otherwise.")] = "",
    settings: Settings = None,
    plugin: Plugins = None,
    out: Annotated[
        Path | None, typer.Option(help="Its run's directory, in which it goes on when it comes again; out/CONF/peer-K.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Plain text beyond this machine: for a private line.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")] = False,
) -> None:
    """Learn among peers until the rounds are done, or SIGTERM; what is learned is saved, and peers may come again."""
    from cli.screen import show, teller
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
        raise Mistake(f"--listen is HOST:PORT, such as 0.0.0.0:9500, not '{listen}'")
    check_port(f"peer {number}", listen or addresses[number])
    trackers.check(config.wandb)
    path = out or Path("out") / conf.stem / f"peer-{number}"
    directory = RunDirectory(path)
    if directory.metrics.exists():
        done = max((record["round"] for record in directory.read_metrics()), default=0)
        if done >= config.rounds:
            raise Mistake(
                f"peer {number} has done its {done} rounds in {path}: to go on, give all peers a later end (--set "
                f"rounds=N, N above {config.rounds}), or choose another --out for another run"
            )
        directory.write_conf(written(config))
        directory.go_on()
    else:
        directory = RunDirectory.create(path, written(config))
        directory.keep_folders(modules.folders())

    def tell_people(words: str) -> None:
        directory.note(words)
        announce(f"{time.strftime('%H:%M:%S')} {words}")

    for words in notes:
        tell_people(words)
    with interruptible() as stop:
        summary = serve(
            config, number, listen, directory, insecure=insecure, tell=teller(config), say=tell_people, stop=stop
        )
    if as_json:
        print(json.dumps(summary))
    else:
        show(summary)
    if summary["interrupted"]:
        say.print(f"left before the end; the same command goes on in {path}", soft_wrap=True)
        raise typer.Exit(130)
