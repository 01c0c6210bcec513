"""Where a journal can live: an old SQLite, no hard links, Windows; and what it says where it cannot."""

from __future__ import annotations

import errno
import os
import re
import sqlite3
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from support.journals import DONE, created, intent, opened, raw, states

from kie_async import JournalError, JournalLocked, SqliteJournal
from kie_async.journal import sqlite_lock
from kie_async.journal.exclusive_rename import rename_exclusively
from kie_async.journal.sqlite_file import JournalFile
from kie_async.journal.sqlite_schema import SCHEMA, has_strict_tables, schema_text

OLD, NEW = (3, 26, 0), (3, 37, 0)
ROOT = Path(sqlite_lock.__file__).parent
needs_strict = pytest.mark.skipif(not has_strict_tables(), reason="this SQLite knows no STRICT")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.db"


def tables_of(path: Path) -> str:
    with raw(path) as db:
        return " ".join(row[0] or "" for row in db.execute("SELECT sql FROM sqlite_master"))


# --- SQLite's versions ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "is_strict"), [(OLD, False), ((3, 36, 9), False), pytest.param(NEW, True, marks=needs_strict)]
)
async def test_tables_are_strict_where_sqlite_knows_that(
    path: Path, monkeypatch: pytest.MonkeyPatch, version: tuple[int, ...], is_strict: bool
) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
    async with opened(path):
        pass
    assert ("STRICT" in tables_of(path)) == is_strict
    assert ("typeof(ref)" in tables_of(path)) != is_strict


@needs_strict
@pytest.mark.parametrize("versions", [(OLD, OLD), (OLD, NEW), (NEW, NEW)], ids=str)
async def test_a_journal_of_an_old_sqlite_keeps_every_note_and_is_good_for_a_new_one(
    path: Path, monkeypatch: pytest.MonkeyPatch, versions: tuple[tuple[int, ...], ...]
) -> None:
    made, read = versions
    monkeypatch.setattr(sqlite3, "sqlite_version_info", made)
    async with opened(path, keep_bodies=True) as journal:
        for number in range(3):
            await created(journal, number)
        await journal.mark_settled("i1", DONE)
        await journal.mark_sending(intent("lost", body="{}", expects_callback=True))
        await journal.save_durations({"m": {"n": 1.5}})
        assert [await journal.count_occurrence(key) for key in (b"a", b"b", b"a")] == [1, 1, 2]
    monkeypatch.setattr(sqlite3, "sqlite_version_info", read)
    async with opened(path, keep_bodies=True) as journal:
        assert await states(journal) == {
            "i0": "CREATED", "i1": "SUCCEEDED", "i2": "CREATED", "ilost": "UNKNOWN"
        }  # fmt: skip
        assert await journal.load_durations() == {"m": {"n": 1.5}}
        totals = await journal.load_totals()
        assert (totals.tasks, totals.settled, totals.credits) == (4, 1, 1.0)


@pytest.mark.parametrize("is_strict", [pytest.param(True, marks=needs_strict), False])
@pytest.mark.parametrize(
    ("column", "wrong"),
    [
        *(("intent_id", b"i"), ("ref", b"r"), ("model", b"m"), ("fingerprint", "f"), ("body", b"{}")),
        *(("task_id", b"t"), ("record", b"{}"), ("reason", b""), ("state", "DONE"), ("sends", 2)),
        *(("planned_ms", "now"), ("code", "no"), ("credits", "many"), ("expects_callback", 0.5)),
        *(("intent_id", None), ("model", None), ("state", None), ("planned_ms", None)),
    ],
)
def test_a_column_takes_no_value_of_another_kind(is_strict: bool, column: str, wrong: object) -> None:
    row: dict[str, Any] = {
        "intent_id": "i", "model": "m", "fingerprint": b"f", "state": "SENDING", "planned_ms": 1
    }  # fmt: skip
    with sqlite3.connect(":memory:") as db:
        db.executescript(schema_text(SCHEMA, is_strict=is_strict))
        for values in (row, row | {"intent_id": "j", "ref": "r", "credits": 1, "code": 500, "body": "{}"}):
            db.execute(*insert(values))
        with pytest.raises(sqlite3.IntegrityError):
            db.execute(*insert(row | {"intent_id": "k", column: wrong}))
    db.close()


def insert(row: dict[str, Any]) -> tuple[str, tuple[object, ...]]:
    marks = ", ".join("?" * len(row))
    return f"INSERT INTO intent({', '.join(row)}) VALUES ({marks})", tuple(row.values())  # noqa: S608


def test_without_strict_every_column_has_its_check() -> None:
    text = schema_text(SCHEMA, is_strict=False)
    assert "STRICT" not in text
    columns = re.findall(r"^  \w+ (?:TEXT|INTEGER|REAL|BLOB)", SCHEMA, re.MULTILINE)
    assert text.count("CHECK(typeof(") == len(columns)
    assert schema_text(SCHEMA, is_strict=True) == SCHEMA


@pytest.mark.parametrize(
    "newer",
    [
        r"\bRETURNING\b",
        r"\bFILTER\s*\(",
        r"ON CONFLICT\s+DO UPDATE",
        r"->>",
        r"\bRIGHT JOIN\b",
        r"DROP COLUMN",
    ],
)
def test_no_statement_needs_more_than_the_oldest_sqlite(newer: str) -> None:
    for source in ROOT.glob("sqlite*.py"):
        assert not re.search(newer, source.read_text(encoding="utf-8")), source.name


