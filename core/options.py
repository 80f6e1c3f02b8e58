"""Options of a run, each declared once: a dataclass field with a default, a range and a sentence.

The TOML file, ``--set key=value``, Flower's ``run_config`` and ``fedrl conf`` are derived from the dataclass. Keys are
written with dashes (``learning-rate``). An unknown key or a value out of range is refused before anything starts.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass
from typing import Any, TypeVar, get_type_hints

from core import registry
from core.errors import Mistake

T = TypeVar("T")
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
# The text for None, which stands for a whole number that the program chooses.
AUTO = "auto"


def option(
    default: Any,
    sentence: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] = (),
    registered: str = "",
    number_too: bool = False,
    json_too: bool = False,
) -> Any:
    """Return a field of a configuration dataclass: ``low`` and ``high`` are allowed, ``above`` is not.

    ``registered`` is a kind of the registry whose names are allowed besides ``choices``. ``number_too``: a text that
    may be given as a number, for a key that is a word or a number. ``json_too``: a text that may be given as a list or
    a table; it is kept as JSON.
    """
    meta = {"sentence": sentence, "low": low, "high": high, "above": above, "choices": choices}
    meta |= {"number_too": number_too, "json_too": json_too, "registered": registered}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=meta)
    return dataclasses.field(default=default, metadata=meta)


def table(kind: type[Any]) -> Any:
    """Return a field that is itself a configuration dataclass: a table of the TOML file."""
    return dataclasses.field(default_factory=kind)


def dashed(name: str) -> str:
    """Return the key of a field: its name with dashes."""
    return name.replace("_", "-")


def build(kind: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """Return a ``kind`` from a table of values; raises ``Mistake`` naming the key, the value and what is allowed."""
    types = get_type_hints(kind)
    fields = {dashed(f.name): f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    made: dict[str, Any] = {}
    for key, value in values.items():
        full = f"{prefix}{key}"
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"; did you mean '{prefix}{near[0]}'?" if near else ""
            raise Mistake(f"unknown key '{full}'{hint} (allowed: {', '.join(sorted(fields))})")
        field = fields[key]
        wanted = types[field.name]
        if dataclasses.is_dataclass(wanted):
            if not isinstance(value, Mapping):
                raise Mistake(f"'{full}' is a table, not {value!r}")
            made[field.name] = build(wanted, value, f"{full}.")  # type: ignore[arg-type]
        else:
            made[field.name] = _checked(full, field, wanted, value)
    return kind(**made)


def _checked(full: str, field: Field[Any], wanted: Any, value: Any) -> Any:
    """Return a value converted to the type of its field; refuses one that is not allowed."""
    meta = field.metadata
    if meta.get("number_too") and isinstance(value, int | float) and not isinstance(value, bool):
        value = repr(value)
    if meta.get("json_too") and isinstance(value, list | Mapping):
        value = _as_json(full, value)
    value = _converted(full, wanted, value)
    if (allowed_words := choices(meta)) and value not in allowed_words:
        near = difflib.get_close_matches(str(value), allowed_words, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        more = " (a plugin adds others: --plugin)" if meta.get("registered") else ""
        raise Mistake(f"'{full}' is one of {', '.join(allowed_words)}, not {value!r}{hint}{more}")
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int | float) and not _inside(number, meta):
            raise Mistake(f"'{full}' must be {allowed(field)}, not {number}")
    return value


def _converted(full: str, wanted: Any, value: Any) -> Any:
    """Return ``value`` as the declared type. Texts come from the command line and from Flower's flat run_config."""
    if wanted == int | None:
        return None if value == AUTO else _whole(full, value)
    if wanted == tuple[int, ...]:
        parts = [p for p in value.split(",") if p.strip()] if isinstance(value, str) else value
        if isinstance(parts, int):
            parts = [parts]
        try:
            whole = tuple(int(p) for p in parts)
            if isinstance(parts, Mapping) or any(isinstance(p, bool) or float(p) != int(p) for p in parts):
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            raise Mistake(f"'{full}' is a list of whole numbers such as 64,64, not {value!r}") from None
        return whole
    if wanted == tuple[str, ...]:
        texts = [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        if not isinstance(texts, list | tuple) or not all(isinstance(part, str) for part in texts):
            raise Mistake(f"'{full}' is a list of texts, not {value!r}")
        return tuple(texts)
    if wanted == dict[str, Any]:
        if isinstance(value, str):
            try:
                value = json.loads(value) if value.strip() else {}
            except json.JSONDecodeError:
                raise Mistake(f"'{full}' is a table (JSON when given as text), not {value!r}") from None
        if not isinstance(value, Mapping):
            raise Mistake(f"'{full}' is a table, not {value!r}")
        return dict(value)
    if wanted is bool and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if wanted in (int, float) and isinstance(value, str):
        try:
            # a float cannot hold a long seed
            value = int(value) if wanted is int and value.strip().lstrip("+-").isdecimal() else float(value)
        except ValueError:
            raise Mistake(f"'{full}' is {_KINDS[wanted]}, not {value!r}") from None
    if wanted is int and isinstance(value, float) and math.isfinite(value) and value == int(value):
        value = int(value)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not wanted or (wanted is float and not math.isfinite(value)):
        raise Mistake(f"'{full}' is {_KINDS[wanted]}, not {value!r}")
    return value


def choices(meta: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the words that a field may hold; none if it may hold any."""
    kind = meta.get("registered")
    return (*meta.get("choices", ()), *(registry.names(kind) if kind else ()))


def _as_json(full: str, value: Any) -> str:
    """Return a list or a table as JSON, which Flower's flat run_config can hold."""
    try:
        return json.dumps(value, separators=(",", ":"))
    except (TypeError, RecursionError):  # TOML has dates, JSON has none
        raise Mistake(f"'{full}' holds lists, tables, numbers and texts, not {value!r}") from None


def _whole(full: str, value: Any) -> int:
    """Return the value of a key that is a whole number or ``auto``."""
    try:
        return int(_converted(full, int, value))
    except Mistake:
        raise Mistake(f"'{full}' is {_KINDS[int]} or {AUTO}, not {value!r}") from None


def _inside(number: float, meta: Mapping[str, Any]) -> bool:
    low, high, above = meta.get("low"), meta.get("high"), meta.get("above")
    return (low is None or number >= low) and (high is None or number <= high) and (above is None or number > above)


def allowed(field: Field[Any]) -> str:
    """Return the range of a field in words: 'at least 0 and at most 1'."""
    meta = field.metadata
    if words := choices(meta):
        return "one of " + ", ".join(words)
    bounds = [("at least", meta.get("low")), ("above", meta.get("above")), ("at most", meta.get("high"))]
    return " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)


def flatten(config: Any, prefix: str = "") -> dict[str, bool | int | float | str]:
    """Return every key of a configuration as Flower's run_config takes it: dotted keys, scalar values."""
    flat: dict[str, bool | int | float | str] = {}
    for field in dataclasses.fields(config):
        value, key = getattr(config, field.name), prefix + dashed(field.name)
        if dataclasses.is_dataclass(value):
            flat |= flatten(value, key + ".")
        elif isinstance(value, tuple):
            flat[key] = ",".join(map(str, value))
        elif isinstance(value, dict):
            flat[key] = json.dumps(value) if value else ""
        else:
            flat[key] = AUTO if value is None else value
    return flat


def nested(config: Any) -> dict[str, Any]:
    """Return every key of a configuration as a TOML file holds it, with tables and lists."""
    made: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            value = nested(value)
        value = AUTO if value is None else value
        made[dashed(field.name)] = list(value) if isinstance(value, tuple) else value
    return made


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested table of dotted keys; its values stay scalars."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *tables, last = key.split(".")
        here = nested
        for name in tables:
            inner = here.setdefault(name, {})
            if not isinstance(inner, dict):
                raise Mistake(f"'{key}' needs the table '{name}', which is already the value {inner!r}")
            here = inner
        if last in here:
            raise Mistake(f"'{key}' is given as a value and as a table")
        here[last] = value
    return nested


def override(values: Mapping[str, Any], settings: list[str]) -> dict[str, Any]:
    """Return a table with ``key=value`` texts put into it; a dotted key goes into a nested table."""
    merged = copy.deepcopy(dict(values))
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key.strip():
            raise Mistake(f"'{setting}' is not key=value, such as ppo.learning-rate=0.001")
        *tables, last = key.strip().split(".")
        here = merged
        for name in tables:
            here = here.setdefault(name, {})
            if not isinstance(here, dict):
                raise Mistake(f"'{key}' needs the table '{name}', which is a value")
        here[last] = _literal(value.strip())
    return merged


def _literal(text: str) -> Any:
    """Return the JSON value of a text, or the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


@dataclass(frozen=True)
class Key:
    """One key of a configuration, for ``--help`` and the docs."""

    name: str
    kind: str
    default: Any
    range: str
    sentence: str
    choices: tuple[str, ...] = ()


def keys(kind: type[Any], prefix: str = "") -> Iterator[Key]:
    """Yield every key of a configuration with its default, range and sentence."""
    types = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        wanted, name = types[field.name], prefix + dashed(field.name)
        if dataclasses.is_dataclass(wanted):
            yield from keys(wanted, name + ".")  # type: ignore[arg-type]
            continue
        default = field.default if field.default is not MISSING else {}
        default = AUTO if default is None else default
        kinds: dict[Any, str] = {
            tuple[int, ...]: "list of int", tuple[str, ...]: "list of str", dict[str, Any]: "table",
            int | None: "int or auto",
        }  # fmt: skip
        label, meta = kinds.get(wanted, getattr(wanted, "__name__", "")), field.metadata
        yield Key(name, label, default, allowed(field), meta.get("sentence", ""), choices(meta))
