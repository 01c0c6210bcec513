"""The tables of a job queue, procrastinate, in a database of a test."""

from __future__ import annotations

import pytest


async def make_tables(dsn: str) -> None:
    """Make the tables of procrastinate."""
    procrastinate = pytest.importorskip("procrastinate")
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=dsn))
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
