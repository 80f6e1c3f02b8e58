"""``fedrl demo``, what `make run` shows: ten agents of whom some lie, with a filter and without."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from cli.screen import Settings, announce, live, say, show_table
from core.errors import Mistake
from core.outputs import check_folder

if TYPE_CHECKING:
    from runs.config import RunConfig

CONF = Path(__file__).parents[1] / "conf" / "fedpg_demo.toml"
# Off a terminal every so manieth round has a line.
SELDOM = 10

Records = Sequence[dict[str, Any]]


def demo(
    attack: Annotated[str | None, typer.Option(help="What the liars do; `fedrl conf attack.` lists it.")] = None,
    seed: Annotated[int, typer.Option(help="The seed of both runs.")] = 0,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="Where the runs lie; out/demo-TIME otherwise.")] = None,
) -> None:
    """Ten agents learn CartPole together, three of them lie: with the filter of FedPG-BR, and without. A minute."""
    from attacks.plan import Plan
    from core.options import override
    from runs import plots
    from runs.config import from_user
    from runs.directory import read_toml
    from runs.figures import curve
    from runs.ledger import over_rounds

    changes = [f"seed={seed}", *([f"attack.kind={attack}"] if attack is not None else []), *(settings or [])]
    config = from_user(override(read_toml(CONF), changes))
    if config.strategy != "fedpg-br" or config.engine != "local":
        raise Mistake("the demo is fedpg-br in this process; `fedrl run` runs everything else")
    place = out or Path("out") / f"demo-{time.strftime('%Y%m%d-%H%M%S')}"
    check_folder(place)
    plan = Plan(config.attack, config.agents)
    liars = [agent for agent in range(config.agents) if not plan.honest(agent)]
    names = ", ".join(map(str, liars)) or "nobody"
    announce(f"{config.agents} agents learn {config.world.id}; {names} of them lie: {config.attack.kind}")
    filtered = learn(config, place / "filter", "with the filter")
    plain = learn(replace(config, federation=replace(config.federation, rule="mean")), place / "mean", "without it")
    picture = place / "curves.png"
    curves = {"with the filter": curve([filtered], x="trajectories"), "without it": curve([plain], x="trajectories")}
    plots.draw(picture, curves, f"{names} of {config.agents} lie: {config.attack.kind}", x="trajectories")
    console = Console(highlight=False)
    show_table(("agent", "is", "kept"), who_was_kept(filtered, liars))
    figures = over_rounds(filtered)
    told = {"precision": "of those dropped, lied", "recall": "of those that lied, were dropped"}
    for name in (name for name in told if name in figures):
        console.print(f"{name} {figures[name]:.2f}: so many {told[name]}")
    for words, records in (("with the filter", filtered), ("without it", plain)):
        console.print(f"return {words}: {late(records):.0f} (mean of the last {SELDOM} rounds)")
    console.print(f"both curves: {picture}", soft_wrap=True)
    console.print(NEXT, soft_wrap=True, markup=False)


NEXT = """what to try next:
  another attack           fedrl demo --attack sign-flip    (`fedrl conf attack.kind` lists them)
  a conf of your own       cp conf/fedpg_demo.toml my.toml, edit it, then fedrl run my.toml --set federation.rule=krum
  real attacking nodes     fedrl node --attack random-noise ... beside honest ones (docs/federation.md)"""


def learn(config: RunConfig, path: Path, title: str) -> Records:
    """One run, with a live line; its records."""
    from runs.config import written
    from runs.directory import RunDirectory
    from server import engines
    from server.stop import interruptible

    session = engines.prepare(config)
    directory = RunDirectory.create(path, written(config))
    try:
        with interruptible() as stop, closing(session):
            summary = engines.run(config, session, directory, teller(config, title), announce, stop)
    except KeyboardInterrupt:
        summary = {"interrupted": True}
    if say.is_terminal:
        say.print()  # what was live stays
    if summary["interrupted"]:
        announce(f"interrupted; go on with: fedrl run --resume {directory.path}")
        raise typer.Exit(130)
    return directory.read_metrics()


def teller(config: RunConfig, title: str) -> Callable[[dict[str, Any]], None]:
    """Live on a terminal; elsewhere a line now and then."""
    from runs.report import describe

    def tell(record: dict[str, Any]) -> None:
        if say.is_terminal or record["round"] % SELDOM == 0 or record["round"] == config.rounds:
            live(f"{title}: {describe(record, config.rounds, config.steps)}")

    return tell


def who_was_kept(records: Records, liars: Sequence[int]) -> list[tuple[int, str, str]]:
    """Each agent, whether it lies, and in how many rounds the filter kept it."""
    rows = []
    for agent in range(len(records[-1]["kept.policy"])):
        kept = sum(record["kept.policy"][agent] or 0 for record in records)
        rows.append((agent, "liar" if agent in liars else "honest", f"{kept} of {len(records)} rounds"))
    return rows


def late(records: Records) -> float:
    """What a run came to, without the chance of a single round."""
    from runs.figures import mean_return

    last = [mean_return(record) for record in records[-SELDOM:]]
    return sum(last) / len(last)
