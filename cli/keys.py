"""``fedrl conf``: every key that a conf may hold."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli.screen import show_table
from core.errors import Mistake


def conf(
    prefix: Annotated[str, typer.Argument(help="Only the keys that begin so, such as ppo.")] = "",
) -> None:
    """Every key that a conf may hold: its default, its range, its sentence."""
    from client.session import RunConfig
    from core.config import keys

    found = [key for key in keys(RunConfig) if key.name.startswith(prefix)]
    if not found:
        raise Mistake(f"no key begins with '{prefix}'")
    rows = [(key.name, written(key.default), key.kind, key.range, key.sentence) for key in found]
    show_table(("key", "default", "kind", "range", "meaning"), rows)


def written(default: Any) -> str:
    """A default as ``--set`` takes it."""
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return ",".join(map(str, default)) or "[]"
    return str(default) or '""'
