"""What the next task is expected to cost: the most its model took, per second where known, or the table."""

from __future__ import annotations

import pytest

from kie_async.limits.prices import Charge, PriceBook


def book(*taken: tuple[Charge, float]) -> PriceBook:
    made = PriceBook()
    for charge, took in taken:
        made.learn(charge, took)
    return made


TEN_SECONDS = Charge("m/x", 10.0)
SOME_URL = Charge("m/x")


@pytest.mark.parametrize(
    ("taken", "charge", "expected"),
    [
        pytest.param([], SOME_URL, 0.0, id="nothing is known"),
        pytest.param([], Charge("m/x", 4.0, listed=32.0), 32.0, id="the table"),
        pytest.param([(SOME_URL, 40.0), (SOME_URL, 30.0)], SOME_URL, 40.0, id="the most so far"),
        pytest.param([(SOME_URL, 40.0)], Charge("m/y"), 0.0, id="of another model"),
        pytest.param([(TEN_SECONDS, 80.0)], Charge("m/x", 4.0), 32.0, id="per second"),
        pytest.param([(TEN_SECONDS, 80.0)], Charge("m/x", 3.2), 32.0, id="a second that has begun counts"),
        pytest.param(
            [(TEN_SECONDS, 70.0), (Charge("m/x", 1.0), 70.0)],
            Charge("m/x", 9.0),
            70.0,
            id="seconds that are not charged",
        ),
        pytest.param(
            [(TEN_SECONDS, 100.0)],
            Charge("m/x", 4.0, listed=32.0, is_per_s=True),
            40.0,
            id="dearer than the table",
        ),
        pytest.param(
            [(TEN_SECONDS, 50.0)], Charge("m/x", 4.0, listed=32.0), 32.0, id="cheaper than the table"
        ),
        pytest.param(
            [(TEN_SECONDS, 100.0)],
            Charge("m/x", 20.0, listed=160.0, is_per_s=True),
            200.0,
            id="dearer and longer, where the table says that seconds are charged",
        ),
        pytest.param([(SOME_URL, 40.0)], TEN_SECONDS, 40.0, id="only tasks of unknown length so far"),
    ],
)
def test_the_expected_price(taken: list[tuple[Charge, float]], charge: Charge, expected: float) -> None:
    assert book(*taken).expect(charge) == expected


@pytest.mark.parametrize(
    ("taken", "charge", "is_known"),
    [
        pytest.param([], SOME_URL, False, id="nothing"),
        pytest.param([], Charge("m/x", 4.0, listed=32.0), True, id="the table"),
        pytest.param([], Charge("m/x", listed_most=2400.0), False, id="the table, but no seconds"),
        pytest.param([(SOME_URL, 40.0)], SOME_URL, True, id="like one before"),
        pytest.param([(TEN_SECONDS, 80.0)], Charge("m/x", 9.0), True, id="shorter than one before"),
        pytest.param([(TEN_SECONDS, 80.0)], Charge("m/x", 11.0), False, id="longer than any before"),
        pytest.param([(TEN_SECONDS, 80.0)], SOME_URL, False, id="perhaps longer than any before"),
    ],
)
def test_what_counts_as_known(taken: list[tuple[Charge, float]], charge: Charge, is_known: bool) -> None:
    assert book(*taken).is_known(charge) is is_known


@pytest.mark.parametrize(
    ("taken", "charge", "most"),
    [
        pytest.param([(SOME_URL, 40.0)], SOME_URL, 160.0, id="four times what is expected"),
        pytest.param([(TEN_SECONDS, 10.0)], Charge("m/x", 90.0), 90.0, id="its seconds"),
        pytest.param([(SOME_URL, 40.0)], Charge("m/x", listed_most=2400.0), 2400.0, id="the longest audio"),
    ],
)
def test_how_much_a_task_may_surprise(taken: list[tuple[Charge, float]], charge: Charge, most: float) -> None:
    assert book(*taken).expect_at_most(charge) == most
