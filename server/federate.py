"""One run with a server, on any grid: rounds, checkpoints, summary."""

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
from server.unseen import Unseen, check_unseen
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
    elif config.engine == "local":
        plan = Plan(config.attack, config.agents)
        if any(kind == "delay" for kinds in plan.schedules() for kind in kinds.values()):
            raise Mistake(
                "the attack 'delay' needs a process for each peer, and here all peers share one: use the engine "
                "gossip, or the attack silence"
            )
    elif config.engine == "ray":
        raise Mistake(
            f"in {config.strategy} weights go from agent to agent, and in Flower's simulation none stays where others "
            "could reach it: take local, gossip, or grpc with nodes of ours"
        )
    elif config.engine == "grpc" and config.of(GossipConfig).roster:
        raise Mistake("nodes report their addresses to the server, so 'gossip.roster' is not used with grpc: remove it")


def check_agents(config: RunConfig, session: Session) -> None:
    """Refuse agents that the strategy cannot work with, and 'unseen' worlds that differ, before anything starts."""
    chosen(config).fits(config, SessionParties(session))
    check_unseen(config, session)


def refuse_certificates(config: RunConfig) -> None:
    """Refuse ``gossip.certificates`` for a run behind a SuperLink: its nodes have certificates of their own."""
    if chosen(config).serverless and config.of(GossipConfig).certificates:
        raise Mistake("nodes have certificates of their own (fedrl node --certificates): remove 'gossip.certificates'")


def federate(
    config: RunConfig,
    grid: Grid,
    directory: RunDirectory,
    session: Session,
    tell: Callable[[Record], None] = lambda record: None,
    stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda line: None,
) -> Record:
    """Run rounds until the run is over or a stop is requested; return the summary.

    The run goes on from the last checkpoint of its directory. ``session`` is the server's own. In the local engine it
    has all agents and is part of the checkpoint. Elsewhere it has the first agent, from which the server knows the
    layout of the weights.
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
    is_local = isinstance(grid, LocalGrid)
    strategy = make_strategy(config, session)
    saved, meta = directory.load_checkpoint()
    ledger = Ledger(config.agents, not config.evaluate_episodes, meta.get("wall_s", 0.0))

    def report(line: str) -> None:
        directory.note(line)
        say(line)

    # Agents of some strategies have an inner loop, and only they know its number of steps.
    bounds = session.fleet.bounds if chosen(config).bounded else None
    rounds = Rounds(grid, strategy, config.federation, config.seed, ledger, stop, report, bounds)
    number = int(meta.get("round", 0))
    directory.rewind(number)
    if meta:
        strategy.load_state(_within("strategy.", saved))
        if is_local:
            session.load_state(_within("agents.", saved))
        ledger.lived, ledger.reasons = list(meta["lived"]), Counter(meta["reasons"])
        rounds.health.load(meta["health"])
    about = {"algorithm": config.algorithm, "world": config.world.id}
    kept = _Kept(rounds, session if is_local else None)
    keeper = Keeper(directory, kept, config.checkpoints, about)
    trackers = Trackers(
        directory.path, flatten(config), config.tensorboard, config.wandb, int(np.mean(ledger.lived)) if meta else 0
    )
    gained, plan = [0] * config.agents, Plan(config.attack, config.agents)
    with closing(trackers), closing(Unseen(config, session)) as unseen:
        try:
            for warning in [] if number else chosen(config).warnings(config) + cut(config, session):
                report(warning)
            rounds.gather_parties()
            while not (config.over(number, ledger.lived) or stop()):
                this, lived = number + 1, list(ledger.lived)
                last = config.over(this, [now + more for now, more in zip(lived, gained, strict=True)])
                extra = {
                    "settle": strategy.passes(this, config.settle_every),
                    "save": strategy.passes(this, config.checkpoint_every) or last,
                }
                evaluate = strategy.passes(this, config.federation.evaluate_every) or last
                strategy.evaluated = evaluate and config.evaluate_episodes > 0
                record = rounds.round(this, extra, evaluate and config.evaluate_episodes > 0)
                record |= unseen.evaluate(kept.learned()) if evaluate else {}
                number = this
                attackers = plan.attackers(number)
                if attackers or config.engine != "grpc":  # a node may attack that the configuration does not name
                    record |= truth(record, attackers)
                gained = [now - then for now, then in zip(ledger.lived, lived, strict=True)]
                directory.log(record)
                trackers.log(record)
                tell(record)
                keeper.after(record, strategy.passes(number, config.checkpoint_every))
        except Interrupted:
            pass  # a resumed run repeats the round in progress
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
    kind = Roster if chosen(config).serverless else chosen(config)
    strategy: Federation = kind.build(config, SessionParties(session))
    return strategy


class _Kept:
    """The state of a federation for checkpoints; ``session`` has the agents if they live in this process."""

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


def _within(prefix: str, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return the arrays with this prefix, without it."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
