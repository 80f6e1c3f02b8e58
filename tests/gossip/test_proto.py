"""The schema: its stubs are those that it makes, and each of its entries has a sentence."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_stubs_are_current(tmp_path: Path) -> None:
    (rule,) = (line for line in (ROOT / "Makefile").read_text().splitlines() if "grpc_tools.protoc" in line)
    command = rule.replace("--python_out=.", f"--python_out={tmp_path}").replace("--pyi_out=.", f"--pyi_out={tmp_path}")
    command = command.replace("--grpc_python_out=.", f"--grpc_python_out={tmp_path}")
    subprocess.run([sys.executable, *command.split()[1:]], cwd=ROOT, check=True, timeout=60)
    made = sorted((tmp_path / "gossip").iterdir())
    assert len(made) == 3
    for path in made:
        assert path.read_bytes() == (ROOT / "gossip" / path.name).read_bytes(), f"make proto: {path.name}"


def test_every_entry_of_the_schema_has_a_sentence() -> None:
    before = ""
    entries = 0
    for line in (ROOT / "proto" / "gossip.proto").read_text().splitlines():
        if re.match(r"\s*(message|enum|service|rpc|oneof|\w+ \w+ = \d+;|\w+ = \d+;|repeated)", line):
            entries += 1
            assert before.startswith("//"), f"no sentence above: {line}"
            assert before.endswith((".", ":")), line
        before = line.strip()
    assert entries > 60


def test_the_folder_of_the_schema_is_no_package() -> None:
    """It would hide proto-plus, which other libraries import as proto."""
    assert not list((ROOT / "proto").glob("*.py"))
