"""Everything that docs/extending.md shows, run from a folder outside the repository, in every engine."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

import fedrl
from client.party import Party
from client.session import Session
from core import modules, registry
from flower.launch import processes, start_node, superlink, wait
from gossip.peer import identity
from runs import digest
from runs.config import PLUGIN_CODE, PLUGIN_OPTIONS, PLUGINS, flat_for_flower, from_flower
from runs.directory import RunDirectory, read_toml
from tests.fedrl import lab

SMALL: dict[str, Any] = {"agents": 3, "steps": 0, "evaluate-episodes": 3, "tensorboard": False, "seed": 4}
# Each brings some of the page's files; together they use all of them. The first is the page's own conf.
CONFS: dict[str, dict[str, Any]] = {
    "evolution": {},
    "momentum": SMALL | {
        "plugins": ["lab.strategies", "lab.attacks"], "strategy": "fedavgm", "rounds": 3, "work": 1,
        "world": {"horizon": 60}, "ppo": {"hidden": [8], "rollout": 16}, "fedavgm": {"momentum": 0.7},
        "attack": {"byzantine": 1, "kind": "unpaid"},
    },
    "peers": SMALL | {
        "plugins": ["lab.evolution", "lab.peers", "lab.topologies", "lab.worlds"], "algorithm": "evolution",
        "strategy": "calming", "rounds": 4, "work": 2, "world": {"id": "Side-v0", "copies": 4},
        "gossip": {"topology": "leaps"},
    },
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with lab.apart(lab.write(tmp_path), monkeypatch) as place:
        yield place


def conf(folder: Path, name: str) -> dict[str, Any]:
    return CONFS[name] or read_toml(folder / "my.toml") | {"tensorboard": False}


def returns(run: fedrl.Run) -> list[Any]:
    return [record["return"] for record in run.records]


def test_the_runs_below_use_every_file_of_the_page(folder: Path) -> None:
    named = {plugin for name in CONFS for plugin in conf(folder, name)["plugins"]}
    assert {name for name in lab.BLOCKS if name != "my.toml"} == {f"{name.replace('.', '/')}.py" for name in named}
    modules.look_in(folder)
    registry.load(sorted(named))
    brought = [thing for thing in registry.things() if thing.source in named]
    assert {thing.kind for thing in brought} == set(registry.KINDS)
    written = str([conf(folder, name) for name in CONFS])
    assert [thing.name for thing in brought if f"'{thing.name}'" not in written] == []


@pytest.mark.parametrize("name", CONFS)
def test_a_users_things_run_here(folder: Path, name: str) -> None:
    run = fedrl.run(conf(folder, name), out=folder / "run", quiet=True)
    assert len(run.records) == run.config.rounds and np.isfinite(returns(run)).all()
    assert read_toml(run.path / "conf.toml")["plugins"] == conf(folder, name)["plugins"]
    assert run.evaluate(episodes=2).shape == (run.config.agents, 2)


def test_the_agent_of_the_page_learns(folder: Path) -> None:
    """Before it has learned, action 0 is chosen everywhere, which is right in two cases of three: 13.3 of 20."""
    run = fedrl.run(conf(folder, "evolution"), out=folder / "run", quiet=True, attack={"byzantine": 0, "kind": "none"})
    fresh = fedrl.run(conf(folder, "evolution"), out=folder / "fresh", quiet=True, rounds=1, work=0)
    assert fresh.evaluate(episodes=50).mean() == pytest.approx(13.3, abs=0.8)
    assert run.evaluate(episodes=50).mean() > 17


def test_the_attack_of_the_page_harms_a_mean_and_not_the_rule(folder: Path) -> None:
    base = conf(folder, "evolution")
    held = fedrl.run(base, out=folder / "held", quiet=True)
    harmed = fedrl.run(
        base, out=folder / "harmed", quiet=True, federation={"rule": "mean"}, attack={"byzantine": 2},
        turned={"factor": 10.0},
    )  # fmt: skip
    assert held.evaluate(episodes=50).mean() > 17 > harmed.evaluate(episodes=50).mean()


def test_an_agent_learns_the_same_alone_and_beside_others(folder: Path) -> None:
    base = conf(folder, "peers") | {"strategy": "alone"}
    together = fedrl.run(base, out=folder / "together", quiet=True)
    first = fedrl.run(base, out=folder / "first", quiet=True, agents=1)
    assert [row[0] for row in returns(together)] == [row[0] for row in returns(first)]
    np.testing.assert_array_equal(weights(together)["policy"][0], weights(first)["policy"][0])


@pytest.mark.parametrize("name", CONFS)
def test_a_resume_equals_a_run_that_was_not_stopped(folder: Path, name: str) -> None:
    whole = fedrl.run(conf(folder, name), out=folder / "whole", quiet=True)
    fedrl.run(conf(folder, name), out=folder / "parts", quiet=True, rounds=2)
    parts = fedrl.resume(folder / "parts", quiet=True, rounds=whole.config.rounds)
    assert returns(parts) == returns(whole)
    for part, rows in weights(whole).items():
        np.testing.assert_array_equal(rows, weights(parts)[part])


def weights(run: fedrl.Run) -> dict[str, Any]:
    with np.load(run.path / "weights.npz") as found:
        return {name: found[name] for name in found.files if name != "about"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "engine"),
    [(name, engine) for name in CONFS for engine in (("grpc", "gossip") if name == "peers" else ("ray", "grpc"))],
)
def test_a_users_things_run_in_other_processes_as_here(folder: Path, name: str, engine: str) -> None:
    (folder / "one.toml").write_text(tomli_w.dumps(conf(folder, name)))
    nodes = ["--nodes", "2"] if engine == "grpc" else []
    done = lab.typed("run", "one.toml", "--engine", engine, *nodes, "--out", "there", cwd=folder)
    assert done.returncode == 0, done.stderr
    here = fedrl.run("one.toml", out=folder / "here", quiet=True)
    there = fedrl.load(folder / "there")
    np.testing.assert_allclose(returns(there), returns(here), rtol=1e-6)
    for part, rows in weights(here).items():
        np.testing.assert_allclose(weights(there)[part], rows, rtol=1e-4, atol=1e-6)


# Plugins that cannot be used ------------------------------------------------------------------------------------------

RULE = "import fedrl\n@fedrl.rule('mine')\ndef mine(rows, given):\n    return rows.mean(axis=0)\n"
BAD = {
    "it fails": ("1 / 0", r"the plugin lab\.bad cannot be imported: ZeroDivisionError: division by zero"),
    "it needs a package": ("import no_such_package", r"cannot be imported: ModuleNotFoundError: .*no_such_package"),
    "it is no Python": ("def", r"cannot be imported: SyntaxError"),
    "a name twice": (RULE + RULE, r"the plugin lab\.bad cannot be used: the rule 'mine' .* has that name already"),
    "a built-in name": (RULE.replace("mine", "krum"), r"the rule 'krum' of the plugin lab\.bad: the rule 'krum' has"),
    "a method less": (
        "import fedrl\n@fedrl.agent('half')\nclass Half(fedrl.Fleet):\n    parts = {}\n    act = None\n",
        "the agent 'half' lacks '_train'",
    ),
    "an abstract strategy": (
        "import fedrl\n@fedrl.strategy('half')\nclass Half(fedrl.Federation): pass\n",
        "the strategy 'half' lacks the method aggregate, .*build",
    ),
    "no fleet": ("import fedrl\n@fedrl.agent('half')\nclass Half: pass\n", "'half' is no subclass of fedrl.Fleet"),
    "other arguments": (RULE.replace("rows, given", "rows"), r"the rule 'mine' takes \(rows, given\), not \(rows\)"),
    "a world without a version": (
        "import fedrl, gymnasium\n@fedrl.world('Mine')\nclass Mine(gymnasium.Env): pass\n", "such as Mine-v0",
    ),
    "options that are no dataclass": (
        RULE.replace("'mine'", "'mine', options=dict"), "its options 'mine' are no dataclass",
    ),
    "the table of another": (
        "import fedrl\nfrom dataclasses import dataclass\n@dataclass\nclass Own: pass\n"
        + RULE.replace("'mine'", "'ppo', options=Own"),
        r"the rule 'ppo' of the plugin lab\.bad: the table \[ppo\] belongs to the agent 'ppo' already",
    ),
    "a table with the name of a key": (
        "import fedrl\nfrom dataclasses import dataclass\n@dataclass\nclass Own: pass\n"
        + RULE.replace("'mine'", "'rounds', options=Own"),
        r"the rule 'rounds' of the plugin lab\.bad: \[rounds\] is a key of every run",
    ),
    "a table that no conf can hold": (
        "import fedrl\nfrom dataclasses import dataclass\n@dataclass\nclass Own: pass\n"
        + RULE.replace("'mine'", "'Mine.2', options=Own"),
        r"the rule 'Mine\.2' .* its options are the table \[Mine\.2\], .* such as \[my-rule\]",
    ),
    "nothing": ("import fedrl", r"the plugin lab\.bad registers nothing: decorate"),
}  # fmt: skip
PLAIN = SMALL | {"rounds": 1, "work": 1, "strategy": "fedavg", "ppo": {"rollout": 8}, "world": {"horizon": 20}}


@pytest.mark.parametrize("case", BAD)
def test_a_plugin_that_cannot_be_used_is_one_sentence_and_can_be_mended(folder: Path, case: str) -> None:
    code, sentence = BAD[case]
    (folder / "lab" / "bad.py").write_text(code)
    conf = PLAIN | {"plugins": ["lab.rules", "lab.bad"]}
    for _ in range(2):  # the second time says the same
        with pytest.raises(fedrl.Mistake, match=sentence) as caught:
            fedrl.run(conf, out=folder / "run", quiet=True)
        assert "\n" not in str(caught.value)
    (folder / "lab" / "bad.py").write_text(RULE + "# mended\n")
    run = fedrl.run(conf, out=folder / "run", quiet=True, federation={"rule": "mine"})
    assert run.config.plugins == ("lab.rules", "lab.bad")


@pytest.mark.parametrize(
    ("plugin", "sentence"),
    [
        ("lab.absent", "lab.absent"),
        ("nowhere", r"no module 'nowhere' for the plugin nowhere: looked in the installed packages"),
        ("lab/rules.py", "'lab/rules.py' is not the name of a Python module, such as lab.methods"),
    ],
)  # fmt: skip
def test_a_plugin_that_is_nowhere_is_named(folder: Path, plugin: str, sentence: str) -> None:
    with pytest.raises(fedrl.Mistake, match=sentence):
        fedrl.run(PLAIN, out=folder / "run", quiet=True, plugins=[plugin])
    done = lab.typed("run", "my.toml", "--plugin", plugin, cwd=folder)
    assert done.returncode == 2 and plugin in done.stderr and "Traceback" not in done.stderr


def test_a_thing_of_a_script_runs_here_only(folder: Path) -> None:
    script = (
        RULE
        + f"""
