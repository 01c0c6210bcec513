"""Runs the command line in a thread of a test, against a service of the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from kie_async.sandbox import Fixed, Sandbox

KEY = "kie-key-0123456789"
Command = Callable[..., Awaitable[tuple[int, str, str]]]
"""Returns the exit status, and what was written to either output."""


@pytest.fixture
async def service() -> AsyncIterator[Sandbox]:
    async with Sandbox(api_key=KEY, durations=Fixed(0.05)) as service:
        yield service


@pytest.fixture
def run_command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path, service: Sandbox
) -> Command:
    """Run ``kie-async`` in a thread of this process, in a folder of its own."""
    from kie_async import cli  # here: most tests need none, and it takes a while

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KIE_API_KEY", KEY)
    monkeypatch.setenv("KIE_BASE_URL", service.url)

    def call(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main(arguments)
        return int(left.value.code or 0), *capfd.readouterr()

    async def run(*arguments: str) -> tuple[int, str, str]:
        return await asyncio.to_thread(call, *arguments)

    return run
