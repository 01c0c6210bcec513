"""What the next task is expected to cost: the most its model took, per second where known, or the table."""

from __future__ import annotations

import json

import pytest

from kie_async.limits.prices import Charge, PriceBook, Quote


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


def ended(*taken: tuple[Charge, float]) -> PriceBook:
    made = PriceBook()
    for charge, took in taken:
        made.learn_end(charge, took)
    return made


def quoted(book: PriceBook, charge: Charge) -> Quote:
    found = book.quote(charge)
    assert found is not None
    return found


class TestWhatIsQuoted:
    PER_S = Charge("m/x", 10.0, listed=80.0, is_per_s=True)

    def test_of_nothing_there_is_nothing(self) -> None:
        assert PriceBook().quote(SOME_URL) is None
        assert PriceBook().quote(Charge("m/x", listed_most=120.0, is_per_s=True)) is None

    def test_the_table_speaks_first(self) -> None:
        found = quoted(PriceBook(), self.PER_S)
        assert (found.credits, found.low, found.high, found.per_s, found.tasks) == (80.0, 80.0, 80.0, 8.0, 0)

    def test_what_tasks_took_wins_over_the_table(self) -> None:
        book = ended((self.PER_S, 50.0), (self.PER_S, 70.0))
        found = quoted(book, self.PER_S)
        assert (found.credits, found.low, found.per_s, found.tasks) == (60.0, 50.0, 6.0, 2)
        # For the budget the table is silent only when a few have ended.
        assert found.high == 80.0
        book.learn_end(self.PER_S, 60.0)
        assert quoted(book, self.PER_S).high == book.expect(self.PER_S) == 70.0

    def test_the_budget_reserves_what_is_quoted_at_most(self) -> None:
        for book in (PriceBook(), ended((SOME_URL, 40.0)), ended(*[(self.PER_S, 200.0)] * 5)):
            for charge in (self.PER_S, Charge("m/x", 4.0, listed=32.0, is_per_s=True)):
                assert quoted(book, charge).high == book.expect(charge)

    def test_seconds_that_have_begun_are_charged(self) -> None:
        book = ended((self.PER_S, 90.0))
        found = quoted(book, Charge("m/x", 3.2, listed=32.0, is_per_s=True))
        assert (found.credits, found.per_s) == (36.0, 9.0)

    def test_where_nobody_says_what_is_charged_it_is_what_varies_less(self) -> None:
        by_task = ended((Charge("m/x", 3.0), 40.0), (Charge("m/x", 9.0), 40.0))
        by_second = ended((Charge("m/x", 3.0), 24.0), (Charge("m/x", 9.0), 72.0))
        assert quoted(by_task, TEN_SECONDS).credits == 40.0
        assert quoted(by_second, TEN_SECONDS).credits == 80.0

    def test_another_resolution_is_another_kind(self) -> None:
        low, high = Charge("m/x", listed=8.0), Charge("m/x", listed=18.0, variant="4K")
        book = ended((low, 7.0))
        assert quoted(book, low).credits == 7.0
        assert quoted(book, high).credits == 18.0

    def test_a_price_that_changed_is_forgotten(self) -> None:
        book = ended(*[(SOME_URL, 40.0)] * 5, *[(SOME_URL, 10.0)] * 40)
        assert quoted(book, SOME_URL).credits == 10.0

    def test_what_was_given_back_teaches_nothing(self) -> None:
        assert ended((SOME_URL, 0.0)).quote(SOME_URL) is None

    def test_it_outlives_a_session(self) -> None:
        book, again = ended((self.PER_S, 50.0), (SOME_URL, 30.0)), PriceBook()
        again.restore_ended("m/x", json.loads(json.dumps(book.dump_ended("m/x"))))
        for charge in (self.PER_S, SOME_URL):
            assert quoted(again, charge).credits == quoted(book, charge).credits

    @pytest.mark.parametrize(
        "damaged", [None, 5, [], {"": 5}, {"": [[-1.0], []]}, {"": [["x"], []]}, {"": [[]]}]
    )
    def test_what_is_damaged_is_left_out(self, damaged: object) -> None:
        book = PriceBook()
        book.restore_ended("m/x", damaged)
        assert book.quote(SOME_URL) is None
