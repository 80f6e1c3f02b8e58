"""One party: its fleet, its worlds, and the worlds that judge it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from agents import FLEETS
from agents.fleet import F32, Fleet, Report, merge
from agents.policy_gradient import PolicyGradientConfig
from agents.ppo import PPOConfig
from agents.td3 import TD3Config, TD3Fleet
from client.attacks import FALSE_WORLDS, AttackConfig, Plan, drawn_in
from client.false_worlds import FalseWorlds
from client.gossip import topology
from client.gossip.config import GossipConfig
from core.config import build, option, table
from core.errors import Failure, Mistake
from core.rows import Array, Rows
from core.streams import agent_seeds
from envs import WorldConfig, make_worlds
from runs.figures import reached
from strategies import matrix
from strategies.fedavg_td3 import SyncConfig
from strategies.federation import FederationConfig
from strategies.fedpg_br import FedPGConfig
from strategies.kl_ppo import KLConfig
from strategies.schedule import Schedule

# What some agents do: as a fleet, and as rows of the session.
Act = Callable[[Fleet, NDArray[np.int64]], tuple[F32, Report]]


@dataclass(frozen=True)
class PartyConfig:
    """What every run has: who learns what, in which world, how it is judged."""

    algorithm: str = option("ppo", "How the agents learn.", choices=tuple(FLEETS))
    strategy: str = option(
        "alone",
        "How agents learn from each other; alone: not at all; central: as one learner that has all their transitions; "
        "gossip, fedpg-dec and dec-byz-pg: without a server.",
        choices=(
            "alone", "central", "fedavg", "fedavg-td3", "fedpg-br", "kl-ppo", "gossip", "fedpg-dec", "dec-byz-pg",
        ),
    )  # fmt: skip
    agents: int = option(1, "K: how many agents learn side by side.", low=1)
    seed: int = option(0, "The root of every random number of the run.", low=0)
    work: int | None = option(
        None,
        "Training per round, in the algorithm's unit: ppo iterations, td3 steps, policy-gradient batches. auto: 10, "
        "for td3 1000 steps of every copy, or more: as long as the longest episode of a world that cannot be saved. "
        "0: none, to see what a round costs.",
        low=0,
    )
    evaluate_episodes: int = option(10, "Episodes per agent that judge it after a round; 0: training judges.", low=0)
    evaluate: str = option("greedy", "How agents act when judged.", choices=("greedy", "sampled"))
    threads: int = option(
        1,
        "BLAS and torch threads of this process. Parties that share a machine each need one: more spin and wait.",
        low=1,
    )
    world: WorldConfig = table(WorldConfig)
    policy_gradient: PolicyGradientConfig = table(PolicyGradientConfig)
    ppo: PPOConfig = table(PPOConfig)
    td3: TD3Config = table(TD3Config)
    attack: AttackConfig = table(AttackConfig)


@dataclass(frozen=True)
class RunConfig(PartyConfig):
    """A run: who gathers what, for how long, where it runs, and what it leaves behind."""

    engine: str = option(
        "local",
        "Where agents run: local, all in this process; ray, Flower's simulation; grpc, nodes behind a SuperLink; "
        "gossip, peers without a server, a process each.",
        choices=("local", "ray", "grpc", "gossip"),
    )
    unseen: dict[str, Any] = option(
        {},
        "Worlds that no agent trains in, by name: tables of what differs from 'world'. Judgements are also made there.",
    )
    rounds: int = option(0, "Rounds after which the run ends; 0: only 'steps' counts.", low=0)
    steps: int = option(
        100_000,
        "Environment steps of an agent after which the run ends, as soon as half of the agents have taken them (or as "
        "many as a quorum, if that is fewer); 0: only 'rounds' counts.",
        low=0,
    )
    checkpoint_every: int = option(10, "Rounds between checkpoints; the last round always leaves one.", low=1)
    checkpoints: int = option(3, "How many checkpoints are kept, besides the best one.", low=1)
    settle_every: int = option(
        1,
        "Rounds after which episodes end in worlds whose state cannot be saved (all but CartPole and Pendulum). "
        "A run resumed after such a round equals one that was not stopped.",
        low=1,
    )
    federation: FederationConfig = table(FederationConfig)
    fedpg: FedPGConfig = table(FedPGConfig)
    kl: KLConfig = table(KLConfig)
    gossip: GossipConfig = table(GossipConfig)
    sync: SyncConfig = table(SyncConfig)
    tensorboard: bool = option(True, "Write TensorBoard events into the run's directory.")
    wandb: bool = option(False, "Log to Weights & Biases as well (needs the extra wandb).")

    @property
    def schedule(self) -> Schedule | None:
        """When what is exchanged, where that and no count of rounds is what a run is made of.

        Central is every update of everything. Where all agents are here, one learner of all of them needs no exchange.
        """
        central, copies, delay = self.strategy == "central", self.world.copies, self.td3.policy_delay
        if self.strategy != "fedavg-td3" and not (central and self.engine != "local"):
            return None
        if self.federation.parts:
            raise Mistake(f"{self.strategy} exchanges the actor and the critics: leave 'federation.parts' away")
        if central and self.td3.updates_per_step * copies != 1:
            raise Mistake(
                "central exchanges every update, so a step of all copies is one: 'td3.updates-per-step' times "
                f"'world.copies' must be 1, not {self.td3.updates_per_step * copies:g}"
            )
        N, L = (copies, copies) if central else (self.sync.critic_every, self.sync.actor_every)
        for key, every in (("sync.critic-every", N), ("sync.actor-every times td3.policy-delay", L * delay)):
            if every % copies:
                raise Mistake(f"{key} is {every} steps, and {copies} copies step at once: make it a multiple of them")
        return Schedule(N, L * delay, self.steps)

    def over(self, number: int, lived: Sequence[int]) -> bool:
        """Return whether a run of so many rounds and steps has come to its end.

        Steps count when half of the agents have them. So fewer liars than that cannot end a run early, and they, or
        agents that are gone, cannot keep it from ending.
        """
        if (schedule := self.schedule) is not None:
            return number >= min(rounds for rounds in (self.rounds, schedule.rounds) if rounds)
        return bool(self.rounds and number >= self.rounds) or bool(
            self.steps and reached(lived, min(0.5, self.federation.quorum)) >= self.steps
        )


def from_person(values: Mapping[str, Any]) -> RunConfig:
    """A run as a person wrote it down: files that it names are read here and nowhere else, so that nobody who is sent a
    run opens a file for it."""
    found = dict(values)
    for name, key, inlined in (("kl", "matrix", matrix.inlined), ("gossip", "topology", topology.inlined)):
        inner = found.get(name)
        if isinstance(inner, Mapping) and isinstance(inner.get(key), str):
            found[name] = {**inner, key: inlined(inner[key])}
    return build(RunConfig, found)


class Session(Rows):
    """A fleet with its worlds. Everything that a resume needs is its ``state()``."""

    ROWS = ("fleet",)

    def __init__(self, config: PartyConfig, numbers: Sequence[int] | None = None, render: bool = False) -> None:
        self.config, self.plan = config, Plan(config.attack, config.agents)
        self.numbers = list(range(config.agents)) if numbers is None else list(numbers)
        if config.algorithm == "td3" and config.td3.precision != "float32":
            import torch  # only products in bf16 need it, and it takes seconds

            torch.set_num_threads(config.threads)
        threadpool_limits(config.threads)
        seeds = agent_seeds(config.seed, self.numbers)
        self.worlds = make_worlds(config.world, seeds, self.numbers, render)
        self.fleet: Fleet = make_fleet(config, self.worlds, seeds)
        self.round_work = self.fleet.usual_work if config.work is None else config.work
        if isinstance(self.fleet, TD3Fleet) and config.strategy in ("central", "fedavg-td3"):
            one = config.strategy == "central" and len(self.numbers) == config.agents
            self.fleet.begin_alike(agent_seeds(config.seed, [0])[0], one)
        self.judges = None
        if config.evaluate_episodes:
            judged = replace(config.world, copies=config.evaluate_episodes, workers=0)
            self.judges = make_worlds(judged, seeds, self.numbers, purpose="judge")
            self.judges.frozen = True

    def train(
        self, work: int, rows: Sequence[int] | None = None, settle: bool = False, number: int = 0, pause: str = ""
    ) -> Report:
        """Train all agents, or those of some rows; ``settle`` ends their episodes where a state could not hold them.

        In round ``number`` some may act in worlds that lie to them. The last update may ``pause`` at a part's exchange.
        """

        def act(fleet: Fleet, rows: NDArray[np.int64]) -> tuple[F32, Report]:
            return nothing(fleet), fleet.train_to(pause, work) if pause else fleet.train(work)

        return self.work(act, rows, settle, number)[1]

    def measure(
        self, part: str, work: int, rows: Sequence[int] | None = None, settle: bool = False, number: int = 0
    ) -> tuple[F32, Report]:
        """A gradient of a part for all agents, or those of some rows, on so much fresh data."""
        return self.work(lambda fleet, rows: fleet.measure(part, work), rows, settle, number)

    def work(
        self, act: Act, rows: Sequence[int] | None = None, settle: bool = False, number: int = 0
    ) -> tuple[F32, Report]:
        """Let all agents act, or those of some rows, each in the worlds that it sees in round ``number``."""
        rows = range(len(self.numbers)) if rows is None else rows
        whole = len(rows) == len(self.numbers)
        fleet: Fleet = self.fleet if whole else self.fleet.take(rows)
        answer = self._in_their_worlds(fleet, np.asarray(rows, np.int64), number, act)
        if settle:
            fleet.settle()
        if not whole:
            self.fleet.put(rows, fleet)
        return answer

    def _in_their_worlds(self, fleet: Fleet, rows: NDArray[np.int64], number: int, act: Act) -> tuple[F32, Report]:
        """All agents act, those whose attack is a false world in groups of their own: honest ones notice nothing."""
        kinds = [self.plan.kind(self.numbers[row], number) for row in rows]
        false = [kind if kind in FALSE_WORLDS else "" for kind in kinds]
        if not any(false):
            return act(fleet, rows)
        found: dict[int, F32] = {}
        whole = Report(np.zeros(fleet.agents, np.int64), np.zeros(fleet.agents, np.int64))
        for kind in sorted(set(false)):
            group = np.flatnonzero([other == kind for other in false])
            part: Fleet = fleet.take(group)
            true = part.worlds
            if kind:
                part.worlds = FalseWorlds(true, kind, drawn_in(number, part.seeds, "attack", lanes=true.copies))
            G, report = act(part, rows[group])
            part.worlds = true
            fleet.put(group, part)
            merge(whole, group, report, fleet.agents)
            found |= zip(group.tolist(), G, strict=True)
        return np.stack([found[row] for row in range(fleet.agents)]), whole

    def evaluate(self, rows: Sequence[int] | None = None) -> NDArray[np.float64]:
        """Returns (agents, episodes) in the world as each agent knows it now.

        Judging leaves nothing behind: time stands still in its worlds, and its episodes depend on how far an agent is.
        """
        if self.judges is None:
            raise Mistake("'evaluate-episodes' is 0: there are no worlds to judge in")
        self.judges.steps[...] = self.worlds.steps
        self.judges.begin_anew(self.fleet.progress)
        fleet, judges = self.fleet, self.judges
        if rows is not None and len(rows) < len(self.numbers):
            fleet, judges = fleet.take(rows), judges.take(rows)
        return fleet.evaluate(judges, explore=self.config.evaluate == "sampled")

    def load_state(self, state: Mapping[str, Array], where: str = "") -> None:
        unknown = sorted(set(state) - {where + name for name in self.state()})
        if unknown:
            raise Failure(f"the checkpoint has '{unknown[0]}', which this run does not: another configuration wrote it")
        super().load_state(state, where)

    def close(self) -> None:
        self.worlds.close()
        if self.judges is not None:
            self.judges.close()


def make_fleet(config: PartyConfig, worlds: Any, seeds: Sequence[int]) -> Fleet:
    """The fleet that the configuration names, over these worlds."""
    fleet = FLEETS[config.algorithm](getattr(config, config.algorithm.replace("-", "_")), worlds, seeds)
    assert isinstance(fleet, Fleet)
    return fleet


def nothing(fleet: Fleet) -> F32:
    """The gradient of agents that train: none."""
    return np.empty((fleet.agents, 0), np.float32)
