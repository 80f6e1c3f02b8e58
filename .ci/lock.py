"""Writes constraints.txt: every package that an install with any extra may bring, at one version. Run by `make lock`.

Resolves twice, because torch has two builds: with pip as this machine is set up (often the CPU build), and with pip as
it comes (on Linux the CUDA build, which brings some twenty more packages). The second keeps to what the first found.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Chosen, not the newest: what the published figures were measured with.
CHOSEN = ["torch==2.13.0"]
HEAD = """\
# Every direct and indirect dependency, with all extras, at one version. Written by `make lock`; not for hand edits.
# The build of torch (CPU or CUDA) is the index's choice; packages that an install does not need cost nothing here.
"""


def resolved(requirements: list[str], env: dict[str, str]) -> dict[str, str]:
    """Name -> version of what pip would install into an empty environment."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        subprocess.run([*pip, "--report", str(report), *requirements], check=True, env=env)
        found = json.loads(report.read_text())["install"]
    return {
        re.sub(r"[-_.]+", "-", one["metadata"]["name"]).lower(): one["metadata"]["version"].split("+")[0]
        for one in found
    }


def main() -> None:
    about = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = CHOSEN + about["project"]["dependencies"] + about["build-system"]["requires"]
    for extra in about["project"]["optional-dependencies"].values():
        wanted += extra
    # The constraints in force must not hold back the ones being made.
    here = {key: value for key, value in os.environ.items() if key not in ("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT")}
    pins = resolved(wanted, here)
    bare = {key: value for key, value in here.items() if key not in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL")}
    same = [f"{name}=={version}" for name, version in pins.items()]
    pins |= resolved(same, bare | {"PIP_CONFIG_FILE": os.devnull})
    lines = [f"{name}=={version}\n" for name, version in sorted(pins.items())]
    (ROOT / "constraints.txt").write_text(HEAD + "".join(lines))
    print(f"constraints.txt: {len(lines)} packages")


if __name__ == "__main__":
    main()
