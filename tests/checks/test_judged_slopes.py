"""Slopes over width are judged by what the number of seeds can tell, and widths that are far apart weigh more."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from abcfx.checks.slopes import CHANGE, UPDATE, Fit, Interval, Slope, fit, judge, student, what_would_decide
from abcfx.support.verdict import Verdict

FLAT = Interval(0.0, 0.0)


def test_a_line_is_fitted_for_each_seed() -> None:
    found = fit([5.0, 6.0, 7.0], {0: [1.0, 2.0, 4.0], 1: [1.0, 2.0, 8.0]})
    assert found.mean == pytest.approx((1.0 + 1.5) / 2)
    assert found.tail == pytest.approx((1.0 + 2.0) / 2)
    assert found.error == pytest.approx(0.25)
    assert found.tail_error == pytest.approx(0.5)
    assert found.seeds == 2


@pytest.mark.parametrize("slope", [-2.0, -0.5, 0.5, 2.0])
def test_one_seed_never_fails(slope: float) -> None:
    assert judge(Fit(slope, 0.0, slope, 0.0, 1), FLAT, UPDATE)[0] is Verdict.INCONCLUSIVE


def test_few_seeds_that_agree_by_chance_do_not_fail() -> None:
    assert judge(Fit(-0.5, 0.03, -0.5, 0.03, 2), FLAT, UPDATE)[0] is Verdict.INCONCLUSIVE
    assert judge(Fit(-0.5, 0.03, -0.5, 0.03, 3), FLAT, UPDATE)[0] is Verdict.FAIL
    assert student(2) > student(3) > student(11) > student(60) == 2.0


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (Fit(0.05, 0.02, 0.3, 0.2, 6), Verdict.PASS),
        (Fit(-0.3, 0.02, -0.05, 0.03, 6), Verdict.PASS),  # the narrowest model is off, the wide ones agree
        (Fit(-0.4, 0.02, -0.2, 0.1, 6), Verdict.INCONCLUSIVE),
        (Fit(0.5, 0.02, 0.5, 0.05, 6), Verdict.FAIL),
        (Fit(-0.5, 0.02, 0.5, 0.02, 6), Verdict.INCONCLUSIVE),  # outside on two sides
    ],
)
def test_the_two_largest_widths_may_clear_a_slope_and_never_fail_it_alone(found: Fit, verdict: Verdict) -> None:
    assert judge(found, FLAT, UPDATE)[0] is verdict


def test_a_change_that_shrinks_is_weak() -> None:
    assert judge(Fit(-0.6, 0.02, -0.6, 0.02, 6), FLAT, CHANGE)[0] is Verdict.WEAK


def undecided(mean: float, error: float, seeds: int = 9) -> Slope:
    slope = Slope("transformed", "up.weight", UPDATE, 3, mean, error, seeds, mean, error, 0.0, 0.0)
    verdict, reason = judge(Fit(mean, error, mean, error, seeds), FLAT, UPDATE)
    return replace(slope, verdict=verdict, reason=reason)


def test_what_would_decide_is_seeds_or_a_width() -> None:
    assert what_would_decide([undecided(0.0, 0.01)], (64, 128), 1.0) == ""
    told = what_would_decide([undecided(0.03, 0.09)], (64, 128), 2.0)
    needed = math.ceil(9 * (0.18 / 0.12) ** 2)
    assert f"seeds={needed} (about {2 * needed} s)" in told
    assert "add width 256" in what_would_decide([undecided(0.149, 0.1)], (64, 128), 2.0)
