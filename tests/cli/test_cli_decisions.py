"""``kie-async journal resolve``, ``write-off``, ``resubmit``: what became of a create is said by a person."""

from __future__ import annotations

import asyncio
import os
import sys
from functools import partial
from pathlib import Path

import pytest
from support.command_line import KEY, Command
from support.journals import opened

from kie_async import CreateOutcomeUnknown, KieSession, SqliteJournal, cli
from kie_async.journal.intents import Claim, ClaimSource, Intent
from kie_async.sandbox import Never, Sandbox


@pytest.fixture
def command(run_command: Command) -> Command:
    """Run ``kie-async journal ...``."""
    return partial(run_command, "journal")


async def lose_answer(
    service: Sandbox, path: Path, ref: str | None = "anna", *, keep_bodies: bool = False
) -> tuple[str, str]:
    """Create a task whose answer is lost; return its id and its intent."""
    journal = SqliteJournal(path, keep_bodies=keep_bodies)
    async with KieSession(KEY, base_url=service.url, journal=journal) as kie:
        service.faults.lose_answers_next = 1
        with pytest.raises(CreateOutcomeUnknown) as caught:
            await kie.create("sandbox/echo", {"prompt": "hi"}, ref=ref)
    return list(service.tasks)[-1], caught.value.intent_id


async def intents_in(path: Path) -> list[tuple[str, str | None, str]]:
    async with opened(path) as journal:
        return [(str(i.state), i.ref, i.task_id) for i in await journal.list_intents()]


