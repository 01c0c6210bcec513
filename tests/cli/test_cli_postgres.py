"""The command line on a journal that several workers share: it names a URL where else it names a file."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from support.command_line import KEY, Command
from support.ports import free_port

from kie_async import CreateOutcomeUnknown, KieSession, PostgresJournal
from kie_async.cli.journal_place import JournalPlace
from kie_async.sandbox import Sandbox

OpenWorker = Callable[[], Awaitable[KieSession]]


@pytest.fixture
async def worker(service: Sandbox, postgres_dsn: str) -> AsyncIterator[KieSession]:
    """Return a session that works on the journal all the while."""
    journal = PostgresJournal(postgres_dsn, keep_bodies=True)
    async with KieSession(KEY, base_url=service.url, journal=journal) as worker:
        yield worker


async def lose_answer(service: Sandbox, worker: KieSession) -> CreateOutcomeUnknown:
    """Let the answer to a create of ``anna`` be lost."""
    service.faults.lose_answers_next = 1
    with pytest.raises(CreateOutcomeUnknown) as caught:
        await worker.create("sandbox/echo", {"prompt": "hi"}, ref="anna")
    return caught.value


# --- reading ---------------------------------------------------------------------------------------


async def test_show_top_and_report_know_what_other_workers_did(
    run_command: Command, worker: KieSession, postgres_dsn: str, tmp_path: Path
) -> None:
    task_id = (await worker.run("sandbox/echo", {"prompt": "hi"}, ref="anna")).task_id

    code, shown, err = await run_command("journal", "show", postgres_dsn)
    assert (code, err) == (0, "")
    assert shown.splitlines()[0].split()[:3] == ["done", "anna", task_id]

    _, lines, _ = await run_command("journal", "show", "--json", postgres_dsn)
    assert json.loads(lines)["task_id"] == task_id

    code, overview, err = await run_command("top", postgres_dsn)
    assert (code, err, overview.splitlines()[0]) == (0, "", "1 job: 1 done")

    assert await run_command("report", postgres_dsn) == (0, "report.html\n", "")
    assert task_id in (tmp_path / "results.csv").read_text()
    page = (tmp_path / "report.html").read_text()
    assert (urlsplit(postgres_dsn).password or "no") not in page


async def test_a_journal_of_a_name_of_its_own_is_named_behind_the_url(
    run_command: Command, service: Sandbox, postgres_dsn: str
) -> None:
    journal = PostgresJournal(postgres_dsn, name="orders")
    async with KieSession(KEY, base_url=service.url, journal=journal) as kie:
        await kie.run("sandbox/echo", {}, ref="anna")
        assert (await run_command("top", f"{postgres_dsn}#orders"))[1].startswith("1 job: 1 done")
        code, _, err = await run_command("top", postgres_dsn)
    assert (code, err) == (
        2,
        "error: there is no journal on PostgreSQL (kie_async_main): nothing was noted in it yet\n",
    )


# --- one task --------------------------------------------------------------------------------------


async def test_run_with_a_ref_that_another_worker_has_waits_for_its_task(
    run_command: Command, worker: KieSession, service: Sandbox, postgres_dsn: str
) -> None:
    handle = await worker.create("sandbox/echo", {"prompt": "hi"}, ref="anna")
    arguments = ("run", "sandbox/echo", "-f", "prompt=hi", "--ref", "anna", "--journal", postgres_dsn)
    code, out, _ = await run_command(*arguments)
    assert (code, handle.task_id in out, len(service.tasks)) == (0, True, 1)


# --- what a person decides -------------------------------------------------------------------------


async def test_resolve_decides_on_a_create_of_a_worker_that_lives(
    run_command: Command, worker: KieSession, service: Sandbox, postgres_dsn: str
) -> None:
    unknown = await lose_answer(service, worker)
    (task_id,) = service.tasks

    code, out, err = await run_command("journal", "resolve", postgres_dsn, "anna", task_id)

    assert (code, err) == (0, "")
    assert out.startswith(f"task     {task_id}\n")
    assert unknown.handle is not None
    assert (await unknown.handle).task_id == task_id
    assert len(service.tasks) == 1


async def test_write_off_decides_on_a_create_of_a_worker_that_lives(
    run_command: Command, worker: KieSession, service: Sandbox, postgres_dsn: str
) -> None:
    unknown = await lose_answer(service, worker)
    assert await run_command("journal", "write-off", postgres_dsn, unknown.intent_id) == (
        0,
        f"{unknown.intent_id} is written off; a job with a new ref is made, and paid, again\n",
        "",
    )
    assert unknown.handle is not None
    with pytest.raises(CreateOutcomeUnknown):
        await unknown.handle


async def test_resubmit_sends_what_a_worker_that_lives_has_sent(
    run_command: Command, worker: KieSession, service: Sandbox, postgres_dsn: str
) -> None:
    await lose_answer(service, worker)
    arguments = ("journal", "resubmit", postgres_dsn, "anna", "--accept-double-charge")
    code, out, err = await run_command(*arguments)
    assert (code, err) == (0, "")
    _, second = service.tasks
    assert out == f"task     {second}\nlater    kie-async status {second} --wait\n"
    again = await worker.create("sandbox/echo", {"prompt": "hi"}, ref="anna")
    assert ((await again).task_id, len(service.tasks)) == (second, 2)


@pytest.mark.parametrize(
    "decision",
    [("resolve", "anna", "id"), ("write-off", "anna"), ("resubmit", "anna", "--accept-double-charge")],
    ids=" ".join,
)
async def test_no_decision_makes_a_journal_that_is_not_there(
    decision: tuple[str, ...], run_command: Command, service: Sandbox, postgres_dsn: str
) -> None:
    import asyncpg

    verb, *rest = decision
    code, _, err = await run_command("journal", verb, f"{postgres_dsn}#other", *rest)
    assert code == 2
    assert "there is no journal on PostgreSQL (kie_async_other): nothing was noted in it yet" in err
    connection = await asyncpg.connect(postgres_dsn)
    assert await connection.fetchval("SELECT to_regnamespace('kie_async_other') IS NULL")
    await connection.close()


async def test_accept_trusts_a_database_that_lost_what_was_committed(
    run_command: Command, service: Sandbox, worker: KieSession, postgres_dsn: str
) -> None:
    import asyncpg

    await worker.run("sandbox/echo", {}, ref="anna")
    nothing = (0, "nothing was found missing\n", "")
    assert await run_command("journal", "accept", postgres_dsn) == nothing
    connection = await asyncpg.connect(postgres_dsn)
    await connection.execute("UPDATE kie_async_main.meta SET distrust = 'it had 9 creates and has 1'")
    await connection.close()

    assert await run_command("journal", "accept", postgres_dsn) == (
        0,
        "it is trusted again; creates go on\n",
        "",
    )
    assert await run_command("journal", "accept", postgres_dsn) == nothing
    assert (await worker.run("sandbox/echo", {}, ref="bert")).task_id in service.tasks


async def test_accept_is_nothing_for_a_file(run_command: Command) -> None:
    code, _, err = await run_command("journal", "accept", "run.db")
    assert (code, "only a journal on PostgreSQL can lose what was committed" in err) == (2, True)


# --- the password ----------------------------------------------------------------------------------

PASSWORD = "s3cret-w0rd"


@pytest.mark.parametrize(
    "arguments",
    [
        ("journal", "show", "{}"),
        ("journal", "show", "--watch", "{}"),
        ("journal", "resolve", "{}", "anna", "id"),
        ("journal", "write-off", "{}", "anna"),
        ("journal", "resubmit", "{}", "anna", "--accept-double-charge"),
        ("journal", "accept", "{}"),
        ("top", "{}"),
        ("report", "{}"),
        ("-v", "batch", "jobs.csv", "--journal", "{}"),
        ("-v", "run", "sandbox/echo", "-f", "prompt=hi", "--journal", "{}"),
    ],
    ids=" ".join,
)
async def test_no_command_shows_the_password(
    arguments: tuple[str, ...], run_command: Command, tmp_path: Path, service: Sandbox
) -> None:
    (tmp_path / "jobs.csv").write_text("ref,model,prompt\nr1,sandbox/echo,1\n")
    nowhere = f"127.0.0.1:{free_port()}"
    for url in (
        f"postgresql://kie:{PASSWORD}@{nowhere}/app",
        f"postgresql://kie@{nowhere}/app?password={PASSWORD}",
        f"postgresql://kie:{PASSWORD}/@{nowhere}:x/app",
    ):
        code, out, err = await run_command(*(argument.format(url) for argument in arguments))
        assert code == 2
        assert PASSWORD not in out + err
        assert "error:" in err.splitlines()[-1]
    assert not service.tasks


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("run.db", "run.db"),
        ("postgresql://db/app", "postgresql://db/app"),
        ("postgresql:///app", "postgresql:///app"),
        ("postgres://kie@db:5432/app", "postgres://kie@db:5432/app"),
        ("postgresql://kie:PASSWORD@db/app", "postgresql://kie@db/app"),
        ("postgresql://kie:PASSWORD@[::1]:5432/app", "postgresql://kie@[::1]:5432/app"),
        ("postgresql://kie:PASSWORD@a:1,b:2/app", "postgresql://kie@a:1,b:2/app"),
        ("postgresql://kie@db/app?password=PASSWORD", "postgresql://kie@db/app"),
        ("postgresql://kie:PASSWORD@db/app#orders", "postgresql://kie@db/app#orders"),
        ("postgresql://kie:PASS/PASSWORD@db/app", "postgresql://..."),
        ("postgresql://kie:PASS?PASSWORD@db/app", "postgresql://..."),
        ("postgresql://kie:PASS#PASSWORD@db/app", "postgresql://..."),
        ("postgresql://kie:PASS@PASSWORD@db/app", "postgresql://..."),
        ("postgresql://kie@db/app?password=PASS@WORD", "postgresql://..."),
        ("postgresql://PASS:WORD", "postgresql://..."),
    ],
)
def test_a_place_is_shown_without_what_may_hold_a_password(given: str, shown: str) -> None:
    place = JournalPlace(given)
    assert str(place) == shown
    assert "PASS" not in repr(place)


@pytest.mark.parametrize(
    "given",
    [
        " postgresql://kie:PASSWORD@db/app",
        "'postgresql://kie:PASSWORD@db/app'",
        "postgresql+asyncpg://kie:PASSWORD@db/app",
        "POSTGRESQL://kie:PASSWORD@db/app",
        "postgresql:/kie:PASSWORD@db/app",
        "jdbc:postgresql://kie:PASSWORD@db/app",
        "kie:PASSWORD@db/app",
        "dbname=app user=kie password=PASSWORD",
    ],
)
async def test_an_address_of_another_form_is_no_file_and_is_not_shown(
    given: str, run_command: Command
) -> None:
    for arguments in (("journal", "show", given), ("run", "sandbox/echo", "--journal", given)):
        code, out, err = await run_command(*arguments)
        assert code == 2
        assert "the address of a database" in " ".join(err.split())
        assert "PASSWORD" not in out + err
