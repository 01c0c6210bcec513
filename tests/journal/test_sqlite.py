"""The journal in a file: who may have it, what it opens, and one typed error for whatever goes wrong."""

# ruff: noqa: ASYNC220, ASYNC221, ASYNC240  (files and processes are what this is about)

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import attrs
import pytest
from conftest import OpenSession
from support.clock import eventually
from support.journals import (
    DONE,
    SCHEMA_1,
    SCHEMA_2,
    as_left_by_a_crash,
    created,
    intent,
    opened,
    raw,
    states,
)

from kie_async import (
    JournalError,
    JournalLocked,
    Sandbox,
    SqliteJournal,
    TaskRequest,
)
from kie_async.journal.intents import IntentState
from kie_async.journal.sqlite_schema import APPLICATION_ID, SCHEMA, VERSION
from kie_async.limits.prices import TakenPrices
from kie_async.wire.records import decode_record

ROOT = Path(__file__).parent.parent.parent
ECHO = TaskRequest(model="sandbox/echo", input={"prompt": "a smile"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.db"


@pytest.fixture
async def journal(path: Path) -> AsyncIterator[SqliteJournal]:
    """Return an open journal; the end of the test closes it."""
    async with opened(path) as journal:
        yield journal


def python(script: str, *arguments: object, prefix: tuple[str, ...] = (), **options: Any) -> str:
    """Run a script in a process of its own and return what it printed."""
    command = [*prefix, sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    environment = {
        **os.environ,
        **options.pop("env", {}),
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
    }
    run = subprocess.run(command, capture_output=True, text=True, timeout=50, env=environment, **options)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


OPEN_ELSEWHERE = """
    import asyncio, sys
    from kie_async import JournalError, SqliteJournal

    async def main():
        journal = SqliteJournal(sys.argv[1])
        try:
            await journal.open()
            print("opened")
        except JournalError as exc:
            print(type(exc).__name__)
        await journal.aclose()

    asyncio.run(main())
"""


async def elsewhere(path: Path) -> str:
    """Return what another process says that tries to open the journal."""
    return await asyncio.to_thread(python, OPEN_ELSEWHERE, path)


# --- its notes ---------------------------------------------------------------------------------


async def test_a_task_of_another_intent_needs_no_rescue(journal: SqliteJournal) -> None:
    await created(journal)
    await journal.mark_sending(intent(2))
    with pytest.raises(JournalError, match="task t1 belongs to another intent, i1"):
        await journal.mark_created("i2", "t1")
    assert not journal.rescue_path.exists()


async def test_what_a_former_process_left_is_not_taken_back(path: Path, tmp_path: Path) -> None:
    async with opened(path) as journal:
        await journal.mark_sending(intent(1))
        crashed = as_left_by_a_crash(path, tmp_path / "crash")
    async with opened(crashed) as journal:
        with pytest.raises(JournalError):
            await journal.mark_unsent("i1")
        assert await states(journal) == {"i1": "UNKNOWN"}


async def test_a_text_result_takes_the_room_of_its_utf8(path: Path) -> None:
    text = json.dumps({"resultObject": {"text": "ж" * 190_000}}, ensure_ascii=False)
    record = decode_record({"taskId": "t1", "state": "success", "resultJson": text})
    async with opened(path) as journal:
        await created(journal)
        await journal.mark_settled("i1", record)
    assert path.stat().st_size < 500_000


async def test_many_notes_share_few_commits(journal: SqliteJournal) -> None:
    commits = 0
    check = journal._file.check_identity

    def counted() -> None:
        nonlocal commits
        commits += 1
        check()

    journal._file.check_identity = counted  # type: ignore[method-assign]
    await asyncio.gather(*(journal.mark_sending(intent(number)) for number in range(1000)))
    assert len(await journal.list_intents()) == 1000
    assert commits < 20


async def test_an_id_learned_in_the_last_turns_of_a_loop_is_kept(path: Path) -> None:
    await asyncio.to_thread(
        python,
        """
        import asyncio, sys, threading
        from kie_async import SqliteJournal
        from kie_async.journal.base import Intent

        async def main():
            journal = SqliteJournal(sys.argv[1])
            await journal.open()
            for number in range(5):
                await journal.mark_sending(Intent(intent_id=f"i{number}", model="m"))
            for number in range(5):
                asyncio.create_task(journal.mark_created(f"i{number}", f"t{number}"))
            await asyncio.sleep(0)  # asked for, and nothing more: the loop ends here
            return journal

        journal = asyncio.run(main())
        journal._thread._jobs.put(None)  # its thread ends after what was asked before
        for thread in threading.enumerate():
            if thread.name == "kie_async journal":
                thread.join(30)
        """,
        path,
    )
    async with opened(path) as journal:
        assert {found.task_id for found in await journal.list_unsettled()} == {
            f"t{number}" for number in range(5)
        }


# --- who may have it ---------------------------------------------------------------------------


async def test_only_its_owner_can_read_it(path: Path) -> None:
    mask = os.umask(0)
    try:
        async with opened(path) as journal:
            await created(journal)
            for name in (path, Path(f"{path}-wal")):
                assert stat.S_IMODE(name.stat().st_mode) == 0o600
            journal._file.distrust = "made up"
            with pytest.raises(JournalError):
                await journal.mark_created("i1", "t1")
            assert stat.S_IMODE(journal.rescue_path.stat().st_mode) == 0o600
    finally:
        os.umask(mask)


async def test_one_session_has_it_and_another_process_neither(path: Path, open_session: OpenSession) -> None:
    await open_session(journal=path)
    with pytest.raises(JournalLocked, match="is open in another session or process"):
        await open_session(journal=path)
    link = path.with_name("link.db")
    link.symlink_to(path)
    with pytest.raises(JournalLocked):
        await open_session(journal=link)
    # A failed try in this process must not cost the lock: SQLite's own goes when any descriptor closes.
    assert await elsewhere(path) == "JournalLocked"
    shutil.copyfile(path, path.with_name("backup.db"))
    assert await elsewhere(path) == "JournalLocked"


async def test_whoever_closes_or_dies_lets_go(path: Path) -> None:
    async with opened(path):
        pass
    assert await elsewhere(path) == "opened"
    script = OPEN_ELSEWHERE.replace('print("opened")', 'print("opened", flush=True); await asyncio.sleep(60)')
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), path],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert holder.stdout is not None
    with holder.stdout:
        assert await asyncio.to_thread(holder.stdout.readline) == b"opened\n"
        with pytest.raises(JournalLocked):
            await SqliteJournal(path).open()
        holder.kill()
        holder.wait()
    async with opened(path):
        pass


async def test_a_fork_is_refused_and_keeps_nothing(path: Path) -> None:
    printed = await asyncio.to_thread(
        python,
        """
        import asyncio, gc, os, signal, subprocess, sys
        from kie_async import JournalError, SqliteJournal
        from kie_async.journal.base import Intent

        async def said(work):
            try:
                await work
                return "fine"
            except JournalError as exc:
                return f"{type(exc).__name__}: {exc}"

        async def main():
            journal = SqliteJournal(sys.argv[1])
            await journal.open()
            await journal.mark_sending(Intent(intent_id="i1", model="m"))
            if (child := os.fork()) == 0:
                print(asyncio.run(said(journal.mark_sending(Intent(intent_id="i2", model="m")))), flush=True)
                print(asyncio.run(said(SqliteJournal(sys.argv[1]).open())), flush=True)
                asyncio.run(journal.aclose())
                del journal
                gc.collect()
                os._exit(0)
            os.waitpid(child, 0)
            print(await said(journal.mark_sending(Intent(intent_id="i3", model="m"))), flush=True)
            if os.fork() == 0:
                os.close(1), os.close(2)
                import time
                time.sleep(5)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)

        if os.fork() == 0:
            asyncio.run(main())
        os.wait()
        """,
        path,
    )
    first, second, third = printed.splitlines()
    assert "belongs to the process before the fork" in first
    assert second.startswith("JournalLocked")
    assert third == "fine"
    async with opened(path) as journal:  # the grandchild lives on and holds nothing
        assert set(await states(journal)) == {"i1", "i3"}


# --- what it opens and what not ----------------------------------------------------------------


def foreign(path: Path) -> None:
    with raw(path) as db:
        db.execute("CREATE TABLE songs(title)")


def version(number: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with raw(path) as db:
            db.executescript(SCHEMA)
            db.execute(f"PRAGMA user_version = {number}")

    return make


def other_tables(path: Path) -> None:
    with raw(path) as db:
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {VERSION}")
        db.execute("CREATE TABLE songs(title)")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (foreign, "is a database, but not a journal of kie_async"),
        (version(VERSION + 1), f"has version {VERSION + 1}; this kie_async reads {VERSION}"),
        (version(0), f"has version 0; this kie_async reads {VERSION}"),
        (other_tables, "no such table"),
        (lambda path: path.write_bytes(b"task,url\n" * 500), "damaged or no journal at all"),
        (lambda path: path.write_bytes(b"x"), "was cut off, or is none"),
        (lambda path: path.write_bytes(b""), "was cut off, or is none"),
        (lambda path: path.mkdir(), "cannot be opened for writing: Is a directory"),
    ],
)
async def test_what_is_no_journal_is_refused_in_one_sentence(
    path: Path, make: Callable[[Path], object], words: str
) -> None:
    make(path)
    for _ in range(2):
        with pytest.raises(JournalError, match=words) as caught:
            await SqliteJournal(path).open()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing/run.db", "a\0b", "x" * 300])
