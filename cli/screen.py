"""Output for people: a live line during a run, tables at its end."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperArgument, TyperCommand
from typer.models import ArgumentInfo

if TYPE_CHECKING:
    from runs.config import RunConfig

# Messages go to stderr, so that --json leaves stdout to one JSON object.
say = Console(stderr=True, highlight=False)

Plugins = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin", help="A Python module that registers your own agents, strategies, rules, ...; may be repeated."
    ),
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="key=value that replaces a value of the conf; may be repeated.")
]


class Command(TyperCommand):
    """A command that shows the help texts of its positional arguments.

    typer 0.20 sets such a text before it calls click, and click 8.5 then overwrites it with None.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        hints = get_type_hints(self.callback, include_extras=True)
        for parameter in self.params:
            if isinstance(parameter, TyperArgument):
                (info,) = (one for one in get_args(hints[str(parameter.name)]) if isinstance(one, ArgumentInfo))
                parameter.help = info.help


def round_printer(config: RunConfig) -> Callable[[dict[str, Any]], None]:
    """Return what prints a round: one live line on a terminal, a line per round elsewhere."""
    from runs.report import describe

    reported = config.engine != "local"
    return lambda record: live(describe(record, config.rounds, config.steps, reported))


def live(line: str) -> None:
    """Print a line: over the previous one on a terminal, below it elsewhere."""
    if say.is_terminal:
        # Spaces overwrite the rest of a longer line.
        say.print(f"{line:<{say.width - 1}}", end="\r", overflow="ellipsis", no_wrap=True)
    else:
        say.print(line, soft_wrap=True)


def announce(text: str) -> None:
    """Print a message about anything but a round."""
    say.print(text, markup=False, soft_wrap=True)


def show(summary: dict[str, Any]) -> None:
    """Print the summary of a run as a table."""
    if say.is_terminal:
        say.print()
    rows = []
    for key, value in summary.items():
        text = short(value) if isinstance(value, float) else value
        rows.append((key.replace("_", " "), text))
    show_table((), rows, say)


# Tables ---------------------------------------------------------------------------------------------------------------

GAP = "  "  # between columns; no cell holds two spaces in a row


def show_table(head: Sequence[str], rows: Iterable[Sequence[object]], to: Console | None = None) -> None:
    """Print a table on stdout, or on another console, without cutting a word.

    In a pipe or a file, each row is one line. On a terminal, wide columns wrap at spaces, and a table that does not fit
    even then has a block of lines per row. A cell may be a ``Text`` with a style. An empty cell is printed as a dash:
    all rows have the same number of columns.
    """
    to = to or Console(highlight=False)
    cells = [[_cell(value) for value in row] for row in rows]
    table = ([[Text(name or "-", "bold") for name in head]] if head else []) + cells
    columns = list(zip(*table, strict=True))
    widths = [max(map(len, column)) for column in columns]
    room = to.width - len(GAP) * (len(columns) - 1) if to.file.isatty() else sum(widths)
    longest_words = [max(len(word) for cell in column for word in cell.plain.split()) for column in columns]
    if head and sum(longest_words) > room:
        lines = (line for row in cells for line in _block(head, row, to.width))
    else:
        widths = _narrowed(widths, longest_words, room)
        lines = (line for row in table for line in _lines(row, widths))
    for line in lines:
        line.rstrip()
        to.print(line, soft_wrap=True)


def _cell(value: object) -> Text:
    """Return a value as a cell: one line, in which no two spaces meet, as these separate columns."""
    text = value if isinstance(value, Text) else Text("" if value is None else str(value))
    return Text(" ".join(text.plain.split()) or "-", text.style)


def _narrowed(widths: list[int], longest_words: list[int], room: int) -> list[int]:
    """Return narrower widths: the widest columns shrink until all fit, or none can shrink."""
    widths = list(widths)
    while sum(widths) > room:
        wide = [column for column, width in enumerate(widths) if width > longest_words[column]]
        if not wide:
            break
        widths[max(wide, key=widths.__getitem__)] -= 1
    return widths


def _lines(row: Sequence[Text], widths: Sequence[int]) -> Iterator[Text]:
    """Yield the lines of a row: one if no cell is wider than its column."""
    parts = [_wrapped(cell.plain, width) for cell, width in zip(row, widths, strict=True)]
    for line in zip_longest(*parts, fillvalue=""):
        cells = zip(line, row, widths, strict=True)
        yield Text(GAP).join(Text(part.ljust(width), cell.style) for part, cell, width in cells)


def _block(head: Sequence[str], row: Sequence[Text], width: int) -> Iterator[Text]:
    """Yield a row for a terminal that is too narrow for it: its first cell, and a line per further cell."""
    yield Text(row[0].plain, "bold")
    for name, cell in zip(head[1:], row[1:], strict=True):
        for part in _wrapped(f"{name}: {cell.plain}".removeprefix(": "), width - len(GAP)):
            yield Text(GAP + part, cell.style)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(width, 1), break_long_words=False, break_on_hyphens=False)


def short(value: float) -> str:
    """Return a number with one decimal, or with three significant digits where it is small."""
    return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.3g}"
