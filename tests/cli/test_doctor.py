"""`fedrl doctor`: every check on what is fine and on what is broken, and the command as a whole."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import typer
from packaging.requirements import Requirement

from cli import doctor as module
from cli.doctor import doctor
from cli.environment import check_docker, check_environment, check_path, exported
from cli.findings import Finding, failure
from cli.machine import (
    GIB,
    check_background,
    check_cores,
    check_disk,
    check_memory,
    check_port,
    check_strays,
    holder,
    is_alive,
    is_free,
)
from cli.packages import (
    BOX2D_WORLD,
    check_box2d,
    check_extras,
    check_packages,
    check_python,
    installed,
    read_pins,
    with_extras,
)
from core.errors import Failure
from flower.launch import LOCAL_LOG, background, wait

PROJECT = {
    "version": "0.1.0",
    "dependencies": ["flwr[simulation]==1.34.0", "numpy>=2.2,<3", "pillow>=12"],
    "optional-dependencies": {"dev": ["ruff==0.17.5", "pytest>=9"], "mujoco": ["gymnasium[mujoco]>=1.4"]},
}


@dataclass
class Package:
    version: str
    requires: list[str] = field(default_factory=list)


HERE = {
    "fedrl": Package("0.1.0"),
    "flwr": Package("1.34.0", ["ray==2.55.1; extra == 'simulation'", "grpcio>=1", "x; extra == 'other'"]),
    "ray": Package("2.55.1"),
    "numpy": Package("2.4.6"),
    "pillow": Package("12.0"),
    "ruff": Package("0.17.5"),
    "pytest": Package("9.0"),
    "gymnasium": Package("1.4.0", ["mujoco>=2; extra == 'mujoco'"]),
}


def packages(pins: dict[str, str] | None = None, **changed: Package | None) -> dict[str, tuple[str, str]]:
    here = HERE | changed
    return {one.name: (one.found, one.verdict) for one in check_packages(PROJECT, pins or {}, here.get)}  # type: ignore[arg-type]


def verdicts(findings: object) -> dict[str, str]:
    return {one.name: one.verdict for one in findings}  # type: ignore[attr-defined]


def test_python() -> None:
    assert check_python(">=3.11", "3.11.0").verdict == "ok"
    old = check_python(">=3.11", "3.10.9")
    assert old.verdict == "wrong" and ">=3.11" in old.remedy


def test_packages_that_fit() -> None:
    assert packages() == {
        "fedrl": ("0.1.0", "ok"), "flwr": ("1.34.0", "ok"), "numpy": ("2.4.6", "ok"), "ray": ("2.55.1", "ok"),
    }  # fmt: skip


def test_a_wrong_version_is_named_with_what_fits() -> None:
    (wrong,) = [
        one
        for one in check_packages(PROJECT, {}, (HERE | {"flwr": Package("1.35.0")}).get)  # type: ignore[arg-type]
        if one.verdict == "wrong"
    ]
    assert (wrong.name, wrong.found) == ("flwr", "1.35.0") and "==1.34.0" in wrong.remedy
    assert packages(numpy=None)["numpy"] == ("not installed", "wrong")
    assert packages(ray=None)["ray"] == ("not installed", "wrong")
    assert packages(ray=Package("2.0"))["ray"] == ("2.0", "wrong")
    assert packages(fedrl=None)["fedrl"] == ("not installed", "wrong")
    assert packages(fedrl=Package("0.0.9"))["fedrl"] == ("0.0.9", "note")
    # Of no interest, unless it does not fit.
    assert packages(pillow=Package("11.0"))["pillow"] == ("11.0", "wrong")


def test_a_version_that_was_not_tested_is_a_note() -> None:
    assert packages({"numpy": "2.4.7"})["numpy"] == ("2.4.6", "note")
    assert packages({"numpy": "2.4.6"})["numpy"] == ("2.4.6", "ok")
    assert packages({"numpy": "2.4.6"}, numpy=Package("2.4.6+cpu"))["numpy"] == ("2.4.6+cpu", "ok")


def test_extras() -> None:
    found = list(check_extras(PROJECT["optional-dependencies"], HERE.get))  # type: ignore[arg-type]
    assert [(one.name, one.verdict) for one in found] == [("extra dev", "ok"), ("extra mujoco", "note")]
    assert found[1].found == "without mujoco" and "'.[mujoco]'" in found[1].remedy
    assert [need.name for need in with_extras(Requirement("flwr[simulation]"), HERE.get)] == ["flwr", "ray"]  # type: ignore[arg-type]


def test_our_own_files_are_read() -> None:
    pins = read_pins(module.ROOT / "constraints.txt")
    assert pins["flwr"] == "1.34.0"
    assert read_pins(Path("/no/such/file")) == {}
    assert installed("flwr") is not None and installed("no-such-package-of-anybody") is None


def test_box2d_is_tried_in_a_process_of_its_own() -> None:
    assert check_box2d(failure([sys.executable, "-c", BOX2D_WORLD])).verdict == "ok"
    why = failure([sys.executable, "-c", "raise ImportError('undefined symbol')"])
    assert check_box2d(why) == Finding("Box2D", "ImportError: undefined symbol", "wrong", check_box2d(why).remedy)
    assert failure([sys.executable, "-c", "import os; os.abort()"]) == "it crashed"
    assert "No such file" in (failure(["/no/such"]) or "")


def test_the_machine() -> None:
    assert check_cores(2, 0.3).verdict == "ok"
    assert check_cores(2, 1.9).verdict == "note"
    for check in (check_memory, lambda free: check_disk("disk", Path("/x"), free)):
        assert [check(free).verdict for free in (0, GIB, 8 * GIB)] == ["wrong", "note", "ok"]
    assert check_memory(None).found == "unknown"


def test_a_port_in_use_is_named_with_its_holder() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        assert not is_free(port)
        assert holder(port) is not None and holder(port)[0] == os.getpid()  # type: ignore[index]
        found = check_port(port, is_free, holder)
        assert found.verdict == "wrong" and str(os.getpid()) in found.found
    assert is_free(port) and check_port(port, is_free, holder).verdict == "ok"
    assert check_port(9092, lambda port: False, lambda port: None).verdict == "wrong"
    ours = check_port(9092, lambda port: False, lambda port: (7, "python flower-superlink --insecure"))
    assert (ours.verdict, ours.found) == ("note", "a SuperLink, process 7")


WANTED = {"FLWR_TELEMETRY_ENABLED": "0", "GRPC_ENABLE_FORK_SUPPORT": "0", "OMP_NUM_THREADS": "1"}


def test_the_environment() -> None:
    assert set(verdicts(check_environment(WANTED, WANTED, 2)).values()) == {"ok"}
    bare = list(check_environment({}, WANTED, 2))
    assert verdicts(bare) == dict.fromkeys(WANTED, "note")
    assert all(one.found == "not set" and ". ./activate" in one.remedy for one in bare)
    loud = {"OMP_NUM_THREADS": "8", "GRPC_ENABLE_FORK_SUPPORT": "1", "RAY_ADDRESS": "auto", "RAY_TMPDIR": "/tmp/ray"}
    assert verdicts(check_environment(loud, WANTED, 2)) == {
        "FLWR_TELEMETRY_ENABLED": "note", "GRPC_ENABLE_FORK_SUPPORT": "note", "OMP_NUM_THREADS": "note",
        "RAY_ADDRESS": "note", "RAY_TMPDIR": "ok",
    }  # fmt: skip
    assert verdicts(check_environment({"OMP_NUM_THREADS": "2"}, WANTED, 2))["OMP_NUM_THREADS"] == "ok"
    assert verdicts(check_environment({"OMP_NUM_THREADS": "many"}, WANTED, 2))["OMP_NUM_THREADS"] == "wrong"


def test_every_variable_of_an_activated_shell_is_checked() -> None:
    wanted = exported(module.ROOT / "activate")
    assert set(wanted) == {
        "FLWR_TELEMETRY_ENABLED", "FLWR_DISABLE_UPDATE_CHECK", "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION",
        "RAY_USAGE_STATS_ENABLED", "GRPC_ENABLE_FORK_SUPPORT",
        "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS",
    }  # fmt: skip
    assert set(verdicts(check_environment({}, wanted, 2))) == set(wanted)
    assert exported(Path("/no/such/file")) == {}


def test_the_superlink_that_flwr_starts_is_looked_for_by_name() -> None:
    assert check_path("/venv/bin/flower-superlink", Path("/venv/bin")).verdict == "ok"
    missing = check_path(None, Path("/venv/bin"))
    assert (missing.verdict, missing.found) == ("note", "not on PATH") and ". ./activate" in missing.remedy
    other = check_path("/usr/bin/flower-superlink", Path("/venv/bin"))
    assert other.verdict == "note" and "/venv/bin" in other.remedy


def test_what_flwr_run_left_is_found_with_the_command_that_ends_it() -> None:
    assert verdicts(check_background({}, WANTED)) == {"left by flwr run": "ok"}
    (left,) = check_background({7: WANTED | {"HOME": "/root", "OMP_NUM_THREADS": "2"}}, WANTED)
    assert (left.verdict, left.remedy) == ("note", "the next `flwr run .` uses it; to end it: kill 7")
    # A later run would have the variables of the process, not those of its own shell.
    (loud,) = check_background({7: WANTED | {"FLWR_TELEMETRY_ENABLED": "1"}}, WANTED)
    assert loud.verdict == "wrong"
    assert loud.remedy.startswith("it was started without FLWR_TELEMETRY_ENABLED: kill 7,")


def test_a_local_superlink_is_found_among_the_processes(tmp_path: Path) -> None:
    words = [
        "flower-superlink",
        "--simulation",
        "--log-file",
        str(tmp_path / LOCAL_LOG),
        "--log-rotation-backup-count",
        "7",
    ]
    with subprocess.Popen([sys.executable, "-c", "input()", *words], env=WANTED, stdin=subprocess.PIPE) as process:
        try:
            # The command line of a process that has just begun may still be empty.
            assert wait(lambda: process.pid in background(), 10)
            assert background()[process.pid].items() >= WANTED.items()
        finally:
            process.kill()
    assert process.pid not in background()


def test_docker_is_never_wrong() -> None:
    nothing: Callable[[list[str]], str | None] = lambda words: None  # noqa: E731
    assert verdicts(check_docker(lambda name: None, nothing)) == {"docker": "note"}
    assert verdicts(check_docker(lambda name: "/bin/docker", nothing)) == {"docker": "ok", "docker compose": "ok"}
    broken = list(check_docker(lambda name: "/bin/docker", lambda words: "no daemon"))
    assert [one.verdict for one in broken] == ["note", "note"]


def test_either_command_of_compose_will_do() -> None:
    def without_plugin(words: list[str]) -> str | None:
        return "unknown command" if words == ["/bin/docker", "compose", "version"] else None

    both = verdicts(check_docker(lambda name: f"/bin/{name}", without_plugin))
    assert both == {"docker": "ok", "docker compose": "ok"}
    neither = check_docker(lambda name: "/bin/docker" if name == "docker" else None, without_plugin)
    assert verdicts(neither) == {"docker": "ok", "docker compose": "note"}


def test_strays() -> None:
    marks = {11: "10:1", 12: "10:1", 21: "20:5"}
    assert check_strays(marks, lambda pid: True).verdict == "ok"
    stray = check_strays(marks, lambda pid: pid == 20)
    assert (stray.verdict, stray.remedy) == ("wrong", "kill 11 12")
    assert check_strays({}, is_alive).found == "nothing"
    assert is_alive(os.getpid())


@pytest.fixture
def healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever runs beside the tests must not decide how they end."""
    monkeypatch.setattr(module, "is_free", lambda port: True)
    monkeypatch.setattr(module, "available_memory", lambda: 8 * GIB)
    monkeypatch.setattr("flower.launch.marks", dict)
    monkeypatch.setattr("flower.launch.background", dict)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("COLUMNS", "200")


@pytest.mark.usefixtures("healthy")
def test_the_command_on_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    doctor()
    lines = capsys.readouterr().out
    assert all(name in lines for name in ("flwr", "Box2D", "port 9092", "disk here", "docker"))
    doctor(as_json=True)
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] and not report["wrong"]
    assert {"name": "flwr", "found": "1.34.0", "verdict": "ok", "remedy": ""} in report["findings"]


@pytest.mark.usefixtures("healthy")
def test_the_command_fails_with_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "available_memory", lambda: 1)
    with pytest.raises(Failure, match=r"wrong here: memory"):
        doctor(as_json=True)
    assert json.loads(capsys.readouterr().out)["wrong"] == ["memory"]


def test_typer_takes_it() -> None:
    app = typer.Typer()
    app.command()(doctor)
    with pytest.raises(SystemExit) as caught:
        app(["--help"])
    assert not caught.value.code
