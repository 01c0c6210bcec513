"""``kie-async journal show``: lists the tasks a journal knows, without sending anything."""

from __future__ import annotations

import json
from collections import Counter
from typing import Annotated, Any

import typer

from ..journal.intents import Intent
from ..models import JobState
from .attempts import AttemptNames
from .journal_place import DurableJournal, JournalArgument, JournalPlace, check_there
from .output import count_of, escape_marks, format_number, format_spent, print_out
from .report_sums import STATES_IN_ORDER
from .runtime import DONE, run_command
from .sessions import open_journal
from .top import REFRESH_S, read_overview, show_live

_ALIGNED_COLUMNS = 5

journal = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Read the journal of a batch, and decide on what it holds.",
)


@journal.callback()
def begin() -> None:
    """Read the journal of a batch or a session."""


@journal.command()
def show(
    *,
    place: JournalArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line instead.")] = False,
    live: Annotated[
        bool, typer.Option("--watch", help="Show how it stands again and again, as kie-async top does.")
    ] = False,
) -> None:
    """List every task a journal knows, in the order they were asked for. Sends nothing, needs no key.

    It may be in use, and is not changed: what is shown is how it stands now.

    What is running was not seen to end; what is refused or not sent has cost nothing. Perhaps paid is what
    was sent and got no answer: look at https://kie.ai/logs, and say what you found with journal resolve,
    write-off or resubmit.

    The columns are state, ref, task id, credits and intent, which is the journal's own name for each. A ref
    with a number, such as anna (1), is that of an earlier attempt.
    """
    check_there(place, "JOURNAL")
    if live:
        run_command(show_live(lambda: read_overview(place), REFRESH_S))
    run_command(_show(place, as_json=as_json))


async def _show(place: JournalPlace, *, as_json: bool) -> int:
    """Print all intents.

    Raises:
        CannotRun: It is no journal, or cannot be read.
    """
    async with open_journal(place) as source:
        if as_json:
            async for intent in source.iterate_intents():
                print_out(json.dumps(_json_fields(intent), ensure_ascii=False))
        else:
            await _show_rows(source)
    return DONE


def _json_fields(intent: Intent) -> dict[str, Any]:
    return {
        "intent": intent.intent_id,
        "state": intent.job_state,
        "ref": intent.ref,
        "former_ref": intent.former_ref,
        "model": intent.model,
        "task_id": intent.task_id,
        "credits": intent.credits,
        "code": intent.code,
        "reason": intent.reason,
    }


async def _show_rows(source: DurableJournal) -> None:
    # Read twice, so that columns are as wide as they must be and no more than a few rows are in memory.
    widths = [0] * _ALIGNED_COLUMNS
    states: Counter[JobState] = Counter()
    spent = 0.0
    names = AttemptNames()
    async for intent in source.iterate_intents():
        cells = _cells(intent, names)
        widths = [max(width, len(cell)) for width, cell in zip(widths, cells, strict=False)]
        if not intent.is_superseded:  # a later attempt is how its job stands
            states[intent.job_state] += 1
        spent += intent.credits or 0.0
    names = AttemptNames()
    async for intent in source.iterate_intents():
        *columns, reason = _cells(intent, names)
        aligned = (cell.ljust(width) for cell, width in zip(columns, widths, strict=True))
        print_out("  ".join([*aligned, reason]).rstrip())
    kinds = "; ".join(f"{states[state]} {state}" for state in STATES_IN_ORDER if states[state])
    print_out(f"{count_of(states.total(), 'job')}{': ' if kinds else ''}{kinds}")
    print_out(format_spent(spent))


def _cells(intent: Intent, names: AttemptNames) -> tuple[str, ...]:
    """Return what stands in the columns; the last one, which is as long as it is, is the reason."""
    cells = (names.name(intent) or "-", intent.task_id or "-", format_number(intent.credits) or "-")
    reason = " ".join(intent.reason.split())
    return tuple(escape_marks(cell) for cell in (intent.job_state, *cells, intent.intent_id, reason))
