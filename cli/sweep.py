"""``fedrl sweep``: one conf for every combination of some values and for every seed, a process per run.

DIR/sweep.toml is the conf as it was when the sweep began, so that editing the file changes nothing that still waits;
DIR/sweep.json holds grid, seeds and what it came to; DIR/COMBINATION/seed-S is a run, its run.log what it said.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.groups import leaves
from cli.look import show_groups
from cli.screen import Plugins, Settings, announce, say
from core.errors import Failure, Mistake
from core.outputs import check_file, check_folder

if TYPE_CHECKING:
    from runs.config import RunConfig

STOP_S = 120.0  # until interrupted runs have finished their round and saved it
END_S = 20.0  # until those that were asked twice have stopped the processes that they started

PICTURE = "sweep.png"
Grid = dict[str, list[str]]


def sweep(
    conf: Annotated[Path, typer.Argument(help="A TOML file; `fedrl conf` lists its keys.")],
    seeds: Annotated[str, typer.Option(help="Such as 0:10 (0 to 9), 3, or 0:5,8.")],
    grid: Annotated[
        list[str] | None, typer.Option(help="key=a,b: runs with each of these values; several --grid multiply.")
    ] = None,
    settings: Settings = None,
    plugin: Plugins = None,
    engine: Annotated[str | None, typer.Option(help="local, ray or grpc; the conf's otherwise.")] = None,
    jobs: Annotated[int, typer.Option(help="Runs at a time; 0: as many as the machine has cores for.", min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="The sweep's directory; out/CONF-sweep-TIME otherwise.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what it came to as one JSON object.")] = False,
) -> None:
    """Run a conf for every combination of values and every seed, in parallel; the same command again goes on."""
    from core import modules
    from core.options import override
    from fedrl.running import with_plugins
    from runs.config import refuse_unused
    from runs.directory import read_toml

    modules.look_in(conf.parent, Path.cwd())
    changes = [*(settings or []), *([f"engine={engine}"] if engine is not None else [])]
    axes = grid_of(grid or [])
    for key in [*axes, *(change.partition("=")[0].strip() for change in changes)]:
        if key == "seed":
            raise Mistake("'seed' is given by --seeds")
        if key in axes and any(change.partition("=")[0].strip() == key for change in changes):
            raise Mistake(f"'{key}' is given by --grid and once more: leave one away")
    table = with_plugins(override(read_toml(conf), changes), plugin or ())
    table.pop("seed", None)
    directory = out or Path("out") / f"{conf.stem}-sweep-{time.strftime('%Y%m%d-%H%M%S')}"
    check_folder(directory)
    known = remembered(directory, table, axes, numbers(seeds))
    combinations = combine(table, known["grid"], conf.stem)
    runs = [Run(one, seed, directory / one.folder / f"seed-{seed}") for one in combinations for seed in known["seeds"]]
    todo = [run for run in runs if not run.finished()]
    refuse_unused([*changes, *axes], [one.config for one in combinations])
    try_out({run.of.name: run.of.config for run in todo})
    with alone_in(directory) as lock:
        check_file(directory / PICTURE, what="the picture")
        remember(directory, table, known)
        failed, interrupted = work(todo, len(runs) - len(todo), jobs or room(combinations), directory, lock)
        found = known | results(directory, runs, picture=not interrupted)
        found |= {"failed": failed, "interrupted": interrupted}
        remember(directory, table, found)
    if as_json:
        print(json.dumps(found))
    elif not interrupted:
        show_groups("combination", found["combinations"])
        if found["picture"]:
            announce(f"drawn: {found['picture']}")
    for name, words in failed.items():
        announce(f"failed: {name}: {words} (its log: {directory / name / 'run.log'})")
    if interrupted:
        given = [f"--grid={one}" for one in grid or []] + [f"--set={one}" for one in changes]
        given += [f"--plugin={one}" for one in plugin or ()]
        given += [f"--jobs={jobs}"] if jobs else []
        again = shlex.join(["fedrl", "sweep", str(conf), f"--seeds={seeds}", *given, f"--out={directory}"])
        announce(f"interrupted with {found['finished']} of {found['runs']} runs finished; go on with: {again}")
        raise typer.Exit(130)
    if failed:
        raise typer.Exit(1)


# What is to be run ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Combination:
    """Values of the grid's keys: what they are called, where their runs lie, what a run of them is."""

    name: str
    folder: str
    settings: tuple[str, ...]
    config: RunConfig


@dataclass(frozen=True)
class Run:
    """A seed of a combination."""

    of: Combination
    seed: int
    path: Path

    @property
    def name(self) -> str:
        return str(Path(self.of.folder) / f"seed-{self.seed}")

    def records(self) -> list[dict[str, Any]]:
        from runs.directory import RunDirectory

        return RunDirectory(self.path).read_metrics() if self.begun() else []

    def begun(self) -> bool:
        from runs.directory import RunDirectory

        return RunDirectory(self.path).metrics.exists()

    def finished(self) -> bool:
        """Whether it has come to its end, and has saved that."""
        from runs.directory import RunDirectory

        records, saved = self.records(), RunDirectory(self.path).saved_rounds()
        if not records or records[-1]["round"] not in saved:
            return False
        return self.of.config.over(records[-1]["round"], records[-1]["steps"])