async def test_an_sqlite_that_is_too_old_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 25, 3))
    monkeypatch.setattr(sqlite3, "sqlite_version", "3.25.3")
    with pytest.raises(JournalError, match=r"^a journal needs SQLite 3\.26; this Python has 3\.25\.3$"):
        await SqliteJournal(path).open()
    assert not list(path.parent.iterdir())


def test_a_strict_journal_and_an_old_sqlite_are_not_called_damage(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", OLD)
    monkeypatch.setattr(sqlite3, "sqlite_version", "3.26.0")
    said = sqlite3.DatabaseError('malformed database schema (intent) - near "STRICT": syntax error')
    said.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    file = JournalFile(path)
    assert str(file.error_from(said)).endswith("was made with SQLite 3.37 or newer; this Python has 3.26.0")
    assert not file.distrust


# --- file systems --------------------------------------------------------------------------------------

NO_LINKS = [
    *(OSError(code, os.strerror(code)) for code in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS)),
    PermissionError(errno.EACCES, "Permission denied"),
    NotImplementedError("link unavailable"),
    AttributeError("link"),
]


@pytest.fixture(params=NO_LINKS, ids=repr)
def no_links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise request.param

    monkeypatch.setattr(os, "link", link)


@pytest.mark.usefixtures("no_links")
async def test_a_journal_lives_where_there_are_no_hard_links(path: Path) -> None:
    async with opened(path) as journal:
        await created(journal)
        with pytest.raises(JournalLocked):
            await SqliteJournal(path).open()
    async with opened(path) as journal:
        assert await states(journal) == {"i1": "CREATED"}
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.usefixtures("no_links")
async def test_rescued_ids_are_never_overwritten_where_there_are_no_hard_links(path: Path) -> None:
    async with opened(path):
        pass
    for number in range(3):
        path.with_name("run.db.rescue.jsonl").write_text(f"paid-{number}\n")
        async with opened(path):
            pass
    kept = sorted(file.read_text() for file in path.parent.glob("*.unused*"))
    assert kept == ["paid-0\n", "paid-1\n", "paid-2\n"]


@pytest.mark.usefixtures("no_links")
def test_a_name_that_is_taken_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "theirs").write_text("theirs")
    with pytest.raises(FileExistsError):
        rename_exclusively(tmp_path / "mine", tmp_path / "theirs")
    assert [(tmp_path / name).read_text() for name in ("mine", "theirs")] == ["mine", "theirs"]
    rename_exclusively(tmp_path / "mine", tmp_path / "free")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["free", "theirs"]


@pytest.mark.usefixtures("no_links")
def test_a_rename_that_fails_gives_the_name_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def replace(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", replace)
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(OSError, match="No space left"):
        rename_exclusively(tmp_path / "mine", tmp_path / "free")
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL])
async def test_a_file_system_without_locks_is_named(
    path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def lock(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(sqlite_lock, "_lock", lock)
    for _ in range(2):
        with pytest.raises(JournalError, match=r"run\.db: its file system has no file locks, .*; put it on"):
            await SqliteJournal(path).open()


@pytest.mark.parametrize("code", [sqlite3.SQLITE_IOERR_LOCK, sqlite3.SQLITE_IOERR_RDLOCK])
def test_a_lock_that_sqlite_cannot_have_is_named(path: Path, code: int) -> None:
    said = sqlite3.OperationalError("disk I/O error")
    said.sqlite_errorcode = code
    assert "has no file locks" in str(JournalFile(path).error_from(said))


# --- Windows -------------------------------------------------------------------------------------------


class Msvcrt(types.ModuleType):
    """What Windows' module does: a byte can be locked through one descriptor, until that is closed."""

    LK_NBLCK = 2

    def __init__(self) -> None:
        super().__init__("msvcrt")
        self.locked: dict[tuple[int, int, int], int] = {}

    def locking(self, descriptor: int, mode: int, count: int) -> None:
        assert (mode, count) == (self.LK_NBLCK, 1)
        status = os.fstat(descriptor)
        place = status.st_dev, status.st_ino, os.lseek(descriptor, 0, os.SEEK_CUR)
        if self.locked.setdefault(place, descriptor) != descriptor:
            raise PermissionError(errno.EACCES, "Permission denied")


@pytest.fixture
def msvcrt(monkeypatch: pytest.MonkeyPatch) -> Msvcrt:
    module = Msvcrt()
    monkeypatch.setitem(sys.modules, "msvcrt", module)
    monkeypatch.setattr(sqlite_lock, "_lock", sqlite_lock.lock_with_msvcrt)
    return module


async def test_on_windows_one_byte_is_locked_that_sqlite_never_uses(path: Path, msvcrt: Msvcrt) -> None:
    async with opened(path) as journal:
        await created(journal)
        ((_, _, place),) = msvcrt.locked
        assert 0x40000000 + 512 <= place < 0x40000000 + 4096  # within the lock-byte page, past SQLite's own
    async with opened(path) as journal:
        assert await states(journal) == {"i1": "CREATED"}


async def test_on_windows_another_process_is_kept_out(path: Path, msvcrt: Msvcrt) -> None:
    async with opened(path):
        pass
    with path.open("rb") as other:
        os.lseek(other.fileno(), sqlite_lock._LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locked.clear()
        msvcrt.locking(other.fileno(), msvcrt.LK_NBLCK, 1)
        with pytest.raises(JournalLocked, match="open in another session or process"):
            await SqliteJournal(path).open()
