"""``fedrl``: the command line. Thin: it reads a conf, calls the house, and prints."""

from __future__ import annotations

import json
import sys
import time
import traceback
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from cli.certs import certs
from cli.demo import demo
from cli.doctor import doctor
from cli.keys import conf
from cli.look import evaluate, plot, table
from cli.node import check_address, node
from cli.peer import peer
from cli.screen import Command, Settings, say
from cli.sweep import sweep
from core.errors import Failure, Mistake

if TYPE_CHECKING:
    from runs.config import RunConfig
    from runs.directory import RunDirectory

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
    from core.options import nested, override
    from envs import modules
    from runs import trackers
    from runs.config import configure, from_user
    from runs.directory import RunDirectory, read_toml
    from runs.report import finish
    from server import engines
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
    if resume is not None:
        refuse_other_run(changes)
        config = configure(override(RunDirectory.open(resume).read_conf(), changes))
        refuse_finished(config, RunDirectory(resume))
        modules.look_in(*RunDirectory(resume).folders())
    else:
        modules.look_in((conf or Path()).parent, Path.cwd())
        config = from_user(override(read_toml(conf or Path()), changes))
    trackers.check(config.wandb)
    session = engines.prepare(config, nodes, superlink)
    if superlink:
        engines.reach(superlink, root_certificates)
    if resume is not None:
        directory = RunDirectory.open(resume)
        directory.write_conf(nested(config))
    else:
        name = f"{(conf or Path()).stem}-{time.strftime('%Y%m%d-%H%M%S')}"
        directory = RunDirectory.create(out or Path("out") / name, nested(config))
        directory.keep_folders(modules.folders())
    try:
        with interruptible() as stop, closing(session):
            show_round = teller(config)
            summary = engines.run(
                config, session, directory, show_round, announce, stop, nodes, superlink, root_certificates
            )
    except KeyboardInterrupt:
        say.print(f"stopped at once; what is saved goes on with: fedrl run --resume {directory.path}", soft_wrap=True)
        raise typer.Exit(130) from None
    summary = finish(directory, summary, config.algorithm, config.world.id)
    if as_json:
        print(json.dumps(summary))
    else:
        show(summary)
    if summary["interrupted"]:
        say.print(f"interrupted; go on with: fedrl run --resume {directory.path}", soft_wrap=True)
        raise typer.Exit(130)


# What may change when a run goes on; anything else would make it another run.
CHANGEABLE = (
    "steps", "rounds", "checkpoint-every", "checkpoints", "evaluate-episodes", "evaluate", "threads", "tensorboard",
    "wandb", "federation.wait-s", "federation.quorum", "federation.deadline-s", "federation.give-up-s",
    "federation.patience", "federation.leave-out", "federation.evaluate-every",
)  # fmt: skip


def refuse_other_run(changes: list[str]) -> None:
    """A resumed run is the same run: its worlds, seeds and learners are settled."""
    for change in changes:
        key = change.partition("=")[0].strip()
        if key not in CHANGEABLE:
            raise Mistake(f"'{key}' is settled in a run that goes on (may change: {', '.join(CHANGEABLE)})")


def refuse_finished(config: RunConfig, directory: RunDirectory) -> None:
    """A run that has come to its end, and has saved it, goes on only with another end."""
    saved, records = directory.saved_rounds(), directory.read_metrics() if directory.weights.exists() else []
    if not records or (saved and records[-1]["round"] not in saved):
        return
    done, lived = records[-1]["round"], records[-1]["steps"]
    if config.over(done, lived):
        ends = {"rounds": config.rounds, "steps": config.steps}
        ways = " or ".join(f"--set {key}=N, N above {end}" for key, end in ends.items() if end)
        raise Mistake(
            f"the run in {directory.path} is finished, after {done} rounds and {min(lived)} steps of each agent: to go "
            f"on, give it a later end ({ways}); fedrl eval, plot and table look at it"
        )


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
