"""What a run is: its configuration, assembled from what is registered.

The common keys stand here. Every registered thing adds the tables of its options, so the keys of a plugin are read,
checked, listed and refused like ours.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import agents.catalogue  # noqa: F401 (registers the learners)
import strategies.catalogue  # noqa: F401 (registers the strategies, rules and graphs)
from attacks.attack import AttackConfig
from attacks.plan import Plan
from core import registry
from core.errors import Mistake
from core.options import build, dashed, flatten, nested, option, table, unflatten
from envs import WorldConfig
from runs import digest
from strategies.federation import FederationConfig
from strategies.graphs import matrix, topology
from strategies.method import chosen

T = TypeVar("T")
Flat = Mapping[str, bool | int | float | str]
# Keys of Flower's flat configuration that are no keys of ours: where the run's directory is, the name that the run
# keeps for life, and the options of plugins (JSON), as Flower refuses keys that do not stand in pyproject.toml.
DIRECTORY, NAME, PLUGIN_OPTIONS, PLUGIN_CODE = "directory", "run", "plugin-options", "plugin-code"
# The environment variable that names the plugins which a process that Flower starts may import, comma-separated.
PLUGINS = "FEDRL_PLUGINS"
ABOUT_THE_RUN: dict[str, bool | int | float | str] = {DIRECTORY: "", NAME: "", PLUGIN_OPTIONS: "", PLUGIN_CODE: ""}


@dataclass(frozen=True)
class RunConfig:
    """A run: who learns what, together how, in which world, for how long, and where it runs.

    ``assembled()`` is this class with a field for every registered table; ``configure`` makes one from values.
    """

    algorithm: str = option("ppo", "How the agents learn.", registered="agent")
    strategy: str = option(
        "alone",
        "How agents learn from each other; alone: not at all; central: as one learner that has all their transitions; "
        "gossip, fedpg-dec and dec-byz-pg: without a server.",
        registered="strategy",
    )
    plugins: tuple[str, ...] = option(
        (), "Modules that register agents, strategies, rules, attacks, topologies or worlds (docs/extending.md)."
    )
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
    tensorboard: bool = option(True, "Write TensorBoard events into the run's directory.")
    wandb: bool = option(False, "Log to Weights & Biases as well (needs the extra wandb).")
    world: WorldConfig = table(WorldConfig)
    attack: AttackConfig = table(AttackConfig)
    federation: FederationConfig = table(FederationConfig)

    def of(self, kind: type[T]) -> T:
        """Return the options of this type."""
        for field in dataclasses.fields(self):
            if type(value := getattr(self, field.name)) is kind:
                return value
        raise KeyError(f"no table of this run holds {kind.__name__}")

    def options(self, kind: str, name: str) -> Any:
        """Return the options of a registered thing, or None where it has none."""
        for options in registry.get(kind, name).tables.values():
            return self.of(options)
        return None

    def replace_options(self, options: Any) -> RunConfig:
        """Return this run with other options in the table of their type."""
        for field in dataclasses.fields(self):
            if type(getattr(self, field.name)) is type(options):
                return dataclasses.replace(self, **{field.name: options})
        raise KeyError(f"no table of this run holds {type(options).__name__}")

    @property
    def learner(self) -> Any:
        """The options of the run's algorithm."""
        return self.options("agent", self.algorithm)

    def over(self, number: int, lived: Sequence[int]) -> bool:
        """Return whether the run has ended, after so many rounds and so many steps of each agent."""
        return bool(chosen(self).over(self, number, lived))

    def things(self) -> Iterable[registry.Thing]:
        """Yield everything registered that this run uses."""
        yield registry.get("agent", self.algorithm, "algorithm")
        yield registry.get("strategy", self.strategy, "strategy")
        if self.federation.rule != "auto":
            yield registry.get("rule", self.federation.rule, "federation.rule")
        for kind in {kind for kinds in Plan(self.attack, self.agents).schedules() for kind in kinds.values()}:
            if kind != "none":
                yield registry.get("attack", kind, "attack.kind")
        for name, key in _GRAPHS:
            text = getattr(getattr(self, name, None), key, "")
            if name in chosen(self).tables and text in topology.names():
                yield registry.get("topology", text)
        if self.world.id in registry.names("world"):
            yield registry.get("world", self.world.id, "world.id")

    def used_tables(self) -> set[str]:
        """Return the names of the tables that this run reads."""
        return {"world", "attack"} | {name for thing in self.things() for name in thing.tables}

    def used_plugins(self) -> tuple[str, ...]:
        """Return the plugins that this run needs wherever it runs: those it names, and those of the things it uses."""
        sources = {thing.source for thing in self.things()} - {registry.BUILT_IN, registry.SCRIPT}
        return tuple(dict.fromkeys([*self.plugins, *sorted(sources)]))

    def check(self) -> None:
        """Refuse what cannot run. Builds nothing."""
        if not self.rounds and not self.steps:
            raise Mistake("the run would never end: give 'rounds' or 'steps'")
        Plan(self.attack, self.agents)
        registry.get("agent", self.algorithm, "algorithm").value.check(self)
        chosen(self).check(self)


