"""``kie-async journal show``: lists the tasks a journal knows, without sending anything."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import JournalError
from ..journal.base import Intent
from ..journal.sqlite import SqliteJournal
from .attempts import AttemptNames
from .output import escape_marks, format_number, print_out
from .runtime import DONE, CannotRun, run_command

_ALIGNED_COLUMNS = 5

journal = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look into the journal of a batch.")


@journal.callback()
def begin() -> None:
    """Look into the journal of a batch or a session."""


@journal.command()
def show(
    *,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The journal.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line instead.")] = False,
) -> None:
    """List every task a journal knows, in the order they were asked for. Sends nothing, needs no key.

    It may be in use, and is not changed: what is shown is how it stands now.

    CREATED tasks are running or were not seen to end. SUCCEEDED and FAILED have ended. REJECTED was refused
    by the service, NOT_CREATED never sent. UNKNOWN was sent and no answer came: money may have been spent;
    look at https://kie.ai/logs, and say what you found with journal resolve, write-off or resubmit.

    The columns are state, ref, task id, credits and intent, which is the journal's own name for each. A ref
    with a number, such as anna (1), is that of an earlier attempt.
    """
    if not os.path.exists(file):  # unlike `Path.exists` it never raises
        raise typer.BadParameter(f"there is no journal {file}", param_hint="FILE")
    run_command(_show(file, as_json=as_json))


async def _show(file: Path, *, as_json: bool) -> int:
    """Print all intents.

    Raises:
        CannotRun: It is no journal, or cannot be read.
    """
    source = SqliteJournal(file)
    try:
        await source.open_to_read()
        if as_json:
            async for intent in source.iterate_intents():
                print_out(json.dumps(_json_fields(intent), ensure_ascii=False))
        else:
            await _show_rows(source)
    except JournalError as exc:
        raise CannotRun(str(exc)) from None
    finally:
        await source.aclose()
    return DONE


def _json_fields(intent: Intent) -> dict[str, Any]:
    return {
        "intent": intent.intent_id,
        "state": str(intent.state),
        "ref": intent.ref,
        "former_ref": intent.former_ref,
        "model": intent.model,
        "task_id": intent.task_id,
        "credits": intent.credits,
        "code": intent.code,
        "reason": intent.reason,
    }


async def _show_rows(source: SqliteJournal) -> None:
    # Read twice, so that columns are as wide as they must be and no more than a few rows are in memory.
    widths = [0] * _ALIGNED_COLUMNS
    states: Counter[str] = Counter()
    spent = 0.0
    names = AttemptNames()
    async for intent in source.iterate_intents():
        cells = _cells(intent, names)
        widths = [max(width, len(cell)) for width, cell in zip(widths, cells, strict=False)]
        states[str(intent.state)] += 1
        spent += intent.credits or 0.0
    names = AttemptNames()
    async for intent in source.iterate_intents():
        *columns, reason = _cells(intent, names)
        aligned = (cell.ljust(width) for cell, width in zip(columns, widths, strict=True))
        print_out("  ".join([*aligned, reason]).rstrip())
    kinds = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    print_out(f"{states.total()} intents{': ' if kinds else ''}{kinds}; {format_number(spent)} credits")


def _cells(intent: Intent, names: AttemptNames) -> tuple[str, ...]:
    """Return what stands in the columns; the last one, which is as long as it is, is the reason."""
    cells = (names.name(intent) or "-", intent.task_id or "-", format_number(intent.credits) or "-")
    reason = " ".join(intent.reason.split())
    return tuple(escape_marks(cell) for cell in (str(intent.state), *cells, intent.intent_id, reason))
