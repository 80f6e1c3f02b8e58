"""Start a run and go on with one: what the command line and ``import fedrl`` have in common."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from core import modules
from core.errors import Mistake
from core.options import override
from runs import trackers
from runs.config import RunConfig, configure, from_user, refuse_unused, unused, written
from runs.directory import RunDirectory, read_toml
from runs.report import finish
from server import engines

Record = dict[str, Any]

# What may change when a run goes on; anything else would make it another run.
CHANGEABLE = (
    "steps", "rounds", "checkpoint-every", "checkpoints", "evaluate-episodes", "evaluate", "threads", "tensorboard",
    "wandb", "federation.wait-s", "federation.quorum", "federation.deadline-s", "federation.give-up-s",
    "federation.patience", "federation.leave-out", "federation.evaluate-every",
)  # fmt: skip


def from_file(path: Path, settings: Sequence[str] = (), plugins: Sequence[str] = ()) -> tuple[RunConfig, list[str]]:
    """Return the run of a conf with ``key=value`` settings, and sentences on what of it is not used.

    Modules of worlds and plugins are found beside the conf and in the working directory.
    """
    modules.look_in(path.parent, Path.cwd())
    values = read_toml(path)
    config = from_user(with_plugins(override(values, list(settings)), plugins))
    refuse_unused(settings, [config])
    words = unused(values, config)
    return config, [words] if words else []


def with_plugins(values: Mapping[str, Any], plugins: Sequence[str]) -> dict[str, Any]:
    """Return the values of a conf that also names these plugins."""
    named = values.get("plugins", [])
    named = named.split(",") if isinstance(named, str) else list(named)
    return {**values, "plugins": [*named, *(plugin for plugin in plugins if plugin not in named)]}


def resumed(path: Path, settings: Sequence[str] = (), plugins: Sequence[str] = ()) -> RunConfig:
    """Return the run in a directory, with another end or other patience; refuses what would make it another run."""
    for setting in settings:
        key = setting.partition("=")[0].strip()
        if key not in CHANGEABLE:
            raise Mistake(f"'{key}' is settled in a run that goes on (may change: {', '.join(CHANGEABLE)})")
    directory = RunDirectory.open(path)
    modules.look_in(*directory.folders())
    config = configure(with_plugins(override(directory.read_conf(), list(settings)), plugins))
    refuse_finished(config, directory)
    return config


def refuse_finished(config: RunConfig, directory: RunDirectory) -> None:
    """Refuse to go on with a run that has ended and is saved, unless it has another end now."""
    saved, records = directory.saved_rounds(), directory.read_metrics() if directory.weights.exists() else []
    if not records or (saved and records[-1]["round"] not in saved):
        return
    done, lived = records[-1]["round"], records[-1]["steps"]
    if config.over(done, lived):
        ends = {"rounds": config.rounds, "steps": config.steps}
        ways = " or ".join(f"--set {key}=N, N above {end}" for key, end in ends.items() if end)
        raise Mistake(
            f"the run in {directory.path} is finished, after {done} rounds and {min(lived)} steps of each agent: to go "
            f"on, give it a later end ({ways}); fedrl eval, plot and table look at it"
        )


def place(stem: str) -> Path:
    """Return the usual directory of a new run."""
    return Path("out") / f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"


def execute(
    config: RunConfig,
    path: Path,
    *,
    resume: bool = False,
    nodes: int = 0,
    superlink: str = "",
    roots: Path | None = None,
    notes: Sequence[str] = (),
    show: Callable[[Record], None] = lambda record: None,
    say: Callable[[str], None] = lambda words: None,
    stop: Callable[[], bool] = lambda: False,
) -> Record:
    """Run until the end, or until ``stop``; leaves everything in ``path`` and returns the summary.

    ``show`` gets the record of every round, ``say`` a sentence on what else happens; ``notes`` are said first.
    """
    trackers.check(config.wandb)
    session = engines.prepare(config, nodes, superlink)
    if superlink:
        engines.reach(superlink, roots)
    if resume:
        directory = RunDirectory.open(path)
        directory.write_conf(written(config))
    else:
        directory = RunDirectory.create(path, written(config))
        directory.keep_folders(modules.folders())
    for words in notes:
        directory.note(words)
        say(words)
    with closing(session):
        summary = engines.run(config, session, directory, show, say, stop, nodes, superlink, roots)
    return finish(directory, summary, config.algorithm, config.world.id)