async def test_a_path_that_cannot_be_is_a_journal_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(JournalError):
        await SqliteJournal(tmp_path / name).open()
    assert not list(tmp_path.iterdir())


async def test_a_path_means_the_same_file_wherever_the_process_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with opened(Path(":memory:")) as journal:
        monkeypatch.chdir("/")
        await created(journal)
    assert (tmp_path / ":memory:").stat().st_size > 0


GOLDEN = """
INSERT INTO intent(intent_id, ref, model, fingerprint, state, sends, planned_ms, expects_callback)
  VALUES ('i1', 'r1', 'm', x'66', 'PLANNED', 0, 1, 1), ('i2', 'r2', 'm', x'66', 'SENDING', 1, 2, 1);
INSERT INTO intent(intent_id, ref, model, fingerprint, state, sends, planned_ms, task_id, record, credits, code)
  VALUES ('i3', 'r3', 'm', x'66', 'CREATED', 1, 3, 't3', '', NULL, NULL),
         ('i4', 'r4', 'm', x'66', 'SUCCEEDED', 1, 4, 't4', '{"taskId":"t4","state":"success"}', 8.0, NULL),
         ('i5', 'r5', 'm', x'66', 'REJECTED', 1, 5, NULL, '', NULL, 500),
         ('i6', 'r6', 'm', x'66', 'REJECTED', 1, 9000000000000, NULL, '', NULL, 500);
"""  # noqa: E501


