"""A table in one test hides no row."""

from __future__ import annotations

import asyncio

import pytest

from support.tables import each, together


async def test_every_row_is_checked_and_each_that_fails_is_named() -> None:
    seen: list[str] = []

    async def check(row: str) -> None:
        seen.append(row)
        assert row.startswith("good"), row

    with pytest.raises(ExceptionGroup, match=r"^2 of 4 rows failed:\n  bad one\n  bad two$") as caught:
        await each(["good one", "bad one", "good two", "bad two"], check)
    assert seen == ["good one", "bad one", "good two", "bad two"]
    assert [type(error) for error in caught.value.exceptions] == [AssertionError] * 2


async def test_so_many_rows_wait_side_by_side_and_no_more() -> None:
    running, most = 0, 0

    async def check(_: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    await each(range(10), check, at_once=3)
    assert most == 3


async def test_a_table_without_rows_fails() -> None:
    with pytest.raises(AssertionError, match="without rows"):
        await each([], asyncio.sleep)
    with pytest.raises(AssertionError, match="without rows"):
        together("row", [])(lambda row: None)()


def test_tests_of_one_row_become_a_test_of_all() -> None:
    @together("one, other", [(1, 1), (1, 2), (2, 3)])
    def are_the_same(one: int, other: int, distance: int) -> None:
        assert abs(one - other) <= distance

    are_the_same(distance=1)
    with pytest.raises(ExceptionGroup, match=r"^2 of 3 rows failed:\n  \(1, 2\)\n  \(2, 3\)$"):
        are_the_same(distance=0)


@pytest.mark.parametrize("fixture", [3])
@together("row", range(3))
async def test_what_is_no_row_comes_from_pytest(row: int, fixture: int) -> None:
    assert row < fixture
