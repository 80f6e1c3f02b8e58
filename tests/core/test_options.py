"""A hyper-parameter is declared once; whatever is given instead is checked before anything starts."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from core.errors import Mistake
from core.options import Key, allowed, build, flatten, keys, nested, option, override, table, unflatten

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Inner:
    """A table inside."""

    learning_rate: float = option(1e-3, "Step size.", above=0, high=1)
    hidden: tuple[int, ...] = option((64, 64), "Layers.", low=1, high=4096)


@dataclass(frozen=True)
class Outer:
    """A configuration with every kind of key."""

    name: str = option("ppo", "Which one.", choices=("ppo", "td3", "policy-gradient"))
    note: str = option("", "Free text.")
    sigma: str = option("auto", "A word or a number.", number_too=True)
    agents: int = option(1, "How many.", low=1, high=1000)
    work: int | None = option(None, "A whole number, or what fits.", low=0)
    seed: int = option(0, "Any whole number.")
    scale: float = option(1.0, "Any number.")
    greedy: bool = option(False, "Whether.")
    physics: dict[str, Any] = option({}, "By name.")
    inner: Inner = table(Inner)


def configurations() -> list[tuple[str, str]]:
    """(module, class) of every configuration dataclass of the project, found in the source."""
    found = []
    for folder in ("envs", "agents", "strategies", "client", "server", "runs", "cli"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ClassDef) and node.name.endswith("Config") and node.decorator_list:
                    found.append((module, node.name))
    return found


class TestEveryConfiguration:
    def test_they_are_found(self) -> None:
        assert {("envs.worlds", "WorldConfig"), ("agents.td3_config", "TD3Config")} <= set(configurations())

    @pytest.mark.parametrize(("module", "name"), configurations(), ids=[".".join(found) for found in configurations()])
    def test_round_trip(self, module: str, name: str) -> None:
        """The defaults are allowed, and survive Flower's flat run_config and texts from a command line."""
        kind = getattr(importlib.import_module(module), name)
        flat = flatten(kind())
        assert build(kind, unflatten(flat)) == kind()
        texts = {key: str(value) for key, value in flat.items()}
        assert build(kind, unflatten(texts)) == kind()

    @pytest.mark.parametrize(("module", "name"), configurations(), ids=[".".join(found) for found in configurations()])
    def test_every_key_says_what_it_is(self, module: str, name: str) -> None:
        kind = getattr(importlib.import_module(module), name)
        listed = list(keys(kind))
        assert [key.name for key in listed] == list(flatten(kind()))
        for key in listed:
            assert key.sentence.endswith("."), key.name
            assert key.kind in {"int", "int or auto", "float", "bool", "str", "list of int", "list of str", "table"}, (
                key.name
            )
            assert "_" not in key.name


def refused(values: dict[str, Any]) -> str:
    with pytest.raises(Mistake) as caught:
        build(Outer, values)
    return str(caught.value)


