"""Write every key of the configuration into pyproject.toml, where Flower looks for them: `make keys`."""

import re
import sys
from pathlib import Path

import tomli_w

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from core.options import unflatten  # noqa: E402
from runs.config import app_config  # noqa: E402

project = ROOT / "pyproject.toml"
written = tomli_w.dumps({"tool": {"flwr": {"app": {"config": unflatten(app_config())}}}})
keys = written[written.index("[tool.flwr.app.config]") :]
pattern = re.compile(r"\[tool\.flwr\.app\.config\]\n.*?(?=# end of the generated keys)", re.DOTALL)
project.write_text(pattern.sub(lambda _: keys, project.read_text()))
