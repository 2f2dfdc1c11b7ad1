"""Tables of records: on a terminal, as Markdown and as CSV."""

import csv
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any, NamedTuple

import rich.table
from rich import box
from rich.console import Console

from sepconv.text import escape_markdown, printable

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)


class Column(NamedTuple):
    """A column of a table for reading."""

    heading: str
    cell: Callable[[Any], str]  # from a record
    left: bool = False  # set to the left, as words are; numbers stand to the right


@dataclass(frozen=True)
class Table:
    """Records, one a row. The first column is set to the left; a row that is called total stands below a line."""

    title: str
    columns: Sequence[Column]
    records: Sequence[Any]

    @property
    def headings(self) -> list[str]:
        return [column.heading for column in self.columns]

    @property
    def rows(self) -> list[list[str]]:
        return [[column.cell(record) for column in self.columns] for record in self.records]

    @property
    def left(self) -> list[bool]:
        """Of each column, whether it is set to the left."""
        return [place == 0 or column.left for place, column in enumerate(self.columns)]

    def transposed(self) -> "Table":
        """The same table with a column for each record, headed by the record's first cell."""
        first, *others = self.columns

        def column(record: Any) -> Column:
            return Column(first.cell(record), lambda row: row.cell(record))

        return Table(self.title, [Column("", lambda row: row.heading), *map(column, self.records)], others)

    def filled(self) -> "Table":
        """The same table without columns that are empty."""
        columns = [column for column in self.columns if any(map(column.cell, self.records))]
        return Table(self.title, columns, self.records)

    def markdown(self) -> list[str]:
        """The lines of the table in Markdown, which shows its text as it is; without the title."""
        headings, *rows = [[escape_markdown(cell) for cell in row] for row in (self.headings, *self.rows)]
        return markdown_table(headings, rows, ["---" if left else "---:" for left in self.left])

    def show(self, console: Console) -> None:
        """Prints the table whole, even where it is wider than the terminal, or than a file's 80 columns."""
        table = rich.table.Table(title=self.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for heading, left in zip(self.headings, self.left, strict=True):
            table.add_column(heading, justify="left" if left else "right", no_wrap=True)
        for row in self.rows:
            if row[0] == "total":
                table.add_section()
            table.add_row(*row)
        print_whole(console, table)


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]], align: Sequence[str] = ()) -> list[str]:
    """The lines of a table of Markdown.

    Args:
        align: of each column, `---` to the left (where nothing is given) or `---:` to the right.
    """
    cells = [headings, align or ["---"] * len(headings), *rows]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in cells]


def as_csv(records: Sequence[dict[str, Any]]) -> str:
    """Records with the same keys as CSV, under a line of those; text that would be a formula has a ' in front."""
    text = StringIO()
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: csv_cell(value) for key, value in record.items()} for record in records)
    return text.getvalue()


def csv_cell(value: Any) -> Any:
    """A value as a CSV file has it."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) and not NUMBER.fullmatch(text) else text


def print_whole(console: Console, table: rich.table.Table) -> None:
    """Prints a table that is not cut where it is wider than the terminal, or than a file's 80 columns."""
    needed = console.measure(table, options=console.options.update(max_width=1000)).maximum
    console.width = max(console.width, needed)
    console.print(table)