class TestRefusals:
    def test_an_unknown_key_gets_a_suggestion(self) -> None:
        assert "unknown key 'agent'; did you mean 'agents'?" in refused({"agent": 3})
        assert "did you mean 'inner.learning-rate'?" in refused({"inner": {"learning_rate": 0.1}})

    def test_an_unknown_key_without_likeness_lists_what_there_is(self) -> None:
        said = refused({"xyzzy": 1})
        assert "did you mean" not in said
        assert "agents, greedy, inner" in said

    @pytest.mark.parametrize(
        ("values", "said"),
        [
            ({"agents": 0}, "'agents' must be at least 1 and at most 1000, not 0"),
            ({"agents": 1001}, "'agents' must be at least 1 and at most 1000, not 1001"),
            ({"inner": {"learning-rate": 0.0}}, "'inner.learning-rate' must be above 0 and at most 1, not 0.0"),
            ({"inner": {"learning-rate": 1.5}}, "above 0 and at most 1, not 1.5"),
            ({"inner": {"hidden": [64, 0]}}, "'inner.hidden' must be at least 1 and at most 4096, not 0"),
            ({"name": "pp"}, "'name' is one of ppo, td3, policy-gradient, not 'pp'; did you mean 'ppo'?"),
        ],
    )
    def test_out_of_range(self, values: dict[str, Any], said: str) -> None:
        assert said in refused(values)

    @pytest.mark.parametrize("value", [1.5, "x", "1.5", True, None, [1], {}, math.inf, math.nan, "inf", "--1", ""])
    def test_not_a_whole_number(self, value: Any) -> None:
        assert "'agents' is a whole number, not " in refused({"agents": value})

    @pytest.mark.parametrize("value", ["x", "Auto", 1.5, True, None, [1], {}, math.nan, ""])
    def test_neither_a_whole_number_nor_auto(self, value: Any) -> None:
        assert refused({"work": value}).startswith("'work' is a whole number or auto, not ")

    @pytest.mark.parametrize(("value", "meant"), [("auto", None), (0, 0), ("7", 7), (7.0, 7)])
    def test_auto_or_a_whole_number(self, value: Any, meant: int | None) -> None:
        config = build(Outer, {"work": value})
        assert config.work == meant
        assert nested(config)["work"] == flatten(config)["work"] == ("auto" if meant is None else meant)

    @pytest.mark.parametrize("value", ["x", True, None, [1.0], math.nan, math.inf, "nan", "-inf"])
    def test_not_a_number(self, value: Any) -> None:
        assert "'scale' is a number, not " in refused({"scale": value})

    @pytest.mark.parametrize("value", [0, 1, "yes", "1", None, 1.0])
    def test_not_true_or_false(self, value: Any) -> None:
        assert "'greedy' is true or false, not " in refused({"greedy": value})

    def test_a_word_or_a_number(self) -> None:
        assert [build(Outer, {"sigma": value}).sigma for value in ("auto", 0.06, 3)] == ["auto", "0.06", "3"]
        assert "'sigma' is a text, not " in refused({"sigma": True})

    @pytest.mark.parametrize("value", [3, None, True, ["a"]])
    def test_not_a_text(self, value: Any) -> None:
        assert "'note' is a text, not " in refused({"note": value})

    @pytest.mark.parametrize(
        "value", ["64,x", "64,1.5", [1.5], True, [True], None, 1.5, {}, {"64": 1}, [math.inf], [[64]]]
    )
    def test_not_a_list_of_whole_numbers(self, value: Any) -> None:
        assert "'inner.hidden' is a list of whole numbers" in refused({"inner": {"hidden": value}})

    @pytest.mark.parametrize("value", ["{", "3", "[1]", 3, None, [1]])
    def test_not_a_table(self, value: Any) -> None:
        assert "'physics' is a table" in refused({"physics": value})
        assert "'inner' is a table" in refused({"inner": value})


class TestConversions:
    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            ({"greedy": "true"}, Outer(greedy=True)),
            ({"greedy": "False"}, Outer(greedy=False)),
            ({"agents": "12"}, Outer(agents=12)),
            ({"agents": "1e2"}, Outer(agents=100)),
            ({"agents": 3.0}, Outer(agents=3)),
            ({"seed": "-9007199254740993"}, Outer(seed=-9007199254740993)),
            ({"scale": 2}, Outer(scale=2.0)),
            ({"scale": "1e-3"}, Outer(scale=1e-3)),
            ({"inner": {"hidden": "32, 16"}}, Outer(inner=Inner(hidden=(32, 16)))),
            ({"inner": {"hidden": "32,"}}, Outer(inner=Inner(hidden=(32,)))),
            ({"inner": {"hidden": ""}}, Outer(inner=Inner(hidden=()))),
            ({"inner": {"hidden": 32}}, Outer(inner=Inner(hidden=(32,)))),
            ({"inner": {"hidden": [32, 16.0]}}, Outer(inner=Inner(hidden=(32, 16)))),
            ({"physics": '{"gravity": [9, 10]}'}, Outer(physics={"gravity": [9, 10]})),
            ({"physics": " "}, Outer()),
        ],
    )
    def test_taken_as_meant(self, values: dict[str, Any], expected: Outer) -> None:
        made = build(Outer, values)
        assert made == expected
        assert [type(value) for value in vars(made).values()] == [type(value) for value in vars(expected).values()]

    def test_a_default_table_is_not_shared(self) -> None:
        Outer().physics["gravity"] = 1
        assert Outer().physics == {}

    def test_a_given_table_is_not_shared(self) -> None:
        given_table = {"gravity": 1}
        build(Outer, {"physics": given_table}).physics["gravity"] = 2
        assert given_table == {"gravity": 1}


