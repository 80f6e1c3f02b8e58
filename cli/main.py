"""``fedrl``: the command line. Thin: it reads a conf, calls the house, and prints."""

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
    help="Federated reinforcement learning. An error is one sentence; --debug shows where it came from.",
)
app.command("eval", cls=Command)(evaluate)
for command in (plot, table, node, peer, certs, sweep, demo, doctor, conf):
    app.command(cls=Command)(command)


@app.command(cls=Command)
def run(
    conf: Annotated[Path | None, typer.Argument(help="A TOML file; `fedrl conf` lists its keys.")] = None,
    settings: Settings = None,
    plugin: Plugins = None,
    seed: Annotated[int | None, typer.Option(help="The run's seed; the conf's otherwise.")] = None,
    engine: Annotated[str | None, typer.Option(help="local, ray, grpc or gossip; the conf's otherwise.")] = None,
    nodes: Annotated[int, typer.Option(help="With grpc: processes that share the agents; one each otherwise.")] = 0,
    superlink: Annotated[
        str, typer.Option(help="Submit the run to this SuperLink (HOST:PORT of its control API, 9093 as a rule).")
    ] = "",
    root_certificates: Annotated[Path | None, typer.Option(help="Its CA, a PEM file; plain text without.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run's directory; out/CONF-TIME otherwise.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the run in this directory.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")] = False,
) -> None:
    """Train agents, alone or together, and leave a run directory with metrics, checkpoints, weights and a picture."""
    from cli.screen import announce, show, teller
    from fedrl import running
    from server.stop import interruptible

    if (conf is None) == (resume is None):
        raise Mistake("give a conf to start a run, or --resume RUN to go on with one")
    if resume is not None and out is not None:
        raise Mistake("a resumed run goes on in its own directory: leave --out away")
    if superlink:
        check_address("--superlink", superlink, 9093)
        engine = engine or (None if resume else "grpc")
    if root_certificates is not None and not (superlink and root_certificates.is_file()):
        raise Mistake("--root-certificates is the file of the CA of the --superlink")
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
                notes=notes, show=teller(config), say=announce, stop=stop,
            )  # fmt: skip
    except KeyboardInterrupt:
        say.print(f"stopped at once; what is saved goes on with: fedrl run --resume {path}", soft_wrap=True)
        raise typer.Exit(130) from None
    if as_json:
        print(json.dumps(summary))
    else:
        show(summary)
    if summary["interrupted"]:
        say.print(f"interrupted; go on with: fedrl run --resume {path}", soft_wrap=True)
        raise typer.Exit(130)


def main() -> None:
    """The entry point: a mistake is one sentence and exit code 2, a failure one sentence and exit code 1."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(arguments)
    except (Mistake, Failure, OSError, MemoryError) as error:
        if debug:
            traceback.print_exc()
        words = "there is not enough memory for this run" if isinstance(error, MemoryError) else str(error)
        say.print(f"[red]fedrl:[/red] {escape(words)}", soft_wrap=True)
        sys.exit(2 if isinstance(error, Mistake) else 1)


if __name__ == "__main__":
    main()
