"""``fedrl conf``: list the keys that a conf may hold."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.screen import Plugins, show_table
from core.errors import Mistake


def conf(
    prefix: Annotated[str, typer.Argument(help="Show only keys that begin with this, such as ppo.")] = "",
    plugin: Plugins = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the keys as one JSON array.")] = False,
) -> None:
    """List the keys that a conf may hold, each with its default, its range and its meaning."""
    from core import modules, registry
    from core.options import keys
    from runs.config import assembled

    modules.look_in(Path.cwd())
    registry.load([*registry.installed(), *(plugin or ())])
    found = [key for key in keys(assembled()) if key.name.startswith(prefix)]
    if not found:
        raise Mistake(f"no key begins with '{prefix}': `fedrl conf` lists all keys")
    if as_json:
        print(json.dumps([asdict(key) for key in found]))
        return
    rows = [(key.name, written(key.default), key.kind, key.range, key.sentence) for key in found]
    show_table(("key", "default", "kind", "range", "meaning"), rows)


def written(default: Any) -> str:
    """Return a default as ``--set`` takes it."""
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return ",".join(map(str, default)) or "[]"
    return str(default) or '""'
