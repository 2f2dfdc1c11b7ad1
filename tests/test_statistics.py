"""Tests, intervals and corrections against scipy's, R's, hand calculations and simulations."""

import time

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from sepconv.study import statistics
from sepconv.study.statistics import Difference, Estimate, holm, resample

VALUES, REFERENCES = [0.991, 0.993, 0.990, 0.992, 0.995], [0.988, 0.992, 0.985, 0.990, 0.984]


def test_values_that_do_not_spread_give_no_p_value() -> None:
    difference = Difference.between([0.5, 0.5], [0.4, 0.4])
    assert difference.estimate.mean == pytest.approx(0.1)
    assert difference.estimate.half is None
    assert difference.p is None
    assert difference.equivalence(0.1) is None


@pytest.mark.parametrize("margin", [0.001, 0.0044, 0.02])
def test_equivalence_is_the_larger_of_two_one_sided_tests(margin: float) -> None:
    pairs = [a - b for a, b in zip(VALUES, REFERENCES, strict=True)]
    paired = [stats.ttest_1samp(pairs, -margin, alternative="greater").pvalue,
              stats.ttest_1samp(pairs, margin, alternative="less").pvalue]  # fmt: skip
    assert Difference.between(VALUES, REFERENCES).equivalence(margin) == pytest.approx(max(paired))


def test_holm() -> None:
    """As R's p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") gives them."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def bounds(estimate: Estimate) -> tuple[float, float]:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low, estimate.high


def test_seeds_that_are_all_alike_in_accuracy_tell_of_no_spread() -> None:
    assert Estimate.of([0.99, 0.99]).percent() == "99.00 %"
    assert Estimate.of([0.999, 0.995, 1.0]).percent() == "99.80 % (99.14 to 100.00)"
    assert Estimate.of([0.991, 0.993]).percent() == "99.20 % (97.93 to 100.00)"
    assert Estimate.of([0.08, 0.09]).points() == "+8.50 ± 6.35"


@pytest.mark.parametrize("count", [2, 3, 10])
def test_only_seeds_vary(count: int) -> None:
    """Then a bootstrap over seeds and images comes to Student's t."""
    seeds = np.random.default_rng(3).normal(0.5, 0.01, count)
    means = resample(np.repeat(seeds[:, None], 10**5, 1), 0.0, 1.0)
    expected = Estimate.of(list(seeds))
    assert expected.half is not None
    low, high = np.quantile(means, [0.025, 0.975])
    assert (high - low) / 2 == pytest.approx(expected.half, rel=0.1)
    assert (high + low) / 2 == pytest.approx(expected.mean, abs=0.1 * expected.half)


@pytest.mark.parametrize("wrong", [10, 100, 1000])
def test_only_images_vary(wrong: int) -> None:
    """Runs that are all equal leave the doubt of one: the binomial interval."""
    right = np.ones((4, 10_000), bool)
    right[:, :wrong] = False
    theirs = stats.binomtest(10_000 - wrong, 10_000).proportion_ci(method="wilson")
    low, high = bounds(Estimate.crossed(right))
    width = theirs.high - theirs.low
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.1 * width)


def test_no_interval_is_empty_or_beyond_what_can_be() -> None:
    perfect = np.ones((2, 1000), bool)
    low, high = bounds(Estimate.crossed(perfect))
    assert high == 1
    assert 0.994 < low < 0.998  # by the rule of three, 0.997
    assert bounds(Estimate.crossed(~perfect)) == pytest.approx((0, 1 - low), abs=1e-3)
    same = Difference.crossed(perfect, perfect)
    low, high = bounds(same.estimate)
    assert -0.005 < low < 0 < high < 0.005
    assert same.p == 1
    assert bounds(Difference.crossed(perfect, ~perfect).estimate)[1] == 1
    far = np.array([[True] * 100, [False] * 100])
    assert bounds(Estimate.crossed(far)) == (0, 1)
    assert Estimate.crossed(perfect[:1]).low is None
    assert Difference.crossed(perfect[:1], perfect[:1]).p is None
    assert Estimate.crossed(np.ones((2, 1), bool)).high == 1


def simulate(
    generator: np.random.Generator, seeds: int, shifts: NDArray[np.float64], spread: float
) -> NDArray[np.bool_]:
    """Networks of several seeds, whose ability has a `spread`, on images that are as easy as `shifts` says."""
    abilities = generator.normal(1.5, spread, (seeds, 1))
    return generator.random((seeds, len(shifts))) < stats.norm.cdf(abilities + shifts)


@pytest.mark.parametrize(("spread", "ease"), [(0.0, 1.0), (0.05, 1.0), (0.3, 0.5)])
def test_intervals_hold_the_truth(monkeypatch: pytest.MonkeyPatch, spread: float, ease: float) -> None:
    """Of a network of 5 seeds on 1,000 images, and of its difference from one as good: 19 times in 20, or nearly."""
    monkeypatch.setattr(statistics, "RESAMPLES", 500)
    generator = np.random.default_rng(0)
    truth = stats.norm.cdf(1.5 / (1 + spread**2 + ease**2) ** 0.5)
    held, none, trials = 0, 0, 150
    for _ in range(trials):
        images = generator.normal(0, ease, 1000)
        one, other = (simulate(generator, 5, images, spread) for _ in range(2))
        low, high = bounds(Estimate.crossed(one))
        held += low <= truth <= high
        difference = Difference.crossed(one, other)
        low, high = bounds(difference.estimate)
        none += low <= 0 <= high
        assert difference.p is not None
        assert (difference.p < 0.05) <= (not low <= 0 <= high)
    assert held / trials > 0.9
    assert none / trials > 0.9


def test_a_difference_is_seen_or_ruled_out() -> None:
    generator = np.random.default_rng(0)
    images = generator.normal(0, 1, 10_000)
    one, same, better = (simulate(generator, 5, images + shift, 0.0) for shift in (0, 0, 0.1))
    started = time.perf_counter()
    difference = Difference.crossed(better, one)
    assert time.perf_counter() - started < 1
    assert difference.p is not None
    assert difference.p < 0.001
    assert difference.estimate.mean == pytest.approx(better.mean() - one.mean())
    assert (difference.equivalence(0.01) or 0) > 0.5
    equal = Difference.crossed(same, one)
    assert (equal.p or 0) > 0.05
    assert (equal.equivalence(0.01) or 1) < 0.01
    assert Difference.crossed(one, better).estimate.mean == -difference.estimate.mean
