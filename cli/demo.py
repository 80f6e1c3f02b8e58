"""``fedrl demo``, which `make run` starts: ten agents, some of them attackers, with a filter and without."""

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
# Outside a terminal, only every tenth round prints a line.
INTERVAL = 10
WITH, WITHOUT = "with the filter", "without the filter"
MEANINGS = {
    "precision": "of the dropped rows came from attackers",
    "recall": "of the attackers' rows were dropped",
}

Records = Sequence[dict[str, Any]]


def demo(
    attack: Annotated[
        str | None, typer.Option(help="What the attackers do; `fedrl conf attack.` lists the attacks.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The seed of both runs.")] = 0,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="The directory of both runs (default: out/demo-TIME).")] = None,
) -> None:
    """Train ten agents on CartPole, three of them attackers, with the filter of FedPG-BR and without (a minute)."""
    from attacks.plan import Plan
    from core.options import override
    from runs import plots
    from runs.config import from_user
    from runs.directory import read_toml
    from runs.figures import curve

    changes = [f"seed={seed}", *([f"attack.kind={attack}"] if attack is not None else []), *(settings or [])]
    config = from_user(override(read_toml(CONF), changes))
    if config.strategy != "fedpg-br" or config.engine != "local":
        raise Mistake("the demo needs strategy = 'fedpg-br' and engine = 'local'; `fedrl run` runs everything else")
    folder = out or Path("out") / f"demo-{time.strftime('%Y%m%d-%H%M%S')}"
    check_folder(folder)
    plan = Plan(config.attack, config.agents)
    attackers = [agent for agent in range(config.agents) if not plan.honest(agent)]
    names = ", ".join(map(str, attackers)) or "none"
    announce(f"{config.agents} agents learn {config.world.id}; attackers: {names} ({config.attack.kind})")
    mean = replace(config, federation=replace(config.federation, rule="mean"))
    filtered, plain = learn(config, folder / "filter", WITH), learn(mean, folder / "mean", WITHOUT)
    picture = folder / "curves.png"
    curves = {WITH: curve([filtered], x="trajectories"), WITHOUT: curve([plain], x="trajectories")}
    plots.draw(picture, curves, f"attackers {names} of {config.agents} agents: {config.attack.kind}", x="trajectories")
    show_results(filtered, plain, attackers)
    console = Console(highlight=False)
    console.print(f"learning curves: {picture}", soft_wrap=True)
    console.print(NEXT, soft_wrap=True, markup=False)


def show_results(filtered: Records, plain: Records, attackers: Sequence[int]) -> None:
    """Print which agents the filter kept, how well it found the attackers, and the returns of both runs."""
    from runs.ledger import over_rounds

    console = Console(highlight=False)
    show_table(("agent", "role", "kept by the filter"), kept_rounds(filtered, attackers))
    shares = over_rounds(filtered)
    for name, meaning in MEANINGS.items():
        if name in shares:
            console.print(f"{name} {shares[name]:.2f}: {shares[name]:.0%} {meaning}")
    for title, records in ((WITH, filtered), (WITHOUT, plain)):
        console.print(f"return {title}: {late_return(records):.0f} (mean of the last {INTERVAL} rounds)")


NEXT = """What to try next:
  another attack           fedrl demo --attack sign-flip    (`fedrl conf attack.kind` lists them)
  your own conf            cp conf/fedpg_demo.toml my.toml, edit it, then fedrl run my.toml --set federation.rule=krum
  real attacking nodes     fedrl node --attack random-noise ... beside honest ones (docs/federation.md)"""


def learn(config: RunConfig, path: Path, title: str) -> Records:
    """Run once, with a live line; returns the records."""
    from runs.config import written
    from runs.directory import RunDirectory
    from server import engines
    from server.stop import interruptible

    session = engines.prepare(config)
    directory = RunDirectory.create(path, written(config))
    try:
        with interruptible() as stop, closing(session):
            summary = engines.run(config, session, directory, reporter(config, title), announce, stop)
    except KeyboardInterrupt:
        summary = {"interrupted": True}
    if say.is_terminal:
        say.print()  # keep the live line
    if summary["interrupted"]:
        announce(f"interrupted; continue with: fedrl run --resume {directory.path}")
        raise typer.Exit(130)
    return directory.read_metrics()


def reporter(config: RunConfig, title: str) -> Callable[[dict[str, Any]], None]:
    """Return what shows a round: one live line on a terminal, a line every ``INTERVAL`` rounds elsewhere."""
    from runs.report import describe

    def show(record: dict[str, Any]) -> None:
        if say.is_terminal or record["round"] % INTERVAL == 0 or record["round"] == config.rounds:
            live(f"{title}: {describe(record, config.rounds, config.steps)}")

    return show


def kept_rounds(records: Records, attackers: Sequence[int]) -> list[tuple[int, str, str]]:
    """Return each agent, its role, and in how many rounds the filter kept it."""
    rows = []
    for agent in range(len(records[-1]["kept.policy"])):
        kept = sum(record["kept.policy"][agent] or 0 for record in records)
        rows.append((agent, "attacker" if agent in attackers else "honest", f"{kept} of {len(records)} rounds"))
    return rows


def late_return(records: Records) -> float:
    """Return the mean return of the last rounds, which is less noisy than that of one round."""
    from runs.figures import mean_return

    last = [mean_return(record) for record in records[-INTERVAL:]]
    return sum(last) / len(last)