def numbers(text: str) -> list[int]:
    """Seeds from 0:10 (0 to 9), 3, or several of these with commas between."""
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?::\s*(\d+)\s*)?", part)
        first = int(match[1]) if match else 0
        behind = int(match[2]) if match and match[2] else first + 1
        if match is None or behind <= first:
            raise Mistake(f"--seeds is such as 0:10 (0 to 9), 3, or 0:5,8, not '{text}'")
        found.update(range(first, behind))
    return sorted(found)


def grid_of(options: Sequence[str]) -> Grid:
    """The values of every key, as they are written."""
    axes: Grid = {}
    for option in options:
        key, _, text = option.partition("=")
        key, values = key.strip(), split(text)
        if not key or not all(values):
            raise Mistake(f"--grid is key=value,value such as ppo.learning-rate=0.001,0.0003, not '{option}'")
        if key in axes:
            raise Mistake(f"--grid gives '{key}' twice: put all its values behind one")
        axes[key] = values
    return axes


def split(text: str) -> list[str]:
    """The parts between commas, those within brackets and quotes left alone."""
    parts, depth, quoted = [""], 0, False
    for letter in text:
        quoted ^= letter == '"'
        if not quoted:
            depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth and not quoted:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def combine(table: Mapping[str, Any], axes: Grid, stem: str) -> list[Combination]:
    """Every combination with its configuration; a mistake in any of them is found here."""
    from core.options import override
    from runs.config import from_user

    found: list[Combination] = []
    for values in itertools.product(*axes.values()):
        settings = tuple(f"{key}={value}" for key, value in zip(axes, values, strict=True))
        config, name = from_user(override(table, list(settings))), ", ".join(settings)
        if any(other.config == config for other in found):
            raise Mistake(f"--grid asks twice for the same run: {name}")
        # Not every file system takes any letter and any length; a number tells apart what became equal.
        folder = re.sub(r"[^\w.,=+-]+", "_", ",".join(settings))[:120]
        if any(other.folder == folder for other in found):
            folder = f"{folder}-{len(found)}"
        found.append(Combination(name or stem, folder, settings, config))
    return found


def try_out(configs: Mapping[str, RunConfig]) -> None:
    """Make the worlds and learners of every combination: what cannot run is found before anything starts."""
    from runs import trackers
    from server import engines

    for name, config in configs.items():
        try:
            trackers.check(config.wandb)
            engines.prepare(config).close()
        except Mistake as error:
            raise Mistake(f"{name}: {error}") from None


