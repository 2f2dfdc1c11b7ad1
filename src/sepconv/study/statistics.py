"""Means over seeds and their differences, with intervals by Student's t; medians over turns, with quartiles."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scipy import special

CONFIDENCE = 0.95
MARGIN = 0.001  # an accuracy that differs by less is called equal: 0.1 point


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval; None where one value tells of no spread."""

    n: int
    mean: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        mean = statistics.fmean(values)
        if len(values) < 2:
            return cls(len(values), mean, None, None)
        quantile = float(special.stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2))
        half = quantile * statistics.stdev(values) / len(values) ** 0.5
        return cls(len(values), mean, mean - half, mean + half)

    @property
    def half(self) -> float | None:
        """Half of the interval's width."""
        return None if self.high is None else self.high - self.mean

    def percent(self) -> str:
        """A mean share, such as an accuracy, with its interval, in percent."""
        interval = "" if self.half is None else f" ± {100 * self.half:.2f}"
        return f"{100 * self.mean:.2f}{interval} %"

    def points(self) -> str:
        """A mean difference of shares with its interval, in percentage points."""
        interval = "" if self.half is None else f" ± {100 * self.half:.2f}"
        return f"{100 * self.mean:+.2f}{interval}"


@dataclass(frozen=True)
class Difference:
    """A mean difference, and its p-value by a two-sided t-test.

    The p-value is for one comparison alone; None where one pair, or values that do not spread, give none.
    """

    estimate: Estimate
    p: float | None
    error: float = 0.0  # standard error of the mean; 0 where there is no p-value
    degrees: float = 0.0  # of freedom

    @classmethod
    def between(cls, values: Sequence[float], references: Sequence[float]) -> "Difference":
        """`values` less `references`, pair by pair: the paired t-test."""
        differences = [round(a - b, 9) for a, b in zip(values, references, strict=True)]  # shares of whole images
        estimate = Estimate.of(differences)
        if len(set(differences)) < 2:
            return cls(estimate, None)
        error, degrees = statistics.stdev(differences) / len(differences) ** 0.5, len(differences) - 1
        return cls(estimate, two_sided(estimate.mean / error, degrees), error, degrees)

    @classmethod
    def welch(cls, values: Sequence[float], references: Sequence[float]) -> "Difference":
        """The mean of `values` less that of `references`, two of each or more, which are not pairs: Welch's t-test."""
        mean = statistics.fmean(values) - statistics.fmean(references)
        squares = [statistics.variance(group) / len(group) for group in (values, references)]
        if sum(squares) < 1e-18:  # alike, but for rounding
            return cls(Estimate(len(values), mean, None, None), None)
        error = sum(squares) ** 0.5
        parts = zip(squares, (values, references), strict=True)
        degrees = sum(squares) ** 2 / sum(square**2 / (len(group) - 1) for square, group in parts)
        half = float(special.stdtrit(degrees, (1 + CONFIDENCE) / 2)) * error
        estimate = Estimate(len(values), mean, mean - half, mean + half)
        return cls(estimate, two_sided(mean / error, degrees), error, degrees)

    def equivalence(self, margin: float) -> float | None:
        """The p-value of "it is `margin` or more", either way: small where there is no such difference.

        The larger one of two one-sided t-tests (Schuirmann, J. Pharmacokinet. Biopharm. 15, 1987); None as `p` is.
        """
        if self.p is None:
            return None
        return float(special.stdtr(self.degrees, (abs(self.estimate.mean) - margin) / self.error))

    def points(self) -> str:
        """The difference of shares with its interval, in percentage points, and its p-value."""
        return f"{self.estimate.points()}, p {write_p(self.p)}"


def write_p(p: float | None) -> str:
    """A p-value in a few characters."""
    if p is None:
        return "-"
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}"


def two_sided(t: float, degrees: float) -> float:
    """The p-value of a t statistic, either way."""
    return float(2 * special.stdtr(degrees, -abs(t)))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of a family, each corrected for the number of them, so that any false one stays as rare.

    Each is to be read as the p-value of one test alone (Holm, Scand. J. Statist. 6, 1979).
    """
    corrected, least = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = least
    return corrected


def spread(values: Sequence[float]) -> dict[str, Any]:
    """The values of each turn, their median and their first and third quartile, for a record."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {"turns": list(values), "median": statistics.median(values), "quartiles": [low, high]}


def write_spread(values: dict[str, Any], digits: int = 2) -> str:
    """A median with its quartiles, as `spread` gives them."""
    low, high = values["quartiles"]
    return f"{values['median']:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"
