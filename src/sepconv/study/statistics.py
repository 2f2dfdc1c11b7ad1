"""Means over seeds and their differences, with intervals; medians over turns, with quartiles.

Where it is known which images each seed's network is right about, intervals are by a bootstrap over seeds and images,
else over seeds alone, by Student's t.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

CONFIDENCE = 0.95
MARGIN = 0.001  # an accuracy that differs by less is called equal: 0.1 point
RESAMPLES = 4000
STEP = 0.02  # of the share of seeds that are right about an image
ROUNDING = 1e-9  # shares that differ by less are equal

Shares = NDArray[np.bool_] | NDArray[np.float64]  # (seeds, images): of a network that is right, 1


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval; None where one value, or values that are all alike, tell of no spread."""

    n: int
    mean: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        """Of values of several seeds: Student's t."""
        mean = statistics.fmean(values)
        if len(values) < 2 or statistics.stdev(values) < ROUNDING:
            return cls(len(values), mean, None, None)
        quantile = float(special.stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2))
        half = quantile * statistics.stdev(values) / len(values) ** 0.5
        return cls(len(values), mean, mean - half, mean + half)

    @classmethod
    def crossed(cls, right: NDArray[np.bool_]) -> "Estimate":
        """Of the accuracies of several seeds, by what each is `right` about, (seeds, images): see `resample`."""
        return cls.by_resamples(right, resample(right, 0.0, 1.0) if len(right) > 1 else None)

    @classmethod
    def by_resamples(cls, values: Shares, means: NDArray[np.float64] | None) -> "Estimate":
        """The mean of `values` (seeds, images), with the interval that its resampled `means` give, if there are any."""
        mean = float(values.mean())
        if means is None:
            return cls(len(values), mean, None, None)
        low, high = map(float, np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]))
        return cls(len(values), mean, low, high)

    def within(self, low: float, high: float) -> "Estimate":
        """The same, its interval cut off where no value can be."""
        if self.low is None or self.high is None:
            return self
        return replace(self, low=max(low, self.low), high=min(high, self.high))

    @property
    def half(self) -> float | None:
        """Half of the interval's width, where that is symmetric."""
        return None if self.high is None else self.high - self.mean

    @property
    def arms(self) -> tuple[float, float]:
        """How far the interval goes below the mean and above it; 0 where there is none."""
        return (0.0, 0.0) if self.low is None or self.high is None else (self.mean - self.low, self.high - self.mean)

    def percent(self) -> str:
        """A mean share, such as an accuracy, with its interval, in percent."""
        return self.within(0.0, 1.0).write(".2f", " %")

    def points(self) -> str:
        """A mean difference of shares with its interval, in percentage points."""
        return self.within(-1.0, 1.0).write("+.2f")

    def write(self, form: str, unit: str = "", factor: int = 100) -> str:
        """`factor` times the mean with its interval: by its half width or, where it is not symmetric, by its ends."""
        mean = format(factor * self.mean, form)
        if self.low is None or self.high is None:
            return f"{mean}{unit}"
        below, above = (format(factor * arm, form.removeprefix("+")) for arm in self.arms)
        if below == above:
            return f"{mean} ± {above}{unit}"
        return f"{mean}{unit} ({format(factor * self.low, form)} to {format(factor * self.high, form)})"


