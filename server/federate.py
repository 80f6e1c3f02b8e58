"""One run with a server: rounds, checkpoints, summary. Whoever takes part, and wherever they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
from flwr.serverapp import Grid
from numpy.typing import NDArray

from attacks.plan import Plan
from client.pace import cut
from client.session import Session
from core.errors import Mistake
from core.options import flatten
from gossip.peer import countable
from runs import figures
from runs.config import RunConfig
from runs.directory import RunDirectory
from runs.keeper import Keeper
from runs.ledger import Ledger, over_rounds, truth
from runs.trackers import Trackers
from server.grids import LocalGrid
from server.parties import SessionParties
from server.rounds import Interrupted, QuorumError, Rounds
from server.unseen import Unseen
from strategies.federation import Federation
from strategies.method import chosen
from strategies.peers import GossipConfig
from strategies.roster import Roster

Record = dict[str, Any]


def check(config: RunConfig) -> None:
    """Refuse what cannot run, before anything starts. Builds nothing."""
    config.check()
    if not chosen(config).serverless:
        if config.engine == "gossip":
            raise Mistake(f"the engine gossip has no server, and {config.strategy} needs one: take local, ray or grpc")
    elif config.engine == "gossip":
        countable(config)
    elif config.engine == "ray":
        raise Mistake(
            f"in {config.strategy} weights go from agent to agent, and in Flower's simulation none stays where others "
            "could reach it: take local, gossip, or grpc with nodes of ours"
        )
    elif config.engine == "grpc" and config.of(GossipConfig).roster:
        raise Mistake("the nodes say where they are, and the server tells the others: leave 'gossip.roster' away")


def refuse_certificates(config: RunConfig) -> None:
    """Nodes behind a SuperLink have certificates of their own."""
    if chosen(config).serverless and config.of(GossipConfig).certificates:
        raise Mistake(
            "nodes have certificates of their own (fedrl node --certificates): leave 'gossip.certificates' away"
        )


def federate(
    config: RunConfig,
    grid: Grid,
    directory: RunDirectory,
    session: Session,
    tell: Callable[[Record], None] = lambda record: None,
    stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda words: None,
) -> Record:
    """Rounds until the run is over or somebody asks to stop; returns the summary.

    Goes on where the directory's last checkpoint is. ``session`` is the server's own: with all agents in the local
    engine, where it is part of the checkpoint, with the first one elsewhere, to know what weights are.
    """
    # A ServerApp whose SuperLink was killed lives on for ten seconds.
    with directory.held(20.0):
        return _federate(config, grid, directory, session, tell, stop, say)


def _federate(
    config: RunConfig,
    grid: Grid,
    directory: RunDirectory,
    session: Session,
    tell: Callable[[Record], None],
    stop: Callable[[], bool],
    say: Callable[[str], None],
) -> Record:
    here = isinstance(grid, LocalGrid)
    strategy = make_strategy(config, session)
    saved, meta = directory.load_checkpoint()
    ledger = Ledger(config.agents, not config.evaluate_episodes, meta.get("wall_s", 0.0))

    def both(words: str) -> None:
        directory.note(words)
        say(words)

    # Agents of some strategies take an inner loop of steps whose number only they know.
    bounds = session.fleet.bounds if chosen(config).bounded else None
    rounds = Rounds(grid, strategy, config.federation, config.seed, ledger, stop, both, bounds)
    number = int(meta.get("round", 0))
    directory.rewind(number)
    if meta:
        strategy.load_state(_within("strategy.", saved))
        if here:
            session.load_state(_within("agents.", saved))
        ledger.lived, ledger.reasons = list(meta["lived"]), Counter(meta["reasons"])
        rounds.health.load(meta["health"])
    about = {"algorithm": config.algorithm, "world": config.world.id}
    kept = _Kept(rounds, session if here else None)
    keeper = Keeper(directory, kept, config.checkpoints, about)
    trackers = Trackers(
        directory.path, flatten(config), config.tensorboard, config.wandb, int(np.mean(ledger.lived)) if meta else 0
    )
    gained, plan = [0] * config.agents, Plan(config.attack, config.agents)
    with closing(trackers), closing(Unseen(config, session)) as unseen:
        try:
            for words in [] if number else chosen(config).warnings(config) + cut(config, session):
                both(words)
            rounds.gather_parties()
            while not (config.over(number, ledger.lived) or stop()):
                this, lived = number + 1, list(ledger.lived)
                last = config.over(this, [now + more for now, more in zip(lived, gained, strict=True)])
                extra = {
                    "settle": strategy.passes(this, config.settle_every),
                    "save": strategy.passes(this, config.checkpoint_every) or last,
                }
                judge = strategy.passes(this, config.federation.evaluate_every) or last
                strategy.evaluated = judge and config.evaluate_episodes > 0
                record = rounds.round(this, extra, judge and config.evaluate_episodes > 0)
                record |= unseen.judge(kept.learned()) if judge else {}
                number = this
                liars = plan.attackers(number)
                if liars or config.engine != "grpc":  # a node may lie there that the configuration knows nothing of
                    record |= truth(record, liars)
                gained = [now - then for now, then in zip(ledger.lived, lived, strict=True)]
                directory.log(record)
                trackers.log(record)
                tell(record)
                keeper.after(record, strategy.passes(number, config.checkpoint_every))
        except Interrupted:
            pass  # the round in progress is played again
        except QuorumError as error:
            keeper.save()
            raise QuorumError(f"{error}; go on with --resume {directory.path}") from None
        keeper.save()
    records = directory.read_metrics()
    return figures.summary(records) | {
        **over_rounds(records),
        "run_dir": str(directory.path),
        "interrupted": not config.over(number, ledger.lived),
    }


def make_strategy(config: RunConfig, session: Session) -> Federation:
    """Return the run's strategy, starting from the session's first agent."""
    found = Roster if chosen(config).serverless else chosen(config)
    made: Federation = found.build(config, SessionParties(session))
    return made


class _Kept:
    """What a federation leaves; with the session where its agents live in this process."""

    def __init__(self, rounds: Rounds, session: Session | None) -> None:
        self.rounds, self.session = rounds, session

    def learned(self) -> dict[str, NDArray[Any]]:
        strategy = self.rounds.strategy
        if strategy.personal and self.session is not None:
            return self.session.fleet.learned
        return strategy.learned()

    def extra_weights(self) -> dict[str, dict[str, NDArray[Any]]]:
        return self.rounds.strategy.extra_weights()

    def snapshot(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        rounds = self.rounds
        arrays = {f"strategy.{name}": array for name, array in rounds.strategy.state().items()}
        if self.session is not None:
            arrays |= {f"agents.{name}": array for name, array in self.session.state().items()}
        meta = {"lived": rounds.ledger.lived, "reasons": dict(rounds.ledger.reasons), "health": rounds.health.saved()}
        return arrays, meta


def _within(where: str, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(where): array for name, array in arrays.items() if name.startswith(where)}