if __name__ == "__main__":
    conf = {PLAIN!r} | {{"federation": {{"rule": "mine"}}}}
    assert fedrl.run(conf, out="run", quiet=True).config.plugins == ()
    fedrl.rule("mine")(mine)  # a notebook runs a cell again
    try:
        fedrl.run(conf, out="other", quiet=True, engine="grpc")
    except fedrl.Mistake as mistake:
        print(mistake)
"""
    )
    done = lab.python(script, folder)
    assert done.returncode == 0, done.stderr
    assert "the rule 'mine' stands in this script or notebook" in done.stdout and "'plugins'" in done.stdout


def test_a_program_may_import_a_plugin_before_it_names_it(folder: Path) -> None:
    modules.look_in(folder)
    modules.find("lab", "a test")
    import lab.rules  # type: ignore[import-not-found]  # noqa: F401

    first = fedrl.run(PLAIN, out=folder / "first", quiet=True, federation={"rule": "near-median"})
    second = fedrl.run(PLAIN, out=folder / "second", quiet=True, plugins=["lab.rules"])
    assert first.config.plugins == second.config.plugins == ("lab.rules",)


# Nodes ----------------------------------------------------------------------------------------------------------------


def sent(folder: Path) -> dict[str, Any]:
    """What a node is handed of the page's run."""
    run = fedrl.run(conf(folder, "evolution"), out=folder / "run", quiet=True, rounds=1)
    return flat_for_flower(run.config)