registry.reserve({dashed(field.name): None for field in dataclasses.fields(RunConfig)})
registry.reserve({DIRECTORY: None, NAME: None, PLUGIN_OPTIONS: None, PLUGIN_CODE: None})
registry.reserve({"federation": FederationConfig})

# Where a graph is named: the table, and its key.
_GRAPHS = (("gossip", "topology"), ("kl", "matrix"))
_INLINED = {("gossip", "topology"): topology.inlined, ("kl", "matrix"): matrix.inlined}
_assembled: dict[tuple[tuple[str, type[Any]], ...], type[RunConfig]] = {}


def assembled() -> type[RunConfig]:
    """Return the configuration with a field for every table that is registered by now."""
    base = {field.name for field in dataclasses.fields(RunConfig)}
    tables = {name.replace("-", "_"): kind for name, kind in registry.tables().items()}
    own = tuple((name, kind) for name, kind in tables.items() if name not in base)
    if own not in _assembled:
        fields = [(name, kind, dataclasses.field(default_factory=kind)) for name, kind in own]
        _assembled[own] = dataclasses.make_dataclass("RunConfig", fields, bases=(RunConfig,), frozen=True)
    return _assembled[own]


def configure(values: Mapping[str, Any]) -> RunConfig:
    """Return the run that these values describe. Its plugins are imported first, as they bring keys."""
    registry.load(build(_Plugins, {"plugins": values.get("plugins", ())}).plugins)
    return build(assembled(), values)


def from_user(values: Mapping[str, Any]) -> RunConfig:
    """Return the run that a user wrote down. Files that it names are read here and nowhere else, so that no node opens
    a file because of a run that it was sent. Installed plugins are there without being named."""
    registry.load([*registry.installed(), *build(_Plugins, {"plugins": values.get("plugins", ())}).plugins])
    found = dict(values)
    for (name, key), inlined in _INLINED.items():
        inner = found.get(name)
        if isinstance(inner, Mapping) and isinstance(inner.get(key), str):
            found[name] = {**inner, key: inlined(inner[key])}
    config = configure(found)
    if config.engine != "local" and (own := [thing for thing in config.things() if thing.source == registry.SCRIPT]):
        raise Mistake(
            f"the {own[0].kind} '{own[0].name}' stands in this script or notebook, which the other processes of "
            f"'engine' = {config.engine} cannot import: put it into a module, and name that in 'plugins'"
        )
    registry.load(config.used_plugins())
    return dataclasses.replace(config, plugins=config.used_plugins())


@dataclass(frozen=True)
class _Plugins:
    plugins: tuple[str, ...] = option((), "Plugins.")


def written(config: RunConfig) -> dict[str, Any]:
    """Return a run as its conf holds it: the keys of every run, and the tables that this one reads."""
    others = set(registry.tables()) - config.used_tables()
    return {name: value for name, value in nested(config).items() if name not in others}


def refuse_unused(settings: Iterable[str], configs: Iterable[RunConfig]) -> None:
    """Refuse a ``key=value`` of the command line that none of these runs reads."""
    runs = list(configs)
    read = {name for config in runs for name in config.used_tables()}
    for setting in settings:
        key = setting.partition("=")[0].strip()
        name = key.partition(".")[0]
        if "." in key and name in registry.tables() and name not in read:
            things = sorted({thing.name for config in runs for thing in config.things()})
            raise Mistake(
                f"'{key}' means nothing here: no run of this command reads the table [{name}] (they use "
                f"{', '.join(things)}); leave it away, or choose what reads it"
            )


