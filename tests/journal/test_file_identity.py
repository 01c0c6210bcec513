"""A journal is the file it was: behind links, after a crash, and when somebody writes over it."""

# ruff: noqa: ASYNC240  (files and processes are what this is about)

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import OpenSession
from support.journals import created, intent, opened, raw, states

from kie_async import JournalError, Sandbox, SqliteJournal, TaskRequest

ROOT = Path(__file__).parent.parent.parent
ECHO = TaskRequest(model="sandbox/echo", input={"prompt": "a smile"})


def plain(folder: Path) -> tuple[Path, Path]:
    """Return the path that is given and the file that it means."""
    return folder / "real.db", folder / "real.db"


def link(folder: Path) -> tuple[Path, Path]:
    (folder / "data").mkdir()
    (folder / "run.db").symlink_to(folder / "data" / "real.db")
    return folder / "run.db", folder / "data" / "real.db"


def relative_link_of_a_link(folder: Path) -> tuple[Path, Path]:
    given, real = link(folder)
    (folder / "again.db").symlink_to(given.name)
    return folder / "again.db", real


def linked_folder(folder: Path) -> tuple[Path, Path]:
    (folder / "release-1").mkdir()
    (folder / "current").symlink_to("release-1")
    return folder / "current" / "real.db", folder / "release-1" / "real.db"


PLACES = [plain, link, relative_link_of_a_link, linked_folder]
Place = Callable[[Path], tuple[Path, Path]]


@pytest.fixture(params=PLACES, ids=lambda place: place.__name__)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    folder = tmp_path / "place"
    folder.mkdir()
    return request.param(folder)  # type: ignore[no-any-return]


def log_of(real: Path) -> Path:
    return Path(f"{real}-wal")


# Each takes the file that is meant, another journal and the path that was given.
Harm = Callable[[Path, Path, Path], object]

LOSSES: dict[str, Harm] = {
    "deleted": lambda real, other, given: real.unlink(),
    "deleted with all around it": lambda real, other, given: shutil.rmtree(real.parent),
    "replaced": lambda real, other, given: os.replace(other, real),
    "moved": lambda real, other, given: real.rename(real.with_name("moved.db")),
    "its folder moved": lambda real, other, given: real.parent.rename(real.parent.with_name("moved")),
    "its log deleted": lambda real, other, given: log_of(real).unlink(),
}

LOSSES_OF_A_LINK: dict[str, Harm] = {
    "the link deleted": lambda real, other, given: given.unlink(),
    "the link set on another journal": lambda real, other, given: (given.unlink(), given.symlink_to(other)),
    "the link set on itself": lambda real, other, given: (given.unlink(), given.symlink_to(given)),
    "the link replaced by a copy": lambda real, other, given: (
        given.unlink(),
        shutil.copyfile(real, given),
    ),
}


def zero(path: Path, at: int, size: int) -> None:
    with path.open("rb+") as file:
        file.seek(at)
        file.write(bytes(size))


def count_a_change(path: Path) -> None:
    """Change the file as SQLite does, and put size and time back as no program by accident would."""
    before = path.stat()
    with path.open("rb+") as file:
        file.seek(24)  # the change counter
        file.write(b"\x7f\xff\xff\xff")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


OVERWRITES: dict[str, Harm] = {
    "changed, with its size and times put back": lambda real, other, given: count_a_change(real),
    "emptied": lambda real, other, given: os.truncate(real, 0),
    "cut to a page": lambda real, other, given: os.truncate(real, 4096),
    "grown": lambda real, other, given: os.truncate(real, 1 << 20),
    "another copied over it": lambda real, other, given: shutil.copyfile(other, real),
    "another copied over it, with its times": lambda real, other, given: shutil.copy2(other, real),
    "copied over through the link": lambda real, other, given: shutil.copyfile(other, given),
    "zeros in its middle": lambda real, other, given: zero(real, 4096, 4096),
    "its log emptied": lambda real, other, given: os.truncate(log_of(real), 0),
    "its log cut": lambda real, other, given: os.truncate(log_of(real), 5000),
    "zeros in its log": lambda real, other, given: zero(log_of(real), 0, 32),
}

HARMS = [
    *((harm, "deleted or replaced", PLACES) for harm in LOSSES.items()),
    *((harm, "deleted or replaced", [link, relative_link_of_a_link]) for harm in LOSSES_OF_A_LINK.items()),
    *((harm, "changed by another program", PLACES) for harm in OVERWRITES.items()),
]


async def another(path: Path) -> Path:
    """Return a journal made by the same steps: of the same size, with the same counters."""
    async with opened(path) as journal:
        await journal.mark_sending(intent("other"))
    return path


@pytest.mark.parametrize(
    ("harm", "words", "where"),
    [
        pytest.param(harm, words, where, id=f"{name}, {where.__name__}")
        for (name, harm), words, places in HARMS
        for where in places
    ],
)
async def test_harm_is_seen_before_the_next_body_leaves(
    tmp_path: Path, harm: Harm, words: str, where: Place
) -> None:
    (tmp_path / "place").mkdir()
    given, real = where(tmp_path / "place")
    other = await another(tmp_path / "other.db")
    journal = SqliteJournal(given)
    await journal.open()
    await created(journal)
    time.sleep(0.011)  # noqa: ASYNC251  (a tick of the clock that file systems go by)
    harm(real, other, given)
    left = real.read_bytes() if real.exists() else None
    for number in (2, 3):
        with pytest.raises(JournalError, match=f"{words}.* while in use; nothing more is sent") as caught:
            await journal.mark_sending(intent(number))
        assert "\n" not in str(caught.value)
    with pytest.raises(JournalError):
        await journal.find_by_ref("r1")
    await journal.aclose()
    if words.startswith("changed"):
        assert real.read_bytes() == left, "what is another's now is not written to"