def test_a_node_that_was_not_started_with_a_plugin_refuses_the_run_by_name(folder: Path) -> None:
    flat = sent(folder)
    with pytest.raises(fedrl.Mistake, match=r"uses the plugin lab\.rules, .* --plugin lab\.rules"):
        Party(0, flat, "run", folder / "state", plugins=["lab.evolution", "lab.worlds"])
    Party(0, flat, "run", folder / "state", plugins=conf(folder, "evolution")["plugins"]).close()


def test_nothing_is_imported_that_a_node_was_not_started_with(folder: Path) -> None:
    flat = {"plugins": "trap"}
    (folder / "trap.py").write_text("from pathlib import Path\nPath('sprung').touch()\n")
    modules.look_in(folder)
    for allowed in ([], ["lab.rules"]):
        with pytest.raises(fedrl.Mistake, match="the plugin trap"):
            from_flower(flat, allowed)
    assert not (folder / "sprung").exists()
    with pytest.raises(fedrl.Mistake, match="registers nothing"):
        from_flower(flat, ["trap"])
    assert (folder / "sprung").exists()


def test_a_plugin_of_other_files_is_refused_by_name(folder: Path) -> None:
    flat = sent(folder)
    other = re.sub(r"lab\.rules=\w+", "lab.rules=0123", str(flat[PLUGIN_CODE]))
    with pytest.raises(fedrl.Mistake, match=r"the plugin lab\.rules differs: here it is \w+, the run has 0123"):
        from_flower(flat | {PLUGIN_CODE: other})
    assert from_flower(flat).options("rule", "near-median").times == 1.5


