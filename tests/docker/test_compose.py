"""Real containers: the stack comes up, a run finishes, a client is killed and comes back, everything goes.

Where no Docker daemon runs, one of the tests' own is started and stopped; where no base image can be pulled, one is
made. Those marked ``core`` are enough before every change.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flower.launch import END_S, end, free_port, running, spawn, wait
from runs.directory import RunDirectory

pytestmark = pytest.mark.compose

ROOT = Path(__file__).parents[2]
PULLED = "python:3.11-slim"
EVERYTHING = [word for name in ("fedpg", "ppo", "td3", "secure", "gossip") for word in ("--profile", name)]
DOWN = re.search(
    r"^COMPOSE_PROFILES=(\S+) docker compose (down --volumes) ", (ROOT / "docs/deployment.md").read_text(), re.M
)
LONG_S = 900.0  # an image is built on two busy cores


def call(*words: str, seconds: float = LONG_S, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, cwd=ROOT, env=os.environ | (env or {}), capture_output=True, text=True, timeout=seconds, check=False
    )


def output(*words: str, env: dict[str, str] | None = None) -> str:
    done = call(*words, env=env)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout.strip()


@pytest.fixture(scope="module", autouse=True)
def daemon() -> Iterator[None]:
    """The one that runs, or one of our own."""
    if shutil.which("docker") is None:
        pytest.skip("docker is not installed")
    if call("docker", "info").returncode == 0:
        yield
        return
    if shutil.which("dockerd") is None or os.geteuid() != 0:
        pytest.skip("no Docker daemon runs, and none can be started: that needs dockerd, and root")
    home = Path(tempfile.mkdtemp(prefix="fedrl-docker-"))
    os.environ["DOCKER_HOST"] = f"unix://{home}/socket"
    words = ["dockerd", "--data-root", f"{home}/data", "--exec-root", f"{home}/exec", "--pidfile", f"{home}/pid"]
    words += ["--host", os.environ["DOCKER_HOST"]]
    # In a network and with mounts of its own: what it makes of bridges and of firewall rules goes when it does.
    apart = ["unshare", "--net", "--mount", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    process = spawn([*apart, *words], home / "log", {})

    def answers() -> bool:
        return call("docker", "info").returncode == 0

    try:
        wait(lambda: answers() or process.poll() is not None, 120)
        if process.poll() is not None:
            last = (home / "log").read_text().strip().splitlines()[-1:]
            pytest.skip(f"dockerd does not start here: {' '.join(last)[-500:]}")
        assert answers(), (home / "log").read_text()[-3000:]
        yield
    finally:
        end(lambda: running([process]), END_S)
        del os.environ["DOCKER_HOST"]
        call("rm", "-rf", str(home))  # a hundred thousand files


def base_image() -> str:
    """The name of an image with Python."""
    if call("docker", "image", "inspect", PULLED).returncode == 0 or call("docker", "pull", PULLED).returncode == 0:
        return PULLED
    made = "fedrl-base:test"
    if call("docker", "image", "inspect", made).returncode != 0:
        if shutil.which("debootstrap") is None or os.geteuid() != 0:
            pytest.skip(f"{PULLED} cannot be pulled, and no base image made: that needs debootstrap, and root")
        output("docker/base.sh", made)
    return made


class Stack:
    """A project of docker compose, whichever of the two commands there is."""

    def __init__(self, out: Path) -> None:
        v2 = call("docker", "compose", "version").returncode == 0
        if not v2 and shutil.which("docker-compose") is None:
            pytest.skip("neither the compose plugin of docker nor docker-compose is installed")
        self.words = ["docker", "compose"] if v2 else ["docker-compose"]
        self.out = out
        self.env = {
            "COMPOSE_PROJECT_NAME": f"fedrl-test-{os.getpid()}", "OUT": str(out), "SET": "rounds=6",
            "TENSORBOARD_PORT": str(free_port()),
        }  # fmt: skip

    def __call__(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        return call(*self.words, *words, env=self.env | env)

    def containers(self, service: str) -> list[str]:
        return output(*self.words, "ps", "-q", service, env=self.env).split()

    def run(self, name: str) -> RunDirectory:
        return RunDirectory.open(self.out / name)


def said(done: subprocess.CompletedProcess[str]) -> str:
    """Compose v2 hands a container's errors on as errors, 1.29 does not."""
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    out = tmp_path_factory.mktemp("out")
    os.chown(out, 1000, 1000) if os.geteuid() == 0 else out.chmod(0o777)
    found = Stack(out)
    with ThreadPoolExecutor() as both:  # each waits for a network
        wheels = both.submit(output, "make", "wheels")
        found.env["BASE_IMAGE"] = base_image()
        wheels.result()
    done = found("build", "superlink")
    assert done.returncode == 0, said(done)[-6000:]
    yield found
    assert DOWN, "docs/deployment.md says what removes everything"
    done = found(*DOWN[2].split(), COMPOSE_PROFILES=DOWN[1])
    assert done.returncode == 0, said(done)
    ours = ("--quiet", "--filter", f"label=com.docker.compose.project={found.env['COMPOSE_PROJECT_NAME']}")
    assert not output("docker", "ps", "--all", *ours)
    assert not output("docker", "volume", "ls", *ours)
    assert not output("docker", "network", "ls", *ours)


