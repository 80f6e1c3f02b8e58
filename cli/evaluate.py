"""``fedrl eval``: evaluate the agents of a run again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.screen import Plugins, Settings, announce, short, show_table
from core.errors import Mistake
from core.outputs import check_file

if TYPE_CHECKING:
    from client.session import Session
    from runs.config import RunConfig
    from runs.directory import RunDirectory


def evaluate(
    run: Annotated[Path, typer.Argument(help="The directory of a run.")],
    episodes: Annotated[int, typer.Option(help="Episodes per agent.", min=1)] = 20,
    video: Annotated[Path | None, typer.Option(help="Film an episode: an .mp4 or a .gif.")] = None,
    agent: Annotated[int, typer.Option(help="The agent to film.", min=0)] = 0,
    settings: Settings = None,
    plugin: Plugins = None,
    best: Annotated[
        bool, typer.Option("--best", help="Evaluate the weights of the best round instead of the last.")
    ] = False,
    cross: Annotated[
        bool,
        typer.Option("--cross", help="Evaluate each agent's policy, and the shared one, in the worlds of all agents."),
    ] = False,
    out: Annotated[Path | None, typer.Option(help="With --cross: draw the returns into this picture.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Evaluate the agents of a run again, in its world or (--set world...) in another one."""
    from client.session import Session, limit_threads
    from core import modules
    from runs import checkpoints
    from runs.directory import RunDirectory

    directory = RunDirectory.open(run)
    modules.look_in(*directory.folders())
    config = configured(directory, [*(settings or []), f"evaluate-episodes={episodes}"], plugin or [])
    if agent >= config.agents:
        raise Mistake(f"the run has agents 0 to {config.agents - 1}, not {agent}")
    if best and not directory.best.exists():
        raise Mistake(f"{run} has no {directory.best.name}: its weights were saved before any evaluation")
    check_outputs(out, video, cross)
    weights = directory.best if best else directory.weights
    learned, _ = checkpoints.load(weights)
    limit_threads(config.threads)
    with closing(Session(config, render=video is not None)) as session:
        session.fleet.load_learned(learned)
        records = directory.read_metrics()
        if records:
            session.worlds.steps[...] = records[-1]["steps"]
        if cross:
            show_cross(session, policies_of(directory, learned, best), out, as_json)
            return
        about = {"run_dir": str(run), "weights": weights.name, "episodes": episodes}
        show_returns(session, about, as_json)
        if video is not None:
            film(session, video, agent, sample=config.evaluate == "sampled")


def configured(directory: RunDirectory, settings: list[str], plugins: list[str]) -> RunConfig:
    """Return the configuration of a run with other settings."""
    from core.options import override
    from fedrl.running import with_plugins
    from runs.config import configure

    values = override(with_plugins(directory.read_conf(), plugins), settings)
    values.pop("federation", None)  # an evaluation does not depend on how the weights were made
    return configure(values)


def check_outputs(out: Path | None, video: Path | None, cross: bool) -> None:
    """Refuse an output that cannot be written, or that does not belong to this command."""
    from envs import video as films
    from runs import plots

    if (out or video) and (out is None) == cross:
        raise Mistake("--out is the picture of --cross, and --video needs a run without --cross")
    if out is not None:
        check_file(out, plots.PICTURES)
    if video is not None:
        films.writer(video)
        check_file(video, what="--video")


def show_returns(session: Session, about: Mapping[str, Any], as_json: bool) -> None:
    """Print the returns of every agent."""
    from runs.figures import spread

    returns = session.evaluate()
    agents = [spread(row) for row in returns]
    if as_json:
        print(json.dumps({**about, **spread(returns), "agents": agents}))
        return
    rows = [(k, *(f"{value:.1f}" for value in figures.values())) for k, figures in enumerate(agents)]
    show_table(("agent", "mean return", "std", "worst", "best"), rows)


def film(session: Session, path: Path, agent: int, sample: bool) -> None:
    """Film an episode of an agent."""
    from core.streams import Streams
    from envs import video

    streams = Streams(session.fleet.seeds, "film", lanes=session.worlds.copies)
    video.record(session.worlds, lambda obs: session.fleet.act(obs, streams if sample else None), path, agent)
    announce(f"filmed agent {agent}: {path}")


def policies_of(directory: RunDirectory, learned: Mapping[str, Any], best: bool) -> dict[str, dict[str, Any]]:
    """Return the policies of a run by name: those of each agent, if it has any, and the shared one, if there is one."""
    from runs import checkpoints
    from strategies.fedavg_td3 import OWN

    path = directory.path / f"{OWN}.npz"
    own = checkpoints.load(path)[0] if path.exists() and not best else {}
    is_shared = all(len(rows) == 1 for rows in learned.values())
    personal = own if is_shared else learned
    agents = max((len(rows) for rows in personal.values()), default=0)
    policies = {f"agent {k}": {name: rows[k : k + 1] for name, rows in personal.items()} for k in range(agents)}
    return policies | ({"shared": dict(learned)} if is_shared else {})


def show_cross(session: Session, policies: Mapping[str, Mapping[str, Any]], out: Path | None, as_json: bool) -> None:
    """Print a line per policy and a column per world. All policies play the same episodes."""
    from runs import links

    returns = {}
    for name, policy in policies.items():
        session.fleet.load_learned(policy)
        returns[name] = session.evaluate().mean(axis=1).tolist()
    if as_json:
        print(json.dumps(returns))
    else:
        rows = [
            (name, *map(short, [*values, sum(values) / len(values), min(values)])) for name, values in returns.items()
        ]
        show_table(("policy", *(f"world {j}" for j in session.numbers), "mean", "worst"), rows)
    if out is not None:
        links.crossing(out, returns)
        announce(f"drawn: {out}")
