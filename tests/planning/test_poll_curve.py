"""How many polls a task gets by each age: by tiers, and by Keller's rule from a hazard."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from kie_async.config import DOCUMENTED
from kie_async.planning.poll_curve import PollCurve

EDGES_S = [float(edge) for edge in range(0, 2001, 2)]


def hazards_of(survival: list[float]) -> list[float]:
    return [math.log(before / after) for before, after in pairwise(survival)]


def lognormal(median_s: float, sigma: float) -> list[float]:
    """The share of tasks that still runs at each edge."""

    def runs(age_s: float) -> float:
        return 0.5 * math.erfc(math.log(age_s / median_s) / sigma / math.sqrt(2)) if age_s else 1.0

    return [max(runs(edge_s), 1e-12) for edge_s in EDGES_S]


def polls_and_wait(curve: PollCurve, survival: list[float]) -> tuple[float, float]:
    """Make the polls one after the other; return how many a task takes, and how late they find its end."""
    share = dict(zip(EDGES_S, survival, strict=True))
    at_s, polls, wait_s = 0.0, 0.0, 0.0
    while (next_s := curve.after(at_s, 1)) < 1800:
        polls += _at(share, at_s)
        edges_s = [edge_s for edge_s in EDGES_S if at_s <= edge_s <= next_s]
        for before_s, after_s in pairwise([at_s, *edges_s, next_s]):
            ended = _at(share, before_s) - _at(share, after_s)
            wait_s += ended * (next_s - (before_s + after_s) / 2)
        at_s = next_s
    return polls, wait_s


def _at(share: dict[float, float], age_s: float) -> float:
    low_s = age_s // 2 * 2
    high = share.get(low_s + 2, 0.0)
    return share[low_s] + (high - share[low_s]) * (age_s - low_s) / 2


@pytest.mark.parametrize(
    ("age_s", "next_s"), [(0.0, 2.5), (20.0, 22.5), (60.0, 67.5), (120.0, 142.5), (86_000.0, 86_022.5)]
)
def test_tiers_are_intervals_until_an_age(age_s: float, next_s: float) -> None:
    curve = PollCurve.of_tiers(DOCUMENTED)
    assert curve.after(age_s, 1) == pytest.approx(next_s)


def test_a_constant_hazard_is_polled_in_equal_intervals() -> None:
    curve = PollCurve.of_hazards(EDGES_S, [0.02] * 1000, wait_s=3.0)
    gaps_s = [curve.after(0, polls + 1) - curve.after(0, polls) for polls in range(1, 50)]
    assert gaps_s == pytest.approx([gaps_s[0]] * 49)
    assert gaps_s[0] == pytest.approx(6.0, rel=0.01)


def test_four_times_the_hazard_is_polled_twice_as_often() -> None:
    curve = PollCurve.of_hazards(EDGES_S, [0.004] * 50 + [0.016] * 950, wait_s=2.0)
    assert 2 * (curve.polls_until(60) - curve.polls_until(50)) == pytest.approx(
        curve.polls_until(160) - curve.polls_until(150)
    )


@pytest.mark.parametrize(
    ("median_s", "sigma", "gain"), [(120.0, 0.42, 1.53), (90.0, 0.15, 3.54), (60.0, 0.80, 1.10)]
)
def test_the_polls_keep_the_wait_and_are_as_few_as_the_theory_says(
    median_s: float, sigma: float, gain: float
) -> None:
    survival = lognormal(median_s, sigma)
    polls, wait_s = polls_and_wait(PollCurve.of_hazards(EDGES_S, hazards_of(survival), 2.0), survival)
    mean_s = median_s * math.exp(sigma**2 / 2)
    assert wait_s == pytest.approx(2.0, rel=0.15)
    assert polls * wait_s == pytest.approx(mean_s / 2 / gain, rel=0.08)


def test_long_tasks_may_wait_for_a_hundredth_of_their_length() -> None:
    curve = PollCurve.of_hazards(EDGES_S, [2 / 1000] * 1000, wait_s=1.0, wait_share=0.01)  # of 1,000 s
    assert curve.after(0, 21) - curve.after(0, 20) == pytest.approx(2 * 10.0, rel=0.02)


def test_the_late_age_is_one_that_two_of_a_hundred_reach() -> None:
    curve = PollCurve.of_hazards(EDGES_S, hazards_of(lognormal(120.0, 0.42)), 1.5)
    assert curve.late_s == pytest.approx(120 * math.exp(0.42 * 2.054), rel=0.01)


def test_the_chance_of_an_end_is_that_of_the_hazard() -> None:
    survival = lognormal(120.0, 0.42)
    curve = PollCurve.of_hazards(EDGES_S, hazards_of(survival), 1.5)
    assert curve.chance(100.0, 150.0) == pytest.approx(1 - survival[75] / survival[50])
    assert curve.chance(100.0, 100.0) == 0


def test_the_rarer_of_two_curves_polls_as_rarely_as_either() -> None:
    often = PollCurve.of_hazards(EDGES_S, [0.004] * 100 + [0.1] * 900, wait_s=1.0)
    rarer = often.at_most(PollCurve.of_tiers(DOCUMENTED))
    assert rarer.polls_until(20) == pytest.approx(often.polls_until(20))
    assert rarer.polls_until(302) - rarer.polls_until(300) == pytest.approx(2 / 22.5)


def test_an_age_beyond_all_polls_never_comes() -> None:
    curve = PollCurve.of_hazards([0.0, 2.0], [0.5], 1.5)
    assert curve.after(0, 1e9) == math.inf


def test_no_poll_ever_is_a_curve_too() -> None:
    curve = PollCurve.of_tiers(((math.inf, math.inf),))
    assert curve.after(5.0, 1) == math.inf