class TestOverride:
    def test_values_go_into_tables(self) -> None:
        values = {"agents": 2, "inner": {"hidden": [8]}}
        made = override(
            values, ["agents=5", "inner.learning-rate=0.5", "inner.hidden=32,16", 'physics={"gravity": 3}', "note="]
        )
        assert build(Outer, made) == Outer(agents=5, note="", physics={"gravity": 3}, inner=Inner(0.5, (32, 16)))
        assert values == {"agents": 2, "inner": {"hidden": [8]}}

    def test_the_last_one_counts(self) -> None:
        assert override({}, ["agents=2", "agents=3"]) == {"agents": 3}

    def test_a_value_may_hold_an_equals_sign(self) -> None:
        assert override({}, ["note=a=b"]) == {"note": "a=b"}

    @pytest.mark.parametrize("setting", ["agents", "=3", " =3", ""])
    def test_not_a_setting(self, setting: str) -> None:
        with pytest.raises(Mistake, match="is not key=value"):
            override({}, [setting])

    def test_a_value_is_not_a_table(self) -> None:
        with pytest.raises(Mistake, match=r"'agents\.x' needs the table 'agents', which is a value"):
            override({"agents": 1}, ["agents.x=1"])


class TestFlat:
    def test_what_flower_takes(self) -> None:
        flat = flatten(Outer(physics={"gravity": [1, 2]}, inner=Inner(hidden=(8,))))
        assert flat["inner.hidden"] == "8"
        assert flat["physics"] == '{"gravity": [1, 2]}'
        assert {type(value) for value in flat.values()} <= {bool, int, float, str}

    @pytest.mark.parametrize("flat", [{"a": 1, "a.b": 2}, {"a.b": 2, "a": 1}])
    def test_a_value_is_not_a_table(self, flat: dict[str, Any]) -> None:
        with pytest.raises(Mistake, match="'a"):
            unflatten(flat)

    @given(
        some.builds(
            Outer,
            name=some.sampled_from(("ppo", "td3", "policy-gradient")),
            note=some.text(),
            agents=some.integers(1, 1000),
            work=some.none() | some.integers(0, 1000),
            seed=some.integers(-(2**63), 2**63 - 1),
            scale=some.floats(allow_nan=False, allow_infinity=False),
            greedy=some.booleans(),
            physics=some.dictionaries(some.text(), some.integers() | some.lists(some.booleans()) | some.text()),
            inner=some.builds(
                Inner,
                learning_rate=some.floats(0, 1, exclude_min=True),
                hidden=some.lists(some.integers(1, 4096)).map(tuple),
            ),
        )
    )
    def test_round_trip(self, config: Outer) -> None:
        flat = flatten(config)
        assert build(Outer, unflatten(flat)) == config
        assert build(Outer, unflatten({key: str(value) for key, value in flat.items()})) == config


class TestKeys:
    def test_keys(self) -> None:
        listed = {key.name: key for key in keys(Outer)}
        assert listed["agents"] == Key("agents", "int", 1, "at least 1 and at most 1000", "How many.")
        assert listed["work"] == Key("work", "int or auto", "auto", "at least 0", "A whole number, or what fits.")
        assert listed["name"].range == "one of ppo, td3, policy-gradient"
        assert listed["inner.learning-rate"] == Key(
            "inner.learning-rate", "float", 1e-3, "above 0 and at most 1", "Step size."
        )
        assert listed["inner.hidden"].kind == "list of int"
        assert (listed["physics"].kind, listed["physics"].default) == ("table", {})
        assert "inner" not in listed

    def test_no_bounds_no_words(self) -> None:
        assert [allowed(field) for field in dataclasses.fields(Outer) if field.name == "scale"] == [""]
