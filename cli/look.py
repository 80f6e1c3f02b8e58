"""Looking at runs that are there: judge again, draw, tabulate."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.groups import Run, grouped, labels, read
from cli.screen import Plugins, Settings, announce, show_table
from core.errors import Mistake
from core.outputs import check_file

if TYPE_CHECKING:
    from client.session import Session

Places = Annotated[list[Path], typer.Argument(help="Runs, or directories that hold runs, such as a sweep's.")]


def evaluate(
    run: Annotated[Path, typer.Argument(help="The directory of a run.")],
    episodes: Annotated[int, typer.Option(help="Episodes per agent.", min=1)] = 20,
    video: Annotated[Path | None, typer.Option(help="Film an episode: an .mp4 or a .gif.")] = None,
    agent: Annotated[int, typer.Option(help="Whom to film.", min=0)] = 0,
    settings: Settings = None,
    plugin: Plugins = None,
    best: Annotated[bool, typer.Option("--best", help="The weights of the best round, not of the last.")] = False,
    cross: Annotated[
        bool,
        typer.Option("--cross", help="Instead: each agent's policy, and the shared one, in all their worlds."),
    ] = False,
    out: Annotated[Path | None, typer.Option(help="With --cross: a picture of it.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Judge the agents of a run again, in its world or (--set world...) in another."""
    from client.session import Session
    from core import modules
    from core.options import override
    from core.streams import Streams
    from envs import video as film
    from fedrl.running import with_plugins
    from runs import checkpoints, plots
    from runs.config import configure
    from runs.directory import RunDirectory
    from runs.figures import spread
    from strategies.fedavg_td3 import OWN

    directory = RunDirectory.open(run)
    modules.look_in(*directory.folders())
    values = override(
        with_plugins(directory.read_conf(), plugin or ()), [*(settings or []), f"evaluate-episodes={episodes}"]
    )
    values.pop("federation", None)  # how the weights came about is not asked here
    config = configure(values)
    if agent >= config.agents:
        raise Mistake(f"the run has agents 0 to {config.agents - 1}, not {agent}")
    if best and not directory.best.exists():
        raise Mistake(f"{run} has no {directory.best.name}: nobody was judged before its weights were saved")
    if (out or video) and (out is None) == cross:
        raise Mistake("--out is the picture of --cross, --video films an agent without it")
    if out is not None:
        check_file(out, plots.PICTURES)
    if video is not None:
        film.writer(video)
        check_file(video, what="--video")
    weights = directory.best if best else directory.weights
    learned, _ = checkpoints.load(weights)
    session = Session(config, render=video is not None)
    try:
        session.fleet.load_learned(learned)
        records = directory.read_metrics()
        if records:
            session.worlds.steps[...] = records[-1]["steps"]
        if cross:
            own = directory.path / f"{OWN}.npz"
            policies = crossing(learned, checkpoints.load(own)[0] if own.exists() and not best else {})
            show_crossing(session, policies, out, as_json)
            return
        judged = session.evaluate()
        agents = [spread(returns) for returns in judged]
        if as_json:
            about = {"run_dir": str(run), "weights": weights.name, "episodes": episodes}
            print(json.dumps(about | spread(judged) | {"agents": agents}))
        else:
            rows = [(k, *(f"{value:.1f}" for value in one.values())) for k, one in enumerate(agents)]
            show_table(("agent", "mean return", "std", "worst", "best"), rows)
        if video is not None:
            streams = Streams(session.fleet.seeds, "film", lanes=session.worlds.copies)
            explore = config.evaluate == "sampled"
            film.record(session.worlds, lambda obs: session.fleet.act(obs, streams if explore else None), video, agent)
            announce(f"filmed agent {agent}: {video}")
    finally:
        session.close()


