"""Random orders of all that can happen to a few creates: the short form of ``tests.campaign orders``."""

from __future__ import annotations

import pytest
from campaign import orders

pytestmark = pytest.mark.campaign


@pytest.mark.timeout(120)
def test_a_hundred_and_fifty_orders_pay_nothing_twice_and_lose_nothing() -> None:
    report = orders.run(150)
    assert not report.complaints, str(report)
    assert report.seeds == 150
    assert set(report.steps) == set(orders.STEPS)
    assert report.fates["created"] > report.fates["lost"] > 0
