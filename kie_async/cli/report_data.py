"""Gathers the rows of a report: from a results file, from a journal, or from both where there are both."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from itertools import islice
from pathlib import Path

import attrs

from ..inputs.request import TaskRequest
from ..journal.base import Intent, IntentState, decode_note
from ..journal.sqlite import SqliteJournal

RESULTS_NAME = "results.jsonl"

STATES = (
    *("done", "done, not saved", "failed", "refused", "perhaps paid"),
    *("running", "sending", "queued", "not sent"),
)
"""The words for how a job stands, in the order a report shows them."""

_OF_THE_JOURNAL = {
    IntentState.PLANNED: "not sent",
    IntentState.SENDING: "sending",
    IntentState.CREATED: "running",
    IntentState.REJECTED: "refused",
    IntentState.NOT_CREATED: "not sent",
    IntentState.UNKNOWN: "perhaps paid",
    IntentState.SUCCEEDED: "done",
    IntentState.FAILED: "failed",
    IntentState.WRITTEN_OFF: "perhaps paid",
}

_OF_RESULTS = {"pending": "not sent", "unknown": "perhaps paid"}
"""Words of results files that have others now."""

_YEAR_3000 = 32_503_680_000

_LINES_COMPARED = 1000
"""Of a results file, to find out whether it is that of a journal."""


@attrs.frozen(kw_only=True)
class Row:
    """One job of a report."""

    ref: str
    line: int | None = None
    """Where it stands in the jobs file."""
    model: str = ""
    prompt: str = ""
    image: str = ""
    """The portrait: a local file or a URL."""
    state: str = "not sent"
    task_id: str = ""
    took_s: float | None = None
    credits: float | None = None
    source: str = ""
    """What brought its end first: ``callback`` or ``poll``."""
    ended_at: float | None = None
    """Unix time."""
    reason: str = ""
    files: tuple[Path, ...] = ()
    urls: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class Spent:
    """What all runs with one journal took: attempts that are no row any more are in it too."""

    tasks: int
    credits: float


async def read_intents(journal: Path, *, with_records: bool) -> list[Intent]:
    """Return all intents of a journal; *with_records* takes the more memory.

    Raises:
        JournalError: It is no journal, or in use.
    """
    source = SqliteJournal(journal)
    try:
        await source.open_file()
        if with_records:
            return await source.list_intents()
        return [intent async for intent in source.iterate_intents()]
    finally:
        await source.aclose()


def spent_in(intents: Iterable[Intent]) -> Spent:
    """Return what all tasks of a journal took."""
    prices = [intent.credits or 0.0 for intent in intents if intent.task_id]
    return Spent(tasks=len(prices), credits=math.fsum(prices))


# --- from a results file ---------------------------------------------------------------------------


def describe_request(request: TaskRequest, folder: Path) -> dict[str, str]:
    """Return what a results file in *folder* says of a request, so that a report can show it."""
    prompt, image = request.input.get("prompt"), request.input.get("image_url")
    if isinstance(image, Path):
        image = _path_from(folder, image)
    return {
        "prompt": prompt if isinstance(prompt, str) else "",
        "image": image if isinstance(image, str) else "",
    }


def _path_from(folder: Path, path: Path) -> str:
    """Return a path as it reads in *folder*, so that both can be moved together."""
    try:
        return os.path.relpath(path, folder)
    except ValueError:  # another drive
        return os.path.abspath(path)


def is_file(path: Path) -> bool:
    """Tell whether there is such a file; unlike `Path.is_file` this never raises."""
    return os.path.isfile(path)


def read_lines(results: Path) -> Iterator[dict[str, object]]:
    """Yield the lines of a results file; what cannot be read is left out.

    Raises:
        OSError: The file cannot be read.
    """
    with results.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            if (line := decode_note(text)) is not None:
                yield line


def rows_of_results(results: Path, intents: Iterable[Intent] = ()) -> Iterator[Row]:
    """Yield a row for each line of a results file, in the state that the journal's intents prove.

    Raises:
        OSError: The file cannot be read.
    """
    known: dict[str, Intent] = {}
    for intent in intents:
        known |= {f"task {intent.task_id}": intent, f"ref {intent.ref}": intent}
    known.pop("task ", None)
    for line in read_lines(results):
        of_task = known.get(f"task {_text(line, 'task_id')}")
        yield _row_of_line(line, results.parent, of_task or known.get(f"ref {_text(line, 'ref')}"))


def _row_of_line(line: Mapping[str, object], folder: Path, intent: Intent | None) -> Row:
    files = tuple(_find_file(folder, file) for file in _texts(line, "files"))
    price, place, image = _number(line, "credits"), _number(line, "line"), _text(line, "image")
    return Row(
        ref=_text(line, "ref"),
        line=None if place is None else int(place),
        model=_text(line, "model"),
        prompt=_text(line, "prompt"),
        image=image if not image or "://" in image else os.path.join(folder, image),
        state=_state_of_line(line, intent),
        task_id=_text(line, "task_id") or (intent.task_id if intent else ""),
        took_s=_number(line, "duration_s"),
        credits=intent.credits if price is None and intent else price,
        source=_text(line, "told_by"),
        ended_at=read_instant(line.get("ended_at")),
        reason=_text(line, "error") or (intent.reason if intent else ""),
        files=files,
        urls=tuple(_texts(line, "urls")),
    )


def _state_of_line(line: Mapping[str, object], intent: Intent | None) -> str:
    outcome = _text(line, "outcome")
    state = _OF_RESULTS.get(outcome, outcome)
    if state == "done":
        return state
    if intent is not None and intent.state is IntentState.SUCCEEDED:
        return "done, not saved"
    if intent is not None:
        return _OF_THE_JOURNAL[intent.state]
    if state == "failed" and _texts(line, "urls"):
        return "done, not saved"
    if state == "failed" and not _text(line, "task_id"):
        return "refused" if _text(line, "error").startswith("code ") else "not sent"
    return state if state in STATES else "not sent"


def _find_file(folder: Path, name: str) -> Path:
    """Return where a file of a results file in *folder* is: its path was that of another working folder."""
    beside = folder / Path(name).name
    return beside if os.path.exists(beside) or not os.path.exists(name) else Path(name)


# --- from a journal alone --------------------------------------------------------------------------


def rows_of_journal(intents: Iterable[Intent], folder: Path) -> Iterator[Row]:
    """Yield a row for each intent, with those files in *folder* that are named after its task."""
    saved = _files_by_task(folder)
    for intent in intents:
        yield _row_of_intent(intent, saved.get(intent.task_id, ()) if intent.task_id else ())


def _row_of_intent(intent: Intent, files: Iterable[Path]) -> Row:
    record, given = intent.read_end(), (decode_note(intent.body or "") or {}).get("input")
    given = given if isinstance(given, dict) else {}
    row = Row(
        ref=intent.ref or intent.intent_id,
        model=intent.model,
        prompt=_text(given, "prompt"),
        image=_text(given, "image_url"),
        state=_OF_THE_JOURNAL[intent.state],
        task_id=intent.task_id,
        credits=intent.credits,
        reason=" ".join(str(part) for part in (intent.code, intent.reason) if part),
        files=tuple(files),
    )
    if intent.state is IntentState.WRITTEN_OFF:
        row = attrs.evolve(row, reason=f"written off: {row.reason}".rstrip(": "))
    if record is None:
        return row
    if row.state == "done" and not row.files:
        row = attrs.evolve(row, state="done, not saved")
    return attrs.evolve(
        row,
        took_s=record.duration_s,
        ended_at=record.completed_at.timestamp() if record.completed_at else None,
        reason=" ".join(part for part in (record.fail_code, record.fail_message) if part) or row.reason,
        urls=record.urls,
    )


def _files_by_task(folder: Path) -> dict[str, list[Path]]:
    """Return the files of a folder by the task whose id their names begin with: ``ID-1.mp4``."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()) if os.path.isdir(folder) else ():
        task_id, separator, _ = path.stem.rpartition("-")
        if separator and path.is_file() and not path.name.startswith("."):
            found.setdefault(task_id, []).append(path)
    return found


