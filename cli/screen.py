"""What a person sees: a live line while a run goes on, a table at its end."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from client.session import RunConfig

# Words for people go to stderr, so that --json leaves stdout to one JSON object.
say = Console(stderr=True, highlight=False)

Settings = Annotated[list[str] | None, typer.Option("--set", help="key=value put over the conf; may be repeated.")]


def teller(config: RunConfig) -> Callable[[dict[str, Any]], None]:
    """Prints a line per round: one live line on a terminal, plain lines elsewhere."""

    reported = config.engine != "local"
    return lambda record: live(describe(record, config.rounds, config.steps, reported))


def live(line: str) -> None:
    """On a terminal over the line before, elsewhere below it."""
    if say.is_terminal:
        # Spaces wipe what a longer line left.
        say.print(f"{line:<{say.width - 1}}", end="\r", overflow="ellipsis", no_wrap=True)
    else:
        say.print(line, soft_wrap=True)


def announce(words: str) -> None:
    """What happened besides rounds."""
    say.print(words, markup=False, soft_wrap=True)


def describe(record: dict[str, Any], rounds: int, steps: int, reported: bool = False) -> str:
    """A round in one line: how far, how good, how fast, how much was sent, who is missing, who had no say.

    Returns that other processes ``reported`` are shown as their median: one agent cannot move it.
    """
    from runs.figures import mean_return, median_return, reached

    middle = (median_return if reported else mean_return)(record)
    rate = sum(record["steps"]) / max(record["wall_s"], 1e-9)
    words = [
        f"round {record['round']}" + (f"/{rounds}" if rounds else ""),
        f"steps {reached(record['steps']):,}" + (f"/{steps:,}" if steps else ""),
        f"{'median ' if reported else ''}return {f'{middle:.1f}' if math.isfinite(middle) else '-'}",
        f"{rate:,.0f} steps/s",
    ]
    sent = sum(record["bytes_up"]) + sum(record["bytes_down"])
    if sent:
        words.append(f"{sent / 1000:,.0f} kB")
    for name in ("missed", "refused", "left-out"):
        agents = [str(agent) for agent, count in enumerate(record[name]) if count]
        if agents:
            words.append(f"{name}: {', '.join(agents)}")
    rules = [row for name, row in record.items() if name.startswith("kept.")]
    dropped = [str(agent) for agent in range(len(record["return"])) if any(row[agent] == 0 for row in rules)]
    if dropped:
        words.append(f"dropped: {', '.join(dropped)}")
    return "  ".join(words)


def show(summary: dict[str, Any]) -> None:
    """The summary as a table."""
    if say.is_terminal:
        say.print()
    rows = Table(show_header=False, box=None)
    for key, value in summary.items():
        words = (f"{value:,.1f}" if abs(value) >= 10 else f"{value:.3g}") if isinstance(value, float) else str(value)
        rows.add_row(key.replace("_", " "), words)
    say.print(rows)
