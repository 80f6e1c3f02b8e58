"""A run from its configuration to its directory: strategy, rounds, checkpoints, summary. The same in every engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.serverapp import Grid
from numpy.typing import NDArray

from agents.policy_gradient import PolicyGradientFleet
from client.answers import exchangeable, layout
from client.attacks import Plan
from client.gossip.peer import countable
from client.gossip.peers import STRATEGIES
from client.gossip.run import check as check_peers
from client.pace import cut
from client.session import RunConfig, Session
from core.config import flatten
from core.errors import Mistake
from core.streams import Streams, agent_seeds
from envs import make_worlds
from runs import figures
from runs.directory import RunDirectory
from runs.keeper import Keeper
from runs.trackers import Trackers
from server.grids import LocalGrid
from server.ledger import Ledger, over_rounds, truth
from server.rounds import Interrupted, QuorumError, Rounds
from server.unseen import Unseen
from strategies.alone import Alone
from strategies.fedavg import FedAvg
from strategies.fedavg_td3 import FedAvgTD3
from strategies.federation import Federation
from strategies.fedpg_br import FedPG
from strategies.kl_ppo import KLPPO, OBSERVATIONS, POLICY
from strategies.matrix import STAR
from strategies.robust import make_rule, weighted_mean
from strategies.roster import Roster

Record = dict[str, Any]


def check(config: RunConfig, session: Session) -> None:
    """Refuse what cannot run, before anything starts."""
    if not config.rounds and not config.steps:
        raise Mistake("the run would never end: give 'rounds' or 'steps'")
    if config.strategy in STRATEGIES:
        if config.engine == "gossip":
            countable(config)
        elif config.engine == "ray":
            raise Mistake(
                f"in {config.strategy} weights go from agent to agent, and in Flower's simulation none stays where "
                "others could reach it: take local, gossip, or grpc with nodes of ours"
            )
        elif config.engine == "grpc":
            _introduced(config)
        _pulled_by_nobody(config)
        if config.unseen:
            raise Mistake(f"'unseen' is for runs with a server, and {config.strategy} has none: judge with fedrl eval")
        check_peers(config, session)
        return
    if config.engine == "gossip":
        raise Mistake(f"the engine gossip has no server, and {config.strategy} needs one: take local, ray or grpc")
    Unseen(config, session).close()
    make_strategy(config, session)


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

    # Peers of these two take an inner loop of steps that only they know the number of.
    bounds = None if config.strategy in ("fedpg-dec", "dec-byz-pg") else session.fleet.bounds
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
    gained = [0] * config.agents
    with closing(trackers), closing(Unseen(config, session)) as unseen:
        try:
            for words in [] if number else odd(config) + cut(config, session):
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
                strategy.judged = judge and config.evaluate_episodes > 0
                record = rounds.round(this, extra, judge and config.evaluate_episodes > 0)
                record |= unseen.judge(kept.learned()) if judge else {}
                number = this
                liars = session.plan.attackers(number)
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
    """The strategy that the configuration names, starting from the session's first agent."""
    given: dict[str, Any] = {"layout": layout(session), "agents": config.agents, "work": session.round_work}
    _pulled_by_nobody(config)
    if config.strategy in ("central", "fedavg-td3") and config.algorithm != "td3":
        raise Mistake(f"{config.strategy} is for td3, not for {config.algorithm}: set algorithm, or another strategy")
    _shared_by_nobody(config)
    if config.strategy == "alone" or (config.strategy == "central" and config.schedule is None):
        away = {} if config.engine == "local" else exchangeable(session.fleet)
        return Alone({name: rows.shape[1] for name, rows in away.items()}, **given)
    if config.strategy in STRATEGIES:
        return Roster(wait_s=config.federation.wait_s, **given)
    if config.strategy == "fedpg-br":
        learner = server_learner(config)
        return FedPG(learner, config.fedpg, config.federation, layout(session), config.agents, config.seed)
    if config.strategy == "kl-ppo":
        if config.algorithm != "ppo":
            raise Mistake(f"kl-ppo pulls policies of ppo together: algorithm is ppo then, not {config.algorithm}")
        # Reward scales stay at home with the value functions; how observations look is part of a policy.
        pulls = config.ppo.penalty and config.ppo.penalty_coef > 0
        own, rules = exchangeable(session.fleet), config.federation
        if rules.judges and config.kl.matrix != STAR:
            raise Mistake(
                "in kl-ppo a rule makes the average of the star: 'federation.rule', 'federation.byzantine' and "
                f"'federation.mixing' mean nothing without kl.matrix = \"{STAR}\""
            )
        if rules.parts not in ("", POLICY):
            raise Mistake(f"kl-ppo exchanges policies and nothing else: 'federation.parts' cannot be '{rules.parts}'")
        rule = make_rule(rules, config.agents)  # of all policies that are known, also of agents that were not asked
        moments = own[OBSERVATIONS].shape[1] if pulls and OBSERVATIONS in own else 0
        wait_s, width = config.federation.wait_s, own[POLICY].shape[1]
        return KLPPO(config.kl, rule, width, moments=moments, wait_s=wait_s, **given)
    start = exchanged(config.federation.parts, session)
    rule = make_rule(config.federation, config.federation.asked(config.agents))
    if config.schedule is not None:
        central = config.strategy == "central"
        gradients = central or config.sync.exchange == "gradients"
        rule = weighted_mean if central else rule
        return FedAvgTD3(config.schedule, gradients, start, rule=rule, wait_s=config.federation.wait_s, **given)
    return FedAvg(start, rule=rule, wait_s=config.federation.wait_s, **given)


