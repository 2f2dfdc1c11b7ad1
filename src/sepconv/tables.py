"""Tables, as Markdown and on a terminal."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]], align: Sequence[str] = ()) -> list[str]:
    """The lines of a table in Markdown.

    Args:
        align: of each column, `---` to the left (where nothing is given) or `---:` to the right.
    """
    cells = [headings, align or ["---"] * len(headings), *rows]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in cells]


def print_whole(console: Console, table: Table) -> None:
    """Prints a table that is not cut where it is wider than the terminal, or than a file's 80 columns."""
    needed = console.measure(table, options=console.options.update(max_width=1000)).maximum
    console.width = max(console.width, needed)
    console.print(table)
