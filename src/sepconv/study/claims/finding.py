"""What the test of a claim finds: raw values, and how they are written out."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from matplotlib.figure import Figure

from sepconv.study.statistics import CONFIDENCE, MARGIN, Difference, Estimate, holm

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Number:
    """A number, and the format specification that it is written by."""

    value: float
    format: str


@dataclass(frozen=True)
class Losses:
    """Cross entropies, one a seed."""

    losses: list[float]


@dataclass(frozen=True)
class Paired:
    """Shares of 1, such as accuracies, or losses, and those that they are set against: a pair a seed.

    Where the claim says that they are larger, `case` says when, for the verdict.
    """

    values: list[float]
    references: list[float]
    case: str | None = None
    losses: bool = False

    @property
    def difference(self) -> Difference:
        return Difference.between(self.values, self.references)


# of a table: text; a count; a Number; shares of 1, one a seed; losses; or such with others that they are set against
Cell = str | int | Number | list[float] | Losses | Paired


@dataclass
class Finding:
    """What was found about one claim on one data set."""

    how: str  # it was tested
    headings: list[str]
    rows: Sequence[Sequence[Cell]]
    verdict: str  # {cases} in it stands for what is found of the cases in the rows
    plot: Callable[[], Figure] | None = None  # draws it, once the rest is written


def read_cell(cell: Any) -> Cell:
    """A cell, from what a JSON file has of it."""
    if isinstance(cell, dict):
        kind: Any = Number if "format" in cell else Paired if "values" in cell else Losses
        made: Cell = kind(**cell)
        return made
    plain: str | int | list[float] = cell
    return plain


def write_cell(cell: Cell) -> str:
    """A cell in a few characters: of several seeds the mean, with its interval."""
    if isinstance(cell, Number):
        return format(cell.value, cell.format)
    if isinstance(cell, Losses):
        return Estimate.of(cell.losses).write(".3f", factor=1)
    if isinstance(cell, Paired):
        return cell.difference.plain() if cell.losses else cell.difference.points()
    if isinstance(cell, list):
        return Estimate.of(cell).percent()
    return cell if isinstance(cell, str) else f"{cell:,}"


def find_cases(rows: Sequence[Sequence[Cell]]) -> dict[str, Paired]:
    """The cases that a verdict is on."""
    return {cell.case: cell for row in rows for cell in row if isinstance(cell, Paired) and cell.case}


def judge(cases: Mapping[Key, Paired]) -> dict[Key, str]:
    """Of each case, where the claim says that its difference is above 0: true, false, equal or not shown.

    True and false are by the p-value of no difference, equal is by that of a difference of MARGIN or more, which
    accuracies alone have; each corrected by Holm's method for the number of `cases`.
    """
    differences = [pair.difference for pair in cases.values()]
    p_values = holm([1.0 if d.p is None else d.p for d in differences])
    margins = [
        None if pair.losses else d.equivalence(MARGIN) for pair, d in zip(cases.values(), differences, strict=True)
    ]
    equivalences = holm([1.0 if p is None else p for p in margins])

    def verdict(difference: Difference, p: float, equivalence: float) -> str:
        if p < 1 - CONFIDENCE:
            return "true" if difference.estimate.mean > 0 else "false"
        return "equal" if equivalence < 1 - CONFIDENCE else "not shown"

    return dict(zip(cases, map(verdict, differences, p_values, equivalences), strict=True))


def conclude(verdict: str, cases: Mapping[str, str]) -> str:
    """A claim's verdict in full, given those of its cases."""
    if not cases:
        return verdict
    by_verdict: dict[str, list[str]] = {"true": [], "false": [], "equal": [], "not shown": []}
    for case, found in cases.items():
        by_verdict[found].append(case)
    words = {"false": "the opposite" if by_verdict["true"] else "false",
             "equal": f"equal to within {100 * MARGIN:g} point"}  # fmt: skip
    parts = []
    for found, group in by_verdict.items():
        if group:
            when = "" if len(group) == len(cases) else f" when {', when '.join(group)}"
            parts.append(f"{words.get(found, found)}{when}")
    return verdict.replace("{cases}", "; ".join(parts))
