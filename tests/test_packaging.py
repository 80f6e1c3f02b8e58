"""The project file, the constraints, the Makefile and the units say the same, and what they say holds."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from flower.launch import QUIET

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
)


def direct() -> list[str]:
    extras: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
    found: list[str] = PROJECT["project"]["dependencies"] + PROJECT["build-system"]["requires"]
    return found + [requirement for extra in extras.values() for requirement in extra]


def closure(texts: list[str]) -> Iterator[Requirement]:
    """These requirements and, as far as they are installed, what they require in turn."""
    waiting, seen = [Requirement(text) for text in texts], set[str]()
    while waiting:
        requirement = waiting.pop()
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        yield requirement
        try:
            inner = map(Requirement, metadata.requires(requirement.name) or [])
        except metadata.PackageNotFoundError:
            continue
        for one in inner:
            if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in {"", *requirement.extras}):
                waiting.append(one)


def test_constraints_pin_every_dependency_within_its_range() -> None:
    for requirement in closure(direct()):
        name = canonicalize_name(requirement.name)
        assert name in PINS, f"{name} is not in constraints.txt; run make lock"
        assert requirement.specifier.contains(PINS[name], prereleases=True), f"{requirement} refuses {PINS[name]}"


def test_constraints_name_versions_and_nothing_else() -> None:
    """No index, no address, and no local version such as +cpu, which only some indexes have."""
    for name, version in PINS.items():
        assert name == canonicalize_name(name)
        assert Version(version).local is None
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert not [line for line in lines if line.startswith("-") or "://" in line or " @ " in line]
    assert PINS["torch"] == "2.13.0"
    assert PINS["flwr"] == "1.34.0"


def test_certifi_is_newer_than_the_release_that_is_reported_to_trust_a_compromised_authority() -> None:
    assert Version(PINS["certifi"]) > Version("2026.10.18")


def test_what_is_said_of_packages_with_open_advisories_holds() -> None:
    page = (ROOT / "SECURITY.md").read_text()
    rows = re.findall(r"^\| ([a-z0-9-]+) (\d[\w.]*) \| .*((?:CVE|GHSA)-\S+)", page, re.MULTILINE)
    assert {name for name, _, _ in rows} == {"cryptography", "ray"}
    assert [name for name, version, _ in rows if PINS[name] != version] == []
    kept = {need.name: need.specifier for need in map(Requirement, metadata.requires("flwr") or [])}
    assert "47.0.0" not in kept["cryptography"] and "2.55.2" not in kept["ray"] and PINS["ray"] in kept["ray"]
    ours = [path for name in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
            for path in (ROOT / name).rglob("*.py")]  # fmt: skip
    theirs = [Path(str(file.locate())) for file in metadata.files("flwr") or [] if file.suffix == ".py"]
    assert len(ours) > 50 and len(theirs) > 100
    reached = re.compile(r"pkcs7|pkcs12|x509\.verification|torch\.(?:load|export|jit)\b")
    assert [str(path) for path in ours + theirs if reached.search(path.read_text())] == []
    backend = next(path for path in theirs if path.name == "raybackend.py").read_text()
    assert 'setdefault("include_dashboard", False)' in backend
    assert "include_dashboard" not in "".join(path.read_text() for path in ours)


def test_every_folder_of_ours_is_packaged_and_typed() -> None:
    aside = {"tests", "benchmarks", "docs", "docker"}
    found = {path.parent.name for path in ROOT.glob("[a-z]*/__init__.py")} - aside
    assert set(PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) == found
    assert set(PROJECT["tool"]["mypy"]["packages"]) == found | {"benchmarks"}


def test_version_pins_of_tools_agree() -> None:
    for text in (*PROJECT["project"]["optional-dependencies"]["dev"], *PROJECT["build-system"]["requires"]):
        pinned = re.fullmatch(r"([a-z-]+)==([\d.]+)", text)
        if pinned:
            assert PINS[pinned[1]] == pinned[2]


@pytest.fixture
def makefile(tmp_path: Path) -> Path:
    for name in ("Makefile", "activate"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)


def test_make_alone_lists_every_target(makefile: Path) -> None:
    said = make(makefile).stdout
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony
    assert all(f"make {target} " in said for target in phony[1].split())


def test_make_refuses_an_old_python_in_a_sentence(makefile: Path) -> None:
    old = makefile / "old-python"
    old.write_text("#!/bin/sh\nexit 1\n")  # what a Python older than 3.11 answers to the question
    old.chmod(0o755)
    done = make(makefile, ".venv/python", f"PYTHON={old}")
    assert done.returncode
    assert "needs Python 3.11 or newer" in done.stderr
    assert not (makefile / ".venv").exists()


def variables(text: str) -> dict[str, str]:
    """The variables of Flower, Ray, gRPC and thread pools that this text (`env`, a unit, a Dockerfile) sets."""
    return dict(re.findall(r"\b((?:FLWR_(?!HOME|LOG)|RAY_|GRPC_|OMP_|OPENBLAS_|MKL_)[A-Z_]+)=(\S+)", text))


def test_a_bare_shell_is_activated_and_has_the_variables_of_the_makefile(makefile: Path) -> None:
    bare = {"PATH": "/usr/bin:/bin", "HOME": str(makefile)}
    found = subprocess.run(
        ["sh", "-c", ". ./activate && for name in fedrl flwr flower-superlink; do command -v $name; done && env"],
        cwd=ROOT, env=bare, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert len(re.findall(r"^/.*/bin/(?:fedrl|flwr|flower-superlink)$", found, re.MULTILINE)) == 3
    (makefile / "show.mk").write_text("include Makefile\nshow:\n\t@env\n")
    shown = subprocess.run(
        ["make", "-C", str(makefile), "-f", "show.mk", "show"], env=bare, capture_output=True, text=True, check=True
    ).stdout
    assert variables(found) == variables(shown)
    assert variables(found) == variables((ROOT / "activate").read_text())
    assert len(variables(found)) == 8


def test_units_image_and_launcher_set_the_values_of_the_activated_shell() -> None:
    home = variables((ROOT / "activate").read_text())
    units = [path.read_text() for path in (ROOT / "deploy").iterdir()]
    for text in (*units, (ROOT / "docker" / "Dockerfile").read_text()):
        assert variables(text).items() <= home.items()
    assert home.items() >= QUIET.items()
    assert variables((ROOT / "deploy" / "fedrl-superlink.service").read_text()).items() >= QUIET.items()


def test_activate_says_what_to_do_where_nothing_is_set_up(makefile: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", ". ./activate; echo $?"], cwd=makefile, capture_output=True, text=True, check=True
    )
    assert done.stdout == "1\n"
    assert "run 'make setup'" in done.stderr


@pytest.mark.parametrize("unit", sorted(path.name for path in (ROOT / "deploy").iterdir()))
def test_what_a_unit_starts_takes_its_options(unit: str) -> None:
    text = (ROOT / "deploy" / unit).read_text().replace("\\\n", " ")
    line = re.search(r"^ExecStart=/opt/fedrl/.venv/bin/(.*)$", text, re.MULTILINE)
    assert line
    name, *words = line[1].split()
    command = [words[0]] if name == "fedrl" else []
    program = [sys.executable, "-m", "cli.main"] if name == "fedrl" else [str(Path(sys.executable).parent / name)]
    wide = os.environ | {"COLUMNS": "200", "TERMINAL_WIDTH": "200"}
    help_text = subprocess.run(
        [*program, *command, "--help"], cwd=ROOT, env=wide, capture_output=True, text=True
    ).stdout
    options = {word for word in words if word.startswith("--")}
    assert options
    assert options <= set(re.findall(r"--[a-z-]+", help_text))


@pytest.mark.parametrize("unit", sorted(path.name for path in (ROOT / "deploy").iterdir()))
def test_systemd_finds_nothing_to_say_about_a_unit(unit: str, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    # With programs that are there: nothing is in /opt where tests run.
    text = re.sub(r"/opt/fedrl/\.venv/bin/\S+(?= )", "/bin/true", (ROOT / "deploy" / unit).read_text())
    (tmp_path / unit).write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", tmp_path / unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_skip_is_a_failure_where_none_is_expected(tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text("import pytest\ndef test_one():\n    pytest.skip('no docker')\n")
    words = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "--rootdir", str(tmp_path), str(tmp_path)]
    for no_skips, code, said in (("", 0, "1 skipped"), ("1", 1, "was left out: no docker")):
        env = os.environ | {"NO_SKIPS": no_skips}
        done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == code and said in done.stdout, done.stdout + done.stderr
