"""Workers of one journal that are killed and frozen: the short form of ``tests.campaign cluster``."""

from __future__ import annotations

import pytest
from campaign import cluster
from support.postgres import OwnPostgres

pytestmark = pytest.mark.campaign


@pytest.mark.timeout(240)
async def test_workers_that_die_pay_nothing_twice_and_lose_nothing(own_postgres: OwnPostgres) -> None:
    report = await cluster.run(7, together=0, server=own_postgres())
    assert not report.wrong, str(report)
    assert report.counts["server tasks"] == report.counts["bound to their one ref"] > 0
    assert report.counts["answers 429 to creates"] == 0
    assert sum(report.deaths.values()) == 7
    assert sum(report.freezes.values()) >= 1


@pytest.mark.timeout(120)
async def test_a_ref_asked_of_all_workers_in_one_instant_is_one_task_for_all(
    own_postgres: OwnPostgres,
) -> None:
    report = await cluster.run(0, together=30, server=own_postgres())
    assert not report.wrong, str(report)
    assert report.counts["  tasks"] == 30
    assert report.counts["  callers told their result"] == "90 of 90"
