"""A run without a server, from its configuration to its directory: all peers of a run in one process, or one peer."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attacks.plan import Plan
from client.answers import measured
from client.session import Session
from core.errors import Failure
from core.options import flatten
from gossip.mixing import Network
from runs import figures
from runs.config import RunConfig
from runs.directory import RunDirectory
from runs.keeper import Keeper
from runs.trackers import Trackers
from strategies.medium import Medium
from strategies.method import chosen
from strategies.peers import GossipConfig, Peers, topology

Record = dict[str, Any]
# The counts that every record has. A medium need not count all of them.
_COUNTED = ("bytes_up", "bytes_down", "missed", "refused", "late", "left-out")


def network(config: RunConfig, session: Session) -> Network:
    """Return the network of a run whose peers all live in this process."""
    plan = Plan(config.attack, config.agents)

    def silent(number: int) -> list[int]:
        return [peer for peer in session.numbers if plan.kind(peer, number) == "silence"]

    return Network(topology(config), silent, config.of(GossipConfig).largest)


def gossip(
    config: RunConfig,
    session: Session,
    medium: Medium,
    directory: RunDirectory,
    tell: Callable[[Record], None] = lambda record: None,
    stop: Callable[[], bool] = lambda: False,
) -> Record:
    """Do the rounds of the local peers until the run is over or ``stop`` returns True. Returns the summary.

    A directory with a checkpoint is resumed from it.
    """
    with directory.held(), closing(Learning(config, session, medium, directory)) as learning:
        learning.join()
        while not (learning.over or stop()):
            tell(learning.round(learning.number + 1))
        learning.finish()
        return figures.summary(directory.read_metrics()) | {
            "run_dir": str(directory.path),
            "interrupted": not learning.over,
        }


class Learning:
    """The rounds of the local peers and their files. It resumes from the directory's last checkpoint."""

    def __init__(self, config: RunConfig, session: Session, medium: Medium, directory: RunDirectory) -> None:
        self.config, self.session, self.medium, self.directory = config, session, medium, directory
        self.peers: Peers = chosen(config)(config, session, medium)
        saved, meta = directory.load_checkpoint()
        self.number = int(meta.get("round", 0))  # rounds done
        directory.rewind(self.number)
        if meta:
            session.load_state(_under("agents.", saved))
            self.peers.load_state(_under("peers.", saved))
        about = {"algorithm": config.algorithm, "world": config.world.id}
        self._keeper = Keeper(directory, _Kept(session, self.peers), config.checkpoints, about)
        since = int(np.mean(session.worlds.steps)) if meta else 0
        self._trackers = Trackers(directory.path, flatten(config), config.tensorboard, config.wandb, since)
        self._begun = time.perf_counter() - float(meta.get("wall_s", 0.0))
        self._gained = np.zeros(len(session.numbers), np.int64)

    @property
    def over(self) -> bool:
        return self.config.over(self.number, self.session.worlds.steps.tolist())

    def join(self) -> None:
        """Wait for the others, and catch up with them if they are at work."""
        try:
            self.number, weights = self.medium.join(self.number)
        except Failure as failure:
            if not self.number:
                raise
            raise Failure(
                f"{failure}; if the others have done all their rounds and left, this peer ends after its round "
                f"{self.number}, and its weights of that round are in {self.directory.weights}"
            ) from None
        if weights is not None:
            self.peers.join(weights)

    def round(self, number: int, evaluate: bool | None = None, save: bool | None = None) -> Record:
        """Do this round, or a later one if others are ahead. By default the conf decides when to evaluate and save."""
        config, steps = self.config, self.session.worlds.steps
        self.number = number = self.medium.next(number, self.peers.weights)
        before = steps.copy()
        if evaluate is None:
            last = config.over(number, (before + self._gained).tolist())
            evaluate = config.evaluate_episodes > 0 and (number % config.federation.evaluate_every == 0 or last)
        record = _round(config, self.session, self.peers, number, evaluate)
        self._gained = steps - before
        record["wall_s"] = round(time.perf_counter() - self._begun, 6)
        self.directory.log(record)
        self._trackers.log(record)
        self._keeper.after(record, number % config.checkpoint_every == 0 if save is None else save)
        return record

    def finish(self) -> None:
        """Add the shares that are in flight, and save."""
        self.peers.finish()
        self._keeper.save(changed=True)

    def rewind(self, number: int) -> None:
        """Go back to an earlier round, as a server does that resumes from an earlier checkpoint."""
        if number < self.number:
            self.number = number
            self.directory.rewind(number)

    def close(self) -> None:
        self._trackers.close()


def _round(config: RunConfig, session: Session, peers: Peers, number: int, evaluate: bool) -> Record:
    """Do one round. Returns its record, whose lists have an entry per local peer."""
    begun, medium = time.perf_counter(), peers.medium
    report, notes = peers.round(number, number % config.settle_every == 0)
    evaluating = time.perf_counter()
    returns: list[float | None] = [None] * len(session.numbers)
    metrics = {name: _or_none(values) for name, values in measured(report).items()}
    if evaluate:
        returns = _or_none(session.evaluate().mean(axis=1))
    elif not config.evaluate_episodes:
        returns = metrics["training-return"]
    now = time.perf_counter()
    record: Record = {
        "round": number,
        "peers": session.numbers,
        "return": returns,
        "steps": session.worlds.steps.tolist(),
    }
    record |= {"updates": report.updates.tolist()} | metrics | notes
    if len(session.numbers) == medium.network:
        record["consensus"] = _or_none(distances(peers.weights))
    zeros = dict.fromkeys(_COUNTED, [0] * len(session.numbers))
    record |= zeros | medium.counts() | {"reasons": medium.reasons()}
    seconds = {"acting_s": report.acting_s, "learning_s": report.learning_s}
    seconds |= {"working_s": sum(seconds.values()), "judging_s": now - evaluating, "round_s": now - begun}
    return record | {name: round(value, 6) for name, value in seconds.items()}


def distances(weights: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the distance of every peer from the mean of all."""
    differences = weights - weights.mean(axis=0, dtype=np.float64)
    norms: NDArray[np.float64] = np.sqrt((differences**2).sum(axis=1))
    return norms


def _or_none(values: NDArray[np.float64]) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]


class _Kept:
    """The files of the local peers, with a row for each."""

    def __init__(self, session: Session, peers: Peers) -> None:
        self.session, self.peers = session, peers

    def learned(self) -> dict[str, NDArray[Any]]:
        return self.session.fleet.learned

    def extra_weights(self) -> Mapping[str, Mapping[str, NDArray[Any]]]:
        return self.peers.extra_weights()

    def snapshot(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        agents = {f"agents.{name}": array for name, array in self.session.state().items()}
        return agents | {f"peers.{name}": array for name, array in self.peers.state().items()}, {}


def _under(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
