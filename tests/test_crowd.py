"""What a crowd of handles leaves behind is found: the short form of ``tests.campaign crowd``."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web
from campaign import crowd
from campaign.crowd import Found

pytestmark = pytest.mark.campaign


async def a_short_crowd() -> Found:
    return await crowd.run(40, rounds=1, durations=("uniform", 0.5, 0.8), lost_callbacks=0.0, closing_s=0.3)


async def test_a_crowd_leaves_nothing() -> None:
    found = await a_short_crowd()

    assert not found.lost
    assert not found.left


async def test_a_connection_that_somebody_keeps_after_its_end_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept: list[object] = []
    forget = web.Server.connection_lost

    def leak(server: web.Server, handler: Any, exc: BaseException | None = None) -> None:
        kept.append(handler)
        forget(server, handler, exc)

    monkeypatch.setattr(web.Server, "connection_lost", leak)
    found = await a_short_crowd()

    assert 0 < found.left["_Connection"] <= len(kept)


async def test_a_connection_that_is_never_closed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang_up_on_nobody(_: object) -> None:
        pass

    monkeypatch.setattr(crowd.Emulator, "hang_up", hang_up_on_nobody)
    monkeypatch.setattr(crowd, "WARM_UP", 1)
    found = await a_short_crowd()

    assert found.left["_Connection"] > 0


async def test_handles_that_somebody_keeps_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[object] = []
    work_off = crowd.at_most

    async def leak(*given: Any) -> Any:
        kept.append(await work_off(*given))
        return list(kept[-1])  # type: ignore[call-overload]

    monkeypatch.setattr(crowd, "at_most", leak)
    found = await a_short_crowd()

    assert found.left["TaskHandle"] == 40
