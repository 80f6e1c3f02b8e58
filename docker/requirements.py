"""What the image installs: the dependencies of pyproject.toml, without what only simulations, bf16 and films need.

``full`` as an argument names everything. Ray and torch are three quarters of an installation and a codec a fifth of the
rest; no node of a deployment runs any of them, unless its conf says ``precision = "bf16"``.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

LEFT_OUT = ("torch", "imageio-ffmpeg")

wanted = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["dependencies"]
if sys.argv[1:] != ["full"]:
    wanted = [
        line.replace("flwr[simulation]", "flwr") for line in wanted if re.split(r"[^\w-]", line)[0] not in LEFT_OUT
    ]
print("\n".join(wanted))