@pytest.fixture
def stack(built: Stack) -> Iterator[Stack]:
    """Nothing runs before and after a test. Named volumes stay."""
    try:
        yield built
    finally:
        for words in (("rm", "--stop", "--force", "-v"), ("down",)):
            done = built(*EVERYTHING, *words)
            assert done.returncode == 0, said(done)


def inspect(container: str, what: str) -> str:
    return output("docker", "inspect", "--format", what, container)


def volumes() -> set[str]:
    """Every volume there is, also those without a name, which belong to no project."""
    return set(output("docker", "volume", "ls", "--quiet").split())


def writable(container: str) -> set[str]:
    """The folders of a container in which, or below which, its user can write: also those that are mounted."""
    found = call("docker", "exec", container, "find", "/", "-xdev", "-type", "d", "-writable")
    assert found.stdout, found.stderr  # it ends with 1, as some folders are closed to it
    return {Path(path).parts[1] for path in found.stdout.split()}


@pytest.mark.core
def test_a_run_finishes_its_attacker_is_dropped_and_the_launcher_says_so(stack: Stack) -> None:
    done = stack("up", "--exit-code-from", "launcher", RUN="first", CLIENTS="3")
    assert done.returncode == 0, said(done)[-5000:]
    records = stack.run("first").read_metrics()
    assert [record["round"] for record in records] == list(range(1, 7))
    assert all(record["kept.policy"] == [1, 1, 0] for record in records[1:])  # attackers are the last agents
    assert list((stack.out / "first" / "tensorboard").iterdir())
    assert "round 6/6" in said(done)


def test_a_mistake_is_told_and_is_the_exit_code(stack: Stack) -> None:
    done = stack("up", "--exit-code-from", "launcher", RUN="wrong", CLIENTS="1", SET="rounds=six")
    assert done.returncode == 2, said(done)[-5000:]
    assert "'rounds'" in said(done)


