"""Where a run happens: here, in Flower's simulation, behind a SuperLink with nodes of ours, among peers."""

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
from server.federate import check, federate, refuse_certificates
from server.grids import LocalGrid
from strategies.method import chosen
from strategies.peers import GossipConfig

Record = dict[str, Any]
Tell = Callable[[Record], None]
Stop = Callable[[], bool]
Say = Callable[[str], None]
ENDED_EARLY = 130  # the exit code of a process that was asked to stop


def prepare(config: RunConfig, nodes: int = 0, superlink: str = "") -> Session:
    """The session of the process that gathers: all agents in the local engine, elsewhere one, to know what weights are.

    Whatever is wrong with the configuration is found here, before anything starts.
    """
    if nodes and config.engine != "grpc":
        raise Mistake(f"--nodes is for the engine grpc, not {config.engine}")
    if superlink and config.engine != "grpc":
        raise Mistake(f"--superlink is for the engine grpc, not {config.engine}")
    if superlink and nodes:
        raise Mistake("--nodes starts nodes here; those of a SuperLink are there already: leave one of the two away")
    if superlink:
        refuse_certificates(config)
    if nodes > config.agents:
        raise Mistake(
            f"{nodes} nodes have nothing to do for {config.agents} agents: give --nodes {config.agents} or less"
        )
    check(config)
    limit_threads(config.threads)
    return Session(config, None if config.engine in ("local", "gossip") else [0])


def reach(superlink: str, roots: Path | None) -> None:
    """Raise ``Failure`` where no SuperLink answers, before a run directory is made for a run that cannot begin."""
    with Control(superlink, roots) as control:
        control.reach()


def run(
    config: RunConfig, session: Session, directory: RunDirectory, tell: Tell, say: Say, stop: Stop, nodes: int = 0,
    superlink: str = "", roots: Path | None = None,
) -> Record:  # fmt: skip
    """Run or go on with a run in its directory; returns the summary.

    ``tell`` gets the record of every round, ``say`` what people should know, ``stop`` says whether they want an end.
    ``superlink`` is the control API of one that serves already; otherwise the engine grpc starts its own.
    """
    directory.go_on()
    serverless = config.engine == "gossip" or (chosen(config).serverless and config.engine == "local")
    warnings = cut(config, session) if serverless else []  # a server warns by itself
    for words in warnings:
        if not any(known.endswith(words) for known in directory.notes()):
            directory.note(words)
            say(words)
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
    """Flower's simulation: agents in Ray's actors, between which they hop; their snapshots lie in the directory."""
    # Ray forks after gRPC has started threads; without this its start is flaky.
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "GRPC_ENABLE_FORK_SUPPORT": "0", "FLWR_TELEMETRY_ENABLED": "0"}
    # Ray's processes listen on every interface. Without a token, whoever reaches them has code executed.
    # One token for all runs of this process: Ray reads it once.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    from flwr.app import Context
    from flwr.serverapp import Grid, ServerApp
    from flwr.simulation import run_simulation

    from client.client_app import make_app

    logging.getLogger("flwr").setLevel(logging.ERROR)
    server, found = ServerApp(), Record()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        found.update(federate(config, grid, directory, session, tell, stop, say))

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
    return found


def run_grpc(config: RunConfig, directory: RunDirectory, tell: Tell, say: Say, stop: Stop, nodes: int) -> Record:
    """A stock SuperLink and nodes of ours as processes on this machine; all of them end with the run."""
    from flower.launch import processes, start_node, superlink

    place = directory.path.resolve()
    # Apps are installed and compiled once per machine, not once per run.
    home = Path(os.environ.get("FEDRL_HOME") or Path.home() / ".cache" / "fedrl") / "flower"
    module = config.world.id.rpartition(":")[0]
    extra = ["--worlds", module] if module else []
    extra += [word for plugin in config.plugins for word in ("--plugin", plugin)]
    if chosen(config).serverless:
        extra += ["--peers", "127.0.0.1"]
        own = config.of(GossipConfig)
        if own.certificates:
            extra += ["--certificates", str(Path(own.certificates).resolve())]
            config = config.replace_options(replace(own, certificates=""))
    os.environ[PLUGINS] = ",".join(config.plugins)  # the ServerApp inherits what this user named
    with superlink(home, log=place / "logs" / "superlink.log") as link, processes() as started:
        for index in range(nodes):
            hosted = list(range(index, config.agents, nodes))
            log = place / "logs" / f"node-{index}.log"
            started.append(start_node(link.fleet, hosted, place / "agents", log, extra))
        with Control(link.control) as control:
            found = _submit(control, config, directory, tell, say, stop, started, f"its log: {link.log}")
    if chosen(config).serverless:
        # Weights went between nodes only; these are here, and so is what each has saved when it ended.
        parts = [place / "agents" / directory.name / PEERS / str(agent) for agent in range(config.agents)]
        _keep_weights(directory, [RunDirectory(part) for part in parts], say)
    return found


