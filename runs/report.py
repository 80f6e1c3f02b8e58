"""The report of a run: a line per round, and at its end the picture and the summary in its directory."""

from __future__ import annotations

import math
from typing import Any

from core.counts import reached
from runs import plots
from runs.directory import RunDirectory
from runs.figures import mean_return, median_return


def describe(record: dict[str, Any], rounds: int, steps: int, reported: bool = False) -> str:
    """Return a round in one line: progress, return, speed, bytes, and agents that are missing or dropped.

    ``reported``: agents in other processes reported the returns. Then the median is shown, which one agent cannot move.
    """
    middle = (median_return if reported else mean_return)(record)
    rate = sum(record["steps"]) / max(record["wall_s"], 1e-9)
    parts = [
        f"round {record['round']}" + (f"/{rounds}" if rounds else ""),
        f"steps {reached(record['steps']):,}" + (f"/{steps:,}" if steps else ""),
        f"{'median ' if reported else ''}return {f'{middle:.1f}' if math.isfinite(middle) else '-'}",
        f"{rate:,.0f} steps/s",
    ]
    sent = sum(record["bytes_up"]) + sum(record["bytes_down"])
    if sent:
        parts.append(f"{sent / 1000:,.0f} kB")
    for name in ("missed", "refused", "left-out"):
        agents = [str(agent) for agent, count in enumerate(record[name]) if count]
        if agents:
            parts.append(f"{name}: {', '.join(agents)}")
    rules = [row for name, row in record.items() if name.startswith("kept.")]
    dropped = [str(agent) for agent in range(len(record["return"])) if any(row[agent] == 0 for row in rules)]
    if dropped:
        parts.append(f"dropped: {', '.join(dropped)}")
    return "  ".join(parts)


def finish(run: RunDirectory, summary: dict[str, Any], algorithm: str, world: str) -> dict[str, Any]:
    """Draw the curve of a run and write its summary; returns the summary with the path of the picture.

    There is no picture if no round measured a return.
    """
    records = run.read_metrics()
    if any(value is not None for record in records for value in record["return"]):
        plots.curves(run.curve, {algorithm: records}, f"{algorithm} on {world}")
        summary = summary | {"picture": str(run.curve)}
    run.write_summary(summary)
    return summary
