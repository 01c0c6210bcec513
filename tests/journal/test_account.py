"""A journal belongs to one account of one service: another is refused in a sentence, and nothing is sent."""

from __future__ import annotations

import re
import socket
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ThreadedResolver
from aiohttp.abc import ResolveResult
from conftest import OpenSession
from support.journals import created, intent, opened, raw
from support.stores import Store
from support.tables import together

from kie_async import AuthenticationError, JournalError, KieSession, Network, Sandbox, SqliteJournal
from kie_async._secrets import Secret
from kie_async._validation import check_origin
from kie_async.journal.account import Account, account_digest, derive_account_name
from kie_async.journal.base import Journal
from kie_async.journal.intents import IntentState
from kie_async.journal.memory import MemoryJournal

REAL = "https://api.kie.ai"
OLD, NEW, THIRD = "key-of-march", "key-of-april", "key-of-may"
WORK, HOME = (derive_account_name(name) for name in ("work", "home"))

TAKEN = None
WITHOUT_A_NAME = r"was made with another key of https://api\.kie\.ai; .* account='a name of yours'"
WITHOUT_ITS_NAME = r"was made with another key of https://api\.kie\.ai; .* account='the name it was given'"
OF_ANOTHER_NAME = r"belongs to another account of https://api\.kie\.ai than the one that account="


def account(key: str = OLD, name: Secret | None = None, url: str = REAL) -> Account:
    return Account(url=check_origin("url", url), key=Secret(key), name=name)


def elsewhere(belongs: str, speaks: str) -> str:
    return re.escape(f"belongs to {belongs}, this session speaks to {speaks}; use another journal")


# --- the rules -------------------------------------------------------------------------------------


RULES: dict[str, list[tuple[Account, str | None]]] = {
    "the same key": [(account(), TAKEN), (account(), TAKEN)],
    "another key": [(account(), TAKEN), (account(NEW), WITHOUT_A_NAME), (account(), TAKEN)],
    "another key, and a name": [
        (account(), TAKEN),
        (account(NEW, WORK), TAKEN),
        (account(THIRD, WORK), TAKEN),
    ],
    "each key that it has seen": [
        *((account(), TAKEN), (account(NEW, WORK), TAKEN)),
        *((account(), TAKEN), (account(NEW), TAKEN), (account(THIRD), WITHOUT_ITS_NAME)),
    ],
    "a name from the beginning": [
        (account(OLD, WORK), TAKEN),
        (account(), TAKEN),
        (account(NEW, WORK), TAKEN),
    ],
    "a name later, with the same key": [
        (account(), TAKEN),
        (account(OLD, WORK), TAKEN),
        (account(NEW, WORK), TAKEN),
    ],
    "another name": [
        *((account(OLD, WORK), TAKEN), (account(NEW, HOME), OF_ANOTHER_NAME)),
        *((account(OLD, HOME), OF_ANOTHER_NAME), (account(NEW), WITHOUT_ITS_NAME), (account(), TAKEN)),
    ],
    "another service": [
        (account(url="http://127.0.0.1:8800"), TAKEN),
        (account(), elsewhere("http://127.0.0.1:8800", REAL)),
        (account(NEW, WORK), elsewhere("http://127.0.0.1:8800", REAL)),
    ],
    "a rehearsal after the real thing": [
        (account(OLD, WORK), TAKEN),
        (account(OLD, WORK, "http://localhost:8800"), elsewhere(REAL, "http://localhost:8800")),
    ],
    "a sandbox on another port": [
        *((account(url="http://127.0.0.1:8800"), TAKEN), (account(url="http://127.0.0.1:8801"), TAKEN)),
        *((account(url="https://127.0.0.2/kie"), TAKEN), (account(url="http://localhost"), TAKEN)),
    ],
    "a sandbox with another key": [
        (account(url="http://127.0.0.1:8800"), TAKEN),
        (account(NEW, url="http://127.0.0.1:8801"), "was made with another key of http://127.0.0.1:8801"),
    ],
    "another host": [
        (account(), TAKEN),
        (account(url="https://kie.example.org"), elsewhere(REAL, "https://kie.example.org")),
    ],
    "another way to write the service": [
        *((account(), TAKEN), (account(url="https://API.KIE.AI:443/"), TAKEN)),
        *((account(url="https://api.kie.ai./api/v1"), TAKEN), (account(url="HTTPS://api.kie.ai"), TAKEN)),
    ],
    "another name of this machine": [
        *((account(url="http://127.0.0.1:8800"), TAKEN), (account(url="http://localhost:8800"), TAKEN)),
        *((account(url="http://[::1]:8800/api/v1/"), TAKEN), (account(url="http://LOCALHOST:8800"), TAKEN)),
    ],
}
"""What a journal that holds a paid task is opened with, one after the other, and the words of the refusal."""