def test_options_of_a_plugin_travel_in_one_key(folder: Path) -> None:
    flat = sent(folder)
    assert json.loads(str(flat[PLUGIN_OPTIONS]))["near-median.times"] == 1.5
    assert not [key for key in flat if key.startswith(("near-median", "evolution", "turned"))]
    registry.load(["lab.strategies"])  # here, and not where the run goes
    assert "fedavgm" not in str(flat_for_flower(fedrl.load(folder / "run").config))
    with pytest.raises(fedrl.Mistake, match="'plugin-options' is JSON"):
        from_flower(flat | {PLUGIN_OPTIONS: "{"})


def test_peers_know_each_other_by_the_files_of_their_plugins(folder: Path) -> None:
    run = fedrl.run(conf(folder, "peers"), out=folder / "run", quiet=True, rounds=1)
    with closing(Session(run.config, [0])) as session:
        first = identity(run.config, session, 0)
        changed = folder / "lab" / "peers.py"
        changed.write_text(changed.read_text().replace("// number", "// (number + 1)"))
        same = identity(run.config, session, 0)  # what is in memory is still the former file
        digest._of_module.cache_clear()
        other = identity(run.config, session, 0)
    assert first.app == same.app != other.app
    assert (first.conf, first.layout) == (other.conf, other.layout)


def test_a_node_finds_its_plugins_in_the_working_directory(folder: Path) -> None:
    words = ["node", "--superlink", "127.0.0.1:1", "--insecure", "--agents", "0", "--give-up", "1", "--state", "state"]
    done = lab.typed(*words, "--plugin", "lab.rules", cwd=folder)
    assert done.returncode == 1 and "no SuperLink served us" in done.stderr
    done = lab.typed(*words, "--plugin", "lab.absent", cwd=folder)
    assert done.returncode == 2 and "lab.absent" in done.stderr


