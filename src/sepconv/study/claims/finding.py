"""What the test of a claim finds: raw values, and how they are written out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from sepconv.study.statistics import Difference, Estimate


@dataclass(frozen=True)
class Number:
    """A number, and the format specification that it is written by."""

    value: float
    format: str


@dataclass(frozen=True)
class Paired:
    """Shares of 1, such as accuracies, and those that they are set against: a pair a seed.

    Where the claim says that they are larger, `case` says when, for the verdict.
    """

    values: list[float]
    references: list[float]
    case: str | None = None

    @property
    def difference(self) -> Difference:
        return Difference.between(self.values, self.references)


# of a table: text; a count; a Number; shares of 1, one a seed; or such with others that they are set against
Cell = str | int | Number | list[float] | Paired


@dataclass
class Finding:
    """What was found about one claim on one data set."""

    how: str  # it was tested
    headings: list[str]
    rows: Sequence[Sequence[Cell]]
    verdict: str  # {cases} in it stands for what `judge` says of the cases in the rows
    plot: Callable[[], Figure] | None = None  # draws it, once the rest is written


def read_cell(cell: Any) -> Cell:
    """A cell, from what a JSON file has of it."""
    if isinstance(cell, dict):
        return Number(**cell) if "format" in cell else Paired(**cell)
    plain: str | int | list[float] = cell
    return plain


def write_cell(cell: Cell) -> str:
    """A cell in a few characters: of several seeds the mean, with its interval."""
    if isinstance(cell, Number):
        return format(cell.value, cell.format)
    if isinstance(cell, Paired):
        return cell.difference.points()
    if isinstance(cell, list):
        return Estimate.of(cell).percent()
    return cell if isinstance(cell, str) else f"{cell:,}"


def conclude(verdict: str, rows: Sequence[Sequence[Cell]]) -> str:
    """The verdict in full."""
    cases = {cell.case: cell.difference for row in rows for cell in row if isinstance(cell, Paired) and cell.case}
    return verdict.replace("{cases}", judge(cases)) if cases else verdict


def judge(cases: dict[str, Difference]) -> str:
    """The verdict where the claim says that each difference is above 0: by their 95 % intervals."""
    above = [case for case, d in cases.items() if (d.estimate.low or 0) > 0]
    below = [case for case, d in cases.items() if (d.estimate.high or 0) < 0]
    neither = [case for case in cases if case not in above + below]
    if len(above) == len(cases):
        return "true"
    verdicts = {"true": above, "the opposite" if above else "false": below, "not shown": neither}
    text = "; ".join(f"{verdict} when {', when '.join(group)}" for verdict, group in verdicts.items() if group)
    return text + (": the interval holds 0" if neither else "")
