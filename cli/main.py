"""``fedrl``: the command line. Thin: it reads a conf, calls the house, and prints."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from core.errors import Failure, Mistake

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Federated reinforcement learning. An error is one sentence; --debug shows where it came from.",
)
# Words for people go to stderr, so that --json leaves stdout to one JSON object.
say = Console(stderr=True, highlight=False)

Settings = Annotated[list[str] | None, typer.Option("--set", help="key=value put over the conf; may be repeated.")]


@app.command()
def run(
    conf: Annotated[Path | None, typer.Argument(help="A TOML file; `fedrl conf` lists its keys.")] = None,
    settings: Settings = None,
    seed: Annotated[int | None, typer.Option(help="The run's seed; the conf's otherwise.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run's directory; out/CONF-TIME otherwise.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the run in this directory.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")] = False,
) -> None:
    """Train a fleet, and leave a run directory with metrics, checkpoint, weights and a picture."""
    from client.session import RunConfig, Session
    from client.solo import train_alone
    from core.config import build, nested, override
    from runs import plots, trackers
    from runs.directory import RunDirectory, read_toml

    if (conf is None) == (resume is None):
        raise Mistake("give a conf to start a run, or --resume RUN to go on with one")
    if resume is not None and out is not None:
        raise Mistake("a resumed run goes on in its own directory: leave --out away")
    changes = list(settings or []) + ([f"seed={seed}"] if seed is not None else [])
    if resume is not None:
        refuse_other_run(changes)
    source = RunDirectory.open(resume).read_conf() if resume is not None else read_toml(conf or Path())
    config = build(RunConfig, override(source, changes))
    trackers.check(config.wandb)
    session = Session(config)
    if resume is not None:
        directory = RunDirectory.open(resume)
        directory.write_conf(nested(config))
    else:
        name = f"{(conf or Path()).stem}-{time.strftime('%Y%m%d-%H%M%S')}"
        directory = RunDirectory.create(out or Path("out") / name, nested(config))
    try:
        summary = train_alone(config, session, directory, teller(config.steps))
    finally:
        session.close()
    records = directory.read_metrics()
    if records:
        plots.curves(directory.curve, {config.algorithm: records}, f"{config.algorithm} on {config.world.id}")
        summary["picture"] = str(directory.curve)
    if as_json:
        print(json.dumps(summary))
    else:
        show(summary)
    if summary["interrupted"]:
        say.print(f"interrupted; go on with: fedrl run --resume {directory.path}", soft_wrap=True)
        raise typer.Exit(130)


# What may change when a run goes on; anything else would make it another run.
CHANGEABLE = ("steps", "checkpoint-every", "evaluate-episodes", "evaluate", "threads", "tensorboard", "wandb")


def refuse_other_run(changes: list[str]) -> None:
    """A resumed run is the same run: its worlds, seeds and learners are settled."""
    for change in changes:
        key = change.partition("=")[0].strip()
        if key not in CHANGEABLE:
            raise Mistake(f"'{key}' is settled in a run that goes on (may change: {', '.join(CHANGEABLE)})")


@app.command("eval")
def evaluate(
    run: Annotated[Path, typer.Argument(help="The directory of a run.")],
    episodes: Annotated[int, typer.Option(help="Episodes per agent.", min=1)] = 20,
    video: Annotated[Path | None, typer.Option(help="Film an episode: an .mp4 or a .gif.")] = None,
    agent: Annotated[int, typer.Option(help="Whom to film.", min=0)] = 0,
    settings: Settings = None,
) -> None:
    """Judge the agents of a run again, in its world or (--set world...) in another."""
    import numpy as np

    from client.session import RunConfig, Session
    from core.config import build, override
    from core.streams import Streams
    from envs.video import record
    from runs import checkpoints
    from runs.directory import RunDirectory

    directory = RunDirectory.open(run)
    values = override(directory.read_conf(), [*(settings or []), f"evaluate-episodes={episodes}"])
    values.pop("federation", None)  # how the weights came about is not asked here
    config = build(RunConfig, values)
    if agent >= config.agents:
        raise Mistake(f"the run has agents 0 to {config.agents - 1}, not {agent}")
    learned, _ = checkpoints.load(directory.weights)
    session = Session(config, render=video is not None)
    try:
        session.fleet.load_learned(learned)
        records = directory.read_metrics()
        if records:
            session.worlds.steps[...] = records[-1]["steps"]
        rows = Table("agent", "mean return", "std", "worst", "best", box=None)
        for k, returns in enumerate(session.evaluate()):
            figures = (np.mean(returns), np.std(returns), np.min(returns), np.max(returns))
            rows.add_row(str(k), *(f"{figure:.1f}" for figure in figures))
        Console().print(rows)
        if video is not None:
            streams = Streams(session.fleet.seeds, "film", lanes=session.worlds.copies)
            explore = config.evaluate == "sampled"
            record(session.worlds, lambda obs: session.fleet.act(obs, streams if explore else None), video, agent)
            say.print(f"filmed agent {agent}: {video}")
    finally:
        session.close()


@app.command()
def plot(
    runs: Annotated[list[Path], typer.Argument(help="Directories of runs, drawn into one picture.")],
    out: Annotated[Path, typer.Option(help="The picture.")] = Path("curves.png"),
    metric: Annotated[str, typer.Option(help="Any per-agent metric of metrics.jsonl.")] = "return",
    x: Annotated[str, typer.Option(help="steps, trajectories or wall_s.")] = "steps",
) -> None:
    """Curves of runs: interquartile mean over the agents with a 95% bootstrap band."""
    from runs import plots

    if x not in ("steps", "trajectories", "wall_s"):
        raise Mistake(f"--x is one of steps, trajectories, wall_s, not '{x}'")
    records = read(runs)
    for name, found in records.items():
        if x not in found[0]:
            raise Mistake(f"the run {name} counts no {x}")
    plots.curves(out, records, metric=metric, x=x)
    say.print(f"drawn: {out}")


@app.command()
def table(
    runs: Annotated[list[Path], typer.Argument(help="Directories of runs, a line each.")],
    out: Annotated[Path | None, typer.Option(help="Also write the figures here, as JSON.")] = None,
) -> None:
    """What runs came to: the last judged return over their agents."""
    from runs import figures

    found = {name: figures.final(records) for name, records in read(runs).items()}
    rows = Table("run", "agents", "steps", "mean", "std", "worst", "best", "seconds", box=None)
    for name, one in found.items():
        columns = ("agents", "steps", "mean", "std", "worst", "best", "wall_s")
        rows.add_row(name, *(f"{one[column]:,}" for column in columns))
    Console().print(rows)
    if out is not None:
        out.write_text(json.dumps(found, indent=1) + "\n")


def read(runs: list[Path]) -> dict[str, list[dict[str, Any]]]:
    """The metrics of runs by name; a run without any is a mistake."""
    from runs.directory import RunDirectory

    plain = len({run.name for run in runs}) == len(runs)
    records = {run.name if plain else str(run): RunDirectory.open(run).read_metrics() for run in runs}
    for name, found in records.items():
        if not found:
            raise Mistake(f"the run {name} has no metrics yet")
    return records


@app.command()
def conf(
    prefix: Annotated[str, typer.Argument(help="Only the keys that begin so, such as ppo.")] = "",
) -> None:
    """Every key that a conf may hold: its default, its range, its sentence."""
    from client.session import RunConfig
    from core.config import keys

    rows = Table("key", "default", "kind", "range", "meaning", box=None)
    for key in keys(RunConfig):
        if key.name.startswith(prefix):
            default = ",".join(map(str, key.default)) if isinstance(key.default, tuple) else str(key.default)
            rows.add_row(key.name, default, key.kind, key.range, key.sentence)
    if not rows.row_count:
        raise Mistake(f"no key begins with '{prefix}'")
    Console().print(rows)


def teller(steps: int) -> Callable[[dict[str, Any]], None]:
    """Prints a line per round: one live line on a terminal, plain lines elsewhere."""

    def tell(record: dict[str, Any]) -> None:
        done = min(record["steps"])
        returns = [r for r in record["return"] if r is not None]
        middle = f"{sum(returns) / len(returns):.1f}" if returns else "-"
        rate = sum(record["steps"]) / max(record["wall_s"], 1e-9)
        line = f"round {record['round']}  steps {done}/{steps}  return {middle}  {rate:,.0f} steps/s"
        if say.is_terminal:
            say.print(line, end="\r" if done < steps else "\n", overflow="ellipsis", no_wrap=True)
        else:
            say.print(line)

    return tell


def show(summary: dict[str, Any]) -> None:
    """The summary as a table."""
    rows = Table(show_header=False, box=None)
    for key, value in summary.items():
        rows.add_row(key.replace("_", " "), f"{value:,.1f}" if isinstance(value, float) else str(value))
    say.print(rows)


def main() -> None:
    """The entry point: a mistake is one sentence and exit code 2, a failure one sentence and exit code 1."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(arguments)
    except (Mistake, Failure, OSError, MemoryError) as error:
        if debug:
            raise
        words = "there is not enough memory for this run" if isinstance(error, MemoryError) else str(error)
        say.print(f"[red]fedrl:[/red] {escape(words)}", soft_wrap=True)
        sys.exit(2 if isinstance(error, Mistake) else 1)
