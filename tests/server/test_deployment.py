"""Steps 1, 2 and 4 of docs/deployment.md, typed as they stand there, with a SuperLink as the shipped unit starts it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from flower.launch import superlink

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/deployment.md").read_text()


def block(words: str) -> str:
    """The commands of the one block of the page that has these words."""
    (found,) = [text for text in re.findall(r"^```\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL) if words in text]
    return str(found)


def unit_options(keys: Path) -> list[str]:
    """What the unit gives to flower-superlink, but addresses and the database, with these certificates."""
    unit = (ROOT / "deploy/fedrl-superlink.service").read_text().replace("\\\n", " ")
    line = re.search(r"^ExecStart=\S+ (.*)$", unit, re.MULTILINE)
    assert line
    words = shlex.split(line[1].replace("/etc/fedrl", str(keys)))
    own = [k for k, word in enumerate(words) if word == "--database" or word.endswith("-address")]
    return [word for k, word in enumerate(words) if k not in own and k - 1 not in own]


def test_keys_are_registered_and_a_run_is_submitted_as_the_page_says(tmp_path: Path) -> None:
    keys, home = tmp_path / "keys", tmp_path / "home"
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = os.environ | {"PATH": path, "HOME": str(home), "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    env |= {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    env.pop("FLWR_HOME", None)
    home.mkdir()

    def typed(text: str, folder: Path = tmp_path) -> str:
        done = subprocess.run(["sh", "-ec", text], cwd=folder, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    typed(block("fedrl certs keys --server server.example,192.0.2.10 --nodes 0-2"))
    database = tmp_path / "fleet.sqlite"
    with superlink(tmp_path / "flower", options=unit_options(keys), database=database) as link:
        assert link.control.startswith("127.0.0.1:")
        here = block("[superlink.fleet]").replace("127.0.0.1:9093", link.control).replace("/etc/fedrl", str(keys))
        typed(here)
        said = typed(block("flwr supernode register"))
        assert said.count("registered successfully") == 3
        assert said.rpartition("Listing")[2].count("registered") == 3
        run = block("flwr run . fleet").splitlines()[-1].partition(" && ")[2]
        run = run.replace(" --stream", "").replace("/var/lib/fedrl/out", str(tmp_path))
        assert "Successfully started run" in typed(run, ROOT)
