"""Means over seeds and differences between pairs, with intervals by Student's t; medians over turns, with quartiles."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scipy import special

CONFIDENCE = 0.95


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
    """A mean difference between pairs, and its p-value by the paired t-test.

    The p-value is for one comparison alone; None where one pair, or pairs that all differ alike, give none.
    """

    estimate: Estimate
    p: float | None

    @classmethod
    def between(cls, values: Sequence[float], references: Sequence[float]) -> "Difference":
        """`values` less `references`, pair by pair."""
        differences = [round(a - b, 9) for a, b in zip(values, references, strict=True)]  # shares of whole images
        estimate = Estimate.of(differences)
        if len(set(differences)) < 2:
            return cls(estimate, None)
        t = estimate.mean / (statistics.stdev(differences) / len(differences) ** 0.5)
        return cls(estimate, float(2 * special.stdtr(len(differences) - 1, -abs(t))))

    def points(self) -> str:
        """The difference of shares with its interval, in percentage points, and its p-value."""
        return f"{self.estimate.points()}, p {self.p_value()}"

    def p_value(self) -> str:
        if self.p is None:
            return "-"
        return "< 0.0001" if self.p < 1e-4 else f"{self.p:.4f}"


def spread(values: Sequence[float]) -> dict[str, Any]:
    """The values of each turn, their median and their first and third quartile, for a record."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {"turns": list(values), "median": statistics.median(values), "quartiles": [low, high]}


def write_spread(values: dict[str, Any], digits: int = 2) -> str:
    """A median with its quartiles, as `spread` gives them."""
    low, high = values["quartiles"]
    return f"{values['median']:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"