@pytest.mark.core
def test_scaled_clients_take_part_and_one_that_is_killed_comes_back(stack: Stack) -> None:
    more = {"RUN": "killed", "SET": "rounds=100000 federation.deadline-s=2 federation.quorum=0.5 attack.kind=none"}
    done = stack("up", "--detach", "--scale", "client=4", ATTACKERS="0", **more)
    assert done.returncode == 0, said(done)[-5000:]
    clients = stack.containers("client")
    (launcher,) = stack.containers("launcher")
    (superlink,) = stack.containers("superlink")
    (tensorboard,) = stack.containers("tensorboard")

    def records() -> list[dict[str, list[int]]]:
        run = RunDirectory(stack.out / "killed")
        return run.read_metrics() if run.metrics.exists() else []

    def reach(true: Callable[[], bool], seconds: float = 240) -> None:
        in_time = wait(lambda: bool(records()) and true(), seconds)
        assert in_time, said(call("docker", "logs", "--tail", "30", launcher))

    reach(lambda: len(records()) >= 3)
    agents = {output("docker", "exec", client, "cat", "/state/agent"): client for client in clients}
    assert sorted(agents) == ["0", "1", "2", "3"]
    # Whoever writes machine code where another finds it runs code there; so does whoever reaches the control port.
    for container in (*clients, superlink, launcher):
        mounts = {mount["Destination"].strip("/") for mount in json.loads(inspect(container, "{{json .Mounts}}"))}
        assert "compiled" not in mounts
        own = writable(container) - mounts
        assert {"compiled"} <= own <= {"state", "compiled", "claims", "authority", "keys", "tmp"}
    addresses = inspect(superlink, "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}").split()
    assert len(addresses) == 2
    dial = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 3)"
    for container, host, port, open_ in (
        (clients[0], "superlink", 9092, True),
        *((clients[0], host, 9093, False) for host in ("superlink", "control", *addresses)),
        (launcher, "control", 9093, True),
    ):
        dialled = call("docker", "exec", container, "python", "-c", dial, host, str(port))
        assert (dialled.returncode == 0) == open_, f"{host}:{port} {dialled.stderr}"
    for container in (*clients, superlink, launcher, tensorboard):
        about = json.loads(inspect(container, "{{json .}}"))
        assert about["HostConfig"]["Ulimits"] == [{"Name": "nofile", "Hard": 16384, "Soft": 16384}]
        assert about["Config"]["User"] == "1000:1000"
        assert about["HostConfig"]["CapDrop"] == ["ALL"]
        assert about["HostConfig"]["Memory"] > 0
    watched = (*clients, superlink, tensorboard)
    assert wait(lambda: all(inspect(one, "{{.State.Health.Status}}") == "healthy" for one in watched), 90)

    # It may be back before the round in progress ends without it.
    call("docker", "exec", agents["2"], "sh", "-c", "kill -9 -1")
    events = stack.out / "killed" / "events.log"
    reach(lambda: events.exists() and "agent 2 is back, at another node" in events.read_text())
    killed = len(records())
    reach(lambda: len(records()) > killed and records()[-1]["missed"] == [0, 0, 0, 0])
    assert int(inspect(agents["2"], "{{.RestartCount}}")) == 1
    assert output("docker", "exec", agents["2"], "cat", "/state/agent") == "2"

    assert call("docker", "kill", "--signal", "TERM", launcher).returncode == 0
    assert output("docker", "wait", launcher) == "130"  # interrupted, and it can go on
    rounds = records()[-1]["round"]
    assert stack("stop").returncode == 0
    assert {inspect(client, "{{.State.ExitCode}}") for client in clients} == {"0"}
    more["SET"] = f"rounds={rounds + 3}"
    done = stack("up", "--exit-code-from", "launcher", "--scale", "client=4", **more)
    assert done.returncode == 0, said(done)[-5000:]
    assert [record["round"] for record in records()] == list(range(1, rounds + 4))


