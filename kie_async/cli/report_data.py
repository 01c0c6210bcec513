"""Reads the rows of a report from a results file, each in the states that it and a journal prove."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path

import attrs

from ..errors import TaskFailed
from ..inputs.request import TaskRequest
from ..journal.intents import Intent, IntentState
from ..journal.notes import decode_note
from ..models import JobState

RESULTS_NAME = "results.jsonl"

_KINDS = {
    **dict.fromkeys((".mp4", ".webm", ".mov", ".m4v", ".mkv"), "video"),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".webp", ".gif", ".avif"), "image"),
    **dict.fromkeys((".mp3", ".wav", ".m4a", ".aac", ".ogg", ".flac"), "audio"),
}

_OF_RESULTS = {"pending": JobState.NOT_SENT, "unknown": JobState.PERHAPS_PAID}
"""Words of results files that have others now."""

_YEAR_3000 = 32_503_680_000


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
    state: JobState = JobState.NOT_SENT
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


def describe_request(request: TaskRequest, folder: Path) -> dict[str, str]:
    """Return what a results file in *folder* says of a request, so that a report can show it."""
    prompt, image = request.input.get("prompt"), request.input.get("image_url")
    images = (value for value in (image, *request.input.values()) if isinstance(value, Path))
    if (local := next((path for path in images if kind_of(path) == "image"), None)) is not None:
        image = _path_from(folder, local)
    return {
        "prompt": prompt if isinstance(prompt, str) else "",
        "image": image if isinstance(image, str) else "",
    }


def kind_of(path: Path) -> str:
    """Return what a file holds, by its ending: video, image, audio, else just a file."""
    return _KINDS.get(path.suffix.lower(), "file")


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


def names_not_done(results: Path) -> set[str]:
    """Return the refs and task ids of the lines of which a journal may know more.

    Raises:
        OSError: The file cannot be read.
    """
    lines = (line for line in read_lines(results) if line.get("outcome") != "done")
    return {name for line in lines for key in ("ref", "task_id") if (name := text_in(line, key))}


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
        of_task = known.get(f"task {text_in(line, 'task_id')}")
        yield row_of_line(line, results.parent, of_task or known.get(f"ref {text_in(line, 'ref')}"))


def row_of_line(line: Mapping[str, object], folder: Path, intent: Intent | None = None) -> Row:
    """Return the row of a line of the results file in *folder*, in the state that its intent proves."""
    files = tuple(_find_file(folder, file) for file in _texts_in(line, "files"))
    price, place, image = _number_in(line, "credits"), _number_in(line, "line"), text_in(line, "image")
    return Row(
        ref=text_in(line, "ref"),
        line=None if place is None else int(place),
        model=text_in(line, "model"),
        prompt=text_in(line, "prompt"),
        image=image if not image or "://" in image else os.path.join(folder, image),
        state=_state_of_line(line, intent),
        task_id=text_in(line, "task_id") or (intent.task_id if intent else ""),
        took_s=_number_in(line, "duration_s"),
        credits=intent.credits if price is None and intent else price,
        source=text_in(line, "told_by"),
        ended_at=read_instant(line.get("ended_at")) or (ended_at_of(intent) if intent else None),
        reason=text_in(line, "error") or _saved_elsewhere(line) or (reason_of(intent) if intent else ""),
        files=files,
        urls=tuple(_texts_in(line, "urls")),
    )


def _saved_elsewhere(line: Mapping[str, object]) -> str:
    by = text_in(line, "saved_by")
    return f"saved by another host: {by}" if by else ""


def _state_of_line(line: Mapping[str, object], intent: Intent | None) -> JobState:
    outcome = text_in(line, "outcome")
    state = _OF_RESULTS.get(outcome) or (JobState(outcome) if outcome in set(JobState) else JobState.NOT_SENT)
    if state is JobState.DONE:
        return state
    if intent is not None:
        return JobState.NOT_SAVED if intent.job_state is JobState.DONE else intent.job_state
    if state is not JobState.FAILED:
        return state
    if _texts_in(line, "urls"):
        return JobState.NOT_SAVED
    if text_in(line, "task_id"):
        return state
    return JobState.REFUSED if text_in(line, "error").startswith("code ") else JobState.NOT_SENT


def reason_of(intent: Intent) -> str:
    """Return why the job of an intent is not done, in the words of a results file."""
    if intent.state is IntentState.FAILED and (record := intent.read_end()) is not None:
        return str(TaskFailed(intent.task_id, record))
    if intent.job_state is JobState.REFUSED and intent.code is not None:
        return f"code {intent.code}: {intent.reason}"
    return intent.reason


def ended_at_of(intent: Intent) -> float | None:
    """Return when the end of an intent's task was noted."""
    return None if intent.terminal_ms is None else intent.terminal_ms / 1000


def _find_file(folder: Path, name: str) -> Path:
    """Return where a file of a results file in *folder* is: its path was that of another working folder."""
    beside = folder / Path(name).name
    return beside if os.path.exists(beside) or not os.path.exists(name) else Path(name)


# --- fields ----------------------------------------------------------------------------------------


def text_in(line: Mapping[str, object], key: str) -> str:
    """Return text in a line of JSON, nothing if that is something else; so the next two."""
    value = line.get(key)
    return value if isinstance(value, str) else ""


def _texts_in(line: Mapping[str, object], key: str) -> list[str]:
    value = line.get(key)
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def _number_in(line: Mapping[str, object], key: str) -> float | None:
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