@pytest.mark.parametrize("steps", RULES.values(), ids=RULES)
async def test_a_journal_with_a_task_takes_only_its_own_account(
    journal: Journal, steps: list[tuple[Account, str | None]]
) -> None:
    for number, (given, refusal) in enumerate(steps):
        if refusal is TAKEN:
            await journal.check_account(given)
        else:
            with pytest.raises(JournalError, match=refusal) as caught:
                await journal.check_account(given)
            assert "\n" not in str(caught.value)
        if number == 0:
            await journal.mark_sending(intent())
            await journal.mark_created("i1", "t1")


BELONGS_TO_NOBODY = {
    "nothing": None,
    "a create that never left": (IntentState.NOT_CREATED, None),
    "a create with a refused key": (IntentState.REJECTED, 401),
    "a create that was wrong": (IntentState.REJECTED, 422),
}

BELONGS_TO_ITS_ACCOUNT = {
    "a refusal that leaves doubt": (IntentState.REJECTED, 500),
    "a refusal for the time": (IntentState.REJECTED, 408),
    "a refusal without a code": (IntentState.REJECTED, None),
    "a create of unknown outcome": (IntentState.UNKNOWN, None),
    "a create that was given up": (IntentState.WRITTEN_OFF, None),
}


@pytest.mark.parametrize("end", BELONGS_TO_NOBODY.values(), ids=BELONGS_TO_NOBODY)
async def test_a_journal_that_holds_nothing_paid_takes_any_account(
    journal: Journal, end: tuple[IntentState, int | None] | None
) -> None:
    await journal.check_account(account("mistyped", WORK, "http://127.0.0.1:8800"))
    if end is not None:
        await journal.mark_sending(intent())
        await journal.mark_ended("i1", end[0], code=end[1])
    await journal.check_account(account())
    await journal.mark_sending(intent(2))
    with pytest.raises(JournalError, match="belongs to https://api"):
        await journal.check_account(account("mistyped", WORK, "http://127.0.0.1:8800"))
    with pytest.raises(JournalError, match=WITHOUT_A_NAME):
        await journal.check_account(account("mistyped"))


@pytest.mark.parametrize("end", BELONGS_TO_ITS_ACCOUNT.values(), ids=BELONGS_TO_ITS_ACCOUNT)
async def test_a_create_that_may_be_paid_ties_a_journal(
    journal: Journal, end: tuple[IntentState, int | None]
) -> None:
    await journal.check_account(account())
    await journal.mark_sending(intent())
    await journal.mark_ended("i1", end[0], code=end[1])
    with pytest.raises(JournalError, match=WITHOUT_A_NAME):
        await journal.check_account(account(NEW))


async def test_a_journal_of_a_users_own_takes_any_account() -> None:
    class Mine(MemoryJournal):
        check_account = Journal.check_account

    journal = Mine()
    for given in (account(), account(NEW, WORK, "http://127.0.0.1:8800"), account(NEW, HOME)):
        await journal.check_account(given)
        await journal.mark_sending(intent(given.url))


# --- the file --------------------------------------------------------------------------------------


async def of_old(path: Path) -> None:
    """Make a journal with a task, opened by account `OLD` of the service."""
    async with opened(path) as journal:
        await journal.check_account(account())
        await created(journal)


async def test_the_note_outlives_the_process(durable_store: Store) -> None:
    async with durable_store.opened() as journal:
        await journal.check_account(account())
        await created(journal)
    async with durable_store.opened() as journal:
        await journal.check_account(account())
        with pytest.raises(JournalError, match=f"^{re.escape(durable_store.label)} was made"):
            await journal.check_account(account(NEW))