@dataclass(frozen=True)
class Difference:
    """A mean difference, and its two-sided p-value.

    The p-value is for one comparison alone; None where one pair, or values that do not spread, give none.
    """

    estimate: Estimate
    p: float | None
    error: float = 0.0  # standard error of the mean; 0 where there is no p-value
    degrees: float = 0.0  # of freedom
    # by a bootstrap, in place of those two: what the mean may come to
    means: NDArray[np.float64] | None = field(default=None, compare=False, repr=False)

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
    def crossed(cls, right: NDArray[np.bool_], references: NDArray[np.bool_]) -> "Difference":
        """What networks are `right` about less what `references` are, both (seeds, images), seeds and images paired."""
        return cls.of(right.astype(np.float64) - references)

    @classmethod
    def of(cls, gaps: NDArray[np.float64], low: float = -1.0, high: float = 1.0) -> "Difference":
        """The mean of differences from `low` to `high`, (seeds, images), by `resample`.

        The p-value is twice the share of resampled means on the rarer side of 0.
        """
        means = resample(gaps, low, high) if len(gaps) > 1 else None
        estimate = Estimate.by_resamples(gaps, means)
        if means is None:
            return cls(estimate, None)
        return cls(estimate, min(1.0, 2 * min(share(means <= ROUNDING), share(means >= -ROUNDING))), means=means)

    def equivalence(self, margin: float) -> float | None:
        """The p-value of "it is `margin` or more", either way: small where there is no such difference.

        The larger one of two one-sided tests (Schuirmann, J. Pharmacokinet. Biopharm. 15, 1987); None as `p` is.
        """
        if self.p is None:
            return None
        if self.means is not None:
            return max(share(self.means >= margin), share(self.means <= -margin))
        return float(special.stdtr(self.degrees, (abs(self.estimate.mean) - margin) / self.error))

    def points(self) -> str:
        """The difference of shares with its interval, in percentage points, and its p-value."""
        return f"{self.estimate.points()}, p {write_p(self.p)}"

    def plain(self) -> str:
        """The difference of numbers such as losses, likewise."""
        return f"{self.estimate.write('+.3f', factor=1)}, p {write_p(self.p)}"


def write_p(p: float | None) -> str:
    """A p-value in a few characters."""
    if p is None:
        return "-"
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}"


def resample(values: Shares, low: float, high: float) -> NDArray[np.float64]:
    """What the mean of `values`, (seeds, images), might have come to with other seeds and other images: (RESAMPLES,).

    A bootstrap crossed over both, of two seeds or more: images are drawn anew, and seeds, and the two changes of the
    mean are added. Seeds are so few that drawn from themselves they would seldom go as far as others do: they are drawn
    from Student's t, by their variance. What varies with seed and image together would count with both (Owen, Ann.
    Appl. Stat. 1, 2007); it counts with the images alone, and is taken off the seeds' variance. To the images are added
    one of `low` and one of `high`, the least and the largest that a value can be: without, images that are all alike
    would leave no doubt at all.

    Of its 95 % intervals about 95 % hold the true mean with five seeds or more; with two or three that differ by far
    more than the images explain, about 90 %.
    """
    seeds, images = values.shape
    mean, by_seed, by_image = values.mean(), values.mean(1), values.mean(0)
    rest = values - by_seed[:, None] - by_image + mean
    together = float((rest**2).sum()) / (seeds - 1) / max(1, images - 1) / images  # in the variance of seeds' means
    own = max(0.0, float(by_seed.var(ddof=1)) - together)
    generator = np.random.default_rng(0)
    bounded = np.append(by_image, [low, high])
    # images that differ by less than a step are drawn as one: there are few such groups, and many images
    _, groups, counts = np.unique(np.round(bounded / STEP), return_inverse=True, return_counts=True)
    levels = np.bincount(groups, bounded) / counts
    drawn = generator.multinomial(images, counts / counts.sum(), RESAMPLES) @ levels / images
    shares = (generator.permutation(RESAMPLES) + 0.5) / RESAMPLES  # evenly, for ends that do not hang on chance
    changes = special.stdtrit(seeds - 1, shares) * (own / seeds) ** 0.5
    means: NDArray[np.float64] = np.clip(drawn + changes, low, high)
    return means


def share(cases: NDArray[np.bool_]) -> float:
    """The share of resamples that are such, as a p-value: never 0 (Davison and Hinkley, Bootstrap Methods, 1997)."""
    return float(cases.sum() + 1) / (len(cases) + 1)


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
