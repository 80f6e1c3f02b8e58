"""A server and three clients as four hosts with addresses of their own: links are cut, delayed, stalled, throttled.

Hosts are network namespaces on one bridge, which only root can make.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flower.launch import QUIET, free_port, processes, ready, send, spawn, wait
from runs.directory import RunDirectory

pytestmark = pytest.mark.netns

ROOT = Path(__file__).parents[2]
LONG_S = 180.0
CONF = """
algorithm = "policy-gradient"
strategy = "fedavg"
agents = 3
rounds = 180
steps = 0
work = 2
evaluate-episodes = 5
evaluate = "sampled"
checkpoint-every = 5
tensorboard = false
[world]
id = "CartPole-v1"
copies = 16
[policy-gradient]
learning-rate = 3e-3
[federation]
deadline-s = 3
quorum = 0.5
"""


def ip(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *words], capture_output=True, text=True, timeout=30, check=False)


class Host:
    """A network namespace with an address on the bridge."""

    def __init__(self, hub: str, number: int) -> None:
        self.name, self.hub, self.link = f"{hub}-{number}", hub, f"h{number}"
        self.address = f"10.77.0.{number + 1}"
        for words in (
            f"netns add {self.name}",
            f"-n {self.name} link set lo up",
            f"-n {hub} link add port{number} type veth peer name {self.link} netns {self.name}",
            f"-n {hub} link set port{number} master bridge up",
            f"-n {self.name} addr add {self.address}/24 dev {self.link}",
            f"-n {self.name} link set {self.link} up",
        ):
            made = ip(*words.split())
            assert made.returncode == 0, f"ip {words}: {made.stderr}"

    def start(self, words: Sequence[str], log: Path, environ: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        return spawn(["ip", "netns", "exec", self.name, *words], log, QUIET | (environ or {}), ROOT)

    def up(self, yes: bool) -> None:
        done = ip("-n", self.name, "link", "set", self.link, "up" if yes else "down")
        assert done.returncode == 0, done.stderr

    def remove(self) -> None:
        found = ip("netns", "pids", self.name).stdout.split()
        send({int(pid) for pid in found}, signal.SIGKILL)
        ip("netns", "del", self.name)


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    """Four hosts; gone after the test, with everything that still runs there."""
    if shutil.which("ip") is None:
        pytest.skip("the command ip is not installed (iproute2)")
    hub = f"fedrl{os.getpid()}"
    if ip("netns", "add", hub).returncode != 0:
        pytest.skip("network namespaces cannot be made here: that needs root")
    made: list[Host] = []
    try:
        if ip("-n", hub, "link", "add", "bridge", "type", "bridge").returncode != 0:
            pytest.skip("this kernel has no bridges")
        ip("-n", hub, "link", "set", "bridge", "up")
        made.extend(Host(hub, number) for number in range(4))
        yield made
    finally:
        for host in made:
            host.remove()
        ip("netns", "del", hub)


def final(records: list[dict[str, Any]]) -> float:
    """The mean return of the last ten rounds."""
    return float(np.mean([value for record in records[-10:] for value in record["return"] if value is not None]))


def test_rounds_go_on_where_links_fail_and_who_was_cut_off_comes_back(hosts: list[Host], tmp_path: Path) -> None:
    server, clients = hosts[0], hosts[1:]
    conf, out = tmp_path / "conf.toml", tmp_path / "disturbed"
    conf.write_text(CONF)
    fedrl, binaries = [sys.executable, "-m", "cli.main"], Path(sys.executable).parent
    home = {"FLWR_HOME": str(tmp_path / "flower"), "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
    log = tmp_path / "superlink.log"
    with processes() as started:
        ports = [f"{server.address}:{port}" for port in (9092, 9093)]
        words = ["--fleet-api-address", ports[0], "--control-api-address", ports[1]]
        words += ["--serverappio-api-address", "127.0.0.1:0", "--health-server-address", "127.0.0.1:0"]
        started.append(server.start([str(binaries / "flower-superlink"), "--insecure", *words], log, home))
        ready(started[-1], log, 0)

        # The second client's line goes through a proxy, on its own host.
        line, port = tmp_path / "line.json", free_port()

        def as_if(**how: Any) -> None:
            line.with_suffix(".new").write_text(json.dumps(how))
            line.with_suffix(".new").replace(line)

        as_if(delay=0.1, jitter=0.05)
        proxy = [sys.executable, "-m", "tests.server.proxy", str(port), ports[0], str(line)]
        started.append(clients[1].start(proxy, tmp_path / "proxy.log"))
        for agent, client in enumerate(clients):
            where = f"127.0.0.1:{port}" if agent == 1 else ports[0]
            words = ["node", "--superlink", where, "--insecure", "--agents", str(agent)]
            words += ["--state", str(tmp_path / f"state-{agent}")]
            started.append(client.start([*fedrl, *words], tmp_path / f"node-{agent}.log"))
        run = server.start([*fedrl, "run", str(conf), "--superlink", ports[1], "--out", str(out)], tmp_path / "run.log")
        started.append(run)

        def records() -> list[dict[str, Any]]:
            directory = RunDirectory(out)
            return directory.read_metrics() if directory.metrics.exists() else []

        def reach(true: Callable[[dict[str, Any]], bool], after: int, times: int = 1) -> int:
            """Waits for so many rounds of which this is true; the number of the last one."""
            found: list[int] = []

            def enough() -> bool:
                found[:] = [record["round"] for record in records() if record["round"] > after and true(record)]
                return len(found) >= times or run.poll() is not None

            wait(enough, LONG_S)
            assert len(found) >= times, (tmp_path / "run.log").read_text()[-3000:] + str(records()[-3:])
            return found[times - 1]

        everybody = [0, 0, 0]
        now = reach(lambda record: record["missed"] == everybody, 0, 5)  # 100 ms away, and in time

        clients[2].up(False)
        now = reach(lambda record: record["missed"][2] == 1, now, 2)
        cut = records()[now - 1]
        assert cut["missed"] == [0, 0, 1]
        clients[2].up(True)
        now = reach(lambda record: record["missed"] == everybody and not any(record["left-out"]), now)
        assert records()[now - 1]["steps"][2] >= cut["steps"][2]  # it went on where it was, and did not begin anew

        as_if(stalled=True)
        now = reach(lambda record: record["missed"][1] == 1, now, 2)
        as_if(rate=50_000)
        now = reach(lambda record: record["missed"] == everybody and not any(record["left-out"]), now)
        now = reach(lambda record: record["missed"] == everybody, now, 5)  # slow, and in time

        as_if()
        assert run.wait(LONG_S) == 0, (tmp_path / "run.log").read_text()[-3000:]
        disturbed = records()
        assert len(disturbed) == 180
        assert sum(sum(record["missed"]) for record in disturbed) < 60
        names = [tmp_path / f"node-{agent}.log" for agent in range(3)]
        assert all("Traceback" not in name.read_text() for name in names)

    undisturbed = []
    for seed in range(4):
        words = [*fedrl, "run", str(conf), "--seed", str(seed), "--out", str(tmp_path / f"seed-{seed}")]
        subprocess.run(words, cwd=ROOT, check=True, capture_output=True, timeout=LONG_S)
        undisturbed.append(final(RunDirectory.open(tmp_path / f"seed-{seed}").read_metrics()))
    spread = max(max(undisturbed) - min(undisturbed), 2 * float(np.std(undisturbed, ddof=1)), 25.0)
    print(f"disturbed {final(disturbed):.0f}, undisturbed {[round(value) for value in undisturbed]}")
    assert abs(final(disturbed) - float(np.mean(undisturbed))) <= spread
