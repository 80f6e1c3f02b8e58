"""The registry: everything that a conf can name, by kind and name.

Built-in things and a user's register in the same way, by the decorators of their rooms (``agents.agent``,
``strategies.strategy``, ...; ``fedrl`` has all of them). A thing may bring options of its own: dataclasses whose fields
are declared with ``core.options.option``. Each is a table of the conf.
"""

from __future__ import annotations

import difflib
import importlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass, replace
from importlib import metadata
from keyword import iskeyword
from typing import Any

from core import modules
from core.errors import Mistake

KINDS = ("agent", "strategy", "rule", "attack", "topology", "world")
GROUP = "fedrl.plugins"
BUILT_IN = "fedrl"
# The packages whose things are built in: all others are a user's.
_OURS = ("agents", "attacks", "core", "envs", "strategies", "runs", "client", "gossip", "server", "cli", "fedrl")
SCRIPT = "__main__"  # the home of what a script or a notebook registers by itself
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Thing:
    """A registered thing. ``tables`` are its options by table name, ``source`` is the plugin that brought it.

    ``home`` is the module whose code it is."""

    kind: str
    name: str
    value: Any
    tables: Mapping[str, type[Any]]
    source: str
    home: str


_TABLE = re.compile(r"[a-z][a-z0-9-]*")
_reserved: dict[str, type[Any] | None] = {}
_things: dict[tuple[str, str], Thing] = {}
_loading: list[str] = []
_plugins: dict[str, str] = {}  # names under which plugins were asked for -> their modules


def register(
    kind: str, name: str, value: Any, tables: Mapping[str, type[Any]] | None = None, home: str = BUILT_IN
) -> None:
    """Add a thing under its name; refuses a name, or a table, that another thing has. ``home`` is its module.

    A thing of a script or a notebook may be registered again: a cell is run more than once.
    """
    assert kind in KINDS, kind
    own = home.partition(".")[0] in _OURS
    source = BUILT_IN if own else _loading[-1] if _loading else home
    thing = Thing(kind, name, value, dict(tables or {}), source, home)
    if not _NAME.fullmatch(name):
        raise Mistake(f"{_who(thing)}: a name has letters, digits, '-', '_' and '.', such as 'my-{kind}'")
    other = _things.get((kind, name))
    if other is not None and not other.home == home == SCRIPT:
        raise Mistake(f"{_who(thing)}: {_who(other)} has that name already; choose another")
    for table, options in thing.tables.items():
        _check_table(thing, table, options, other)
    _things[kind, name] = thing


def reserve(tables: Mapping[str, type[Any] | None]) -> None:
    """Keep names of tables for keys of every run. A class that stands beside one may have it."""
    _reserved.update(tables)


def _check_table(thing: Thing, table: str, options: type[Any], replaced: Thing | None) -> None:
    if not is_dataclass(options):
        raise Mistake(f"{_who(thing)}: its options '{table}' are no dataclass (see fedrl.option)")
    if not _TABLE.fullmatch(table) or iskeyword(table):
        raise Mistake(
            f"{_who(thing)}: its options are the table [{table}], and the name of a table has small letters, digits "
            f"and '-', such as [my-{thing.kind}]: choose another name"
        )
    if _reserved.get(table, options) is not options:
        raise Mistake(f"{_who(thing)}: [{table}] is a key of every run, and cannot be its table: choose another name")
    for known in _things.values():
        if known is not replaced and known.tables.get(table, options) is not options:
            raise Mistake(f"{_who(thing)}: the table [{table}] belongs to {_who(known)} already: choose another name")


def get(kind: str, name: str, key: str = "") -> Thing:
    """The thing with this name; ``key`` is the option that named it, for the refusal."""
    if (kind, name) not in _things:
        near = difflib.get_close_matches(name, names(kind), n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise Mistake(
            f"'{key or kind}': there is no {kind} '{name}'{hint} (there are {', '.join(names(kind))}; "
            "a plugin adds others, see --plugin)"
        )
    return _things[kind, name]


def names(kind: str) -> tuple[str, ...]:
    """The names of a kind, in the order in which they were registered."""
    return tuple(thing.name for thing in _things.values() if thing.kind == kind)


def things(kind: str = "") -> list[Thing]:
    return [thing for thing in _things.values() if not kind or thing.kind == kind]


def tables() -> dict[str, type[Any]]:
    """The options of all things, by the name of their table."""
    return {name: options for thing in _things.values() for name, options in thing.tables.items()}


def _who(thing: Thing) -> str:
    whose = {BUILT_IN: "", SCRIPT: " of this script"}.get(thing.source, f" of the plugin {thing.source}")
    return f"the {thing.kind} '{thing.name}'{whose}"


# Plugins ------------------------------------------------------------------------------------------------------------


def installed() -> dict[str, str]:
    """The plugins of installed packages: entry points of the group ``fedrl.plugins``, name -> module."""
    return {point.name: point.value for point in metadata.entry_points(group=GROUP)}


def loaded() -> dict[str, str]:
    """The plugins of this process: the name that was asked for -> its module."""
    return dict(_plugins)


def load(plugins: Sequence[str]) -> None:
    """Import plugins, once each: module names, or names of installed ones. What they register is there afterwards."""
    known = installed() if set(plugins) - _plugins.keys() else {}
    for name in plugins:
        module = known.get(name, name)
        if name not in _plugins and module not in _plugins.values():
            with _loaded_from(name, module):
                _imported(name, module)
        _plugins.setdefault(name, module)


def _imported(name: str, module: str) -> None:
    if not all(part.isidentifier() for part in module.split(".")):
        raise Mistake(f"the plugin '{name}' is not the name of a Python module, such as lab.methods")
    modules.find(module, f"the plugin {name}")
    try:
        importlib.import_module(module)
    except Mistake as mistake:
        raise Mistake(f"the plugin {name} cannot be used: {mistake}") from None
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise Mistake(f"the plugin {name} cannot be imported: {reason} (--debug shows where)") from error
    brought = [key for key, thing in _things.items() if f"{thing.home}.".startswith(f"{module}.")]
    brought += [key for key, thing in _things.items() if thing.source == name and key not in brought]
    # A program may have imported the module by itself, before it was named as a plugin.
    _things.update({key: replace(_things[key], source=name) for key in brought})
    if not brought:
        raise Mistake(
            f"the plugin {name} registers nothing: decorate what it brings with fedrl.agent, fedrl.strategy, "
            "fedrl.rule, fedrl.attack, fedrl.topology or fedrl.world"
        )


@contextmanager
def _loaded_from(name: str, module: str) -> Iterator[None]:
    """What registers within the block is of this plugin. One that fails half way leaves nothing behind."""
    before, imported = dict(_things), set(sys.modules)
    _loading.append(name)
    try:
        yield
    except BaseException:
        _things.clear()
        _things.update(before)
        # A second try imports them anew. What was there before stays: another plugin of the package may be in use.
        package = module.partition(".")[0]
        for known in set(sys.modules) - imported:
            if f"{known}.".startswith(f"{package}."):
                del sys.modules[known]
        raise
    finally:
        _loading.pop()
