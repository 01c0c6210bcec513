"""Prints to standard output and standard error, never the API key; shows a task as rows or as JSON."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from .._validation import read_environment
from ..inputs.prices import USD_PER_CREDIT
from ..models import JobState, TaskRecord, TaskState

_MARKS = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f]")
"""Control characters, ends of lines, and what changes the direction of writing (Unicode's Bidi_Control)."""

_BLANKS = re.compile(r"[ \t\r\n]+")

_SHORTEST_HIDDEN_KEY = 8
"""A shorter one is a test's, and hiding it would garble words."""


def print_out(line: str) -> None:
    """Write one line to standard output, at once, but never the key or what steers a terminal."""
    sys.stdout.write(f"{make_printable(line)}\n")
    sys.stdout.flush()


def print_err(line: str) -> None:
    """Write one line to standard error, whatever it holds, but never the key or what steers a terminal."""
    # Messages of the service may have line breaks; scripts read standard error line by line.
    sys.stderr.write(f"{make_printable(_BLANKS.sub(' ', line).strip())}\n")
    sys.stderr.flush()


def make_printable(line: str) -> str:
    """Return a line without the key, and with escapes for what would not be seen on a terminal."""
    return escape_marks(without_key(line))


def escape_marks(text: str) -> str:
    """Return *text* with ``\\u009b`` and the like for control characters, line ends and bidirectional marks.

    They could move the cursor, or show a line in another order than it has. In JSON, where they stand in
    texts only, these escapes mean the same characters.
    """
    return _MARKS.sub(lambda mark: f"\\u{ord(mark[0]):04x}", text)


def without_key(text: str) -> str:
    """Return *text* without the API key, should the service have echoed it."""
    key = read_environment("KIE_API_KEY")
    return text.replace(key, "***") if len(key) >= _SHORTEST_HIDDEN_KEY else text


class LogFormatter(logging.Formatter):
    """Formats the log for a terminal: one line for a record, more only for a traceback."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        return make_printable(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record and its traceback, if it has one."""
        return "\n".join(make_printable(line) for line in super().format(record).split("\n"))


def format_number(value: float | None) -> str:
    """Return a number for people: no exponent, no needless zeros; nothing for None."""
    return "" if value is None else f"{value:.3f}".rstrip("0").rstrip(".")


def format_usd(credits: float) -> str:
    """Return what credits cost, to the cent, or to half of one where there is one."""
    return f"{credits * USD_PER_CREDIT:,.3f}".removesuffix("0") + " USD"


def format_spent(credits: float) -> str:
    """Return credits and what they cost in words."""
    noun = "credit" if credits == 1 else "credits"
    return f"{format_number(credits)} {noun} ({format_usd(credits)})"


def format_duration(seconds: float) -> str:
    """Return a duration in the largest unit that has two digits: ``40 s``, ``12 min``, ``2.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def count_of(count: int, noun: str) -> str:
    """Return a number of things in words: ``1 job``, ``40 jobs``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


@contextmanager
def show_spinner(text: str) -> Iterator[None]:
    """Turn a spinner on standard error while the block runs, if anybody sees it."""
    console = Console(stderr=True, markup=False, emoji=False)
    if not sys.stderr.isatty() or console.is_dumb_terminal:
        yield
        return
    columns = SpinnerColumn("line"), TextColumn(text, markup=False), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        progress.add_task(text, total=None)
        yield


def show_id(task_id: str, *, as_json: bool) -> None:
    """Show the id of a new task: as the first row, or on standard error where JSON is wanted."""
    if as_json:
        print_err(f"task {task_id}")
    else:
        _print_row("task", task_id)


def show_expected(seconds: float) -> None:
    """Show how long a task is likely to take."""
    _print_row("expected", f"about {format_duration(seconds)}")


def job_state_of(record: TaskRecord) -> JobState:
    """Return how the job of a task stands."""
    if not record.state.is_terminal:
        return JobState.RUNNING
    return JobState.DONE if record.state is TaskState.SUCCESS else JobState.FAILED


def show_task(record: TaskRecord, files: Sequence[Path], *, as_json: bool, is_id_shown: bool = False) -> None:
    """Show a record and the files of its results."""
    if as_json:
        print_out(json.dumps(_json_fields(record, files), ensure_ascii=False))
        return
    for name, value in _rows(record, files):
        if value and not (is_id_shown and name == "task"):
            _print_row(name, value)


def _print_row(name: str, value: str) -> None:
    print_out(f"{name:<9}{_BLANKS.sub(' ', value)}")


def _rows(record: TaskRecord, files: Sequence[Path]) -> Iterator[tuple[str, str]]:
    yield "task", record.task_id
    yield "model", record.model
    yield "state", job_state_of(record)
    yield "reason", " ".join(text for text in (record.fail_code, record.fail_message) if text)
    yield "credits", format_number(record.credits)
    yield "took", format_number(record.duration_s) and f"{format_number(record.duration_s)} s"
    for url in record.urls:
        yield "url", url
    if record.result_object:
        yield "result", json.dumps(dict(record.result_object), ensure_ascii=False)
    for file in files:
        yield "file", str(file)


def _json_fields(record: TaskRecord, files: Sequence[Path]) -> dict[str, Any]:
    return {
        "task_id": record.task_id,
        "model": record.model,
        "state": job_state_of(record),
        "fail_code": record.fail_code,
        "fail_message": record.fail_message,
        "credits": record.credits,
        "duration_s": record.duration_s,
        "urls": list(record.urls),
        "result_object": None if record.result_object is None else dict(record.result_object),
        "files": [str(file) for file in files],
    }
