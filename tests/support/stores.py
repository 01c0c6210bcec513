"""Where journals of every kind are kept: opened, crashed, opened again, and changed as anybody could.

Of the fixtures ``store`` is each kind, ``durable_store`` those that outlive a process; ``journal`` and
``durable`` are open journals in them.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from kie_async import JournalError, SqliteJournal
from kie_async.journal.base import Journal
from kie_async.journal.intents import Intent, IntentState
from kie_async.journal.memory import MemoryJournal
from kie_async.journal.postgres import PostgresJournal

from .journals import as_left_by_a_crash, raw
from .link import Link

SHORT_LEASE_S = 1.0
"""Of who takes over from the dead: short, and long enough for a busy machine."""

PATIENCE_S = 20.0

Facts = dict[str, tuple[str | None, str, IntentState]]
"""What must never be wrong, by intent: its ref, its task, its state."""


class Store(ABC):
    """A place that keeps a journal."""

    cls: type[Any]
    taken_ref: str = ""
    """What is said to who wants a ref that another intent has."""
    refused: tuple[type[Exception], ...] = ()
    """What is raised by a change that the schema does not allow."""
    holds_any_bytes = True
    """Whether a text may hold a zero byte, or be no UTF-8."""

    def __init__(self) -> None:
        self.left: list[Intent] = []
        """What the last one to open it found of those before, whose outcome it has to find out."""

    @property
    @abstractmethod
    def place(self) -> Any:
        """What a journal of this kind is made with."""

    @property
    def label(self) -> str:
        """What messages call the journal."""
        return f"journal {self.place}"

    def make(self, cls: type[Any] | None = None, **options: Any) -> Any:
        """Return a journal that is not open yet, of a subclass if one is given."""
        return (cls or self.cls)(self.place, **options)

    @contextlib.asynccontextmanager
    async def opened(self, **options: Any) -> AsyncIterator[Any]:
        """Open a journal, as a process would that comes after the former ones."""
        journal = self.make(**options)
        self.left = await self._take_up(journal)
        try:
            yield journal
        finally:
            await journal.aclose()

    async def _take_up(self, journal: Any) -> list[Intent]:
        found: list[Intent] = await journal.open()
        return found

    @contextlib.asynccontextmanager
    async def doomed(self) -> AsyncIterator[Any]:
        """Open a journal that `crash` ends."""
        async with self.opened() as journal:
            yield journal

    @abstractmethod
    async def crash(self) -> None:
        """Leave everything as a SIGKILL at this moment would, for whoever opens it next."""

    def either_of(self, first: int, second: int) -> list[list[int]]:
        """Return which of two notes that exclude each other may fail, if they are asked for in this order."""
        return [[second]]

    def was_killed(self) -> None:  # noqa: B027  (a file needs no word of it)
        """Take in that a process that had it open was killed."""

    def another_end(self) -> contextlib.AbstractContextManager[object]:
        """Expect what happens when another end than the one that stands is to be noted."""
        return pytest.raises(JournalError)

    @abstractmethod
    async def change(self, statement: str) -> None:
        """Change the journal as anybody could who has the right to."""

    @abstractmethod
    async def committed(self) -> Facts:
        """Return what a crash at this moment would leave."""

    @abstractmethod
    async def content(self) -> bytes:
        """Return all that is written, for who looks for what should not be."""


def facts_of(intents: list[Intent]) -> Facts:
    return {intent.intent_id: (intent.ref, intent.task_id, intent.state) for intent in intents}


class SqliteStore(Store):
    cls = SqliteJournal
    taken_ref = r"intent\.ref"
    refused = (sqlite3.IntegrityError,)

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._path = folder / "run.db"
        self._crashes = 0

    @property
    def place(self) -> Path:
        return self._path

    def _copy(self) -> Path:
        self._crashes += 1
        return as_left_by_a_crash(self._path, self._path.parent / f"crash-{self._crashes}")

    async def crash(self) -> None:
        self._path = self._copy()

    async def change(self, statement: str) -> None:
        with raw(self._path) as db:
            db.execute(statement)

    async def committed(self) -> Facts:
        journal = SqliteJournal(self._copy())
        await journal.open()
        try:
            return facts_of(await journal.list_intents())
        finally:
            await journal.aclose()

    async def content(self) -> bytes:
        files = (self._path, Path(f"{self._path}-wal"))
        return b"".join(file.read_bytes() for file in files if file.exists())


class PostgresStore(Store):
    cls = PostgresJournal
    taken_ref = "is the one of intent"
    refused = (asyncpg.IntegrityConstraintViolationError, asyncpg.DataError)
    holds_any_bytes = False

    def __init__(self, dsn: str) -> None:
        super().__init__()
        self._dsn = dsn
        self._link: Link | None = None
        self._has_crashed = False

    @property
    def place(self) -> str:
        return self._dsn

    @property
    def label(self) -> str:
        return "the journal on PostgreSQL (kie_async_main)"

    async def _take_up(self, journal: Any) -> list[Intent]:
        await journal.open()
        deadline = time.monotonic() + PATIENCE_S
        while True:
            found: list[Intent] = await journal.take_over()
            if found or not self._has_crashed:
                break
            assert time.monotonic() < deadline, "nobody took over what a dead worker left"
            await asyncio.sleep(0.05)
        self._has_crashed = False
        return [intent for intent in found if intent.state is IntentState.UNKNOWN]

    @contextlib.asynccontextmanager
    async def opened(self, **options: Any) -> AsyncIterator[Any]:
        if self._has_crashed:
            options = {"lease_s": SHORT_LEASE_S} | options
        async with super().opened(**options) as journal:
            yield journal

    @contextlib.asynccontextmanager
    async def doomed(self) -> AsyncIterator[Any]:
        async with Link(self._dsn) as self._link:
            journal = PostgresJournal(self._link.database_url)
            await self._take_up(journal)
            try:
                yield journal
            finally:
                await journal.aclose()

    async def crash(self) -> None:
        """A worker whose network is gone is dead to the others."""
        assert self._link is not None
        await self._link.cut()
        self.was_killed()

    def was_killed(self) -> None:
        self._has_crashed = True

    def either_of(self, first: int, second: int) -> list[list[int]]:
        """Any: each has a connection of its own."""
        return [[first], [second]]

    def another_end(self) -> contextlib.AbstractContextManager[object]:
        """It is left out without a word: two workers may see the same end."""
        return contextlib.nullcontext()

    async def _fetch(self, statement: str) -> list[Any]:
        settings = {"search_path": "kie_async_main"}
        connection = await asyncpg.connect(self._dsn, server_settings=settings)
        try:
            return await connection.fetch(statement)
        finally:
            await connection.close()

    async def change(self, statement: str) -> None:
        await self._fetch(statement)

    async def committed(self) -> Facts:
        rows = await self._fetch("SELECT intent_id, ref, task_id, state FROM intent ORDER BY seq")
        states = {row["intent_id"]: IntentState(row["state"]) for row in rows}
        unknown = {IntentState.SENDING: IntentState.UNKNOWN}  # to who takes over
        return {
            row["intent_id"]: (row["ref"], row["task_id"] or "", unknown.get(state, state))
            for row, state in zip(rows, states.values(), strict=True)
        }

    async def content(self) -> bytes:
        tables = await self._fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'kie_async_main'")
        rows: list[Any] = []
        for (table,) in tables:
            rows += await self._fetch(f'SELECT t::text FROM "{table}" t')  # noqa: S608
        return "\n".join(text for (text,) in rows).encode()


class MemoryStore(Store):
    """Nothing is left of it: only what one process sees of its own journal is asked of it."""

    cls = MemoryJournal
    place = None

    def make(self, cls: type[Any] | None = None, **options: Any) -> Any:
        return (cls or MemoryJournal)()

    async def crash(self) -> None:
        raise NotImplementedError

    async def change(self, statement: str) -> None:
        raise NotImplementedError

    async def committed(self) -> Facts:
        return {}

    async def content(self) -> bytes:
        return b""


DURABLE = ("sqlite", "postgres")
EVERY = ("memory", *DURABLE)


def store_of(request: pytest.FixtureRequest) -> Store:
    if request.param == "memory":
        return MemoryStore()
    if request.param == "sqlite":
        return SqliteStore(request.getfixturevalue("tmp_path"))
    return PostgresStore(request.getfixturevalue("postgres_dsn"))


@pytest.fixture(params=EVERY)
def store(request: pytest.FixtureRequest) -> Store:
    """Return an empty place for a journal of each kind."""
    return store_of(request)


@pytest.fixture(params=DURABLE)
def durable_store(request: pytest.FixtureRequest) -> Store:
    """Return an empty place for a journal of each kind that outlives its process."""
    return store_of(request)


@pytest.fixture
async def journal(store: Store) -> AsyncIterator[Journal]:
    """Return an open journal of each kind."""
    async with store.opened() as journal:
        yield journal


@pytest.fixture
async def durable(durable_store: Store) -> AsyncIterator[Any]:
    """Return an open journal of each kind that outlives its process."""
    async with durable_store.opened() as journal:
        yield journal
