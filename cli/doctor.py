"""``fedrl doctor``: what is installed, whether it fits, and what to do about problems.

A check is a function of what it looks at, so that a test can pass it something broken.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from cli.environment import check_docker, check_environment, check_path, exported
from cli.findings import Finding, failure
from cli.machine import (
    PORTS,
    available_cores,
    available_memory,
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
from cli.packages import BOX2D_WORLD, check_box2d, check_extras, check_packages, check_python, installed, read_pins
from cli.screen import show_table
from core.errors import Failure

ROOT = Path(__file__).resolve().parents[1]
STYLE = {"ok": "green", "note": "yellow", "wrong": "bold red"}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as one JSON object.")] = False,
) -> None:
    """Check what is installed and how this machine is set up, and say how to mend what is wrong."""
    findings = list(check_all())
    wrong = [finding.name for finding in findings if finding.verdict == "wrong"]
    if as_json:
        print(json.dumps({"ok": not wrong, "wrong": wrong, "findings": [asdict(finding) for finding in findings]}))
    else:
        show(findings)
    if wrong:
        raise Failure(f"wrong here: {', '.join(wrong)}")


def check_all() -> Iterator[Finding]:
    """Yield the findings of all checks."""
    from flower.launch import background, marks

    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    yield check_python(project["requires-python"], ".".join(map(str, sys.version_info[:3])))
    yield from check_packages(project, read_pins(ROOT / "constraints.txt"), installed)
    yield from check_extras(project["optional-dependencies"], installed)
    yield check_box2d(failure([sys.executable, "-c", BOX2D_WORLD]))
    yield check_cores(available_cores(), os.getloadavg()[0])
    yield check_memory(available_memory())
    for name, folder in (("disk here", Path.cwd()), ("disk for temporary files", Path(tempfile.gettempdir()))):
        yield check_disk(name, folder, shutil.disk_usage(folder).free)
    yield from (check_port(port, is_free, holder) for port in PORTS)
    yield check_path(shutil.which("flower-superlink"), Path(sys.executable).parent)
    yield from check_environment(os.environ, exported(ROOT / "activate"), available_cores())
    yield from check_docker(shutil.which, failure)
    yield check_strays(marks(), is_alive)
    yield from check_background(background(), exported(ROOT / "activate"))


def show(findings: Iterable[Finding]) -> None:
    """Print the findings as a table."""
    rows = [(one.name, one.found, Text(one.verdict, STYLE[one.verdict]), one.remedy) for one in findings]
    show_table(("check", "found", "verdict", "what to do"), rows)