async def test_a_journal_of_a_version_before_belongs_to_whom_opens_it_next(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    async with opened(path) as journal:
        await created(journal)
    reader = SqliteJournal(path)
    await reader.open_to_read()
    await reader.aclose()
    async with opened(path) as journal:
        await journal.check_account(account(NEW))
        with pytest.raises(JournalError, match=WITHOUT_A_NAME):
            await journal.check_account(account(OLD))


async def test_reading_notes_nobody_and_asks_nobody(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    await of_old(path)
    before = path.read_bytes()
    reader = SqliteJournal(path)
    await reader.open_to_read()
    assert len([intent async for intent in reader.iterate_intents()]) == 1
    await reader.aclose()
    assert path.read_bytes() == before


async def test_the_file_shows_neither_key_nor_name_and_not_which_journals_are_of_one_account(
    tmp_path: Path,
) -> None:
    written = []
    for name in ("a.db", "b.db"):
        async with opened(tmp_path / name) as journal:
            await journal.check_account(account(OLD, derive_account_name("the-name-of-it")))
            await created(journal)
        with raw(tmp_path / name) as db:
            written += [digest for (digest,) in db.execute("SELECT digest FROM account")]
        content = (tmp_path / name).read_bytes()
        assert OLD.encode() not in content
        assert b"the-name-of-it" not in content
    assert len(set(written)) == 4


SPOILED = {
    "another table": "DROP TABLE account; CREATE TABLE account(other TEXT); INSERT INTO account VALUES ('x')",
    "a URL that is no text": "UPDATE account SET url = CAST(X'FF' AS TEXT)",
    "a digest that was changed": "UPDATE account SET digest = X'00'",
    "a salt that was changed": "UPDATE account SET salt = X''",
}


@together("name", SPOILED)
async def test_a_note_that_cannot_be_read_is_an_error(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.db"
    await of_old(path)
    with raw(path) as db:
        db.executescript(SPOILED[name])
    async with opened(path) as journal:
        with pytest.raises(JournalError):
            await journal.check_account(account())


async def test_the_note_is_kept_by_an_sqlite_without_strict_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 26, 0))
    await of_old(tmp_path / "run.db")
    async with opened(tmp_path / "run.db") as journal:
        await journal.check_account(account())
        with pytest.raises(JournalError, match=WITHOUT_A_NAME):
            await journal.check_account(account(NEW))


def test_an_account_is_its_name_if_it_has_one() -> None:
    assert account_digest(account(OLD, WORK).secret, "a") == account_digest(account(NEW, WORK).secret, "a")
    assert account_digest(account(OLD).secret, "a") != account_digest(account(NEW).secret, "a")
    assert account_digest(account().secret, "a", "b") != account_digest(account().secret, "a", "c")
    assert OLD not in repr(account(OLD, WORK))


# --- sessions --------------------------------------------------------------------------------------


@pytest.fixture
async def lenient(leaks: None) -> AsyncIterator[Sandbox]:
    """Return a sandbox that takes any key."""
    async with Sandbox(api_key=None) as lenient:
        yield lenient


async def make_one(kie: KieSession) -> str:
    handle = await kie.create("sandbox/echo", {"prompt": "a"}, ref="order-1")
    await kie.aclose()
    return handle.task_id


async def test_a_rehearsal_is_not_taken_for_the_real_thing(
    sandbox: Sandbox, open_session: OpenSession, tmp_path: Path
) -> None:
    path = tmp_path / "run.db"
    task_id = await make_one(await open_session(journal=path))
    with pytest.raises(JournalError, match=elsewhere(sandbox.url, REAL)):
        await open_session(base_url=REAL, journal=path)
    assert await make_one(await open_session(journal=path)) == task_id


class Here(ThreadedResolver):
    """Resolves every name to this machine."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return await super().resolve("127.0.0.1", port, family)


async def test_another_service_is_refused_before_anything_is_sent(
    sandbox: Sandbox, open_session: OpenSession, tmp_path: Path
) -> None:
    port = sandbox.url.rpartition(":")[2]
    named = f"http://sandbox.example:{port}"
    network = Network(allow_http_to=["sandbox.example"], resolver=Here())
    path = tmp_path / "run.db"
    await make_one(await open_session(base_url=named, network=network, journal=path))
    asked = sandbox.counts.total()
    with pytest.raises(JournalError, match=elsewhere(named, sandbox.url)):
        await open_session(journal=path)
    assert sandbox.counts.total() == asked


async def test_another_key_is_asked_about_before_anything_is_sent(
    lenient: Sandbox, open_session: OpenSession, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"base_url": lenient.url, "journal": tmp_path / "run.db"}
    task_id = await make_one(await open_session(api_key=OLD, **given))
    asked = lenient.counts.total()
    with pytest.raises(JournalError, match="account=") as caught:
        await open_session(api_key=NEW, **given)
    assert NEW not in str(caught.value)
    assert OLD not in str(caught.value)
    assert lenient.counts.total() == asked
    assert await make_one(await open_session(api_key=NEW, account=" work ", **given)) == task_id
    assert await make_one(await open_session(api_key=NEW, **given)) == task_id
    with pytest.raises(JournalError, match="another account"):
        await open_session(api_key=NEW, account="home", **given)
    assert lenient.counts["create.bodies"] == 1


async def test_a_key_that_was_mistyped_at_first_keeps_nobody_out(
    sandbox: Sandbox, open_session: OpenSession, tmp_path: Path
) -> None:
    kie = await open_session(api_key="mistyped", journal=tmp_path / "run.db")
    with pytest.raises(AuthenticationError):
        await kie.create("sandbox/echo", {"prompt": "a"}, ref="order-1")
    await kie.aclose()
    await make_one(await open_session(journal=tmp_path / "run.db"))
    assert sandbox.counts["create.bodies"] == 2


async def test_uploads_are_shared_by_the_keys_of_a_named_account(
    lenient: Sandbox, open_session: OpenSession, tmp_path: Path
) -> None:
    face = tmp_path / "face.png"
    face.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    given: dict[str, Any] = {"account": "work", "base_url": lenient.url, "journal": tmp_path / "run.db"}
    for key in (OLD, NEW, OLD):
        kie = await open_session(api_key=key, **given)
        await kie.upload(face)
        await kie.aclose()
    assert lenient.counts["upload"] == 1
