"""``kie-async journal resolve``, ``write-off``, ``resubmit``, ``accept``: what a person alone can decide."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import typer

from ..handle import TaskHandle
from ..journal.intents import Intent, IntentState
from ..journal.postgres import PostgresJournal
from .journal_place import DurableJournal, JournalArgument, JournalPlace, check_there
from .output import print_out, show_id, show_task
from .runtime import DONE, CannotRun, require_key, run_command, wait_command
from .sessions import AccountName, SessionOptions, open_journal, open_session

Ref = Annotated[str, typer.Argument(metavar="REF", help="The job's ref, or its intent.")]


def resolve(
    *,
    place: JournalArgument,
    ref: Ref,
    task_id: Annotated[
        str | None,
        typer.Argument(metavar="[TASK_ID]", help="Its task; if not given, the one that an answer named."),
    ] = None,
    account: AccountName = None,
) -> None:
    """Say which task a perhaps paid job became; the service is asked whether that can be.

    Find the id at https://kie.ai/logs. The next batch then waits for the task, or fetches its result.
    """
    run_command(_resolve(check_there(place, "JOURNAL"), ref, task_id, account))


def write_off(*, place: JournalArgument, ref: Ref) -> None:
    """Give up a perhaps paid job: it is not waited for any more. Sends nothing, needs no key.

    Its ref stays its own: a job with a new ref is made, and paid, again.
    """
    run_command(_write_off(check_there(place, "JOURNAL"), ref))


def resubmit(
    *,
    place: JournalArgument,
    ref: Ref,
    accept_double_charge: Annotated[
        bool, typer.Option("--accept-double-charge", help="Say that it may be paid twice.")
    ] = False,
    account: AccountName = None,
) -> None:
    """Send a perhaps paid job again, as a new task. This costs credits, and may cost them twice.

    Needs a journal that keeps the requests: SqliteJournal(path, keep_bodies=True).
    """
    if not accept_double_charge:
        raise typer.BadParameter(
            "it may be paid twice; say so to allow it", param_hint="--accept-double-charge"
        )
    run_command(_resubmit(check_there(place, "JOURNAL"), ref, account))


def accept(*, place: JournalArgument) -> None:
    """Trust a database again that lost what was committed, after a failover or from a backup.

    Workers saw creates that it does not know any more, and send nothing. Look at https://kie.ai/logs for the
    tasks that are missing in journal show: they are paid, and their refs would be paid again. Needs no key.
    """
    if place.path is not None:
        raise typer.BadParameter(
            "only a journal on PostgreSQL can lose what was committed", param_hint="JOURNAL"
        )
    run_command(_accept(place))


async def _resolve(place: JournalPlace, ref: str, task_id: str | None, account: str | None) -> int:
    async with _opened_unknown(place, ref, account) as handle:
        await handle.resolve(task_id)
        if handle.record is not None:
            show_task(handle.record, (), as_json=False)
        return DONE


async def _resubmit(place: JournalPlace, ref: str, account: str | None) -> int:
    async with _opened_unknown(place, ref, account) as handle:
        if handle.request is None:
            raise CannotRun(
                f"the journal does not hold the request of {ref}: give the job a new ref, or "
                "create it again in a program and call resubmit on the handle of the error"
            )
        again = await handle.resubmit(accept_double_charge=True)
        show_id(again.task_id, as_json=False)
        print_out(f"{'later':<9}{wait_command(again.task_id)}")
        return DONE


@asynccontextmanager
async def _opened_unknown(place: JournalPlace, ref: str, account: str | None) -> AsyncIterator[TaskHandle]:
    """Open a session on a journal, and yield the handle of the create that has a ref.

    Raises:
        CannotRun: There is no key, the journal cannot be had, or the create is not perhaps paid.
    """
    require_key()
    await _check_made(place)
    journal = place.make_journal(keep_bodies=True)
    async with open_session(SessionOptions(journal=journal, account=account)) as kie:
        if (unknown := await kie.find_unknown_create(ref)) is None:
            raise CannotRun(_known_as(ref, await _find(journal, ref)))
        yield unknown


async def _check_made(place: JournalPlace) -> None:
    """Refuse a database that holds no such journal: to take part in one would make it."""
    if place.path is None:  # of a file `check_there` knows
        async with open_journal(place):
            pass


async def _write_off(place: JournalPlace, ref: str) -> int:
    await _check_made(place)
    async with open_journal(place, to_write=True) as journal:
        intent = await _find(journal, ref)
        if intent is None or intent.state is not IntentState.UNKNOWN:
            raise CannotRun(_known_as(ref, intent))
        await journal.mark_ended(intent.intent_id, IntentState.WRITTEN_OFF, reason="written off")
    print_out(f"{ref} is written off; a job with a new ref is made, and paid, again")
    return DONE


async def _accept(place: JournalPlace) -> int:
    async with open_journal(place) as journal:
        assert isinstance(journal, PostgresJournal)  # noqa: S101  (checked by the caller)
        was_distrusted = await journal.accept_loss()
    print_out("it is trusted again; creates go on" if was_distrusted else "nothing was found missing")
    return DONE


async def _find(journal: DurableJournal, ref: str) -> Intent | None:
    """Return the intent with a ref, or of that name."""
    async for intent in journal.iterate_intents():
        if ref in {intent.ref, intent.intent_id}:
            return intent
    return None


def _known_as(ref: str, intent: Intent | None) -> str:
    """Return why nothing can be decided."""
    if intent is None:
        return f"the journal knows no {ref}; kie-async journal show lists what it knows"
    task = f", as task {intent.task_id}" if intent.task_id else ""
    state = "written off" if intent.state is IntentState.WRITTEN_OFF else intent.job_state
    return f"{ref} is {state}{task}: only what is perhaps paid can be decided by hand"
