"""``fedrl``, the command line: parses arguments, calls the other rooms, prints."""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from cli.certs import certs
from cli.demo import demo
from cli.doctor import doctor
from cli.evaluate import evaluate
from cli.keys import conf
from cli.look import plot, table
from cli.node import check_address, node
from cli.peer import peer
from cli.screen import Command, Plugins, Settings, say
from cli.sweep import sweep
from core.errors import Failure, Mistake

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Federated reinforcement learning. Errors are one sentence; --debug also shows the traceback.",
)
app.command("eval", cls=Command)(evaluate)
for command in (plot, table, node, peer, certs, sweep, demo, doctor, conf):
    app.command(cls=Command)(command)


@app.command(cls=Command)
def run(
    conf: Annotated[Path | None, typer.Argument(help="A TOML file; `fedrl conf` lists its keys.")] = None,
    settings: Settings = None,
    plugin: Plugins = None,
    seed: Annotated[int | None, typer.Option(help="The seed of the run (default: that of the conf).")] = None,
    engine: Annotated[str | None, typer.Option(help="local, ray, grpc or gossip (default: that of the conf).")] = None,
    nodes: Annotated[
        int, typer.Option(help="With grpc: how many processes share the agents; 0: one process per agent.")
    ] = 0,
    superlink: Annotated[
        str, typer.Option(help="Submit the run to this SuperLink: HOST:PORT of its Control API, usually port 9093.")
    ] = "",
    root_certificates: Annotated[
        Path | None, typer.Option(help="CA of the SuperLink, a PEM file (default: plain text).")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The directory of the run (default: out/CONF-TIME).")] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue the run in this directory.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")] = False,
) -> None:
    """Train agents, alone or together, and write metrics, checkpoints, weights and a picture into a run directory."""
    from cli.screen import announce, round_printer, show
    from fedrl import running
    from server.stop import interruptible

    if (conf is None) == (resume is None):
        raise Mistake("give a conf to start a run, or --resume RUN to continue one")
    if resume is not None and out is not None:
        raise Mistake("a resumed run stays in its own directory: remove --out")
    if superlink:
        check_address("--superlink", superlink, 9093)
        engine = engine or (None if resume else "grpc")
    if root_certificates is not None and not (superlink and root_certificates.is_file()):
        raise Mistake("--root-certificates must be the CA file of the SuperLink, and needs --superlink")
    changes = list(settings or []) + ([f"seed={seed}"] if seed is not None else [])
    changes += [f"engine={engine}"] if engine is not None else []
    notes: list[str] = []
    if resume is not None:
        config, path = running.resumed(resume, changes, plugin or ()), resume
    else:
        assert conf is not None
        config, notes = running.from_file(conf, changes, plugin or ())
        path = out or running.place(conf.stem)
    try:
        with interruptible() as stop:
            summary = running.execute(
                config, path, resume=resume is not None, nodes=nodes, superlink=superlink, roots=root_certificates,
                notes=notes, show=round_printer(config), say=announce, stop=stop,
            )  # fmt: skip
    except KeyboardInterrupt:
        say.print(f"stopped at once; continue from the last checkpoint with: fedrl run --resume {path}", soft_wrap=True)
        raise typer.Exit(130) from None
    if as_json:
        print(json.dumps(summary))
    else:
        show(summary)
    if summary["interrupted"]:
        say.print(f"interrupted; continue with: fedrl run --resume {path}", soft_wrap=True)
        raise typer.Exit(130)


def main() -> None:
    """Run a command. A mistake is printed as one sentence with exit code 2, a failure with exit code 1."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(arguments)
    except (Mistake, Failure, OSError, MemoryError) as error:
        if debug:
            traceback.print_exc()
        text = "there is not enough memory for this run" if isinstance(error, MemoryError) else str(error)
        say.print(f"[red]fedrl:[/red] {escape(text)}", soft_wrap=True)
        sys.exit(2 if isinstance(error, Mistake) else 1)


if __name__ == "__main__":
    main()
