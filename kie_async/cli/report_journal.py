"""Reads from a journal what a report needs: how jobs stand, what all runs have spent, or rows of its own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import attrs

from ..files.saved_files import SavedFiles
from ..journal.intents import Intent, IntentState, Totals
from ..journal.notes import decode_note
from ..models import JobState
from .attempts import AttemptNames
from .journal_place import DurableJournal, JournalPlace
from .report_data import (
    RESULTS_NAME,
    Row,
    ended_at_of,
    names_not_done,
    read_lines,
    text_in,
)

_WORTH_KNOWING = {JobState.RUNNING, JobState.DONE, JobState.PERHAPS_PAID}
"""Of an attempt whose ref passed on."""

_TASKS_COMPARED = 20
"""Of a results file, to find out whether it is that of a journal."""


@attrs.frozen(kw_only=True)
class JournalFacts:
    """What a journal knows."""

    totals: Totals
    """Of all runs: attempts that are no row any more are in it too."""
    results: Path | None
    """The file that names tasks of this journal, if there is one."""
    intents: Sequence[Intent]
    """Those of lines of the results that are not done; without results, all."""


async def read_journal(journal: JournalPlace, results: Path | None) -> JournalFacts:
    """Return what a journal knows that *results* do not; without them, they are searched for beside it.

    Raises:
        JournalError: It is no journal, or damaged.
        OSError: The results cannot be read.
    """
    source = journal.make_journal()
    try:
        await source.open_to_read()
        if results is None:
            results = await _find_results(source, journal.folder)
        return JournalFacts(
            totals=await source.load_totals(), results=results, intents=await _read_intents(source, results)
        )
    finally:
        await source.aclose()


async def _read_intents(source: DurableJournal, results: Path | None) -> list[Intent]:
    if results is None:
        return await source.list_intents()
    names = await asyncio.to_thread(names_not_done, results)
    # A journal may hold a million; those of jobs that are done have nothing to add.
    return [
        await with_end(source, intent)
        async for intent in source.iterate_intents()
        if intent.ref in names or intent.task_id in names
    ]


async def with_end(source: DurableJournal, intent: Intent) -> Intent:
    """Return an intent of an iteration with its record, if its task failed: only that says why.

    Raises:
        JournalError: It cannot be read any more.
    """
    if intent.state is not IntentState.FAILED:
        return intent
    return await source.find_by_task(intent.task_id) or intent


async def _find_results(source: DurableJournal, home: Path) -> Path | None:
    """Return the results file in *home*, or one folder below, that names a task of this journal."""
    for results in await asyncio.to_thread(_results_below, home):
        for task_id in await asyncio.to_thread(_first_tasks, results):
            if await source.find_by_task(task_id) is not None:
                return results
    return None


def _results_below(home: Path) -> list[Path]:
    return sorted([*home.glob(RESULTS_NAME), *home.glob(f"*/{RESULTS_NAME}")])


def _first_tasks(results: Path) -> list[str]:
    try:
        named = (task_id for line in read_lines(results) if (task_id := text_in(line, "task_id")))
        return list(islice(named, _TASKS_COMPARED))
    except OSError:  # another's file
        return []


def rows_of_journal(intents: Iterable[Intent], folder: Path) -> Iterator[Row]:
    """Yield a row for each intent, with those files in *folder* that are named after its task."""
    saved, names = _files_by_task(folder), AttemptNames()
    for intent in intents:
        name = names.name(intent) or intent.intent_id
        # A later attempt is how its job stands; but what is done or perhaps paid is worth knowing.
        if not intent.is_superseded or intent.job_state in _WORTH_KNOWING:
            yield _row_of_intent(intent, name, saved.get(intent.task_id, ()) if intent.task_id else ())


def _row_of_intent(intent: Intent, name: str, files: Iterable[Path]) -> Row:
    record, given = intent.read_end(), (decode_note(intent.body or "") or {}).get("input")
    given = given if isinstance(given, dict) else {}
    row = Row(
        ref=name,
        model=intent.model,
        prompt=text_in(given, "prompt"),
        image=text_in(given, "image_url"),
        state=intent.job_state,
        task_id=intent.task_id,
        credits=intent.credits,
        ended_at=ended_at_of(intent),
        reason=" ".join(str(part) for part in (intent.code, intent.reason) if part),
        files=tuple(files),
    )
    if intent.state is IntentState.WRITTEN_OFF:
        row = attrs.evolve(row, reason=f"written off: {row.reason}".rstrip(": "))
    if record is None:
        return row
    if row.state is JobState.DONE and not row.files:
        row = attrs.evolve(row, state=JobState.NOT_SAVED)
    return attrs.evolve(
        row,
        took_s=record.duration_s,
        reason=" ".join(part for part in (record.fail_code, record.fail_message) if part) or row.reason,
        urls=record.urls,
    )


def _files_by_task(folder: Path) -> dict[str, list[Path]]:
    """Return the files of a folder by their task: as its list says, or as their names do, ``ID-1.mp4``."""
    found = SavedFiles(folder).by_task() if os.path.isdir(folder) else {}
    for path in sorted(folder.iterdir()) if os.path.isdir(folder) else ():
        task_id, separator, _ = path.stem.rpartition("-")
        if separator and path.is_file() and not path.name.startswith("."):
            files = found.setdefault(task_id, [])
            files += [path] if path not in files else []
    return found
