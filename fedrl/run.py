"""A run in the hands of Python: its records, its policies, its evaluation and its picture."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.session import Session, limit_threads
from core import modules
from core.errors import Mistake
from core.options import dashed, override
from core.outputs import check_file
from core.streams import Streams
from fedrl import running
from runs import checkpoints, figures, plots
from runs.config import RunConfig, configure, from_user, refuse_unused, unused
from runs.directory import RunDirectory
from runs.report import describe
from server.stop import interruptible

Record = dict[str, Any]
F64 = NDArray[np.float64]


class Policy:
    """The policy of one agent: observations in, actions out, both numpy arrays."""

    def __init__(self, session: Session, learned: Mapping[str, NDArray[Any]], agent: int, seed: int = 0) -> None:
        self.agent, self.seed, self._session = agent, seed, session
        self._streams: dict[int, Streams] = {}  # by the size of a batch
        self._session.fleet.load_learned(learned)

    def act(self, obs: Any, sample: bool = False) -> NDArray[Any]:
        """Return the action for an observation (o,), or the actions for a batch of them (b, o).

        The likeliest action; ``sample`` draws one as in training, another one in each call.
        """
        fleet, space = self._session.fleet, self._session.worlds.observation_space
        try:
            given = np.asarray(obs, np.float32)
        except (TypeError, ValueError):
            raise Mistake(f"an observation of this world is {list(space.shape)} numbers, not {obs!r}") from None
        if given.shape[-len(space.shape) :] != space.shape or given.ndim > len(space.shape) + 1:
            raise Mistake(f"an observation of this world is {list(space.shape)}, not {list(given.shape)}")
        batch = given.reshape(1, -1, *space.shape)
        width = batch.shape[1]
        if sample and width not in self._streams:
            self._streams[width] = Streams([self.seed], "policy of a user", lanes=width)
        streams = self._streams[width] if sample else None
        actions: NDArray[Any] = np.asarray(fleet.act(batch, streams))[0]
        return actions if given.ndim > len(space.shape) else actions[0]


class Run:
    """A run that is there: finished, interrupted, or still going on in another process."""

    def __init__(self, path: Path | str) -> None:
        self._directory = RunDirectory.open(Path(path))
        modules.look_in(*self._directory.folders())

    @property
    def path(self) -> Path:
        return self._directory.path

    @property
    def config(self) -> RunConfig:
        """The run's configuration."""
        return configure(self._directory.read_conf())

    @property
    def records(self) -> list[Record]:
        """One record per round (docs/federation.md says what every key means)."""
        return self._directory.read_metrics()

    @property
    def metrics(self) -> Any:
        """The records as a pandas frame, a row per round; the list of records where pandas is not installed."""
        try:
            import pandas
        except ImportError:
            return self.records
        return pandas.DataFrame(self.records).set_index("round")

    @property
    def summary(self) -> Record:
        """What the run came to: rounds, steps, returns, bytes, seconds."""
        if self._directory.summary.exists():
            found: Record = json.loads(self._directory.summary.read_text())
            return found
        return figures.summary(self.records)

    def policy(self, agent: int = 0, best: bool = False, seed: int = 0) -> Policy:
        """Return an agent's policy: that of the last round, or of the best one. ``seed`` is for sampled actions."""
        config = self._one(agent)
        world = replace(config.world, workers=0)  # it is not stepped
        return Policy(
            Session(replace(config, evaluate_episodes=0, world=world), [agent]), self._rows(agent, best), agent, seed
        )

    def evaluate(self, episodes: int = 20, best: bool = False, **changes: Any) -> F64:
        """Return the returns (agents, episodes) of the policies in their worlds.

        ``changes`` are put over the conf, such as ``world={"physics": {"length": 0.7}}``.
        """
        values = override(self._directory.read_conf(), [f"evaluate-episodes={episodes}"])
        config = configure(_merged(values, _dashed(changes)))
        limit_threads(config.threads)
        with closing(Session(config)) as session:
            session.fleet.load_learned(self._weights(best))
            if records := self.records:
                session.worlds.steps[...] = records[-1]["steps"]
            return session.evaluate()

    def plot(self, out: Path | str | None = None, metric: str = "return", x: str = "steps") -> Path:
        """Draw a metric over steps, trajectories, bytes or seconds; returns the path of the picture."""
        if x not in plots.AXES:
            raise Mistake(f"'x' is one of {', '.join(plots.AXES)}, not {x!r}")
        path = Path(out) if out is not None else self.path / f"{metric}.png"
        check_file(path, plots.PICTURES)
        plots.draw(path, {self.path.name: figures.curve([self.records], metric, x)}, "", metric, x)
        return path

    def _repr_png_(self) -> bytes | None:
        """Notebooks show a run by its curve."""
        return self._directory.curve.read_bytes() if self._directory.curve.exists() else None

    def __repr__(self) -> str:
        return f"fedrl.Run('{self.path}')"

    def _one(self, agent: int) -> RunConfig:
        config = self.config
        if not 0 <= agent < config.agents:
            raise Mistake(f"the run has agents 0 to {config.agents - 1}, not {agent}")
        return config

    def _weights(self, best: bool) -> dict[str, NDArray[Any]]:
        path = self._directory.best if best else self._directory.weights
        if not path.exists():
            raise Mistake(
                f"{self.path} has no {path.name} yet: no round was saved" + (" and evaluated" if best else "")
            )
        return dict(checkpoints.load(path)[0])

    def _rows(self, agent: int, best: bool) -> dict[str, NDArray[Any]]:
        """One row of each array: the agent's, or the one that all share."""
        weights = self._weights(best)
        return {name: rows if len(rows) == 1 else rows[agent : agent + 1] for name, rows in weights.items()}


