"""What the test of a claim finds: raw values, and how they are written out."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sepconv import InputError
from sepconv.packing import pack, unpack
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
class Accuracies:
    """Test accuracies, one a seed, by the images that a network is right about."""

    images: int
    right: list[str]  # of each seed, as `pack` writes it

    @classmethod
    def of(cls, seeds: Sequence[NDArray[np.bool_]]) -> "Accuracies":
        """Of what each seed's network is right about, (N,)."""
        return cls(len(seeds[0]), [pack(right) for right in seeds])

    @property
    def by_image(self) -> NDArray[np.bool_]:
        """What is right, (seeds, images)."""
        return np.array([unpack(right, self.images) for right in self.right])

    @property
    def limits(self) -> tuple[float, float]:
        return 0.0, 1.0


@dataclass(frozen=True)
class Paired:
    """Accuracies, differences of such, or losses, and those that they are set against: a pair a seed.

    Where the claim says that they are larger, `case` says when, for the verdict.
    """

    values: "list[float] | Accuracies | Paired"
    references: "list[float] | Accuracies | Paired"
    case: str | None = None
    losses: bool = False

    @property
    def by_image(self) -> NDArray[np.float64] | None:
        """The differences, (seeds, images); None where each seed's alone is known."""
        ours, theirs = (None if isinstance(side, list) else side.by_image for side in (self.values, self.references))
        return None if ours is None or theirs is None else ours.astype(np.float64) - theirs

    @property
    def limits(self) -> tuple[float, float]:
        """The least and the most that a difference can be."""
        (low, high), (least, most) = (
            (0.0, 1.0) if isinstance(side, list) else side.limits for side in (self.values, self.references)
        )
        return low - most, high - least

    @property
    def difference(self) -> Difference:
        """By seeds and images where it is known of them, else by seeds alone."""
        if (gaps := self.by_image) is not None:
            return Difference.of(gaps, *self.limits)
        if isinstance(self.values, list) and isinstance(self.references, list):
            return Difference.between(self.values, self.references)
        raise InputError("accuracies whose images are known, against others")


# of a table: text; a count; a Number; shares of 1, one a seed; losses; accuracies; or such with others that they are
# set against
Cell = str | int | Number | list[float] | Losses | Accuracies | Paired


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
        if "values" in cell:
            sides = {name: read_cell(cell[name]) for name in ("values", "references")}
            return Paired(**cell | sides)
        kind: Any = Number if "format" in cell else Losses if "losses" in cell else Accuracies
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
    if isinstance(cell, Accuracies):
        return Estimate.crossed(cell.by_image).percent()
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
