"""``fedrl sweep``: one conf for every combination of some values and for every seed, a process per run."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.jobs import run_all
from cli.look import show_groups
from cli.screen import Plugins, Settings, announce
from core.errors import Mistake
from core.outputs import check_file, check_folder

if TYPE_CHECKING:
    from runs.config import RunConfig
    from runs.sweeps import Combination, Grid


def sweep(
    conf: Annotated[Path, typer.Argument(help="A TOML file; `fedrl conf` lists its keys.")],
    seeds: Annotated[str, typer.Option(help="The seeds, such as 0:10 (0 to 9), 3, or 0:5,8.")],
    grid: Annotated[
        list[str] | None,
        typer.Option(help="key=a,b: run each of these values; several --grid give all their combinations."),
    ] = None,
    settings: Settings = None,
    plugin: Plugins = None,
    engine: Annotated[str | None, typer.Option(help="local, ray or grpc (default: that of the conf).")] = None,
    jobs: Annotated[int, typer.Option(help="Runs at a time; 0: as many as this machine has cores for.", min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="The directory of the sweep (default: out/CONF-sweep-TIME).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as one JSON object.")] = False,
) -> None:
    """Run a conf for every combination of values and every seed, in parallel. The same command again continues."""
    from core import modules
    from core.options import override
    from fedrl.running import with_plugins
    from runs import sweeps
    from runs.config import refuse_unused
    from runs.directory import read_toml

    modules.look_in(conf.parent, Path.cwd())
    changes = [*(settings or []), *([f"engine={engine}"] if engine is not None else [])]
    asked = sweeps.parse_grid(grid or [])
    refuse_repeated(asked, changes)
    table = with_plugins(override(read_toml(conf), changes), plugin or ())
    table.pop("seed", None)
    if not table["plugins"]:  # sweeps that began before there were plugins have no such key
        del table["plugins"]
    directory = out or Path("out") / f"{conf.stem}-sweep-{time.strftime('%Y%m%d-%H%M%S')}"
    check_folder(directory)
    state = sweeps.merge_with_saved(directory, table, asked, sweeps.parse_seeds(seeds))
    combinations = sweeps.combine(table, state["grid"], conf.stem)
    runs = sweeps.runs_of(combinations, state["seeds"], directory)
    todo = [run for run in runs if not run.has_finished()]
    refuse_unused([*changes, *asked], [one.config for one in combinations])
    check_runnable({run.combination.name: run.combination.config for run in todo})
    with sweeps.locked(directory) as lock:
        check_file(directory / sweeps.PICTURE, what="the picture")
        sweeps.save(directory, table, state)
        most = jobs or runs_at_a_time(combinations)
        failed, interrupted = run_all(todo, len(runs) - len(todo), most, directory, lock)
        state |= sweeps.results(directory, runs, draw=not interrupted)
        state |= {"failed": failed, "interrupted": interrupted}
        sweeps.save(directory, table, state)
    show(state, directory, as_json)
    if interrupted:
        given = [f"--grid={one}" for one in grid or []] + [f"--set={one}" for one in changes]
        given += [f"--plugin={one}" for one in plugin or ()] + ([f"--jobs={jobs}"] if jobs else [])
        again = shlex.join(["fedrl", "sweep", str(conf), f"--seeds={seeds}", *given, f"--out={directory}"])
        announce(f"interrupted with {state['finished']} of {state['runs']} runs finished; continue with: {again}")
        raise typer.Exit(130)
    if failed:
        raise typer.Exit(1)


def refuse_repeated(grid: Grid, changes: Sequence[str]) -> None:
    """Refuse a key that is given twice: by --grid and by --set, or the seed, which --seeds gives."""
    changed = [change.partition("=")[0].strip() for change in changes]
    for key in [*grid, *changed]:
        if key == "seed":
            raise Mistake("'seed' is given by --seeds: remove it from --grid and --set")
        if key in grid and key in changed:
            raise Mistake(f"'{key}' is given by --grid and again by --set or --engine: remove one of them")


def check_runnable(configs: Mapping[str, RunConfig]) -> None:
    """Build the worlds and learners of every combination, to refuse what cannot run before any run starts."""
    from runs import trackers
    from server import engines

    for name, config in configs.items():
        try:
            trackers.check(config.wandb)
            engines.prepare(config).close()
        except Mistake as error:
            raise Mistake(f"{name}: {error}") from None


def runs_at_a_time(combinations: Sequence[Combination]) -> int:
    """Return how many runs this machine has cores for; a run of another engine than local uses all of them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if any(one.config.engine != "local" for one in combinations):
        return 1
    return max(cores // max(one.config.threads for one in combinations), 1)


def show(state: Mapping[str, Any], directory: Path, as_json: bool) -> None:
    """Print the results, and the reason of every failure."""
    if as_json:
        print(json.dumps(state))
    elif not state["interrupted"]:
        show_groups("combination", state["combinations"])
        if state["picture"]:
            announce(f"drawn: {state['picture']}")
    for name, reason in state["failed"].items():
        announce(f"failed: {name}: {reason} (its log: {directory / name / 'run.log'})")