@pytest.mark.slow
def test_real_nodes_refuse_a_plugin_that_differs_or_that_they_were_not_started_with(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = lab.write(tmp_path_factory.mktemp("other"))
    rules = other / "lab" / "rules.py"
    rules.write_text(rules.read_text().replace("away**2", "away**4"))
    plugins = conf(folder, "evolution")["plugins"]
    named = [word for plugin in plugins for word in ("--plugin", plugin)]
    monkeypatch.setenv(modules.FOLDERS, str(folder))
    monkeypatch.setenv(PLUGINS, ",".join(plugins))
    with superlink(tmp_path_factory.mktemp("flower")) as link, processes() as started:
        logs = [folder / f"node-{k}.log" for k in range(3)]
        started.append(start_node(link.fleet, [0], folder / "a", logs[0], named))
        started.append(start_node(link.fleet, [1], folder / "b", logs[1], named[:-2]))
        monkeypatch.setenv(modules.FOLDERS, str(other))
        started.append(start_node(link.fleet, [2], folder / "c", logs[2], named))
        assert wait(lambda: all(log.exists() and "is node" in log.read_text() for log in logs), 60)
        settings = ["agents=3", "rounds=1", "federation.wait-s=3", "federation.quorum=0.3", "federation.deadline-s=3"]
        done = lab.typed(
            "run", "my.toml", "--superlink", link.control, "--out", "run", *[f"--set={one}" for one in settings],
            cwd=folder, **{modules.FOLDERS: ""},
        )  # fmt: skip
    names = ", ".join(sorted(plugins)[1:])
    differs = f"the plugin {sorted(plugins)[0]} differs (and so does {names})"  # they are of one package
    assert differs in logs[2].read_text()
    assert f"the run uses the plugin {plugins[-1]}" in logs[1].read_text()
    assert "the plugin" not in logs[0].read_text()
    assert done.returncode == 0, done.stderr
    assert differs in done.stderr
    (record,) = RunDirectory(folder / "run").read_metrics()
    assert [value is not None for value in record["return"]] == [True, False, False]


# Keys -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["td3.tau=0.1", "kl.normalise=false", "fedpg.guard=0.1", "sync.critic-every=5"])
def test_a_key_that_no_run_reads_is_a_mistake(tmp_path: Path, key: str) -> None:
    done = lab.typed("run", lab.ROOT / "conf" / "fedavg_cartpole.toml", "--set", key, "--out", "run", cwd=tmp_path)
    table = key.partition(".")[0]
    assert done.returncode == 2
    assert f"no run of this command reads the table [{table}]" in done.stderr
    assert not (tmp_path / "run").exists()


def test_tables_that_a_run_does_not_use_are_named_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = PLAIN | {"td3": {"tau": 0.1}, "sync": {"critic-every": 5}}
    run = fedrl.run(values, out=folder / "run")
    words = "not used by ppo and fedavg: [sync], [td3]"
    assert capsys.readouterr().err.count(words) == 1
    assert [note.endswith(words) for note in RunDirectory(run.path).notes()].count(True) == 1
    tables = {name for name, value in read_toml(run.path / "conf.toml").items() if isinstance(value, dict)}
    assert tables == {"world", "attack", "federation", "ppo", "unseen"}


def test_a_key_of_a_plugin_is_checked_like_ours(folder: Path) -> None:
    base = conf(folder, "evolution")
    with pytest.raises(fedrl.Mistake, match=r"unknown key 'near-median.time'; did you mean 'near-median.times'"):
        fedrl.run(base, out=folder / "run", near_median={"time": 1})
    with pytest.raises(fedrl.Mistake, match=r"'near-median.times' must be above 0, not 0"):
        fedrl.run(base, out=folder / "run", near_median={"times": 0})
    with pytest.raises(fedrl.Mistake, match=r"did you mean 'near-median'.*a plugin adds others"):
        fedrl.run(base, out=folder / "run", federation={"rule": "near-medial"})


def test_a_name_of_a_plugin_that_is_not_named_says_where_others_come_from(folder: Path) -> None:
    with pytest.raises(fedrl.Mistake, match=r"'algorithm' is one of .*--plugin"):
        fedrl.run(PLAIN, out=folder / "run", algorithm="evolution")


# Installed packages ---------------------------------------------------------------------------------------------------


def test_a_plugin_of_an_installed_package_is_there_without_being_named(tmp_path: Path) -> None:
    site, elsewhere = lab.write(tmp_path / "site"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    about = site / "lab_of_mine-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: lab-of-mine\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[fedrl.plugins]\nmine = lab.rules\n")
    path = {"PYTHONPATH": f"{lab.ROOT}:{site}"}
    keys = lab.typed("conf", "near-median", "--json", cwd=elsewhere, **path)
    assert [key["name"] for key in json.loads(keys.stdout)] == ["near-median.times"], keys.stderr
    (elsewhere / "one.toml").write_text(tomli_w.dumps(PLAIN | {"federation": {"rule": "near-median"}}))
    done = lab.typed("run", "one.toml", "--out", "run", cwd=elsewhere, **path)
    assert done.returncode == 0, done.stderr
    assert read_toml(elsewhere / "run" / "conf.toml")["plugins"] == ["mine"]
    assert lab.typed("eval", "run", "--episodes", "1", cwd=elsewhere, **path).returncode == 0
    gone = lab.typed("eval", "run", "--episodes", "1", cwd=elsewhere)
    assert gone.returncode == 2 and "the plugin mine" in gone.stderr
