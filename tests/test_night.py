"""A batch lives through a bad night and the morning after: the short form of ``tests.campaign night``."""

from __future__ import annotations

import pytest
from campaign import night

pytestmark = pytest.mark.campaign


@pytest.mark.timeout(120)
async def test_a_night_of_weather_kills_and_a_full_disk_ends_with_every_row_accounted_for() -> None:
    report = await night.run(30, speed=120.0, share=0.05, task_s=40.0)
    assert report.ok, str(report)
