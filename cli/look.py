"""``fedrl plot`` and ``fedrl table``: draw and tabulate existing runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.screen import announce, short, show_table
from core.errors import Mistake
from core.outputs import check_file

if TYPE_CHECKING:
    from runs.groups import Run

Places = Annotated[list[Path], typer.Argument(help="Runs, or directories that contain runs, such as a sweep's.")]


def plot(
    runs: Places,
    out: Annotated[Path, typer.Option(help="The picture.")] = Path("curves.png"),
    metric: Annotated[str, typer.Option(help="Any per-agent metric of metrics.jsonl.")] = "return",
    x: Annotated[str, typer.Option(help="The x axis: steps, trajectories, bytes or wall.")] = "steps",
    each: Annotated[bool, typer.Option("--each", help="Also draw every run of a group as a thin line.")] = False,
    mean: Annotated[bool, typer.Option("--mean", help="Draw the mean and its 90% bootstrap band instead.")] = False,
    title: Annotated[str, typer.Option(help="The title of the picture.")] = "",
    matrix: Annotated[
        bool, typer.Option("--matrix", help="Draw the communication matrix of a run of kl-ppo instead.")
    ] = False,
    pairs: Annotated[
        bool, typer.Option("--pairs", help="Draw the KL between the agents of a run of kl-ppo over time instead.")
    ] = False,
) -> None:
    """Draw learning curves. Runs that differ only in their seed become one curve.

    A curve is the interquartile mean of its runs, with a 95% bootstrap band. A single run is drawn over its agents.
    Runs of a group are drawn where all of them have data: from where the last one begins to where the first one ends.
    """
    from runs import plots
    from runs.figures import curve

    check_file(out, plots.PICTURES)
    if matrix or pairs:
        plot_links(runs, out, pairs, title)
        return
    if x not in plots.AXES:
        raise Mistake(f"--x must be one of {', '.join(plots.AXES)}, not '{x}'")
    curves = {}
    for label, group in read_groups(runs).items():
        try:
            curves[label] = one = curve([run.records for run in group], metric, x)
        except Mistake as error:
            raise Mistake(f"{label}: {error}") from None
        if one.at[-1] < 0.9 * one.furthest:
            announce(f"{label}: drawn to {one.at[-1]:,.0f} of {one.furthest:,.0f} ({x}), where its shortest run ends")
    plots.draw(out, curves, title, metric, x, each, mean)
    announce(f"drawn: {out}")


def read_groups(places: list[Path]) -> dict[str, list[Run]]:
    """Return the runs in these places by experiment."""
    from runs import groups

    return groups.grouped(groups.read_runs(places, announce), announce)


def plot_links(places: list[Path], out: Path, pairs: bool, title: str) -> None:
    """Draw the communication matrix of a run, or the KL between its agents over time."""
    from runs import links
    from runs.config import configure
    from runs.directory import RunDirectory
    from strategies.graphs.matrix import STAR, communication
    from strategies.kl_ppo import KLConfig
    from strategies.method import chosen

    if len(places) != 1:
        raise Mistake(f"--matrix and --pairs draw one run, not {len(places)}")
    directory = RunDirectory.open(places[0])
    config = configure(directory.read_conf())
    if KLConfig not in chosen(config).tables.values():
        raise Mistake(f"{places[0]} has no communication matrix: its strategy is {config.strategy}, not kl-ppo")
    options = config.of(KLConfig)
    is_star = options.matrix == STAR
    C = None if is_star else communication(options.matrix, config.agents, options.normalise)
    if pairs:
        links.heat(out, directory.read_metrics(), C, title)
    elif C is None:
        raise Mistake("a star has no matrix to draw: all agents are pulled towards the average of all")
    else:
        links.matrix(out, C, title)
    announce(f"drawn: {out}")


def table(
    runs: Places,
    out: Annotated[Path | None, typer.Option(help="Also write the figures into this file, as JSON.")] = None,
    group: Annotated[
        bool, typer.Option("--group", help="Print one line for all runs that differ only in their seed.")
    ] = False,
    reach: Annotated[
        float | None,
        typer.Option(help="With --group: also print where the mean return reaches this value, and what filters did."),
    ] = None,
    x: Annotated[str, typer.Option(help="With --reach: steps, trajectories, bytes or wall.")] = "steps",
) -> None:
    """Print the last evaluation of each run over its agents, or (--group) of each conf over its seeds."""
    from runs import groups, plots

    if x not in plots.AXES:
        raise Mistake(f"--x must be one of {', '.join(plots.AXES)}, not '{x}'")
    if reach is not None and not group:
        raise Mistake("--reach is about the mean of several runs: add --group")
    if out is not None:
        check_file(out)
    if group:
        members = read_groups(runs)
        figures = {label: groups.over_seeds(group) for label, group in members.items()}
        show_groups("conf", figures)
        if reach is not None:
            for label, group_runs in members.items():
                figures[label] |= groups.progress(label, group_runs, reach, x)
            show_progress(reach, x, figures)
    else:
        figures = show_finals(groups.read_runs(runs, announce))
    if out is not None:
        out.write_text(json.dumps(figures, indent=1) + "\n")


def show_finals(runs: list[Run]) -> dict[str, Any]:
    """Print and return the final figures of each run, beside the settings in which the runs differ."""
    from runs import figures
    from runs.groups import labels

    finals = {}
    for run in runs:
        try:
            finals[run.name] = figures.final(run.records)
        except Mistake as error:
            raise Mistake(f"{run.name}: {error}") from None
    columns = ("agents", "steps", "mean", "std", "worst", "best", "wall_s")
    rows = [[name, *(f"{final[column]:,}" for column in columns)] for name, final in finals.items()]
    head = ["run", *columns[:-1], "seconds"]
    differences = labels([run.settings for run in runs])
    if any(differences):
        head.insert(1, "what differs")
        for row, text in zip(rows, differences, strict=True):
            row.insert(1, text)
    show_table(head, rows)
    return finals


def show_progress(value: float, x: str, groups: Mapping[str, dict[str, Any]]) -> None:
    """Print a line per group: where its mean, first and last run reached the value, and what its filter did."""
    shares = sorted({name for figures in groups.values() for name in figures["filter"]})
    rows = []
    for label, figures in groups.items():
        reached = [at for at in figures["reach"]["each"] if at is not None]
        ends = [min(reached), max(reached)] if reached else [None, None]
        texts = [None if at is None else f"{at:,.0f}" for at in (figures["reach"]["mean"], *ends)]
        count = f"{len(reached)} of {len(figures['reach']['each'])}"
        filtered = [f"{figures['filter'][name]:.3f}" if name in figures["filter"] else None for name in shares]
        rows.append((label, *texts, count, *filtered))
    head = ("conf", f"mean {value:g} at {x}", "first", "last", "runs that reached it")
    show_table((*head, *(share.replace("_", " ") for share in shares)), rows)


def show_groups(head: str, groups: Mapping[str, dict[str, Any]]) -> None:
    """Print a line per group of seeds."""
    columns = ("seeds", "mean", "90% band", "std", "interquartile mean", "95% band", "worst (seed)", "worst agent")
    rows = []
    for label, figures in groups.items():
        texts = [""] * 7
        if figures["seeds"]:
            mean, std, middle, worst = (short(figures[name]) for name in ("mean", "std", "iqm", "worst"))
            bands = [
                f"{short(figures[low])} to {short(figures[high])}"
                for low, high in (("mean_low", "mean_high"), ("low", "high"))
            ]
            agent = f"{short(figures['worst_agent'])} +- {short(figures['worst_agent_std'])}"
            texts = [mean, bands[0], std, middle, bands[1], f"{worst} ({figures['worst_seed']})", agent]
        rows.append((label, figures["seeds"], *texts, f"{figures['env_steps']:,}", f"{figures['wall_s']:,.1f}"))
    show_table((head, *columns, "env steps", "seconds"), rows)
