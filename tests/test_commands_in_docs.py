"""Every shell command of README.md, docs/ and SECURITY.md, typed in a clean shell of a fresh clone.

A fenced block without a language is shell. Where lines of it begin with `$ `, the others are output. The tables below
are all that keeps a command from being typed as it is written.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

import pytest

from flower.launch import environment, free_port, wait

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")), "SECURITY.md")

# Left out: what a command contains, and why it cannot be typed here.
LEFT_OUT = {
    r"docker compose": "needs a daemon of docker; tests/docker",
    r"^(useradd|install|systemctl|journalctl)\b": "needs root and systemd",
    r"^ssh ": "needs a second machine",
    r"^sudo chown": "needs sudo; tests/docker/test_files.py",
    r"^git clone REPOSITORY|/opt/fedrl|> /etc/fedrl": "is about a machine that root has set up",
    r"flwr supernode": "needs the SuperLink of the step before, which needs root; tests/cli/test_certs.py",
    r"--superlink HOST:9093": "needs a SuperLink with nodes of other machines; tests/server/test_engines.py",
    r"^make test$": "runs all other tests",
    r"^make bench$|benchmarks\.td3": "needs the extra bench",
    r"halfcheetah": "needs the extra mujoco",
    r"benchmarks\.churn": "kills peers for half an hour",
}
# Put in place of a name that stands for something of the reader's. RUN is the newest run of the page.
NAMES = {
    r"\bHOST:9092|SERVER:9092": "127.0.0.1:{fleet}",
    r"\bHOST\b": "127.0.0.1",
    r"10\.0\.0\.5:9500": "127.0.0.1:{free}",
    r"/var/lib/fedrl": "state",
    r"\bOUT/\*": "out/gossip_cartpole-*",
    r"--seed S\b": "--seed 0",
    r"(out/)?\bRUN RUN\b": "{run} {run}",
    r"(out/)?\bRUN\b|out/ppo_cartpole-\d{8}-\d{6}": "{run}",
}
# Shortened: one seed, the first value of a grid, one round of short episodes, and few steps where steps are the work.
SHORTER = {
    r"--seeds (\d+):\d+": r"--seeds \1",
    r"(--grid [\w.-]+=[^\s,]+),\S+": r"\1",
    r" --set (rounds|work|evaluate-episodes|settle-every|checkpoint-every)=\S+": "",
    r"(fedrl (?:run|sweep) conf/\S+)": r"\1 --set rounds=1 --set evaluate-episodes=1 --set world.horizon=100",
    r"(fedrl (?:run|sweep) conf/\S*td3\S*)": r"\1 --set work=200",
    r"(fedrl run conf/(?:kl_|pg_|ppo_|\$name)\S+)": r"\1 --set work=1",
    # KL between agents is measured when they know each other's policies.
    r"(fedrl run conf/kl_ppo\S+.*) --set rounds=1": r"\1 --set rounds=2",
    # The actor is exchanged for the first time in round 2 or 3.
    r"(fedrl run conf/fedavg_td3\S+.*) --set rounds=1": r"\1 --set rounds=3",
    r"(fedrl run --resume \S+)": r"\1 --set rounds=4",
    r"(fedrl eval \S+)": r"\1 --episodes 1",
    r"\brounds=(20|100)\b": "rounds=1",
    r"(benchmarks\.workers .*)": r"\1 --turns 1 --steps 5",
    r"^(flower-superlink .*)": r"\1 --fleet-api-address 127.0.0.1:{fleet} --control-api-address 127.0.0.1:{control}"
    r" --serverappio-api-address 127.0.0.1:{free}",
}
# Typed before a page: files of the reader's that it names.
BEFORE = {
    "docs/federation.md": [
        "mkdir -p ~/.flwr && printf '[superlink.SERVER]\\naddress = \"127.0.0.1:{control}\"\\ninsecure = true\\n'"
        " > ~/.flwr/config.toml",
    ],
    "docs/gossip.md": [
        "fedrl certs certs --server '' --peers 0-9 && cp certs/ca.pem ca.pem",
        "sed 's/^agents = .*/agents = 4/; s/^rounds = .*/rounds = 1/' conf/gossip_cartpole.toml > net.toml &&"
        " printf '[gossip.roster]\\n{roster}' >> net.toml",
    ],
    "docs/kl_ppo.md": ["echo '[[0,1,1,0],[1,0,0,1],[1,0,0,1],[0,1,1,0]]' > graph.json"],
}
# Run on until the page ends; SIGTERM ends them with exit code 0.
SERVICES = r"^(flower-superlink|fedrl node)\b"
# Beside one peer its three others.
BESIDE = {r"fedrl peer net\.toml --id 3 ": [f"fedrl peer net.toml --id {k} --out out/net/peer-{k}" for k in range(3)]}
# Leaves processes, as its page says.
LEAVES = r"^flwr run \. --stream"
# Asked of the network all the same, and why.
ASKED = {
    rb"^GET http://(169\.254\.169\.254|metadata\.google\.internal)/": "Ray asks the machine which cloud it is in, for a"
    " report that is switched off; README says so",
}
# `fedrl doctor` says with 1 that something is wrong with the machine, which this test does not choose.
CODES = {r"^fedrl doctor$": (0, 1)}


def commands(page: str) -> list[str]:
    """The shell commands of a page, in their order, without comments, each once."""
    found, block, fence = [], list[str](), ""
    for line in (ROOT / page).read_text().splitlines():
        if not line.startswith("```"):
            block.append(line)
            continue
        if fence == "```":
            prompted = [text.removeprefix("$ ") for text in block if text.startswith("$ ")]
            for command in whole("\n".join(prompted or block).replace("\\\n", " ").splitlines()):
                found += [command] if command and command not in found else []
        fence, block = ("" if fence else line), []
    assert not fence, f"{page} has a fenced block without an end"
    return found


def whole(lines: list[str]) -> Iterator[str]:
    """The commands of these lines: one a line, without comments, or all lines of a here-document."""
    rest = iter(lines)
    for line in rest:
        command = re.sub(r"\s+#.*", "", line).strip()
        if here := re.search(r"<<'(\w+)'$", command):
            command = "\n".join([command, *takewhile(lambda text, end=here[1]: text != end, rest), here[1]])
        yield command


def why_not(command: str) -> str:
    """Why a command is left out; empty if it is typed."""
    return next((why for pattern, why in LEFT_OUT.items() if re.search(pattern, command)), "")


EVERY = {page: commands(page) for page in PAGES}
TYPED = [(page, command) for page, of_page in EVERY.items() for command in of_page if not why_not(command)]


def test_the_tables_name_nothing_that_no_document_has() -> None:
    lines = [command for of_page in EVERY.values() for command in of_page]
    typed = [command for _, command in TYPED]
    for pattern in LEFT_OUT:
        assert any(re.search(pattern, line) for line in lines), f"LEFT_OUT: no command has {pattern}"
    for pattern in (*BESIDE, *CODES, SERVICES, LEAVES):
        assert any(re.search(pattern, line) for line in typed), f"no command that is typed has {pattern}"
    for pattern, instead in (SHORTER | NAMES).items():
        before, typed = typed, [re.sub(pattern, instead, line) for line in typed]
        assert typed != before, f"no command that is typed has {pattern}"
    assert BEFORE.keys() <= {page for page, _ in TYPED}
    assert len(typed) > 60


def test_every_engine_and_command_of_the_program_is_typed() -> None:
    words = " ".join(command for _, command in TYPED)
    for one in ("run", "sweep", "eval", "plot", "table", "node", "peer", "certs", "conf", "doctor"):
        assert f"fedrl {one} " in f"{words} "
    assert all(name in words for name in ("make run", "flwr run .", "--engine ray", "--engine grpc", "--engine gossip"))


@pytest.fixture
def calls_out() -> Iterator[tuple[str, list[bytes]]]:
    """A proxy that serves nobody: its address, and what was asked of it. Downloads and telemetry end here."""
    asked = list[bytes]()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen() -> None:
            with suppress(OSError):  # it is closed
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.settimeout(5)
                        with suppress(OSError):
                            asked.append(connection.recv(200))

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", asked
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def fresh_clone(place: Path) -> Path:
    """A clone of the working tree, and a .venv as `make setup` makes it, of packages that are installed already.

    The scripts and the Python are the clone's own, so that the clone's code runs and nothing of this tree.
    """
    clone = place / "fedrl"
    git = ["git", "-C", str(ROOT)]
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    changed = subprocess.run(
        [*git, "ls-files", "-mo", "--exclude-standard"], check=True, capture_output=True, text=True
    )
    for name in changed.stdout.splitlines():  # what is not committed yet
        if (ROOT / name).is_file() and not (ROOT / name).is_symlink():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, clone / name)
    git = ["git", "-C", str(clone), "-c", "user.name=reader", "-c", "user.email=reader@example.org"]
    subprocess.run([*git, "add", "--all"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "-m", "not committed yet"], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(clone / ".venv")], check=True)
    (inside,) = (clone / ".venv").glob("lib/python*/site-packages")
    (inside / "shared.pth").write_text(f"{clone}\n{sysconfig.get_path('purelib')}\n")
    for script in Path(sysconfig.get_path("scripts")).iterdir():
        first, _, rest = script.read_bytes().partition(b"\n") if script.is_file() else (b"", b"", b"")
        if re.fullmatch(rb"#!\S*/python[\d.]*", first) and not script.name.startswith(("pip", "python")):
            copy = clone / ".venv" / "bin" / script.name
            copy.write_bytes(f"#!{clone}/.venv/bin/python\n".encode() + rest)
            copy.chmod(0o755)
    for stamp in ("python", "dev"):  # make does not install anew
        (clone / ".venv" / stamp).touch()
    return clone


@dataclass
class Reader:
    """Types commands into clean shells of a clone."""

    clone: Path
    home: Path
    proxy: str
    numbers: dict[str, str] = field(default_factory=dict)
    services: list[subprocess.Popen[bytes]] = field(default_factory=list)
    mark: str = field(default_factory=lambda: f"reader-{os.getpid()}-{time.monotonic_ns()}")

    def begin(self, page: str) -> None:
        """A page knows nothing of what others left, and its services have ports of their own."""
        keep = ["-e", ".venv", "-e", "__pycache__"]  # what numba has compiled stays
        subprocess.run(["git", "-C", str(self.clone), "clean", "-fdxq", *keep], check=True)
        roster = "".join(f'{peer} = "127.0.0.1:{free_port()}"\\n' for peer in range(4))
        self.numbers = {name: str(free_port()) for name in ("fleet", "control", "free", "local")} | {"roster": roster}
        for command in BEFORE.get(page, []):
            self.type(self.filled(command))

    def end(self) -> None:
        """SIGTERM ends every service, and is no error."""
        for service in self.services:
            service.send_signal(signal.SIGTERM)
        codes = [service.wait(60) for service in self.services]
        self.services.clear()
        assert not any(codes), f"the services ended with {codes}"
        self.assert_nothing_is_left("the services")

    def filled(self, command: str) -> str:
        """A command with its names and numbers filled in."""
        for pattern, instead in NAMES.items():
            command = re.sub(pattern, instead, command)
        runs = sorted((self.clone / "out").rglob("conf.toml"), key=lambda path: path.stat().st_mtime)
        runs = [path for path in runs if "peer-" not in str(path) and "agents" not in path.parts]
        newest = str(runs[-1].parent.relative_to(self.clone)) if runs else ""
        for name, value in (self.numbers | {"run": newest}).items():
            command = command.replace(f"{{{name}}}", value)
        return command

    def shortened(self, command: str) -> str:
        for pattern, instead in SHORTER.items():
            command = re.sub(pattern, instead, command)
        return command

    def shell(self, command: str, output: Path, mark: str) -> subprocess.Popen[bytes]:
        environ = {
            "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(self.home), "LANG": "C.UTF-8", "READER": mark,
            "FLWR_LOCAL_CONTROL_API_PORT": self.numbers["local"], "PIP_NO_INDEX": "1", "UV_OFFLINE": "1",
        }  # fmt: skip
        environ |= dict.fromkeys(("no_proxy", "NO_PROXY"), "127.0.0.1,localhost")
        environ |= dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), self.proxy)
        with output.open("wb") as file:
            return subprocess.Popen(
                ["bash", "-c", f". ./activate && {{ {command}\n}}"], cwd=self.clone, env=environ,
                stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def type(self, command: str, codes: tuple[int, ...] = (0,)) -> str:
        """Type a command and wait for its end; returns what it printed."""
        output = self.home / "typed.txt"
        with self.shell(command, output, self.mark) as process:
            code = process.wait(900)
        text = output.read_text(errors="replace")
        assert code in codes, f"{command}\nended with {code}:\n{text[-4000:]}"
        return text

    def serve(self, command: str) -> None:
        """Type a command that runs on."""
        output = self.home / f"service-{len(self.services)}.txt"
        self.services.append(self.shell(f"exec {command}", output, f"{self.mark}-service"))
        assert wait(lambda: bool(output.stat().st_size) or self.services[-1].poll() is not None, 120)
        assert self.services[-1].poll() is None, f"{command}\nended at once:\n{output.read_text(errors='replace')}"

    def left(self) -> set[int]:
        """The processes that commands left, by the mark in their environment."""
        everybody = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
        return {pid for pid in everybody if environment(pid).get("READER") == self.mark}

    def assert_nothing_is_left(self, command: str) -> None:
        gone = wait(lambda: not self.left(), 20)
        words = [Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")[:200] for pid in self.left()]
        assert gone, f"{command}\nleft {words}"

    def end_what_flower_left(self) -> None:
        """As the page says: `fedrl doctor` prints the `kill` that ends it."""
        findings = json.loads(self.type("fedrl doctor --json", (0, 1)).splitlines()[0])["findings"]
        remedies = " ".join(one["remedy"] for one in findings if one["name"] == "left by flwr run")
        (kill,) = [words for words in re.findall(r"kill \d+", remedies) if int(words.split()[1]) in self.left()]
        self.type(kill)

    def read(self, page: str) -> None:
        """Type every command of a page."""
        self.begin(page)
        for of_page, written in TYPED:
            if of_page != page:
                continue
            command = self.filled(self.shortened(written))
            if re.search(SERVICES, written):
                self.serve(command)
                continue
            beside = [peer for pattern, peers in BESIDE.items() if re.search(pattern, written) for peer in peers]
            with_others = " & ".join([*beside, command]) + ("; code=$?; wait; (exit $code)" if beside else "")
            begun = time.monotonic()
            self.type(with_others, next((codes for name, codes in CODES.items() if re.search(name, written)), (0,)))
            print(f"{time.monotonic() - begun:6.1f} s  {page}: {command}", flush=True)
            if re.search(LEAVES, written):
                assert self.left(), "flwr left nothing: the page says that it does"
                self.end_what_flower_left()
            self.assert_nothing_is_left(written)
        self.end()


@pytest.mark.slow
def test_every_command_works_as_it_is_written(tmp_path: Path, calls_out: tuple[str, list[bytes]]) -> None:
    clone = fresh_clone(tmp_path)
    packages = sorted((clone / ".venv").rglob("*"))
    (tmp_path / "home").mkdir()
    reader = Reader(clone, tmp_path / "home", calls_out[0])
    try:
        for page in dict.fromkeys(page for page, _ in TYPED):
            reader.read(page)
    finally:
        for service in reader.services:
            service.kill()
        for pid in reader.left():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert [call for call in calls_out[1] if not any(re.search(known, call) for known in ASKED)] == []
    assert [path for path in sorted((clone / ".venv").rglob("*")) if "__pycache__" not in path.parts] == packages
