"""What the test of a claim finds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from sepconv.study.statistics import Difference, Estimate


@dataclass
class Finding:
    """What was found about one claim on one data set."""

    how: str  # it was tested
    headings: list[str]
    rows: list[list[str]]
    verdict: str
    plot: Callable[[], Figure] | None = None  # draws it, once the rest is written


def mean_percent(shares: Sequence[float]) -> str:
    """The mean of shares with its interval, in percent."""
    return Estimate.of(shares).percent()


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