async def test_a_run_with_a_journal_names_the_command(
    service: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KIE_API_KEY", KEY)
    monkeypatch.setenv("KIE_BASE_URL", service.url)
    monkeypatch.chdir(tmp_path)
    service.faults.lose_answers_next = 1

    def run() -> None:
        cli.main(("run", "sandbox/echo", "-f", "prompt=hi", "--journal", "run.db", "--ref", "the order's"))

    with pytest.raises(SystemExit):
        await asyncio.to_thread(run)
    assert """then: kie-async journal resolve run.db 'the order'"'"'s' TASK_ID""" in capfd.readouterr().err


# --- resolve ---------------------------------------------------------------------------------------


async def test_resolve_binds_the_create_to_the_task_that_was_found(
    command: Command, service: Sandbox, tmp_path: Path
) -> None:
    task_id, _ = await lose_answer(service, tmp_path / "run.db")
    service.finish(task_id)

    code, out, err = await command("resolve", "run.db", "anna", task_id)

    assert (code, err) == (0, "")
    assert out.startswith(f"task     {task_id}\n")
    assert "state    done" in out
    assert await intents_in(tmp_path / "run.db") == [("SUCCEEDED", "anna", task_id)]
    assert len(service.tasks) == 1


async def test_a_create_without_a_ref_is_named_by_its_intent(
    command: Command, service: Sandbox, tmp_path: Path
) -> None:
    task_id, intent_id = await lose_answer(service, tmp_path / "run.db", ref=None)
    assert (await command("resolve", "run.db", intent_id, task_id))[0] == 0


async def test_resolve_without_an_id_takes_the_one_that_an_answer_named(
    command: Command, service: Sandbox, tmp_path: Path
) -> None:
    task_id, intent_id = await lose_answer(service, tmp_path / "run.db")
    code, _, err = await command("resolve", "run.db", "anna")
    assert (code, err) == (2, "error: task_id is missing: nobody named a task for this create yet\n")

    async with opened(tmp_path / "run.db") as journal:
        await journal.save_claim(Claim(intent_id=intent_id, task_id=task_id, source=ClaimSource.ANSWER))
    assert (await command("resolve", "run.db", "anna"))[0] == 0
    assert [found[2] for found in await intents_in(tmp_path / "run.db")] == [task_id]


async def test_resolve_refuses_a_task_that_the_service_does_not_know(
    command: Command, service: Sandbox, tmp_path: Path
) -> None:
    await lose_answer(service, tmp_path / "run.db")
    code, out, err = await command("resolve", "run.db", "anna", "nothing-of-the-kind")
    assert (code, out) == (1, "")
    assert err.startswith("error: code ")
    assert [found[0] for found in await intents_in(tmp_path / "run.db")] == ["UNKNOWN"]


async def test_resolve_refuses_a_task_of_another_model(
    command: Command, service: Sandbox, tmp_path: Path
) -> None:
    await lose_answer(service, tmp_path / "run.db")
    async with KieSession(KEY, base_url=service.url) as kie:
        other = await kie.create("nano-banana-2", {"prompt": "hi"})
        other.abandon()
        await asyncio.gather(other, return_exceptions=True)
    code, _, err = await command("resolve", "run.db", "anna", other.task_id)
    assert (code, "is of model nano-banana-2, not of sandbox/echo" in err) == (2, True)


# --- write-off -------------------------------------------------------------------------------------


async def test_write_off_needs_no_key_and_sends_nothing(
    command: Command, service: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lose_answer(service, tmp_path / "run.db")
    monkeypatch.delenv("KIE_API_KEY")

    code, out, err = await command("write-off", "run.db", "anna")

    assert (code, err) == (0, "")
    assert out == "anna is written off; a job with a new ref is made, and paid, again\n"
    assert await intents_in(tmp_path / "run.db") == [("WRITTEN_OFF", "anna", "")]


# --- resubmit --------------------------------------------------------------------------------------


async def test_resubmit_sends_the_request_that_the_journal_kept(
    command: Command, service: Sandbox, tmp_path: Path
) -> None:
    first, _ = await lose_answer(service, tmp_path / "run.db", keep_bodies=True)

    code, out, err = await command("resubmit", "run.db", "anna", "--accept-double-charge")

    assert (code, err) == (0, "")
    _, second = service.tasks
    assert out == f"task     {second}\nlater    kie-async status {second} --wait\n"
    assert service.tasks[second].input == service.tasks[first].input
    noted = await intents_in(tmp_path / "run.db")
    assert [(state, ref) for state, ref, _ in noted] == [("WRITTEN_OFF", None), ("CREATED", "anna")]


async def test_resubmit_says_what_to_do_where_the_journal_keeps_no_requests(
    command: Command, service: Sandbox, tmp_path: Path
) -> None:
    await lose_answer(service, tmp_path / "run.db")
    code, out, err = await command("resubmit", "run.db", "anna", "--accept-double-charge")
    assert (code, out, len(service.tasks)) == (2, "", 1)
    assert err.startswith("error: the journal does not hold the request of anna: give the job a new ref, or ")


async def test_resubmit_wants_to_be_told_that_it_may_be_paid_twice(
    command: Command, service: Sandbox, tmp_path: Path
) -> None:
    await lose_answer(service, tmp_path / "run.db", keep_bodies=True)
    code, _, err = await command("resubmit", "run.db", "anna")
    assert (code, "--accept-double-charge" in err, len(service.tasks)) == (2, True, 1)


# --- all three -------------------------------------------------------------------------------------

DECISIONS = [("resolve", "id"), ("write-off",), ("resubmit", "--accept-double-charge")]


@pytest.mark.parametrize(("name", "rest"), [(name, rest) for name, *rest in DECISIONS])
async def test_only_a_create_of_unknown_outcome_can_be_decided(
    name: str, rest: list[str], command: Command, service: Sandbox, tmp_path: Path
) -> None:
    async with KieSession(KEY, base_url=service.url, journal=tmp_path / "run.db") as kie:
        task_id = (await kie.run("sandbox/echo", {}, ref="anna")).task_id

    for ref, words in (
        ("anna", f"anna is done, as task {task_id}: only what is perhaps paid can be decided"),
        ("bert", "the journal knows no bert; kie-async journal show lists what it knows"),
    ):
        code, out, err = await command(name, "run.db", ref, *rest)
        assert (code, out) == (2, "")
        assert err.startswith(f"error: {words}")
    assert len(service.tasks) == 1


@pytest.mark.parametrize("name", ["resolve", "resubmit"])
async def test_a_rotated_key_decides_under_the_name_of_its_account(
    name: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Sandbox(api_key=None, durations=Never()) as service:
        task_id, _ = await lose_answer(service, tmp_path / "run.db", keep_bodies=True)
        monkeypatch.setenv("KIE_API_KEY", "kie-key-rotated")
        monkeypatch.setenv("KIE_BASE_URL", service.url)
        arguments = (name, "run.db", "anna", task_id if name == "resolve" else "--accept-double-charge")
        code, _, err = await command(*arguments)
        assert (code, "--account NAME" in err, len(service.tasks)) == (2, True, 1)
        assert (await command(*arguments, "--account", "work"))[0] == 0


@pytest.mark.parametrize(("name", "rest"), [(name, rest) for name, *rest in DECISIONS])
async def test_a_journal_that_cannot_be_had_is_said_in_a_line(
    name: str, rest: list[str], command: Command, service: Sandbox, tmp_path: Path
) -> None:
    code, _, err = await command(name, "run.db", "anna", *rest)
    assert (code, "there is no journal run.db" in err) == (2, True)
    assert not (tmp_path / "run.db").exists()

    async with opened(tmp_path / "run.db"):
        code, out, err = await command(name, "run.db", "anna", *rest)
    assert (code, out) == (2, "")
    assert "is open in another session or process" in err


async def test_a_process_of_its_own_decides_and_leaves_without_a_traceback(tmp_path: Path) -> None:
    async with Sandbox(api_key=KEY, durations=Never()) as service:
        task_id, _ = await lose_answer(service, tmp_path / "run.db")
        service.finish(task_id, "fail")
        command = ("-m", "kie_async", "journal", "resolve", "run.db", "anna", task_id)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", *command),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=os.environ | {"KIE_API_KEY": KEY, "KIE_BASE_URL": service.url},
        )
        out, err = await asyncio.wait_for(process.communicate(), 40.0)
    assert (process.returncode, err.decode()) == (0, "")
    assert "state    failed" in out.decode()


# --- in the library --------------------------------------------------------------------------------


async def test_a_request_that_is_created_again_can_be_resubmitted(service: Sandbox, tmp_path: Path) -> None:
    await lose_answer(service, tmp_path / "run.db")
    async with KieSession(KEY, base_url=service.url, journal=tmp_path / "run.db") as kie:
        (handle,) = kie.unknown_creates()
        assert (handle.ref, handle.request) == ("anna", None)
        with pytest.raises(CreateOutcomeUnknown) as caught:
            await kie.create("sandbox/echo", {"prompt": "hi"}, ref="anna")
        assert caught.value.handle is handle

        again = await handle.resubmit(accept_double_charge=True)
        assert (await again).task_id == list(service.tasks)[-1]
        assert kie.unknown_creates() == []
    assert len(service.tasks) == 2


@pytest.mark.parametrize(
    ("body", "is_ours"),
    [
        ('{"model":"a/b","input":{"prompt":"hi"}}', True),
        ('{"model":"a/b","input":{"prompt":"hi"},"callBackUrl":"https://me.example/kie/INTENT/***"}', True),
        ('{"model":"a/b","input":{"prompt":"hi"},"callBackUrl":"https://me.example/hook"}', False),
    ],
)
async def test_a_kept_request_keeps_a_callback_address_that_is_not_ours(
    body: str, is_ours: bool, service: Sandbox, tmp_path: Path
) -> None:
    intent_id = "ab" * 16
    path = tmp_path / "run.db"
    async with opened(path, keep_bodies=True) as journal:
        kept = body.replace("INTENT", intent_id)
        await journal.mark_sending(Intent(intent_id=intent_id, model="a/b", ref="anna", body=kept))
    async with KieSession(KEY, base_url=service.url, journal=path) as kie:
        (handle,) = kie.unknown_creates()
        assert handle.request is not None
        assert (handle.request.ref, dict(handle.request.input)) == ("anna", {"prompt": "hi"})
        assert handle.request.callback_url == (None if is_ours else "https://me.example/hook")
