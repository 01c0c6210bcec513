"""Forged deliveries change nothing: the short form of ``tests.campaign forge``."""

from __future__ import annotations

import pytest
from campaign import forge

pytestmark = pytest.mark.campaign


async def test_thousands_of_forged_deliveries_change_no_handle(leaks: None) -> None:
    report = await forge.run(2000)
    assert not report.complaints
    assert report.growth_mib < forge.MAX_GROWTH_MIB
    assert len(report.statuses) > len(forge.KINDS)
