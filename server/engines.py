"""The engines: a run in this process, in Flower's simulation, behind a SuperLink with nodes of ours, or among peers."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from subprocess import Popen
from typing import Any

import tomli_w

from client.pace import cut
from client.session import Session, limit_threads
from core.errors import Failure, Mistake
from flower.control import Control, Status
from gossip.run import gossip, network
from runs import figures
from runs.config import ABOUT_THE_RUN, DIRECTORY, NAME, PLUGINS, RunConfig, flat_for_flower, written
from runs.directory import RunDirectory
from runs.ledger import over_rounds
from runs.peers import PEERS, Together, save_weights
from server.federate import check, check_agents, federate, refuse_certificates
from server.grids import LocalGrid
from strategies.method import chosen
from strategies.peers import GossipConfig

Record = dict[str, Any]
Tell = Callable[[Record], None]
Stop = Callable[[], bool]
Say = Callable[[str], None]
ENDED_EARLY = 130  # the exit code of a process that was asked to stop


def prepare(config: RunConfig, nodes: int = 0, superlink: str = "") -> Session:
    """Check the configuration, and return the session of the server's process.

    The session has all agents in the engines local and gossip. Elsewhere it has one, from which the server knows the
    layout of the weights.
    """
    if nodes and config.engine != "grpc":
        raise Mistake(f"--nodes is for the engine grpc, not {config.engine}")
    if superlink and config.engine != "grpc":
        raise Mistake(f"--superlink is for the engine grpc, not {config.engine}")
    if superlink and nodes:
        raise Mistake("--nodes starts nodes here; a SuperLink has its own nodes: remove one of the two options")
    if superlink:
        refuse_certificates(config)
    if nodes > config.agents:
        raise Mistake(
            f"{nodes} nodes have nothing to do for {config.agents} agents: give --nodes {config.agents} or less"
        )
    check(config)
    limit_threads(config.threads)
    session = Session(config, None if config.engine in ("local", "gossip") else [0])
    try:
        check_agents(config, session)
    except BaseException:
        session.close()
        raise
    return session


def reach(superlink: str, roots: Path | None) -> None:
    """Raise ``Failure`` if no SuperLink answers, before a directory is made for a run that cannot begin."""
    with Control(superlink, roots) as control:
        control.reach()


def run(
    config: RunConfig, session: Session, directory: RunDirectory, tell: Tell, say: Say, stop: Stop, nodes: int = 0,
    superlink: str = "", roots: Path | None = None,
) -> Record:  # fmt: skip
    """Run or resume a run in its directory; return the summary.

    ``tell`` receives the record of every round, ``say`` a line for the user; ``stop`` returns whether a stop was
    requested. ``superlink`` is the Control API of a running SuperLink; without it the engine grpc starts its own.
    """
    directory.go_on()
    serverless = config.engine == "gossip" or (chosen(config).serverless and config.engine == "local")
    warnings = cut(config, session) if serverless else []  # a server prints its own warnings
    for warning in warnings:
        if not any(note.endswith(warning) for note in directory.notes()):
            directory.note(warning)
            say(warning)
    if config.engine == "gossip":
        return run_gossip(config, directory, tell, say, stop, warnings)
    if serverless:
        return gossip(config, session, network(config, session), directory, tell, stop)
    if config.engine == "local":
        return federate(config, LocalGrid(session), directory, session, tell, stop, say)
    if config.engine == "ray":
        return run_ray(config, session, directory, tell, say, stop)
    if superlink:
        return run_there(config, directory, tell, say, stop, superlink, roots)
    return run_grpc(config, directory, tell, say, stop, nodes or config.agents)


def run_ray(config: RunConfig, session: Session, directory: RunDirectory, tell: Tell, say: Say, stop: Stop) -> Record:
    """Run in Flower's simulation: Ray's actors answer for the agents, whose snapshots are in the run's directory."""
    # Ray forks after gRPC has started threads. Without GRPC_ENABLE_FORK_SUPPORT=0 its start is flaky.
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "GRPC_ENABLE_FORK_SUPPORT": "0", "FLWR_TELEMETRY_ENABLED": "0"}
    # Ray's processes listen on every interface. Without a token, any caller can execute code in them.
    # Ray reads the token once, so all runs of this process share one.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    from flwr.app import Context
    from flwr.serverapp import Grid, ServerApp
    from flwr.simulation import run_simulation

    from client.client_app import make_app

    logging.getLogger("flwr").setLevel(logging.ERROR)
    server, summary = ServerApp(), Record()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        summary.update(federate(config, grid, directory, session, tell, stop, say))

    flat = flat_for_flower(config) | {NAME: directory.name}
    cores = os.cpu_count() or 1
    run_simulation(
        server,
        make_app(flat, directory.path.resolve() / "agents"),
        config.agents,
        backend_config={
            "init_args": {"num_cpus": cores, "log_to_driver": False, "logging_level": "error"},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )
    return summary


def run_grpc(config: RunConfig, directory: RunDirectory, tell: Tell, say: Say, stop: Stop, nodes: int) -> Record:
    """Run a stock SuperLink and nodes as processes on this machine; all of them end with the run."""
    from flower.launch import processes, start_node, superlink

    place = directory.path.resolve()
    # Apps are installed and compiled once per machine, not once per run.
    home = Path(os.environ.get("FEDRL_HOME") or Path.home() / ".cache" / "fedrl") / "flower"
    module = config.world.id.rpartition(":")[0]
    extra = ["--worlds", module] if module else []
    extra += [word for plugin in config.plugins for word in ("--plugin", plugin)]
    if chosen(config).serverless:
        extra += ["--peers", "127.0.0.1"]
        options = config.of(GossipConfig)
        if options.certificates:
            extra += ["--certificates", str(Path(options.certificates).resolve())]
            config = config.replace_options(replace(options, certificates=""))
    os.environ[PLUGINS] = ",".join(config.plugins)  # the ServerApp inherits the plugins that this user named
    with superlink(home, log=place / "logs" / "superlink.log") as link, processes() as started:
        for index in range(nodes):
            hosted = list(range(index, config.agents, nodes))
            log = place / "logs" / f"node-{index}.log"
            started.append(start_node(link.fleet, hosted, place / "agents", log, extra))
        with Control(link.control) as control:
            summary = _submit(control, config, directory, tell, say, stop, started, f"its log: {link.log}")
    if chosen(config).serverless:
        # Weights went between nodes only. These nodes run here, and each has saved its weights when it ended.
        parts = [place / "agents" / directory.name / PEERS / str(agent) for agent in range(config.agents)]
        _keep_weights(directory, [RunDirectory(part) for part in parts], say)
    return summary


def run_there(
    config: RunConfig, directory: RunDirectory, tell: Tell, say: Say, stop: Stop, superlink: str, roots: Path | None
) -> Record:
    """Run on a SuperLink and nodes that are running already. The SuperLink sees the run's directory under our path."""
    with Control(superlink, roots) as control:
        summary = _submit(control, config, directory, tell, say, stop, [], f"the log of the SuperLink at {superlink}")
    if not directory.begun:
        raise Failure(
            f"the run went somewhere else: the SuperLink at {superlink} does not see {directory.path.resolve()}; "
            "choose an --out that both machines share"
        )
    return summary


def _submit(
    control: Control, config: RunConfig, directory: RunDirectory, tell: Tell, say: Say, stop: Stop,
    nodes: list[Popen[bytes]], log: str,
) -> Record:  # fmt: skip
    """Submit the run, show its progress, and wait until it is over. An error or Ctrl-C here stops the run."""
    place = {DIRECTORY: str(directory.path.resolve()), NAME: directory.name}
    run_id = control.submit(Path(__file__).parents[1], ABOUT_THE_RUN | flat_for_flower(config) | place)
    try:
        status = _follow(lambda: control.status(run_id), directory, tell, say, stop, nodes)
    except BaseException:
        with suppress(Failure):
            control.stop(run_id)
        raise
    if status.sub_status != "completed":
        directory.raise_word()
        raise Failure(f"the run {status.sub_status}: {status.details or 'no reason was given'} ({log})")
    records = directory.read_metrics()
    finished = bool(records) and config.over(records[-1]["round"], records[-1]["steps"])
    summary = figures.summary(records) | over_rounds(records)
    return summary | {"run_dir": str(directory.path), "interrupted": not finished}


def run_gossip(
    config: RunConfig, directory: RunDirectory, tell: Tell, say: Say, stop: Stop, warnings: Sequence[str] = ()
) -> Record:
    """Run peers as processes on this machine, each in a directory below the run's; all end with the run.

    ``warnings`` were printed already: they are not repeated for each peer.
    """
    from flower.launch import free_port, processes, running, send, start_peer

    place = directory.path.resolve()
    if not config.of(GossipConfig).roster:
        roster = {str(peer): f"127.0.0.1:{free_port()}" for peer in range(config.agents)}
        config = config.replace_options(replace(config.of(GossipConfig), roster=roster))
    conf = place / "peers.toml"
    conf.write_text(tomli_w.dumps(written(config)))
    logs = [place / "logs" / f"peer-{peer}.log" for peer in range(config.agents)]
    together, stopping, failed = Together(directory, config.agents), False, dict[int, str]()
    shown = [len(part.notes()) for part in together.parts]  # notes per peer
    with processes() as started:
        for peer in range(config.agents):
            started.append(start_peer(conf, peer, together.parts[peer].path.resolve(), logs[peer]))
        while True:
            working = [process.poll() is None for process in started]
            for record in together.news(working):
                tell(record)
            for peer, part in enumerate(together.parts):
                for note in part.notes()[shown[peer] :]:
                    shown[peer] += 1
                    if not any(note.endswith(warning) for warning in warnings):
                        say(f"peer {peer}: {note}")
            for peer, process in enumerate(started):
                if peer not in failed and process.returncode not in (None, 0, ENDED_EARLY):
                    failed[peer] = (
                        logs[peer].read_text(errors="replace").strip().splitlines() or ["it printed nothing"]
                    )[-1]
                    say(f"peer {peer} has failed: {failed[peer]}")
            if stop() and not stopping:
                send(running(started), signal.SIGTERM)
                stopping = True
            if not any(working):
                break
            time.sleep(0.1)
    records = directory.read_metrics()
    if failed and (len(failed) == config.agents or not records):
        first = min(failed)
        raise Failure(f"peer {first} has failed: {failed[first]} (its log: {logs[first]})")
    _keep_weights(directory, together.parts, say)
    finished = bool(records) and config.over(records[-1]["round"], records[-1]["steps"])
    return figures.summary(records) | {"run_dir": str(directory.path), "interrupted": not finished}


def _keep_weights(directory: RunDirectory, parts: Sequence[RunDirectory], say: Say) -> None:
    if without := save_weights(directory, parts):
        numbers = ", ".join(map(str, without))
        say(f"no weights of peer {numbers}: those of the others are in {parts[0].path.resolve().parent}")


def _follow(
    status: Callable[[], Status], directory: RunDirectory, tell: Tell, say: Say, stop: Stop, nodes: list[Popen[bytes]]
) -> Status:
    """Show the records and notes that another process writes into the directory, until its run is over."""
    last_round, shown = max(directory.saved_rounds(), default=0), len(directory.notes())
    stopping, polled = False, 0.0
    while True:
        current = None
        # Rarely: the SuperLink writes a line into its log each time.
        if time.monotonic() - polled > _STATUS_S:
            current, polled = status(), time.monotonic()
        for note in directory.notes()[shown:]:
            shown += 1
            say(note)
        for record in directory.read_metrics():
            if record["round"] > last_round:
                last_round = record["round"]
                tell(record)
        if current is not None and current.over:
            return current
        if stop() and not stopping:
            directory.ask_to_stop()
            stopping = True
        if nodes and all(node.poll() is not None for node in nodes):
            raise Failure(f"all nodes have ended; see their logs in {directory.path / 'logs'}")
        time.sleep(0.1)


# Seconds between two looks at the status of a run.
_STATUS_S = 0.5
