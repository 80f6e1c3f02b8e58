"""The files of docs/extending.md in a folder outside the repository, and a registry that forgets them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium
import pytest

from core import modules, registry
from runs import digest
from runs.config import PLUGINS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text()
# What the page calls its files, and what they hold.
BLOCKS = {
    code.splitlines()[0].removeprefix("# "): code
    for code in re.findall(r"^```(?:python|toml)\n(# \S+\n.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
}


def write(folder: Path) -> Path:
    """Write the files of the page as a reader would."""
    for name, code in BLOCKS.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    return folder


@contextmanager
def apart(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in a folder; what is registered, imported and looked in until the end of the block is forgotten then."""
    imported, worlds = set(sys.modules), set(gymnasium.registry)
    with monkeypatch.context() as patched:
        patched.setattr(registry, "_things", dict(registry._things))
        patched.setattr(registry, "_plugins", {})
        patched.setenv(modules.FOLDERS, "")
        patched.setenv(PLUGINS, "")
        patched.setattr(sys, "path", list(sys.path))
        patched.chdir(folder)
        digest._of_module.cache_clear()
        yield folder
    for name in set(sys.modules) - imported:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(folder) or name == "lab":
            del sys.modules[name]
    for name in set(gymnasium.registry) - worlds:
        del gymnasium.registry[name]


def typed(*words: object, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own; the working directory is not on Python's path, as in the installed script."""
    command = [sys.executable, "-P", "-m", "cli.main", *map(str, words)]
    known = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"} | environ
    return subprocess.run(command, cwd=cwd, env=known, capture_output=True, text=True, timeout=400, check=False)


def python(code: str, cwd: Path, **environ: Any) -> subprocess.CompletedProcess[str]:
    """A script in a process of its own."""
    known = os.environ | {"PYTHONPATH": str(ROOT)} | environ
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=known, capture_output=True, text=True, timeout=400, check=False
    )