def odd(config: RunConfig) -> list[str]:
    """What is allowed in a schedule and has a price, in words."""
    if config.strategy != "fedavg-td3":
        return []
    sync, found = config.sync, []
    N, M, ML = sync.critic_every, config.td3.policy_delay, sync.actor_every * config.td3.policy_delay
    if ML % N:
        found.append(
            f"the actor is exchanged every {ML} steps, no multiple of the {N} of the critics: targets then move "
            "to critics that are an average of different ages"
        )
    if config.td3.learning_starts % M:
        found.append(
            f"'td3.learning-starts' is no multiple of td3.policy-delay, {M}: the actor is exchanged between its updates"
        )
    if sync.exchange == "gradients" and max(N, sync.actor_every) * config.td3.updates_per_step > 1:
        found.append(
            "only the steps at exchanges are shared, between them agents take their own: their weights drift apart"
        )
    return found


def _shared_by_nobody(config: RunConfig) -> None:
    """Refuse what is about shares of agents where there are none, or where a missing one is never made up for."""
    federation, gradients = config.federation, config.strategy == "fedavg-td3" and config.sync.exchange == "gradients"
    if config.strategy == "central" and federation.fraction < 1:
        raise Mistake("central is one learner with the transitions of all agents: leave 'federation.fraction' at 1")
    if gradients and federation.fraction < 1:
        raise Mistake(
            "an agent that misses an exchange of gradients is apart for good: leave 'federation.fraction' at 1, or "
            "exchange parameters"
        )
    if config.strategy in ("alone", "central") and federation.rule not in ("auto", "mean", "weighted-mean"):
        raise Mistake(f"{config.strategy} has no shares that a rule could judge: leave 'federation.rule' away")
    if config.strategy == "central" and Plan(config.attack, config.agents).schedules():
        raise Mistake("central is one learner, and nobody in it could lie: leave 'attack' away")
    if config.unseen and config.engine != "local" and (gradients or config.strategy == "central"):
        raise Mistake(
            "where gradients are exchanged, weights come home from the nodes at the end only: judge in unseen worlds "
            "with fedrl eval then, or take the engine local"
        )


def _pulled_by_nobody(config: RunConfig) -> None:
    if config.algorithm == "td3" and config.td3.pull != "none" and config.strategy != "fedavg-td3":
        raise Mistake("'td3.pull' pulls towards the last weights that all shared, and only fedavg-td3 keeps them")
    if config.strategy != "kl-ppo" and config.algorithm == "ppo" and config.ppo.penalty:
        raise Mistake("'ppo.penalty' pulls towards linked agents, and only the strategy kl-ppo links any")


def _introduced(config: RunConfig) -> None:
    """Nodes are told by the server what peers read in their conf."""
    if config.gossip.roster:
        raise Mistake("the nodes say where they are, and the server tells the others: leave 'gossip.roster' away")


def server_learner(config: RunConfig) -> PolicyGradientFleet:
    """An agent for the server: in the first agent's world, by a seed that no agent has."""
    if config.algorithm != "policy-gradient":
        raise Mistake(f"fedpg-br gathers policy gradients: algorithm is policy-gradient then, not {config.algorithm}")
    seeds = agent_seeds(config.seed, [config.agents])
    world = replace(config.world, copies=config.fedpg.own_batch, workers=0)
    learner = PolicyGradientFleet(config.policy_gradient, make_worlds(world, seeds, [0], purpose="server"), seeds)
    first = agent_seeds(config.seed, [0])
    learner.policy[...] = learner.shape.initial(Streams(first, "policy"), gains=None)
    return learner


def exchanged(parts: str, session: Session) -> dict[str, NDArray[Any]]:
    """What travels, as it is at the start: the first agent's weights of the chosen parts, and empty moments."""
    known = session.fleet.parts
    names = [name.strip() for name in parts.split(",") if name.strip()] or list(known)
    for name in names:
        if name not in known:
            raise Mistake(f"'federation.parts' names '{name}'; {session.config.algorithm} has {', '.join(known)}")
    moments = {name: row for name, row in exchangeable(session.fleet).items() if name not in known}
    return {name: row[0].copy() for name, row in ({name: known[name] for name in names} | moments).items()}


class _Kept:
    """What a federation leaves; with the session where its agents live in this process."""

    def __init__(self, rounds: Rounds, session: Session | None) -> None:
        self.rounds, self.session = rounds, session

    def learned(self) -> dict[str, NDArray[Any]]:
        strategy = self.rounds.strategy
        if strategy.personal and self.session is not None:
            return self.session.fleet.learned
        return strategy.learned()

    def keepsakes(self) -> dict[str, dict[str, NDArray[Any]]]:
        return self.rounds.strategy.keepsakes()

    def snapshot(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        rounds = self.rounds
        arrays = {f"strategy.{name}": array for name, array in rounds.strategy.state().items()}
        if self.session is not None:
            arrays |= {f"agents.{name}": array for name, array in self.session.state().items()}
        meta = {"lived": rounds.ledger.lived, "reasons": dict(rounds.ledger.reasons), "health": rounds.health.saved()}
        return arrays, meta


def _within(where: str, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(where): array for name, array in arrays.items() if name.startswith(where)}
