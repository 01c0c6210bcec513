"""Creates on kept connections: the short form of ``tests.campaign kept``, and that it would find a fault."""

from __future__ import annotations

import pytest
from campaign import kept

from kie_async.creating.kept_connection import KeptConnection

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
    assert found.kept > 30


async def test_a_gate_that_asks_no_socket_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KeptConnection, "_shows_nothing", lambda _: True)
    found = await kept.run(600, over_tls=True, aimed=True)
    assert found.seen_too_late