def run_there(
    config: RunConfig, directory: RunDirectory, tell: Tell, say: Say, stop: Stop, superlink: str, roots: Path | None
) -> Record:
    """A SuperLink that serves, and nodes that live, wherever they are; it sees the run's directory under our path."""
    with Control(superlink, roots) as control:
        found = _submit(control, config, directory, tell, say, stop, [], f"the log of the SuperLink at {superlink}")
    if not directory.begun:
        raise Failure(
            f"the run went somewhere else: the SuperLink at {superlink} does not see {directory.path.resolve()}; "
            "choose an --out that both machines share"
        )
    return found


def _submit(
    control: Control, config: RunConfig, directory: RunDirectory, tell: Tell, say: Say, stop: Stop,
    nodes: list[Popen[bytes]], log: str,
) -> Record:  # fmt: skip
    """Submit the run, show what happens, and wait until it is over; ended with us, whatever ends us."""
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
    found = figures.summary(records) | over_rounds(records)
    return found | {"run_dir": str(directory.path), "interrupted": not finished}


def run_gossip(
    config: RunConfig, directory: RunDirectory, tell: Tell, say: Say, stop: Stop, warnings: Sequence[str] = ()
) -> Record:
    """Peers as processes on this machine, each with a directory of its own below the run's; all end with the run.

    ``warnings`` are known to people already: peers that repeat them are not shown.
    """
    from flower.launch import free_port, processes, running, send, start_peer

    place = directory.path.resolve()
    if not config.of(GossipConfig).roster:
        here = {str(peer): f"127.0.0.1:{free_port()}" for peer in range(config.agents)}
        config = config.replace_options(replace(config.of(GossipConfig), roster=here))
    conf = place / "peers.toml"
    conf.write_text(tomli_w.dumps(written(config)))
    logs = [place / "logs" / f"peer-{peer}.log" for peer in range(config.agents)]
    together, asked, failed = Together(directory, config.agents), False, dict[int, str]()
    said = [len(part.notes()) for part in together.parts]
    with processes() as started:
        for peer in range(config.agents):
            started.append(start_peer(conf, peer, together.parts[peer].path.resolve(), logs[peer]))
        while True:
            working = [process.poll() is None for process in started]
            for record in together.news(working):
                tell(record)
            for peer, part in enumerate(together.parts):
                for words in part.notes()[said[peer] :]:
                    said[peer] += 1
                    if not any(words.endswith(known) for known in warnings):
                        say(f"peer {peer}: {words}")
            for peer, process in enumerate(started):
                if peer not in failed and process.returncode not in (None, 0, ENDED_EARLY):
                    failed[peer] = (logs[peer].read_text(errors="replace").strip().splitlines() or ["no word"])[-1]
                    say(f"peer {peer} has failed: {failed[peer]}")
            if stop() and not asked:
                send(running(started), signal.SIGTERM)
                asked = True
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
        say(f"no weights of peer {numbers}: those of the others lie in {parts[0].path.resolve().parent}")


def _follow(
    status: Callable[[], Status], directory: RunDirectory, tell: Tell, say: Say, stop: Stop, nodes: list[Popen[bytes]]
) -> Status:
    """Show what another process writes into the directory until its run is over."""
    told, said = max(directory.saved_rounds(), default=0), len(directory.notes())
    asked, looked = False, 0.0
    while True:
        # Seldom: the SuperLink writes a line into its log each time.
        over = None
        if time.monotonic() - looked > _STATUS_S:
            over, looked = status(), time.monotonic()
        for words in directory.notes()[said:]:
            said += 1
            say(words)
        for record in directory.read_metrics():
            if record["round"] > told:
                told = record["round"]
                tell(record)
        if over is not None and over.over:
            return over
        if stop() and not asked:
            directory.ask_to_stop()
            asked = True
        if nodes and all(node.poll() is not None for node in nodes):
            raise Failure(f"all nodes have ended; their last words are in {directory.path / 'logs'}")
        time.sleep(0.1)


# Seconds between looks at how a run stands.
_STATUS_S = 0.5
