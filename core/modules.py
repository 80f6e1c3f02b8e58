"""Where a user's modules are found: plugins, and the worlds of ``my_worlds:X-v0``.

Installed packages come first, then the folders that the process was told of: that of the conf, and the working
directory. Child processes inherit the folders by an environment variable. A run that is sent over a network cannot
change them.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from core.errors import Mistake

FOLDERS = "FEDRL_PATH"


def folders() -> list[str]:
    """Return the folders in which modules are looked for, besides the installed packages."""
    return [folder for folder in os.environ.get(FOLDERS, "").split(os.pathsep) if folder]


def look_in(*more: Path) -> None:
    """Look for modules in these folders as well, here and in all processes that are started from now on."""
    known = [*folders(), *(str(folder.resolve()) for folder in more)]
    os.environ[FOLDERS] = os.pathsep.join(dict.fromkeys(known))


def find(module: str, what: str) -> None:
    """Let a module be imported; raises ``Mistake`` where it is nowhere. ``what`` says what it is for."""
    # At the end: a file in one of these folders hides no package that is installed.
    sys.path += [folder for folder in folders() if folder not in sys.path]
    package = module.partition(".")[0]
    if package not in sys.modules and (not package or find_spec(package) is None):
        places = " and ".join(["the installed packages", *folders()])
        raise Mistake(
            f"there is no module '{module}' for {what}: looked in {places}; put {package}.py beside the conf or into "
            "the working directory"
        )
