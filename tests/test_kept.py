"""Creates on kept connections: the short form of ``tests.campaign kept``."""

from __future__ import annotations

import pytest
from campaign import kept

pytestmark = pytest.mark.campaign


@pytest.mark.parametrize("over", ["plain", "TLS"])
async def test_against_a_server_that_closes_at_random(over: str) -> None:
    found = await kept.run(200, over_tls=over == "TLS", lines=100)
    assert found.twice == found.seen_too_late == found.lost == 0
    assert found.words["unknown"] <= 2  # one in a thousand, in two hundred
    assert found.kept > 30


@pytest.mark.parametrize("over", ["plain", "TLS"])
async def test_against_a_server_that_closes_just_now(over: str) -> None:
    found = await kept.run(300, over_tls=over == "TLS", aimed=True)
    assert found.twice == found.seen_too_late == found.lost == 0
