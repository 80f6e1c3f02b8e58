"""Runs that are there: found on the disk, put into groups, and labelled by what differs between them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from cli.screen import announce
from core.errors import Mistake

# Keys that make no other experiment: runs that differ in nothing else are seeds of one conf.
PLACES = ("gossip.roster", "gossip.certificates")
HOW = ("engine", "tensorboard", "wandb", "checkpoint-every", "checkpoints", "threads")
SAME = ("seed", *HOW, *PLACES)

# What is said first of runs that differ in much.
TELLING = ("algorithm", "strategy", "world.id")


@dataclass(frozen=True)
class Run:
    """A run that is there: its name beside the others, its conf by dotted keys, its records."""

    name: str
    conf: Mapping[str, str]
    records: list[dict[str, Any]]

    @property
    def kind(self) -> dict[str, str]:
        """The keys that make it the experiment that it is."""
        return _without(self.conf, SAME)

    @property
    def settings(self) -> dict[str, str]:
        """All keys that somebody chose, the seed last."""
        return _without(self.conf, ("seed", *PLACES)) | {"seed": self.conf["seed"]}


def _without(conf: Mapping[str, str], left_out: tuple[str, ...]) -> dict[str, str]:
    """A conf without some keys; a key that is a table is all that is in it."""
    return {key: value for key, value in conf.items() if not f"{key}.".startswith(tuple(f"{one}." for one in left_out))}


def read(places: list[Path]) -> list[Run]:
    """The runs in these places. One that was named must have metrics; below a directory, those without are left out."""
    from core import registry
    from core.options import nested
    from runs.config import assembled, used
    from runs.directory import RunDirectory

    paths: dict[Path, bool] = {}
    for place in places:
        if RunDirectory(place).conf.exists():
            paths[place] = True
            continue
        every = {conf.parent for conf in place.rglob(RunDirectory(place).conf.name)}
        # What is within a run is part of it, such as its peers.
        below = [path for path in every if every.isdisjoint(path.parents)]
        if not below:
            raise Mistake(f"{place} holds no run (no {RunDirectory(place).conf.name} in it or below it)")
        for path in sorted(below, key=lambda path: (path.parent, len(path.name), path.name)):
            paths.setdefault(path, False)
    plain = len({path.name for path in paths}) == len(paths)
    defaults, found = dict(leaves(nested(assembled()()))), []
    for path, named in paths.items():
        directory = RunDirectory(path)
        name = path.name if plain else str(path)
        records = directory.read_metrics() if named or directory.metrics.exists() else []
        if records:
            # Older runs do not know newer keys: what those do by default is what they did.
            conf = defaults | dict(leaves(directory.read_conf()))
            others = set(registry.tables()) - used(conf["algorithm"], conf["strategy"])  # keys that mean nothing here
            conf = {key: value for key, value in conf.items() if key.partition(".")[0] not in others}
            found.append(Run(name, conf, records))
        elif named:
            raise Mistake(f"the run {name} has no metrics yet")
        else:
            announce(f"left out, it has no metrics yet: {name}")
    if not found:
        raise Mistake("none of the runs has metrics yet")
    return together(found)


def together(runs: list[Run]) -> list[Run]:
    """Peers that ran as processes, with a directory each, as the one run that they are; all other runs as they are."""
    from runs.peers import joined

    networks: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        alone = len(run.records[-1].get("peers", ())) == 1 and run.conf["agents"] != "1"
        key = (run.conf["seed"], *(f"{name}={value}" for name, value in run.kind.items())) if alone else (run.name,)
        networks.setdefault(key, []).append(run)
    return [
        members[0]
        if len(members) == 1
        else Run(members[0].name, members[0].conf, joined([one.records for one in members]))
        for members in networks.values()
    ]


def leaves(table: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, str]]:
    """Every value of a conf as text, by its dotted key."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{where}{key}.")
        else:
            yield where + key, value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def grouped(runs: list[Run]) -> dict[str, list[Run]]:
    """Runs of the same conf but for the seed, under what tells their conf from the others.

    Keys of ``HOW`` tell groups apart only where a seed ran with several of their values, as in a sweep over them.
    """
    kinds_of_runs: list[list[Run]] = []
    for run in runs:
        for group in kinds_of_runs:
            if group[0].kind == run.kind:
                group.append(run)
                break
        else:
            kinds_of_runs.append([run])
    confs, groups = [], list[list[Run]]()
    for group in kinds_of_runs:
        keys, parts = _differing_in_a_seed(group), dict[tuple[str | None, ...], list[Run]]()
        for run in group:
            parts.setdefault(tuple(run.conf.get(key) for key in keys), []).append(run)
        for part in parts.values():
            groups.append(part)
            confs.append(part[0].kind | {key: part[0].conf[key] for key in keys if key in part[0].conf})
    for group in groups:
        seeds = [run.conf["seed"] for run in group]
        if twice := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
            names = ", ".join(run.name for run in group if run.conf["seed"] in twice)
            announce(f"counted as different seeds, though seed {', '.join(twice)} is there more than once: {names}")
    if len(groups) == 1:
        first = groups[0][0]
        return {
            first.name if len(groups[0]) == 1 else f"{first.conf['algorithm']}, {first.conf['world.id']}": groups[0]
        }
    return dict(zip(labels(confs), groups, strict=True))


def _differing_in_a_seed(group: list[Run]) -> list[str]:
    """The keys of ``HOW`` in which runs of one seed differ."""
    pairs = [pair for pair in combinations(group, 2) if pair[0].conf["seed"] == pair[1].conf["seed"]]
    return [key for key in HOW if any(one.conf.get(key) != other.conf.get(key) for one, other in pairs)]


def labels(confs: list[dict[str, str]], most: int = 4) -> list[str]:
    """What differs between confs; where that is much, as many of its keys as tell any two apart."""
    every = dict.fromkeys([*TELLING, *(key for conf in confs for key in conf)])
    keys = [key for key in every if kinds(confs, [key]) > 1]
    if len(keys) > most:
        telling: list[str] = []
        for key in keys:
            if kinds(confs, [*telling, key]) > kinds(confs, telling):
                telling.append(key)
        keys = telling
    have = [", ".join(f"{key}={conf[key]}" for key in keys if key in conf) for conf in confs]
    return [words or ", ".join(f"no {key}" for key in keys) for words in have]


def kinds(confs: list[dict[str, str]], keys: list[str]) -> int:
    """How many kinds of confs there are for somebody who sees only these keys."""
    return len({tuple(conf.get(key) for key in keys) for conf in confs})