def columns_of(path: Path) -> set[tuple[Any, ...]]:
    """Return every table's columns, and the version."""
    query = "SELECT t.name, c.name, c.type, c.dflt_value FROM sqlite_schema t, pragma_table_info(t.name) c"
    with raw(path) as db:
        return {*db.execute(query).fetchall(), *db.execute("PRAGMA user_version").fetchall()}


@pytest.mark.parametrize("schema", [SCHEMA_1, SCHEMA_2], ids=["version 1", "version 2"])
async def test_a_file_of_a_former_version_is_read(path: Path, tmp_path: Path, schema: str) -> None:
    """Golden: when the schema changes, the version does too, and this file becomes one of the new version."""
    with raw(path) as db:
        db.executescript(schema + GOLDEN)
    for each in (path, tmp_path / "new.db"):
        async with opened(each):
            pass
    assert columns_of(path) == columns_of(tmp_path / "new.db")
    journal = SqliteJournal(path)
    left = await journal.open()
    assert [(intent.intent_id, intent.state.value) for intent in left] == [
        ("i2", "UNKNOWN"),
        ("i6", "REJECTED"),
    ]
    assert [intent.task_id for intent in await journal.list_unsettled()] == ["t3"]
    assert attrs.astuple(await journal.load_totals()) == (3, 1, 8.0)
    found = await journal.find_by_ref("r4")
    assert found is not None
    assert found.fingerprint == b"f"
    assert json.loads(found.record) == {"taskId": "t4", "state": "success"}
    assert await journal.find_by_ref("r1") is None
    await journal.aclose()