def used(algorithm: str, strategy: str) -> set[str]:
    """Return the tables that an algorithm and a strategy read; none of those that are not registered here."""
    read = {("agent", algorithm), ("strategy", strategy)}
    tables = {name for thing in registry.things() if (thing.kind, thing.name) in read for name in thing.tables}
    return {"world", "attack"} | tables


def unused(values: Mapping[str, Any], config: RunConfig) -> str:
    """Return a sentence on the tables of a conf that the run does not read; empty where it reads all."""
    names = sorted(set(values) & set(registry.tables()) - config.used_tables())
    things = f"{config.algorithm} and {config.strategy}"
    return f"not used by {things}: {', '.join(f'[{name}]' for name in names)}" if names else ""


# Flower's flat configuration ----------------------------------------------------------------------------------------


def flat_for_flower(config: RunConfig) -> dict[str, bool | int | float | str]:
    """Return a run as Flower's run_config: the options of plugins are JSON under one key."""
    flat = flatten(config)
    plugins = [thing for thing in registry.things() if thing.source != registry.BUILT_IN]
    foreign = tuple(f"{name}." for thing in plugins for name in thing.tables)
    # Another plugin may be installed here, and not where the run goes.
    named = tuple(f"{name}." for thing in plugins if thing.source in config.plugins for name in thing.tables)
    theirs = {key: value for key, value in flat.items() if key.startswith(named)}
    ours = {key: value for key, value in flat.items() if not key.startswith(foreign)}
    return ours | {PLUGIN_OPTIONS: json.dumps(theirs) if theirs else "", PLUGIN_CODE: plugin_code(config)}


def plugin_code(config: RunConfig) -> str:
    """Return the digests of the plugins that a run names, as this process has them."""
    modules = registry.loaded()
    return digest.spelled(digest.of_plugins({name: modules[name] for name in config.plugins}))


def running_code(config: RunConfig) -> str:
    """Return the digest of all code that a run executes here: ours, and that of its plugins."""
    plugins = plugin_code(config)
    return hashlib.sha256(f"{digest.installed()} {plugins}".encode()).hexdigest() if plugins else digest.installed()


def from_flower(flat: Flat, allowed: Sequence[str] | None = None) -> RunConfig:
    """Return the run of Flower's flat configuration. ``allowed`` are the plugins that may be imported; None: any."""
    values = unflatten({key: value for key, value in flat.items() if key not in ABOUT_THE_RUN})
    named = build(_Plugins, {"plugins": values.get("plugins", ())}).plugins
    for name in named if allowed is not None else ():
        if name not in (allowed or ()):
            raise Mistake(
                f"the run uses the plugin {name}, and this process imports nothing that its owner did not name: start "
                f"the node with --plugin {name} (a process that Flower starts: with {PLUGINS}={name})"
            )
    registry.load(named)
    text = str(flat.get(PLUGIN_OPTIONS) or "")
    try:
        theirs = unflatten(json.loads(text)) if text else {}
    except (ValueError, AttributeError):
        raise Mistake(f"'{PLUGIN_OPTIONS}' is JSON such as {{\"sac.tau\": 0.01}}, not {text[:200]!r}") from None
    config = configure({**values, **theirs})
    if code := str(flat.get(PLUGIN_CODE) or ""):
        digest.refuse_other_plugins(plugin_code(config), code, "the run")
    return config


def allowed_plugins() -> list[str]:
    """Return the plugins that a process which Flower starts may import: those that FEDRL_PLUGINS names."""
    return [name.strip() for name in os.environ.get(PLUGINS, "").split(",") if name.strip()]


def app_config() -> dict[str, bool | int | float | str]:
    """Return every key that Flower's run_config may hold, with its default: what stands in pyproject.toml."""
    return flatten(assembled()(strategy="fedavg", engine="grpc", rounds=10, steps=0)) | ABOUT_THE_RUN
