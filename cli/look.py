"""Looking at runs that are there: judge again, draw, tabulate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cli.screen import Settings, say
from core.errors import Mistake


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
