"""Existing runs: read from disk, put into groups of the same experiment, and labelled by what differs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from core import registry
from core.errors import Mistake
from core.options import nested
from runs import figures
from runs.config import assembled, used
from runs.directory import RunDirectory
from runs.ledger import over_rounds
from runs.peers import joined

# Keys that do not change the experiment: runs that differ only in these are seeds of one conf.
ADDRESSES = ("gossip.roster", "gossip.certificates")
EXECUTION = ("engine", "tensorboard", "wandb", "checkpoint-every", "checkpoints", "threads")
IGNORED = ("seed", *EXECUTION, *ADDRESSES)

# The keys that labels name first.
FIRST_IN_LABELS = ("algorithm", "strategy", "world.id")

Warn = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """An existing run: its name beside the others, its conf by dotted keys, its records."""

    name: str
    conf: Mapping[str, str]
    records: list[dict[str, Any]]

    @property
    def experiment(self) -> dict[str, str]:
        """The keys and values that define its experiment."""
        return _without(self.conf, IGNORED)

    @property
    def settings(self) -> dict[str, str]:
        """All keys that a user chooses, the seed last."""
        return _without(self.conf, ("seed", *ADDRESSES)) | {"seed": self.conf["seed"]}


def _without(conf: Mapping[str, str], left_out: tuple[str, ...]) -> dict[str, str]:
    """Return a conf without some keys. A key that names a table removes all keys of the table."""
    prefixes = tuple(f"{key}." for key in left_out)
    return {key: value for key, value in conf.items() if not f"{key}.".startswith(prefixes)}


def read_runs(places: list[Path], warn: Warn) -> list[Run]:
    """Return the runs in these places.

    A run that is named must have metrics. Runs below a directory are left out where they have none; ``warn`` gets a
    sentence about each.
    """
    paths = _find(places)
    unique_names = len({path.name for path in paths}) == len(paths)
    defaults, runs = dict(dotted(nested(assembled()()))), []
    for path, is_named in paths.items():
        directory = RunDirectory(path)
        name = path.name if unique_names else str(path)
        records = directory.read_metrics() if is_named or directory.metrics.exists() else []
        if records:
            # A run of an older version lacks newer keys: it did what their defaults do.
            conf = defaults | dict(dotted(directory.read_conf()))
            unread = set(registry.tables()) - used(conf["algorithm"], conf["strategy"])
            conf = {key: value for key, value in conf.items() if key.partition(".")[0] not in unread}
            runs.append(Run(name, conf, records))
        elif is_named:
            raise Mistake(f"the run {name} has no metrics yet")
        else:
            warn(f"left out, it has no metrics yet: {name}")
    if not runs:
        raise Mistake("none of the runs has metrics yet")
    return join_peers(runs)


def _find(places: list[Path]) -> dict[Path, bool]:
    """Return the directories of runs in these places, and for each whether it was named itself."""
    paths: dict[Path, bool] = {}
    for place in places:
        conf = RunDirectory(place).conf
        if conf.exists():
            paths[place] = True
            continue
        every = {path.parent for path in place.rglob(conf.name)}
        # A run within another run is part of it, such as its peers.
        outermost = [path for path in every if every.isdisjoint(path.parents)]
        if not outermost:
            raise Mistake(f"{place} holds no run (no {conf.name} in it or below it)")
        for path in sorted(outermost, key=lambda path: (path.parent, len(path.name), path.name)):
            paths.setdefault(path, False)
    return paths


def join_peers(runs: list[Run]) -> list[Run]:
    """Return the runs with peers that ran as processes joined into one run; all other runs unchanged."""
    networks: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        is_peer = len(run.records[-1].get("peers", ())) == 1 and run.conf["agents"] != "1"
        settings = (f"{key}={value}" for key, value in run.experiment.items())
        networks.setdefault((run.conf["seed"], *settings) if is_peer else (run.name,), []).append(run)
    return [
        members[0]
        if len(members) == 1
        else Run(members[0].name, members[0].conf, joined([member.records for member in members]))
        for members in networks.values()
    ]


def dotted(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield every value of a conf as text, with its dotted key."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def grouped(runs: list[Run], warn: Warn) -> dict[str, list[Run]]:
    """Return the runs of each experiment, under a label that tells it from the others.

    Keys of ``EXECUTION`` separate groups only where a seed ran with several of their values, as in a sweep over them.
    """
    experiments: list[list[Run]] = []
    for run in runs:
        for group in experiments:
            if group[0].experiment == run.experiment:
                group.append(run)
                break
        else:
            experiments.append([run])
    confs, groups = [], list[list[Run]]()
    for group in experiments:
        keys, parts = _differing_in_a_seed(group), dict[tuple[str | None, ...], list[Run]]()
        for run in group:
            parts.setdefault(tuple(run.conf.get(key) for key in keys), []).append(run)
        for part in parts.values():
            groups.append(part)
            confs.append(part[0].experiment | {key: part[0].conf[key] for key in keys if key in part[0].conf})
    for group in groups:
        _warn_of_equal_seeds(group, warn)
    if len(groups) == 1:
        first = groups[0][0]
        label = first.name if len(groups[0]) == 1 else f"{first.conf['algorithm']}, {first.conf['world.id']}"
        return {label: groups[0]}
    return dict(zip(labels(confs), groups, strict=True))


def _differing_in_a_seed(group: list[Run]) -> list[str]:
    """Return the keys of ``EXECUTION`` in which runs of one seed differ."""
    pairs = [(a, b) for a, b in combinations(group, 2) if a.conf["seed"] == b.conf["seed"]]
    return [key for key in EXECUTION if any(a.conf.get(key) != b.conf.get(key) for a, b in pairs)]


def _warn_of_equal_seeds(group: list[Run], warn: Warn) -> None:
    seeds = [run.conf["seed"] for run in group]
    if repeated := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
        names = ", ".join(run.name for run in group if run.conf["seed"] in repeated)
        warn(f"seed {', '.join(repeated)} appears more than once; each of these runs counts as a seed: {names}")


def labels(confs: list[dict[str, str]], most: int = 4) -> list[str]:
    """Return a label for each conf: the keys that differ, or enough of them to tell any two apart if they are many."""
    every = dict.fromkeys([*FIRST_IN_LABELS, *(key for conf in confs for key in conf)])
    keys = [key for key in every if distinct(confs, [key]) > 1]
    if len(keys) > most:
        needed: list[str] = []
        for key in keys:
            if distinct(confs, [*needed, key]) > distinct(confs, needed):
                needed.append(key)
        keys = needed
    texts = [", ".join(f"{key}={conf[key]}" for key in keys if key in conf) for conf in confs]
    return [text or ", ".join(f"no {key}" for key in keys) for text in texts]


def distinct(confs: list[dict[str, str]], keys: list[str]) -> int:
    """Return how many different confs there are when only these keys count."""
    return len({tuple(conf.get(key) for key in keys) for conf in confs})


# Figures of groups ----------------------------------------------------------------------------------------------------


def over_seeds(group: list[Run]) -> dict[str, Any]:
    """Return the figures of a group by seed, or by name where a seed appears twice."""
    seeds = {run.conf["seed"]: run.records for run in group}
    return figures.over_seeds(seeds if len(seeds) == len(group) else {run.name: run.records for run in group})


def progress(label: str, group: list[Run], value: float, x: str) -> dict[str, Any]:
    """Return where a group's mean return reaches a value, and how well its filter did where the attackers are known."""
    try:
        reached = figures.reach([run.records for run in group], value, x)
    except Mistake as error:
        raise Mistake(f"{label}: {error}") from None
    shares = [over_rounds(run.records) for run in group]
    means = {}
    for name in sorted({name for share in shares for name in share}):
        values = [share[name] for share in shares if name in share]
        means[name] = round(sum(values) / len(values), 4)
    return {"reach": reached, "filter": means}
