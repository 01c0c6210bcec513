"""A task on standard output: rows for people, one JSON object for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..models import TaskRecord
from .demo_report import number
from .runtime import say, without_key


def put(line: str) -> None:
    """Write one line to standard output, at once, but never the key."""
    sys.stdout.write(f"{without_key(line)}\n")
    sys.stdout.flush()


def show_id(task_id: str, *, as_json: bool) -> None:
    """Show the id of a new task: as the first row, or on standard error where JSON is wanted."""
    if as_json:
        say(f"task {task_id}")
    else:
        _put_row("task", task_id)


def show(record: TaskRecord, files: Sequence[Path], *, as_json: bool, is_id_shown: bool = False) -> None:
    """Show a record and the files of its results."""
    if as_json:
        put(json.dumps(_facts(record, files), ensure_ascii=False))
        return
    for name, value in _rows(record, files):
        if value and not (is_id_shown and name == "task"):
            _put_row(name, value)


def _put_row(name: str, value: str) -> None:
    put(f"{name:<9}{value}")


def _rows(record: TaskRecord, files: Sequence[Path]) -> Iterator[tuple[str, str]]:
    yield "task", record.task_id
    yield "model", record.model
    yield "state", str(record.state)
    yield "reason", " ".join(text for text in (record.fail_code, record.fail_message) if text)
    yield "credits", number(record.credits)
    yield "seconds", number(record.duration_s)
    for url in record.urls:
        yield "url", url
    if record.result_object:
        yield "result", json.dumps(dict(record.result_object), ensure_ascii=False)
    for file in files:
        yield "file", str(file)


def _facts(record: TaskRecord, files: Sequence[Path]) -> dict[str, Any]:
    return {
        "task_id": record.task_id,
        "model": record.model,
        "state": str(record.state),
        "fail_code": record.fail_code,
        "fail_message": record.fail_message,
        "credits": record.credits,
        "duration_s": record.duration_s,
        "urls": list(record.urls),
        "result_object": None if record.result_object is None else dict(record.result_object),
        "files": [str(file) for file in files],
    }