def test_a_folder_of_another_user_is_refused_in_a_sentence(stack: Stack, tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    done = stack("up", "--exit-code-from", "launcher", RUN="theirs", CLIENTS="1", OUT=str(tmp_path))
    assert done.returncode == 2, said(done)[-5000:]
    assert f"/out (OUT={tmp_path} on the host) belongs to user" in said(done)
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_after_a_scale_down(stack: Stack) -> None:
    assert DOWN, "docs/deployment.md says what removes everything"
    project = stack.env["COMPOSE_PROJECT_NAME"]
    before = {name for name in volumes() if not name.startswith(project)}
    for clients in ("4", "2"):
        done = stack("up", "--no-start", "--scale", f"client={clients}")
        assert done.returncode == 0, said(done)
        assert len(output("docker", "ps", "--all", "--quiet", "--filter", f"name={project}.client").split()) == int(
            clients
        )
    done = stack(*DOWN[2].split(), COMPOSE_PROFILES=DOWN[1])
    assert done.returncode == 0, said(done)
    assert volumes() == before


def test_ppo_pulls_its_clients_together(stack: Stack) -> None:
    done = stack(
        "--profile", "ppo", "up", "--exit-code-from", "launcher-ppo", RUN="ppo", CLIENTS="2", SET="steps=20000"
    )
    assert done.returncode == 0, said(done)[-5000:]
    assert min(stack.run("ppo").read_metrics()[-1]["steps"]) >= 20000


def test_td3_walkers_meet_obstacles_of_their_own(stack: Stack) -> None:
    short = "steps=1200 work=400 td3.learning-starts=800 td3.capacity=2000 td3.batch=16 evaluate-episodes=1"
    some = {"RUN": "td3", "CLIENTS": "2", "SET": short}
    done = stack("--profile", "td3", "up", "--exit-code-from", "launcher-td3", **some)
    assert done.returncode == 0, said(done)[-5000:]
    assert stack.run("td3").read_conf()["world"]["obstacles"]["stump"] == {"uniform": [0, 2]}
    assert stack.run("td3").read_metrics()[-1]["steps"] == [1200, 1200]


def test_with_tls_registered_clients_are_admitted_and_others_are_not(stack: Stack) -> None:
    done = stack("--profile", "secure", "up", "--detach", RUN="secure", CLIENTS="2")
    assert done.returncode == 0, said(done)[-5000:]
    (launcher,) = stack.containers("launcher-tls")
    project = stack.env["COMPOSE_PROJECT_NAME"]
    run = ["docker", "run", "--rm", "--network", f"{project}_default", "--volume", f"{project}_keys:/keys:ro", "fedrl"]
    node = "fedrl node --superlink superlink:9092 --agents 9 --give-up 1"
    roots = "--root-certificates /keys/ca.pem"
    for command, words in (
        (f"{node} --insecure", "it speaks TLS"),
        (f"{node} {roots}", "admits registered nodes only"),
        (f"fedrl certs /tmp/new --nodes 9 && {node} {roots} --key /tmp/new/node-9", "does not admit the key"),
        (f"fedrl certs /tmp/new && {node} --root-certificates /tmp/new/ca.pem", "certificate does not verify"),
    ):
        refused = call(*run, "sh", "-c", command)
        assert refused.returncode == 1, refused.stderr
        assert words in refused.stderr.replace("\n", " ")
    assert output("docker", "wait", launcher) == "0", call("docker", "logs", launcher).stderr[-3000:]
    assert len(stack.run("secure").read_metrics()) == 6


def test_peers_learn_without_a_server_and_a_second_time_anew(stack: Stack) -> None:
    project, before = stack.env["COMPOSE_PROJECT_NAME"], set[Path]()
    for _ in range(2):
        done = stack("--profile", "gossip", "up", SET="rounds=6")
        assert done.returncode == 0, said(done)[-5000:]
        (run,) = set(stack.out.glob("gossip_cartpole-*")) - before
        before.add(run)
        for number in range(4):
            (container,) = output("docker", "ps", "-aq", "--filter", f"name={project}.peer-{number}").split()
            assert inspect(container, "{{.State.ExitCode}}") == "0", call("docker", "logs", container).stderr[-3000:]
            assert inspect(container, "{{.RestartCount}}") == "0"
            # Who is late to the first round, because it compiles, takes part from the next one on.
            assert RunDirectory.open(run / f"peer-{number}").read_metrics()[-1]["round"] == 6
    keys = output("docker", "run", "--rm", "--volume", f"{project}_peer-2:/keys/2:ro", "fedrl", "ls", "/keys/2")
    assert keys.split() == ["ca.pem", "peer-2.key", "peer-2.pem", "run"]
    assert "superlink" not in output("docker", "ps", "-a", "--format", "{{.Names}}")
