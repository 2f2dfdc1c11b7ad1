"""Tests and corrections against scipy's, R's and hand calculations."""

import pytest
from scipy import stats

from sepconv.study.statistics import Difference, holm

VALUES, REFERENCES = [0.991, 0.993, 0.990, 0.992, 0.995], [0.988, 0.992, 0.985, 0.990, 0.984]


def test_welch() -> None:
    difference = Difference.welch(VALUES, REFERENCES)
    theirs = stats.ttest_ind(VALUES, REFERENCES, equal_var=False)
    interval = theirs.confidence_interval()
    assert difference.p == pytest.approx(theirs.pvalue)
    assert difference.degrees == pytest.approx(theirs.df)
    assert (difference.estimate.low, difference.estimate.high) == pytest.approx((interval.low, interval.high))
    assert difference.estimate.mean == pytest.approx(0.0044)


def test_values_that_do_not_spread_give_no_p_value() -> None:
    difference = Difference.welch([0.5, 0.5], [0.4, 0.4])
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
    lower, upper = ([value + shift for value in VALUES] for shift in (margin, -margin))
    apart = [stats.ttest_ind(lower, REFERENCES, equal_var=False, alternative="greater").pvalue,
             stats.ttest_ind(upper, REFERENCES, equal_var=False, alternative="less").pvalue]  # fmt: skip
    assert Difference.welch(VALUES, REFERENCES).equivalence(margin) == pytest.approx(max(apart))
    assert Difference.welch(REFERENCES, VALUES).equivalence(margin) == pytest.approx(max(apart))


def test_holm() -> None:
    """As R's p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") gives them."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []
