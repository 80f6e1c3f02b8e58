"""What the image installs: the dependencies of pyproject.toml, without what only simulations and bf16 need.

``full`` as an argument names everything. Ray and torch are three quarters of an installation, and no node of a
deployment runs either, unless its conf says `precision = "bf16"`.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

wanted = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["dependencies"]
if sys.argv[1:] != ["full"]:
    wanted = [line.replace("flwr[simulation]", "flwr") for line in wanted if re.split(r"\W", line)[0] != "torch"]
print("\n".join(wanted))
