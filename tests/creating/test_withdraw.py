"""A create that is taken back is never sent, whenever it is; else it goes on: the short form of the sweep."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from campaign.withdraw import Point, points, probe

pytestmark = pytest.mark.usefixtures("leaks")

GROUPS = 8
POINTS = list(points(160, random.Random(2)))


@pytest.mark.parametrize("group", [POINTS[number::GROUPS] for number in range(GROUPS)], ids=range(GROUPS))
async def test_a_yes_to_a_withdrawal_is_never_a_lie_and_a_no_changes_nothing(
    group: list[Point], tmp_path: Path
) -> None:
    for point in group:
        seen = await probe(point, tmp_path)
        assert not seen.objection, point