async def test_a_file_that_cannot_be_brought_up_to_date_stays_as_it_was(path: Path, tmp_path: Path) -> None:
    with raw(path) as db:
        # The last step fails: there is a table of that name already, with other columns.
        db.executescript(SCHEMA_2 + GOLDEN + "CREATE TABLE note(other TEXT);")
    before = columns_of(path)
    with pytest.raises(JournalError):
        await SqliteJournal(path).open()
    assert columns_of(path) == before


async def test_what_tasks_took_is_known_by_their_seconds_where_those_were_noted(
    journal: SqliteJournal,
) -> None:
    took = [(None, 40.0), (10.0, 30.0), (2.5, 10.0), (0.5, 3.0)]
    for number, (audio_s, price) in enumerate(took):
        await journal.mark_sending(intent(number, audio_s=audio_s))
        await journal.mark_created(f"i{number}", f"t{number}")
        await journal.mark_settled(f"i{number}", attrs.evolve(DONE, task_id=f"t{number}", credits=price))
    assert await journal.load_prices() == {"m": TakenPrices(40.0, 4.0, 10.0, 40.0)}


async def test_what_is_held_is_noted_of_a_task_that_runs(journal: SqliteJournal) -> None:
    await journal.mark_sending(intent(1, expected_credits=6.0))
    await journal.mark_held("i1", 16.0)  # as yet it is none
    await journal.mark_created("i1", "t1")
    assert [(i.expected_credits, i.held_credits) for i in await journal.list_unsettled()] == [(6.0, None)]
    await journal.mark_held("i1", 16.0)
    assert [(i.expected_credits, i.held_credits) for i in await journal.list_unsettled()] == [(6.0, 16.0)]


# --- damage ------------------------------------------------------------------------------------

Facts = dict[str, tuple[object, ...]]


async def facts(path: Path) -> Facts:
    """Return what must never be wrong: which ref is which task, and what may be sent again."""
    async with opened(path) as journal:
        return {
            intent.intent_id: (intent.ref, intent.task_id, intent.state)
            for intent in await journal.list_intents()
        }


async def fifty(path: Path) -> bytes:
    async with opened(path) as journal:
        await asyncio.gather(*(created(journal, number) for number in range(50)))
        await asyncio.gather(*(journal.mark_settled(f"i{number}", DONE) for number in range(0, 50, 2)))
    return path.read_bytes()


async def test_a_flipped_bit_is_found_or_does_no_harm(ram: Path) -> None:
    path = ram / "run.db"
    good = await fifty(path)
    true = await facts(path)
    chance, found = random.Random(7), 0
    places = [chance.randrange(len(good)) for _ in range(120)] + list(range(16, 100, 7))
    for number, place in enumerate(places):
        damaged = bytearray(good)
        damaged[place] ^= 1 << chance.randrange(8)
        victim = ram / f"{number}.db"
        victim.write_bytes(damaged)
        try:
            assert await facts(victim) == true, f"byte {place}"
        except JournalError:
            found += 1
        victim.unlink()
    assert found > len(places) // 8


async def test_a_cut_is_found(ram: Path) -> None:
    path = ram / "run.db"
    good = await fifty(path)
    true = await facts(path)
    cuts = [0, 1, 99, 100, 511, 4095, *range(4096, len(good), 4096), len(good) - 4095, len(good) - 1]
    for number, size in enumerate(cuts):
        victim = ram / f"{number}.db"
        victim.write_bytes(good[:size])
        with contextlib.suppress(JournalError):
            assert await facts(victim) == true, "the last bytes may be ones that nothing is in"
            assert size > len(good) - 4096