def run(
    conf: Path | str | Mapping[str, Any] | None = None,
    *,
    out: Path | str | None = None,
    seed: int | None = None,
    plugins: Sequence[str] = (),
    nodes: int = 0,
    quiet: bool = False,
    **changes: Any,
) -> Run:
    """Run a conf (a path, a dict, or nothing but ``changes``) until its end; returns the run.

    ``changes`` are put over the conf: ``agents=4``, ``ppo={"learning_rate": 1e-3}``. ``plugins`` are modules that
    register things of your own. A line per round is shown unless ``quiet``. In a script, Ctrl-C ends the round in
    progress and leaves a run that ``fedrl.resume`` goes on with.
    """
    given = _dashed(changes) | ({"seed": seed} if seed is not None else {})
    if isinstance(conf, str | Path):
        path = Path(conf)
        modules.look_in(path.parent, Path.cwd())
        from runs.directory import read_toml

        values, stem = read_toml(path), path.stem
    else:
        modules.look_in(Path.cwd())
        values, stem = _dashed(conf or {}), "run"
    merged = _merged(values, given)
    config = from_user(running.with_plugins(merged, [plugins] if isinstance(plugins, str) else plugins))
    refuse_unused(_settings(given), [config])
    words = unused(merged, config)
    where = Path(out) if out is not None else running.place(stem)
    _execute(config, where, [words] if words else [], quiet, nodes, resume=False)
    return Run(where)


def resume(path: Path | str, *, quiet: bool = False, nodes: int = 0, **changes: Any) -> Run:
    """Go on with an interrupted run, or with a finished one that gets a later end: ``rounds=200``."""
    _execute(running.resumed(Path(path), list(_settings(_dashed(changes)))), Path(path), [], quiet, nodes, resume=True)
    return Run(path)


def load(path: Path | str) -> Run:
    """Open a run directory."""
    return Run(path)


def evaluate(run: Run | Path | str, episodes: int = 20, **changes: Any) -> F64:
    """Return the returns (agents, episodes) of a run's policies, in its worlds or (``world={...}``) in others."""
    return (run if isinstance(run, Run) else Run(run)).evaluate(episodes, **changes)


def _execute(config: RunConfig, path: Path, notes: list[str], quiet: bool, nodes: int, resume: bool) -> None:
    # Signals belong to the main thread; a notebook's kernel may run cells in another one.
    main = threading.current_thread() is threading.main_thread()
    with interruptible() if main else nullcontext(lambda: False) as stop:
        running.execute(
            config, path, resume=resume, nodes=nodes, notes=notes, stop=stop,
            show=_quiet if quiet else _line(config), say=_quiet if quiet else _say,
        )  # fmt: skip


def _line(config: RunConfig) -> Callable[[Record], None]:
    reported = config.engine != "local"
    return lambda record: _say(describe(record, config.rounds, config.steps, reported))


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def _quiet(words: object) -> None:
    """Show nothing."""


def _dashed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Keys as a conf writes them: ``learning_rate`` is learning-rate."""
    return {
        dashed(key): _dashed(value) if isinstance(value, Mapping) and key not in _FREE else value
        for key, value in values.items()
    }


def _settings(values: Mapping[str, Any], where: str = "") -> Iterator[str]:
    """Changes as the command line writes them: ``federation.wait-s=3``."""
    for key, value in values.items():
        if isinstance(value, Mapping) and key not in _FREE:
            yield from _settings(value, f"{where}{key}.")
        else:
            yield f"{where}{key}={json.dumps(value, default=str)}"


# Tables whose keys are names of the world's own.
_FREE = ("physics", "obstacles", "options", "unseen", "roster")


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A conf with changes put over it, table by table."""
    merged = dict(values)
    for key, value in changes.items():
        inner = merged.get(key)
        merged[key] = _merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return merged
