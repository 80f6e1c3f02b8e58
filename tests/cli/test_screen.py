"""Tables as people see them: in a pipe, and on terminals of different widths."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from rich.text import Text

from cli.screen import show_table
from core.options import keys, nested, override
from runs.config import assembled, configure
from runs.directory import RunDirectory

BOX = re.compile("[\u2500-\u257f\u2026]")  # box-drawing characters, and what stands for something cut off


def piped(*arguments: object) -> str:
    """What a command prints into a pipe."""
    command = [sys.executable, "-m", "cli.main", *map(str, arguments)]
    environ = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environ).stdout


def on_terminal(width: int, *arguments: object) -> str:
    """What a command prints on a terminal that is so many columns wide, without its colours."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    command = [sys.executable, "-m", "cli.main", *map(str, arguments)]
    environ = {name: value for name, value in os.environ.items() if name != "COLUMNS"} | {"TERM": "xterm"}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environ) as process:
        os.close(theirs)
        printed = b""
        try:
            while part := os.read(ours, 65536):
                printed += part
        except OSError:  # the other side is closed
            pass
        os.close(ours)
    assert process.returncode == 0, printed
    return re.sub(r"\x1b\[[0-9;]*m", "", printed.decode()).replace("\r\n", "\n")


def cells(line: str) -> list[str]:
    return re.split(r"\s{2,}", line)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs with long names that never ran; their confs differ in one key."""
    place = tmp_path_factory.mktemp("runs")
    for rule in ("krum", "trimmed-mean"):
        conf = override({"agents": 2}, ["strategy=fedavg", f"federation.rule={rule}", "federation.byzantine=0"])
        run = RunDirectory.create(place / f"a-long-name-of-a-run-with-the-rule-{rule}", nested(configure(conf)))
        counts = {"steps": [1000, 1000], "bytes_up": [5, 5], "bytes_down": [0, 0], "wall_s": 1.5}
        run.log({"round": 1, "return": [1.0, 3.0], "kept.policy": [1, 0]} | counts)
    return place


def test_in_a_pipe_every_key_is_a_line_with_its_sentence() -> None:
    lines = piped("conf").splitlines()
    known = [(key.name, key.kind, key.range or "-", key.sentence) for key in keys(assembled())]
    assert [cells(line)[:1] + cells(line)[2:] for line in lines[1:]] == [list(key) for key in known]
    assert not any(BOX.search(line) for line in lines)


@pytest.mark.parametrize("width", [60, 110])
def test_on_a_terminal_no_key_and_no_word_is_cut(width: int) -> None:
    printed = on_terminal(width, "conf")
    words = set(printed.split())
    for key in keys(assembled()):
        assert {key.name, *key.sentence.split(), *key.range.split()} <= words, key.name
    assert max(map(len, printed.splitlines())) <= width
    assert not BOX.search(printed)


@pytest.mark.parametrize(
    ("arguments", "row"),
    [
        ((), ["2", "1,000", "2.0", "1.0", "1.0", "3.0", "1.5"]),
        (("--group",), ["1", "2", "2 to 2", "0", "2", "2 to 2", "2 (0)", "1 +- 0", "2,000", "1.5"]),
        (("--group", "--reach", "2"), ["1,000", "1,000", "1,000", "1 of 1"]),
    ],
)
def test_a_table_in_a_pipe_has_a_line_per_row(arguments: tuple[str, ...], row: list[str], runs: Path) -> None:
    lines = piped("table", runs, *arguments).splitlines()
    assert [cells(line)[-len(row) :] for line in lines[-2:]] == [row, row]
    first = [cells(line)[0] for line in lines[-2:]]
    ends = ["krum", "trimmed-mean"]
    assert all(name.endswith(end) for name, end in zip(first, ends, strict=True))
    assert len(lines) == (6 if "--reach" in arguments else 3)


@pytest.mark.parametrize("arguments", [(), ("--group",), ("--group", "--reach", "2")])
def test_a_table_on_a_narrow_terminal_cuts_no_name(arguments: tuple[str, ...], runs: Path) -> None:
    printed = on_terminal(60, "table", runs, *arguments)
    names = (
        ["federation.rule=krum", "federation.rule=trimmed-mean"] if arguments else [run.name for run in runs.iterdir()]
    )
    assert set(names) <= set(printed.split())
    assert not BOX.search(printed)


class Terminal:
    """A terminal that remembers what is printed on it."""

    def __init__(self) -> None:
        self.printed = ""

    def write(self, text: str) -> int:
        self.printed += text
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return True


def shown(width: int, head: tuple[str, ...], *rows: tuple[object, ...]) -> list[str]:
    from rich.console import Console

    terminal = Terminal()
    show_table(head, rows, Console(file=terminal, width=width, color_system=None, highlight=False))  # type: ignore[arg-type]
    return terminal.printed.splitlines()


def test_wide_columns_wrap_at_spaces_and_then_a_row_is_a_block() -> None:
    row = ("a-long-name", 7, None, Text("some words for people to read", "red"))
    assert shown(80, ("name", "n", "", "remedy"), row) == [
        "name         n  -  remedy",
        "a-long-name  7  -  some words for people to read",
    ]
    assert shown(34, ("name", "n", "", "remedy"), row) == [
        "name         n  -  remedy",
        "a-long-name  7  -  some words for",
        "                   people to read",
    ]
    assert shown(20, ("name", "n", "", "remedy"), row) == [
        "a-long-name",
        "  n: 7",
        "  -",
        "  remedy: some words",
        "  for people to read",
    ]


def test_a_cell_is_one_line_and_brackets_are_no_markup() -> None:
    assert shown(80, (), ("[red]a", "two\nlines,  spaces")) == ["[red]a  two lines, spaces"]
    assert shown(80, ("name", "mean")) == ["name  mean"]