async def test_a_log_cut_by_a_crash_tells_a_prefix_of_the_truth(ram: Path) -> None:
    path = ram / "run.db"
    history: list[Facts] = []
    async with opened(path) as journal:
        for number in range(5):
            await journal.mark_sending(intent(number))
            await journal.mark_created(f"i{number}", f"t{number}")
        crashed = as_left_by_a_crash(path, ram / "crash")
    log = Path(f"{crashed}-wal").read_bytes()
    for number, size in enumerate([*range(33, len(log), 4001), len(log) - 1, len(log)]):
        victim = ram / f"{number}.db"
        shutil.copyfile(crashed, victim)
        Path(f"{victim}-wal").write_bytes(log[:size])
        history.append(await facts(victim))
    assert history == sorted(history, key=len)
    for sooner, later in pairwise(history):
        assert later.items() >= {key: fact for key, fact in sooner.items() if fact[1]}.items()
    assert len(history[-1]) == 5


@pytest.mark.parametrize("left", [None, b""], ids=["gone", "emptied"])
async def test_a_lost_log_is_not_an_empty_journal(path: Path, tmp_path: Path, left: bytes | None) -> None:
    async with opened(path) as journal:
        await created(journal)
        crashed = as_left_by_a_crash(path, tmp_path / "crash")
    log = Path(f"{crashed}-wal")
    whole = log.read_bytes()
    log.unlink()
    if left is not None:
        log.write_bytes(left)
    for _ in range(2):
        with pytest.raises(JournalError, match=r"run\.db-wal, which holds its last notes, is missing"):
            await SqliteJournal(crashed).open()
    log.write_bytes(whole)
    assert await facts(crashed) == {"i1": ("r1", "t1", IntentState.CREATED)}


async def test_who_opened_a_crashed_journal_by_hand_can_say_so(path: Path, tmp_path: Path) -> None:
    async with opened(path) as journal:
        await created(journal)
        crashed = as_left_by_a_crash(path, tmp_path / "crash")
    with raw(crashed) as db:
        assert db.execute("SELECT count(*) FROM intent").fetchone() == (1,)
    with pytest.raises(JournalError, match=r"say so with sqlite3 run\.db 'UPDATE run SET is_open = 0'"):
        await SqliteJournal(crashed).open()
    with raw(crashed) as db:
        db.execute("UPDATE run SET is_open = 0")
    assert await facts(crashed) == {"i1": ("r1", "t1", IntentState.CREATED)}


@pytest.mark.parametrize("left", ["-wal", ".rescue.jsonl"])
async def test_a_lost_journal_is_not_made_anew(path: Path, left: str) -> None:
    Path(f"{path}{left}").write_bytes(b"something")
    with pytest.raises(JournalError, match=f"is gone, but run\\.db{left} is still there"):
        await SqliteJournal(path).open()
    assert not path.exists()


async def delete(path: Path) -> None:
    path.unlink()


async def replace(path: Path) -> None:
    other = path.with_name("other.db")
    async with opened(other):
        pass
    os.replace(other, path)


async def delete_log(path: Path) -> None:
    Path(f"{path}-wal").unlink()


async def move_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name("moved"))


@pytest.mark.parametrize("harm", [delete, replace, delete_log, move_folder])
async def test_nothing_is_sent_once_the_journal_is_gone(
    tmp_path: Path, sandbox: Sandbox, open_session: OpenSession, harm: Callable[[Path], Awaitable[None]]
) -> None:
    path = tmp_path / "folder" / "run.db"
    path.parent.mkdir()
    kie = await open_session(journal=path)
    handle = await kie.create(ECHO)
    await harm(path)
    for _ in range(2):
        with pytest.raises(JournalError, match="deleted or replaced while in use"):
            await kie.create(ECHO)
    assert sandbox.counts["create.bodies"] == 1
    sandbox.finish(handle.task_id)
    assert (await handle).urls


async def test_an_id_that_comes_after_the_journal_is_gone_is_rescued(
    path: Path, sandbox: Sandbox, open_session: OpenSession
) -> None:
    kie = await open_session(journal=path)
    gate = sandbox.faults.create_answer_gate = asyncio.Event()
    creating = asyncio.create_task(kie.create(ECHO))
    await eventually(lambda: sandbox.tasks)
    kept = path.rename(path.with_name("kept.db"))
    gate.set()
    (task_id,) = sandbox.tasks
    with pytest.raises(JournalError, match=f"task {task_id} was created and is paid"):
        await creating
    await kie.aclose()
    kept.rename(path)
    kie = await open_session(journal=path)
    (handle,) = await kie.resume()
    assert handle.task_id == task_id


