"""Writes ``results.csv``: one row for each job, for spreadsheets, in which no text is a formula."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from .output import escape_marks, format_number, without_key
from .report_data import Row
from .report_sums import USD_PER_CREDIT

COLUMNS = (
    *("ref", "line", "model", "state", "prompt", "task_id", "took_s", "credits", "usd", "told_by"),
    *("ended_utc", "reason", "files", "urls"),
)

_MARK = "\ufeff"

_FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]")
"""What spreadsheets would compute. https://owasp.org/www-community/attacks/CSV_Injection"""


def is_table(path: Path) -> bool:
    """Tell whether a file is a table that was written here."""
    with path.open("rb") as file:
        return file.readline() == _encode(COLUMNS, mark=_MARK)


def encode_csv(rows: Iterable[Row]) -> Iterator[bytes]:
    """Yield the lines of the file, in UTF-8 with the mark by which Excel knows it."""
    yield _encode(COLUMNS, mark=_MARK)
    for row in rows:
        yield _encode(_cells(row))


def _encode(cells: Iterable[str], *, mark: str = "") -> bytes:
    line = io.StringIO()
    csv.writer(line, quoting=csv.QUOTE_ALL, lineterminator="").writerow(cells)
    return f"{mark}{escape_marks(without_key(line.getvalue()))}\r\n".encode(errors="replace")


def _cells(row: Row) -> Iterator[str]:
    usd = None if row.credits is None else row.credits * USD_PER_CREDIT
    yield protect(row.ref)
    yield "" if row.line is None else str(row.line)
    yield from map(protect, (row.model, row.state, row.prompt, row.task_id))
    yield from (format_number(row.took_s), format_number(row.credits), format_number(usd))
    yield from (protect(row.source), _in_utc(row.ended_at))
    yield from map(protect, (row.reason, " ".join(map(str, row.files)), " ".join(row.urls)))


def _in_utc(time: float | None) -> str:
    return "" if time is None else f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M:%S}"


def protect(text: str) -> str:
    """Return text in one line that a spreadsheet shows as it stands: before a formula it gets a quote."""
    text = " ".join(text.split())
    return f"'{text}" if _FORMULA.match(text) else text
