"""``kie-async journal show``: lists the tasks a journal knows, without sending anything."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import JournalError
from ..journal.base import Intent
from ..journal.sqlite import SqliteJournal
from .output import format_number, print_out
from .runtime import DONE, CannotRun, run_command

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

    CREATED tasks are running or were not seen to end. SUCCEEDED and FAILED have ended. REJECTED was refused
    by the service, NOT_CREATED never sent. UNKNOWN was sent and no answer came: money may have been spent;
    look at https://kie.ai/logs.

    The columns are state, ref, task id, credits and intent, which is the journal's own name for each.
    """
    # Opening a journal that is not there would make one.
    if not file.exists():
        raise typer.BadParameter(f"there is no journal {file}", param_hint="FILE")
    run_command(_show(file, as_json=as_json))


async def _show(file: Path, *, as_json: bool) -> int:
    """Print all intents.

    Raises:
        CannotRun: It is no journal, or in use.
    """
    source = SqliteJournal(file)
    try:
        await source.open()
        intents = await source.list_intents()
    except JournalError as exc:
        raise CannotRun(str(exc)) from None
    finally:
        await source.aclose()
    if as_json:
        for intent in intents:
            print_out(json.dumps(_json_fields(intent), ensure_ascii=False))
    else:
        _show_rows(intents)
    return DONE


def _json_fields(intent: Intent) -> dict[str, Any]:
    return {
        "intent": intent.intent_id,
        "state": str(intent.state),
        "ref": intent.ref,
        "model": intent.model,
        "task_id": intent.task_id,
        "credits": intent.credits,
        "code": intent.code,
        "reason": intent.reason,
    }


def _show_rows(intents: list[Intent]) -> None:
    rows = [
        (str(i.state), i.ref or "-", i.task_id or "-", format_number(i.credits) or "-", i.intent_id, i.reason)
        for i in intents
    ]
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]]
    for *cells, reason in rows:
        aligned = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        print_out("  ".join([*aligned, " ".join(reason.split())]).rstrip())
    states = Counter(str(intent.state) for intent in intents)
    kinds = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    spent = format_number(sum(intent.credits or 0.0 for intent in intents))
    print_out(f"{len(intents)} intents{': ' if kinds else ''}{kinds}; {spent} credits")