# --- a machine that fails ----------------------------------------------------------------------


def in_a_mount_namespace() -> tuple[str, ...]:
    """Return what puts a command where it may mount, or skip the test."""
    prefix = ("unshare", "--mount", "--propagation", "private")
    if shutil.which("unshare") is None or subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    return prefix


@pytest.mark.parametrize("is_there", [True, False])
async def test_a_read_only_file_system_is_refused_in_one_sentence(path: Path, is_there: bool) -> None:
    prefix = in_a_mount_namespace()
    if is_there:
        async with opened(path):
            pass
    printed = await asyncio.to_thread(
        python,
        """
        import asyncio, os, subprocess, sys
        from kie_async import JournalError, SqliteJournal

        folder = os.path.dirname(sys.argv[1])
        subprocess.run(["mount", "--bind", folder, folder], check=True)
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
        try:
            asyncio.run(SqliteJournal(sys.argv[1]).open())
        except JournalError as exc:
            print(exc)
        """,
        path,
        prefix=prefix,
    )
    assert printed == f"journal {path} cannot be opened for writing: Read-only file system"


async def test_a_read_only_file_is_refused_in_one_sentence(path: Path) -> None:
    async with opened(path):
        pass
    if os.geteuid() == 0:
        if (
            shutil.which("chattr") is None
            or subprocess.run(["chattr", "+i", path], capture_output=True).returncode
        ):
            pytest.skip("root ignores modes, and this file system has no immutable files")
    else:
        path.chmod(0o400)
    try:
        with pytest.raises(JournalError, match=r"cannot be opened for writing: (Operation not|Permission)"):
            await SqliteJournal(path).open()
    finally:
        subprocess.run(["chattr", "-i", path], capture_output=True)


FULL_DISK = """
    import asyncio, os, subprocess, sys
    from kie_async import JournalError, KieSession, Sandbox, TaskRequest
    from kie_async.sandbox import Never

    folder = sys.argv[1]
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], check=True)
    echo = TaskRequest(model="sandbox/echo", input={"prompt": "x"})

    async def main():
        async with Sandbox(durations=Never(), create_limit=None) as sandbox:
            async with KieSession("sandbox-key", base_url=sandbox.url, journal=f"{folder}/run.db") as kie:
                first = await kie.create(echo)
                with open(f"{folder}/filler", "wb", buffering=0) as filler:
                    try:
                        while True:
                            filler.write(b"x" * 512)
                    except OSError:
                        pass
                refused = []
                for _ in range(20):
                    try:
                        await kie.create(echo)
                    except JournalError as exc:
                        refused.append(str(exc))
                assert refused and len(set(refused)) == 1, refused
                assert sandbox.counts["create.bodies"] == len(sandbox.tasks) == 21 - len(refused)
                sandbox.finish(first.task_id)
                assert (await first).urls
                os.unlink(f"{folder}/filler")
                await kie.create(echo)
                print(refused[0])
            async with KieSession("sandbox-key", base_url=sandbox.url, journal=f"{folder}/run.db") as kie:
                known = {handle.task_id for handle in await kie.resume()} | {first.task_id}
                assert known == set(sandbox.tasks), (known, set(sandbox.tasks))

    asyncio.run(main())
"""


async def test_a_full_disk_sends_nothing_and_recovers(tmp_path: Path) -> None:
    printed = await asyncio.to_thread(python, FULL_DISK, tmp_path, prefix=in_a_mount_namespace())
    assert printed == f"journal {tmp_path}/run.db: database or disk is full"


async def test_a_file_that_may_not_grow_keeps_all_it_confirmed(path: Path) -> None:
    """RLIMIT_FSIZE at 150 sizes: what was confirmed is found again, what was refused was not sent."""
    printed = await asyncio.to_thread(
        python,
        """
        import asyncio, resource, sys
        from pathlib import Path
        from kie_async import JournalError, SqliteJournal
        from kie_async.journal.base import Intent

        path = Path(sys.argv[1])

        def allow(size):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

        async def main():
            confirmed, refused = set(), 0
            journal = SqliteJournal(path)
            await journal.open()
            log = Path(f"{path}-wal")
            for number in range(150):
                allow(97 * number * number % 400_000)
                name = f"i{number}"
                try:
                    await journal.mark_sending(Intent(intent_id=name, model="m", ref=name))
                    confirmed.add(name)
                except JournalError:
                    refused += 1
                allow(resource.RLIM_INFINITY)
                if number % 50 == 49:
                    await journal.aclose()
                    await journal.open()
            found = {intent.intent_id for intent in await journal.list_intents() if intent.state == "UNKNOWN"}
            assert found == confirmed, found ^ confirmed
            await journal.aclose()
            print(len(confirmed) > 10 and refused > 10)

        asyncio.run(main())
        """,
        path,
    )
    assert printed == "True"