async def test_a_session_sends_nothing_once_its_journal_was_copied_over(
    tmp_path: Path, sandbox: Sandbox, open_session: OpenSession
) -> None:
    other = await another(tmp_path / "other.db")
    kie = await open_session(journal=tmp_path / "run.db")
    handle = await kie.create(ECHO)
    shutil.copyfile(other, tmp_path / "run.db")
    for _ in range(2):
        with pytest.raises(JournalError, match="changed by another program while in use"):
            await kie.create(ECHO)
    assert sandbox.counts["create.bodies"] == 1
    sandbox.finish(handle.task_id)
    assert (await handle).urls


async def test_an_id_that_comes_after_the_file_was_copied_over_is_rescued(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    other = await another(tmp_path / "other.db")
    journal = SqliteJournal(path)
    await journal.open()
    await journal.mark_sending(intent())
    shutil.copyfile(other, path)
    with pytest.raises(JournalError, match="changed by another program"):
        await journal.mark_created("i1", "t1")
    await journal.aclose()
    assert '"t1"' in journal.rescue_path.read_text()


async def test_what_is_written_by_itself_is_no_harm(tmp_path: Path) -> None:
    """Checkpoints, transactions that outgrow the cache, and some that are rolled back."""
    async with opened(tmp_path / "run.db", keep_bodies=True) as journal:
        for turn in range(12):
            notes = [
                journal.mark_sending(intent(f"{turn}.{number}", body="x" * 4000)) for number in range(150)
            ]
            notes += [journal.mark_sending(intent(f"{turn}.0"))]
            outcomes = await asyncio.gather(*notes, return_exceptions=True)
            assert sum(isinstance(outcome, JournalError) for outcome in outcomes) == 1
        assert (tmp_path / "run.db").stat().st_size > 4_000_000
        shutil.copyfile(tmp_path / "run.db", tmp_path / "backup.db")  # reading is no harm
        os.chmod(tmp_path / "run.db", 0o640)
        os.link(tmp_path / "run.db", tmp_path / "hard.db")
        await journal.mark_sending(intent("last"))
    async with opened(tmp_path / "run.db") as journal:
        assert len(await states(journal)) == 12 * 150 + 1


KILLED = """
    import asyncio, os, signal, sys
    from kie_async import SqliteJournal
    from kie_async.journal.base import Intent

    async def main():
        journal = SqliteJournal(sys.argv[1])
        await journal.open()
        await journal.mark_sending(Intent(intent_id="i1", model="m", ref="r1"))
        await journal.mark_created("i1", "t1")
        os.kill(os.getpid(), signal.SIGKILL)

    asyncio.run(main())
"""


async def test_after_a_kill_it_opens_with_its_last_notes(place: tuple[Path, Path]) -> None:
    given, real = place
    command = [sys.executable, "-c", textwrap.dedent(KILLED), given]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = await asyncio.to_thread(subprocess.run, command, capture_output=True, env=environment)
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert log_of(real).exists()
    for _ in range(2):
        async with opened(given) as journal:
            assert await states(journal) == {"i1": "CREATED"}
    assert not log_of(real).exists()
    assert real.is_file()
    assert not real.is_symlink()


async def test_a_lost_journal_behind_a_link_is_not_made_anew(tmp_path: Path) -> None:
    given, real = link(tmp_path)
    log_of(real).write_bytes(b"something")
    with pytest.raises(JournalError, match=r"is gone, but real\.db-wal is still there"):
        await SqliteJournal(given).open()
    assert not real.exists()


async def test_ids_rescued_beside_a_link_by_a_former_version_are_read(tmp_path: Path) -> None:
    given, real = link(tmp_path)
    async with opened(given) as journal:
        await journal.mark_sending(intent(1))
        await journal.mark_sending(intent(2))
        assert journal.rescue_path == Path(f"{real}.rescue.jsonl")
    for number, path in enumerate((given, real), 1):
        line = f'{{"intent_id": "i{number}", "task_id": "t{number}"}}\n'
        Path(f"{path}.rescue.jsonl").write_text(line)
    async with opened(given) as journal:
        assert await states(journal) == {"i1": "CREATED", "i2": "CREATED"}
    assert not list(tmp_path.rglob("*.rescue.*"))


async def test_a_link_is_followed_anew_at_each_open(tmp_path: Path) -> None:
    given, _ = link(tmp_path)
    journal = SqliteJournal(given)
    for number in (1, 2):
        given.unlink()
        given.symlink_to(tmp_path / f"{number}.db")
        await journal.open()
        await created(journal, number)
        await journal.aclose()
        with raw(tmp_path / f"{number}.db") as db:
            assert db.execute("SELECT intent_id FROM intent").fetchall() == [(f"i{number}",)]