def room(combinations: Sequence[Combination]) -> int:
    """How many runs this machine has cores for; engines other than local take all of them for one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if any(one.config.engine != "local" for one in combinations):
        return 1
    return max(cores // max(one.config.threads for one in combinations), 1)


# The directory --------------------------------------------------------------------------------------------------------


def remembered(directory: Path, table: Mapping[str, Any], axes: Grid, seeds: list[int]) -> dict[str, Any]:
    """Grid and seeds of the sweep, with those that it had before; a directory of something else is refused."""
    from runs.directory import read_toml

    figures, begun = directory / "sweep.json", {}
    if not figures.exists():
        if directory.is_dir() and any(directory.iterdir()):
            raise Mistake(f"{directory} holds something, and no sweep (no {figures.name} in it): choose another --out")
    else:
        try:
            begun = json.loads(figures.read_text())
            seeds, before = sorted({*seeds, *begun["seeds"]}), begun["grid"]
        except (ValueError, KeyError, TypeError) as error:
            raise Failure(f"{figures} cannot be read: {error}") from None
        now = {"--grid": json.dumps(axes, sort_keys=True), **dict(leaves(table))}
        then = {"--grid": json.dumps(before, sort_keys=True), **dict(leaves(read_toml(directory / "sweep.toml")))}
        for key in [*now, *then]:
            if now.get(key) != then.get(key):
                was, is_now = (found.get(key, "not there") for found in (then, now))
                raise Mistake(f"{directory} holds another sweep ({key} was {was}, is {is_now}): choose another --out")
        axes = before  # folders are called by its order
    return {"grid": axes, "seeds": seeds}


def remember(directory: Path, table: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    import tomli_w

    for name, text in (("sweep.toml", tomli_w.dumps(dict(table))), ("sweep.json", json.dumps(found, indent=1) + "\n")):
        beside = directory / f".{name}.new"
        beside.write_text(text)
        beside.replace(directory / name)


@contextmanager
def alone_in(directory: Path) -> Iterator[int]:
    """A lock on the directory. Runs inherit it: should they outlive a sweep that was killed, none other joins them."""
    directory.mkdir(parents=True, exist_ok=True)
    lock = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Mistake(f"another sweep, or a run that it left, is at work in {directory}") from None
        yield lock
    finally:
        os.close(lock)


def results(directory: Path, runs: Sequence[Run], picture: bool) -> dict[str, Any]:
    """What the runs that are finished came to, by combination, and a curve of each."""
    from runs import figures, plots

    finished = [run for run in runs if run.finished()]
    combinations: dict[str, dict[str, Any]] = {}
    curves = {}
    for name in dict.fromkeys(run.of.name for run in runs):
        records = {str(run.seed): run.records() for run in finished if run.of.name == name}
        combinations[name] = figures.over_seeds(records)
        if judged := [one for one in records.values() if figures.final_return(one) is not None]:
            curves[name] = figures.curve(judged)
    place = directory / PICTURE
    if picture and curves:
        plots.draw(place, curves, directory.name)
    return {
        "runs": len(runs),
        "finished": len(finished),
        "combinations": combinations,
        "picture": str(place) if picture and curves else None,
        "sweep_dir": str(directory),
    }


# Processes ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Working:
    """A run with its process; what its log held before."""

    run: Run
    process: Popen[bytes]
    log: Path
    before: int

    def last_words(self) -> str:
        if self.process.returncode < 0:
            return f"it was ended by {signal.Signals(-self.process.returncode).name}"
        said = self.log.read_bytes()[self.before :].decode(errors="replace").split("\n")
        words = [line.strip() for line in said if line.strip()] or ["it said nothing"]
        return words[-1].removeprefix("fedrl: ")


def work(todo: Sequence[Run], done: int, jobs: int, directory: Path, lock: int) -> tuple[dict[str, str], bool]:
    """Run what is to be done, some at a time; returns who failed and why, and whether somebody asked to stop."""
    from flower.launch import wait
    from server.stop import interruptible

    waiting, at_work, failed = list(todo), list[Working](), dict[str, str]()
    total, told = done + len(todo), ""
    with interruptible() as stop, nobody_stays(at_work):
        while waiting or at_work:
            if stop():
                end_line()
                announce(f"stopping {len(at_work)} runs after their round; once more, and they stop at once")
                for one in at_work:
                    one.process.send_signal(signal.SIGINT)
                wait(lambda: all(one.process.poll() is not None for one in at_work), STOP_S)
                return failed, True
            for one in [one for one in at_work if one.process.poll() is not None]:
                at_work.remove(one)
                kill_all(one.process)  # whom a run that was killed left behind
                if one.process.returncode:
                    failed[one.run.name] = one.last_words()
                else:
                    done += 1
            while waiting and len(at_work) < jobs:
                at_work.append(start(waiting.pop(0), directory, lock))
            told = show([one.run.name for one in at_work], list(failed), done, total, told)
            time.sleep(0.05)
    if told:
        end_line()
    return failed, False


def start(run: Run, directory: Path, lock: int) -> Working:
    """A process of its own session, so that Ctrl-C in the terminal reaches only us, and once."""
    from runs.directory import SAID

    words = [sys.executable, "-m", "cli.main", "run"]
    if run.begun():
        words += ["--resume", str(run.path), "--json"]
    else:
        words += [str(directory / "sweep.toml"), "--seed", str(run.seed), "--out", str(run.path), "--json"]
        words += [word for setting in run.of.settings for word in ("--set", setting)]
    # One thread: processes whose BLAS threads spin beside each other are slower than one.
    environ = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    run.path.mkdir(parents=True, exist_ok=True)
    log = run.path / SAID
    with log.open("ab") as said:
        before = said.tell()
        try:
            process = Popen(
                words, env=environ, start_new_session=True, pass_fds=(lock,), stdin=DEVNULL, stdout=DEVNULL, stderr=said
            )
        except OSError as error:
            raise Failure(f"the run {run.name} cannot be started: {error.strerror}") from None
        return Working(run, process, log, before)


@contextmanager
def nobody_stays(at_work: list[Working]) -> Iterator[None]:
    """However the block ends: who is still at work is asked (again: at once), waited for, and killed."""
    from flower.launch import wait

    try:
        yield
    finally:
        try:
            for one in at_work:
                one.process.send_signal(signal.SIGINT)
            wait(lambda: all(one.process.poll() is not None for one in at_work), END_S)
        finally:
            for one in at_work:
                kill_all(one.process)
                one.process.wait()


def kill_all(process: Popen[bytes]) -> None:
    """A run and whoever is in its session."""
    with suppress(ProcessLookupError, PermissionError):  # nobody is left
        os.killpg(process.pid, signal.SIGKILL)


def show(at_work: Sequence[str], failed: Sequence[str], done: int, total: int, told: str) -> str:
    """One live line on a terminal, a line per change elsewhere; returns it."""
    line = f"done {done}/{total}"
    for word, names in (("running", at_work), ("failed", failed)):
        if names:
            line += f"  {word} {len(names)}: {', '.join(names)}"
    if line != told and say.is_terminal:
        # Spaces wipe what a longer line left.
        say.print(f"{line:<{say.width - 1}}", end="\r", overflow="ellipsis", no_wrap=True, markup=False)
    elif line != told:
        announce(line)
    return line


def end_line() -> None:
    """What was live stays, and the next words stand under it."""
    if say.is_terminal:
        say.print()