def crossing(learned: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The policies of a run by name: of each agent, where there are such, and the one that all share."""
    shared = all(len(rows) == 1 for rows in learned.values())
    each = own if shared else learned
    agents = max((len(rows) for rows in each.values()), default=0)
    found = {f"agent {k}": {name: rows[k : k + 1] for name, rows in each.items()} for k in range(agents)}
    return found | ({"shared": dict(learned)} if shared else {})


def show_crossing(session: Session, policies: Mapping[str, Mapping[str, Any]], out: Path | None, as_json: bool) -> None:
    """A line per policy, a column per world; the same episodes for everybody."""
    from runs import links

    found = {}
    for name, policy in policies.items():
        session.fleet.load_learned(policy)
        found[name] = session.evaluate().mean(axis=1).tolist()
    if as_json:
        print(json.dumps(found))
    else:
        rows = [
            (name, *map(short, [*values, sum(values) / len(values), min(values)])) for name, values in found.items()
        ]
        show_table(("policy", *(f"world {j}" for j in session.numbers), "mean", "worst"), rows)
    if out is not None:
        links.crossing(out, found)
        announce(f"drawn: {out}")


def plot(
    runs: Places,
    out: Annotated[Path, typer.Option(help="The picture.")] = Path("curves.png"),
    metric: Annotated[str, typer.Option(help="Any per-agent metric of metrics.jsonl.")] = "return",
    x: Annotated[str, typer.Option(help="steps, trajectories, bytes or wall.")] = "steps",
    each: Annotated[bool, typer.Option("--each", help="Also draw every run of a group, thin.")] = False,
    mean: Annotated[bool, typer.Option("--mean", help="The mean and its 90% bootstrap band instead.")] = False,
    title: Annotated[str, typer.Option(help="Words above the picture.")] = "",
    matrix: Annotated[bool, typer.Option("--matrix", help="Instead: who learns from whom in a run of kl-ppo.")] = False,
    pairs: Annotated[bool, typer.Option("--pairs", help="Instead: the KL between its agents over time.")] = False,
) -> None:
    """Curves: runs that differ by their seed alone are one, their interquartile mean with a 95% bootstrap band.

    A run that is alone of its kind is drawn over its agents. Runs of a group are compared where all of them have been:
    from where the last one begins to where the first one ends.
    """
    from runs import plots
    from runs.figures import curve

    check_file(out, plots.PICTURES)
    if matrix or pairs:
        links(runs, out, pairs, title)
        return
    if x not in plots.AXES:
        raise Mistake(f"--x is one of {', '.join(plots.AXES)}, not '{x}'")
    found = {}
    for label, group in grouped(read(runs)).items():
        try:
            found[label] = one = curve([run.records for run in group], metric, x)
        except Mistake as error:
            raise Mistake(f"{label}: {error}") from None
        if one.at[-1] < 0.9 * one.furthest:
            announce(f"{label}: drawn to {one.at[-1]:,.0f} of {one.furthest:,.0f} ({x}), where its shortest run ends")
    plots.draw(out, found, title, metric, x, each, mean)
    announce(f"drawn: {out}")


def links(places: list[Path], out: Path, pairs: bool, title: str) -> None:
    """The communication matrix of a run, or how far from each other its agents were."""
    from runs import links as pictures
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
    own = config.of(KLConfig)
    star = own.matrix == STAR
    C = None if star else communication(own.matrix, config.agents, own.normalise)
    if pairs:
        pictures.heat(out, directory.read_metrics(), C, title)
    elif C is None:
        raise Mistake("a star has no matrix: everybody is pulled towards the average of all")
    else:
        pictures.matrix(out, C, title)
    announce(f"drawn: {out}")


def table(
    runs: Places,
    out: Annotated[Path | None, typer.Option(help="Also write the figures here, as JSON.")] = None,
    group: Annotated[
        bool, typer.Option("--group", help="A line for all runs that differ by their seed alone.")
    ] = False,
    reach: Annotated[
        float | None, typer.Option(help="With --group: also where the mean return gets there, and what filters did.")
    ] = None,
    x: Annotated[str, typer.Option(help="With --reach: steps, trajectories, bytes or wall.")] = "steps",
) -> None:
    """What runs came to: the last judged return of each over its agents, or (--group) over the seeds of a conf."""
    from runs import plots

    if x not in plots.AXES:
        raise Mistake(f"--x is one of {', '.join(plots.AXES)}, not '{x}'")
    if reach is not None and not group:
        raise Mistake("--reach is about the mean of several runs: add --group")
    if out is not None:
        check_file(out)
    there, found = read(runs), dict[str, Any]()
    if group:
        groups = grouped(there)
        found = {label: over_seeds(members) for label, members in groups.items()}
        show_groups("conf", found)
        if reach is not None:
            for label, members in groups.items():
                found[label] |= on_the_way(label, members, reach, x)
            show_ways(reach, x, found)
    else:
        found = finals(there)
    if out is not None:
        out.write_text(json.dumps(found, indent=1) + "\n")


def finals(runs: list[Run]) -> dict[str, Any]:
    """Print and return the final figures of each run, beside the settings in which the runs differ."""
    from runs import figures

    found = {}
    for run in runs:
        try:
            found[run.name] = figures.final(run.records)
        except Mistake as error:
            raise Mistake(f"{run.name}: {error}") from None
    columns = ("agents", "steps", "mean", "std", "worst", "best", "wall_s")
    rows = [[name, *(f"{one[column]:,}" for column in columns)] for name, one in found.items()]
    head = ["run", *columns[:-1], "seconds"]
    differing = labels([run.settings for run in runs])
    if any(differing):
        head.insert(1, "what differs")
        for row, words in zip(rows, differing, strict=True):
            row.insert(1, words)
    show_table(head, rows)
    return found


# Figures of groups ----------------------------------------------------------------------------------------------------


def over_seeds(group: list[Run]) -> dict[str, Any]:
    """The figures of a group by seed, or by name where a seed is there twice."""
    from runs import figures

    seeds = {run.conf["seed"]: run.records for run in group}
    return figures.over_seeds(seeds if len(seeds) == len(group) else {run.name: run.records for run in group})


def on_the_way(label: str, group: list[Run], value: float, x: str) -> dict[str, Any]:
    """Where a group's mean return gets to a value, and how its filter did, where it is known who lied."""
    from runs import figures
    from runs.ledger import over_rounds

    try:
        found = figures.reach([run.records for run in group], value, x)
    except Mistake as error:
        raise Mistake(f"{label}: {error}") from None
    did = [over_rounds(run.records) for run in group]
    known = {name for one in did for name in one}
    return {"reach": found} | {
        "filter": {
            name: round(sum(one[name] for one in did if name in one) / sum(name in one for one in did), 4)
            for name in sorted(known)
        }
    }


def show_ways(value: float, x: str, found: Mapping[str, dict[str, Any]]) -> None:
    """A line per group: where its mean, its first and its last run got there, and what its filter did."""
    shares = sorted({name for one in found.values() for name in one["filter"]})
    rows = []
    for label, one in found.items():
        each = [at for at in one["reach"]["each"] if at is not None]
        ends = [min(each), max(each)] if each else [None, None]
        words = [None if at is None else f"{at:,.0f}" for at in (one["reach"]["mean"], *ends)]
        counted = f"{len(each)} of {len(one['reach']['each'])}"
        did = [f"{one['filter'][name]:.3f}" if name in one["filter"] else None for name in shares]
        rows.append((label, *words, counted, *did))
    head = ("conf", f"mean {value:g} at {x}", "first", "last", "got there")
    show_table((*head, *(share.replace("_", " ") for share in shares)), rows)


def show_groups(head: str, found: Mapping[str, dict[str, Any]]) -> None:
    """A line per group of seeds."""
    columns = ("seeds", "mean", "90% band", "std", "interquartile mean", "95% band", "worst (seed)", "worst agent")
    rows = []
    for label, one in found.items():
        words = [""] * 7
        if one["seeds"]:
            mean, std, middle, worst = (short(one[name]) for name in ("mean", "std", "iqm", "worst"))
            bands = [
                f"{short(one[low])} to {short(one[high])}" for low, high in (("mean_low", "mean_high"), ("low", "high"))
            ]
            agent = f"{short(one['worst_agent'])} +- {short(one['worst_agent_std'])}"
            words = [mean, bands[0], std, middle, bands[1], f"{worst} ({one['worst_seed']})", agent]
        rows.append((label, one["seeds"], *words, f"{one['env_steps']:,}", f"{one['wall_s']:,.1f}"))
    show_table((head, *columns, "env steps", "seconds"), rows)


def short(value: float) -> str:
    """Returns are hundreds in one world and hundredths in another."""
    return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.3g}"