def find_results(journal: Path, intents: Iterable[Intent]) -> Path | None:
    """Return the results file, beside a journal or one folder below, that names tasks of this journal."""
    tasks = {intent.task_id for intent in intents if intent.task_id}
    home = journal.parent
    for results in sorted([*home.glob(RESULTS_NAME), *home.glob(f"*/{RESULTS_NAME}")]):
        try:
            if any(line.get("task_id") in tasks for line in islice(read_lines(results), _LINES_COMPARED)):
                return results
        except (OSError, TypeError):  # another's file; TypeError: what stands there is no text
            continue
    return None


# --- fields ----------------------------------------------------------------------------------------


def _text(line: Mapping[str, object], key: str) -> str:
    value = line.get(key)
    return value if isinstance(value, str) else ""


def _texts(line: Mapping[str, object], key: str) -> list[str]:
    value = line.get(key)
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def _number(line: Mapping[str, object], key: str) -> float | None:
    value = line.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    # Beyond this a number is nonsense, and a page could not reckon with it.
    return value if abs(value) < 1e15 else None


def read_instant(value: object) -> float | None:
    """Return an instant in ISO 8601 as unix time."""
    try:
        time = datetime.fromisoformat(value).timestamp() if isinstance(value, str) else -1.0
    except (ValueError, OverflowError, OSError):
        return None
    return time if 0 <= time < _YEAR_3000 else None