FAILING_FSYNC = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

static int synced(const char *how, int fd) {  // fails once: at the call whose number stands in the file
  static int calls;
  int number = 0;
  FILE *file = fopen(getenv("FSYNC_FAILS"), "r");
  if (!file) calls = 0;
  else if (fscanf(file, "%d", &number) == 1) calls++;
  if (file) fclose(file);
  if (number && calls == number) { errno = EIO; return -1; }
  return ((int (*)(int))dlsym(RTLD_NEXT, how))(fd);
}
int fsync(int fd) { return synced("fsync", fd); }
int fdatasync(int fd) { return synced("fdatasync", fd); }
"""


@pytest.fixture
def failing_fsync(tmp_path: Path) -> dict[str, str]:
    """Return the environment of a process whose disk fails when the file FSYNC_FAILS says so."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc to build a failing fsync with")
    source, library = tmp_path / "f.c", tmp_path / "f.so"
    source.write_text(FAILING_FSYNC)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return {"LD_PRELOAD": str(library), "FSYNC_FAILS": str(tmp_path / "fails")}


async def test_an_fsync_that_fails_once_costs_no_confirmed_note(
    ram: Path, failing_fsync: dict[str, str]
) -> None:
    """EIO at each of the first 24 calls, of those at open as well."""
    printed = await asyncio.to_thread(
        python,
        """
        import asyncio, os, sys
        from pathlib import Path
        from kie_async import JournalError, SqliteJournal
        from kie_async.journal.base import Intent

        switch = Path(os.environ["FSYNC_FAILS"])

        async def one(path, number, is_open):
            journal, confirmed, asked, refusals = SqliteJournal(path), [], [], []
            if is_open:
                await journal.open()
            switch.write_text(str(number))
            for name in map(str, range(number + 6)):
                try:
                    if not is_open:
                        is_open = await journal.open() is not None
                    asked.append(name)
                    await journal.mark_sending(Intent(intent_id=name, model="m", ref=name))
                    confirmed.append(name)
                except JournalError as exc:
                    refusals.append(str(exc))
            switch.unlink()
            await journal.aclose()
            await journal.open()
            found = [intent.intent_id for intent in await journal.list_intents() if intent.state == "UNKNOWN"]
            await journal.aclose()
            assert found[: len(confirmed)] == confirmed, (found, confirmed)
            assert len(found) <= len(confirmed) + 1
            assert confirmed == asked[: len(confirmed)]  # after the first refusal there are only refusals
            return len(refusals)

        async def main():
            refused = 0
            for number in range(1, 25):
                for is_open in (True, False):
                    refused += await one(Path(f"{sys.argv[1]}.{number}.{is_open}"), number, is_open) > 0
            print(refused)

        asyncio.run(main())
        """,
        ram / "run.db",
        env=failing_fsync,
    )
    assert int(printed) >= 40


