"""A batch that is killed at every corner and run again: the short form of ``tests.campaign kill``."""

from __future__ import annotations

import pytest
from campaign import kill

pytestmark = pytest.mark.campaign


@pytest.mark.timeout(120)
async def test_twenty_kills_pay_nothing_twice_and_lose_nothing() -> None:
    report = await kill.run(20)
    assert not report.wrong, str(report)
    assert report.counts["server tasks"] == report.counts["bound to their one ref"] > 0
    named = [point for point in kill.ALL_POINTS if report.kills[point]]
    assert len(named) >= 10, str(report)
