"""A real PgBouncer in transaction mode: each transaction may get another connection to the server."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from support.ports import free_port

CONFIGURATION = """
[databases]
app = host={host} port={port} user={user} password={password} dbname={name}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own_port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 3
"""
"""As few connections as workers: so they are passed round."""


@asynccontextmanager
async def pooler(dsn: str) -> AsyncIterator[str]:
    """Run PgBouncer before the database of *dsn*, and yield the URL that leads through it."""
    program = shutil.which("pgbouncer") or shutil.which("/usr/sbin/pgbouncer")
    if program is None:
        pytest.skip("PgBouncer is not here: install the Debian package pgbouncer")
    place, own_port = urlsplit(dsn), free_port()
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "pgbouncer.ini"
        settings.write_text(
            CONFIGURATION.format(
                host=place.hostname,
                port=place.port,
                user=place.username,
                password=place.password,
                name=place.path[1:],
                own_port=own_port,
            )
        )
        options: tuple[str, ...] = ("-q", str(settings))
        if os.geteuid() == 0:  # it refuses to be root
            for path in (Path(folder), settings):
                shutil.chown(path, "nobody")
            options = ("-u", "nobody", *options)
        process = await asyncio.create_subprocess_exec(
            program, *options, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
        )
        try:
            async with asyncio.timeout(20):
                while True:
                    assert process.returncode is None
                    try:
                        _, writer = await asyncio.open_connection("127.0.0.1", own_port)
                    except OSError:
                        await asyncio.sleep(0.02)
                    else:
                        writer.close()
                        break
            yield f"postgresql://app@127.0.0.1:{own_port}/app"
        finally:
            process.terminate()
            await process.wait()