async def test_after_a_failed_fsync_nothing_more_is_sent(path: Path, failing_fsync: dict[str, str]) -> None:
    printed = await asyncio.to_thread(
        python,
        """
        import asyncio, os, sys
        from pathlib import Path
        from kie_async import JournalError, KieSession, Sandbox, TaskRequest
        from kie_async.sandbox import Never

        switch = Path(os.environ["FSYNC_FAILS"])
        echo = TaskRequest(model="sandbox/echo", input={})

        async def main():
            async with Sandbox(durations=Never()) as sandbox:
                async with KieSession("sandbox-key", base_url=sandbox.url, journal=sys.argv[1]) as kie:
                    first = await kie.create(echo)
                    gate = sandbox.faults.create_answer_gate = asyncio.Event()
                    paid = asyncio.create_task(kie.create(echo))
                    while len(sandbox.tasks) < 2:
                        await asyncio.sleep(0.01)
                    switch.write_text("1")
                    gate.set()
                    try:
                        await paid
                    except JournalError as exc:
                        print(exc)
                    switch.unlink()  # the disk is well again, but who knows what it holds
                    for _ in range(2):
                        try:
                            await kie.create(echo)
                        except JournalError as exc:
                            print(exc)
                    sandbox.finish(first.task_id)
                    assert (await first).urls
                    assert len(sandbox.tasks) == sandbox.counts["create.bodies"] == 2
                async with KieSession("sandbox-key", base_url=sandbox.url, journal=sys.argv[1]) as kie:
                    assert {handle.task_id for handle in await kie.resume()} == set(sandbox.tasks)

        asyncio.run(main())
        """,
        path,
        env=failing_fsync,
    )
    paid, *refused = printed.splitlines()
    assert "was created and is paid, but could not be noted" in paid
    assert (
        refused
        == [f"journal {path} cannot be trusted any more (disk I/O error); nothing more is sent with it"] * 2
    )


# --- the rules ---------------------------------------------------------------------------------


async def test_r5_an_id_that_cannot_be_committed_is_rescued(
    path: Path, sandbox: Sandbox, open_session: OpenSession, caplog: pytest.LogCaptureFixture
) -> None:
    journal = SqliteJournal(path)
    kie = await open_session(journal=journal)
    sandbox.faults.create_answer_gate = asyncio.Event()
    creating = asyncio.create_task(kie.create(ECHO))
    await eventually(lambda: sandbox.tasks)
    journal._file.distrust = "the disk is gone"
    sandbox.faults.create_answer_gate.set()
    (task_id,) = sandbox.tasks
    with pytest.raises(JournalError, match=f"task {task_id} was created and is paid.*the disk is gone"):
        await creating
    assert task_id in caplog.text
    assert json.loads(journal.rescue_path.read_text())["task_id"] == task_id
    await kie.aclose()
    kie = await open_session(journal=path)
    assert [handle.task_id for handle in await kie.resume()] == [task_id]
    assert not journal.rescue_path.exists()


async def test_r6_a_journal_that_cannot_be_trusted_takes_nothing(journal: SqliteJournal) -> None:
    await created(journal)

    def fail(_: sqlite3.Connection) -> None:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
        raise error

    words = "cannot be trusted any more"
    outcomes = await asyncio.gather(
        journal.mark_sending(intent(2)),
        journal._do(fail),
        journal.mark_sending(intent(3)),
        return_exceptions=True,
    )
    assert all(isinstance(outcome, JournalError) and words in str(outcome) for outcome in outcomes)
    for note in (journal.mark_sending(intent(4)), journal.mark_unsent("i1"), journal.find_by_ref("r1")):
        with pytest.raises(JournalError, match=words):
            await note


async def test_a_file_that_fails_once_is_asked_again(journal: SqliteJournal) -> None:
    def fail(_: sqlite3.Connection) -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    with pytest.raises(JournalError, match="database or disk is full"):
        await journal._do(fail)
    await created(journal)


async def test_rescued_lines_that_cannot_be_used_are_kept(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(path) as journal:
        await created(journal, 1)
        for number in (2, 3):
            await journal.mark_sending(intent(number))
    good = '{"intent_id": "i2", "task_id": "t2"}'
    bad = [
        '{"intent_id": "i3", "task_id": "t1"}',
        '{"intent_id": "i9", "task_id": "t9"}',
        '{"intent_id": ["i3"], "task_id": "t9"}',
        "7",
        '{"intent_id": "i3", "ta',
    ]
    journal.rescue_path.write_text("\n".join([good, *bad]))
    async with opened(path) as journal:
        assert await states(journal) == {"i1": "CREATED", "i2": "CREATED", "i3": "UNKNOWN"}
    assert "5 rescued ids could not be put into the journal" in caplog.text
    assert not journal.rescue_path.exists()
    assert '"ta' in path.with_name("run.db.rescue.unused").read_text()
