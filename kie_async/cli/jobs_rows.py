"""Reads the rows of a jobs file, CSV or JSONL, and notes in each what cannot be read."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any, Self, TextIO

import attrs

from .._json import NotJson, parse_json

REQUIRED_COLUMNS = ("ref", "model")

JSON_SUFFIX, FILE_SUFFIX = ":json", ":file"
"""What a column's name may end in: its cells are JSON, or the paths of files to upload."""

_MAX_QUOTES_TRIED = 200
_SURROGATES = re.compile("[\ud800-\udfff]")
_JSON_POSITION = re.compile(r"(.*): line \d+ column (\d+) \(char \d+\)", re.DOTALL)
_DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "bars"}

_SAVE_AS = "CSV in UTF-8 (in a spreadsheet: File, Save As, 'CSV UTF-8')"

_NOT_UTF8 = f"not UTF-8 text; save the file as {_SAVE_AS}"

_FOREIGN_KINDS = {
    b"PK\x03\x04": "is a workbook (xlsx or ods), not a CSV",
    b"\xd0\xcf\x11\xe0": "is an old workbook (xls), not a CSV",
    b"\xff\xfe\0\0": "is text in UTF-32",
    b"\xff\xfe": "is text in UTF-16",
    b"\xfe\xff": "is text in UTF-16",
    b"%PDF": "is a PDF, not a CSV",
}


@attrs.frozen
class Problem:
    """What is wrong, and where: the header is line 1, a job's line is the one it begins in."""

    line: int
    column: str
    """Its name, or its number where there is no name: of the cell in a CSV, of the character in JSONL."""
    reason: str

    def __str__(self) -> str:
        column = self.column if self.column.isprintable() else repr(self.column)
        return f"line {self.line}, column {column}: {self.reason}"


@attrs.define
class Row:
    """One job as it stands in the file, or what is wrong with its line."""

    line: int
    fields: dict[str, Any] = attrs.field(factory=dict)
    problems: list[Problem] = attrs.field(factory=list)
    is_readable: bool = True
    absent: frozenset[str] = frozenset()
    """Columns that the file does not have, or that cannot be read in this row, which was said already."""

    def add_problem(self, column: str, reason: str) -> None:
        """Note that something is wrong with it."""
        self.problems.append(Problem(self.line, column, reason))


def name_foreign_kind(head: bytes) -> str:
    """Return what a file is that is no text in UTF-8, and how to save it; nothing if it may be text."""
    what = next((what for magic, what in _FOREIGN_KINDS.items() if head.startswith(magic)), "")
    if not what and len(head) > 1 and not (any(head[::2]) and any(head[1::2])):
        what = "is text in UTF-16"  # without its mark: the letters of a header have a zero beside them
    return f"{what}; save it as {_SAVE_AS}" if what else ""


def jsonl_rows(file: TextIO) -> Iterator[Row]:
    """Yield the lines of a JSONL file that are not blank."""
    for number, text in enumerate(map(str.rstrip, file), 1):
        if not text:
            continue
        row = Row(number)
        try:
            if (bad := _SURROGATES.search(text)) is not None:
                row.add_problem(str(bad.start() + 1), "not UTF-8 text")
            elif not isinstance(fields := parse_json(text), dict):
                row.add_problem("1", 'a line is one JSON object: {"ref": ..., "model": ..., ...}')
            else:
                row.fields = fields
        except NotJson as exc:
            reason, column = _split_json_error(exc)
            row.add_problem(column, f"not JSON: {reason}")
        row.is_readable = not row.problems
        yield row


def _split_json_error(error: NotJson) -> tuple[str, str]:
    """Return what is wrong with a line of JSON, and the number of the character where it is."""
    where = _JSON_POSITION.fullmatch(str(error))
    return (where[1], where[2]) if where else (str(error), "1")


class _LineRecorder:
    """The lines of a file, as the CSV reader draws them; it keeps those of the row it reads."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self.row: list[str] = []

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        self.row.append(next(self._file))
        return self.row[-1]


def csv_rows(file: TextIO) -> Iterator[Row]:
    """Yield the rows of a CSV, its header too where something is wrong with it."""
    lines = _LineRecorder(file)
    reader = csv.reader(lines, strict=True)
    header: list[str] | None = None
    while True:
        row = Row(reader.line_num + 1)
        lines.row.clear()
        cells: list[str] = []
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as exc:
            row.add_problem(
                _broken_column(header, lines.row), f"the quotes are not closed or doubled ({exc})"
            )
            row.is_readable = False
        if header is None and (divider := _foreign_divider("".join(lines.row))) is not None:
            yield _refuse_divider(row, divider)
            return
        if not row.is_readable:
            yield row
        elif header is None and any(cells):
            header = [name.strip() for name in cells]
            yield _check_header(header, row)
        elif header is not None and any(cell.strip() for cell in cells):
            _read_cells(row, header, cells)
            yield row
    if header is None:  # so that an empty file names the columns it lacks
        yield _check_header([], Row(1))


def _refuse_divider(row: Row, divider: str) -> Row:
    row.is_readable = False
    row.problems.clear()  # what a reader of commas made of it
    row.add_problem("1", f"its cells are divided by {divider}; save it as a CSV with commas")
    return row


def _check_header(header: list[str], row: Row) -> Row:
    row.is_readable = False
    fields = [name.removesuffix(JSON_SUFFIX).removesuffix(FILE_SUFFIX) for name in header]
    for number, name in enumerate(header):
        if _SURROGATES.search(name):
            row.add_problem(str(number + 1), _NOT_UTF8)
        elif name and fields[number] in fields[:number]:
            row.add_problem(name, "stands in the header twice")
    for name in REQUIRED_COLUMNS:
        if name not in header:
            found = ", ".join(header[:8]) + (", ..." if len(header) > 8 else "")
            row.add_problem(name, f"missing in the header, which has: {found or 'nothing'}")
    return row


def _foreign_divider(line: str) -> str | None:
    """Return what divides the cells of a header if it is no comma; Excel may say so in a line before it."""
    if line.startswith("sep="):
        return _DELIMITERS.get(line[4:5])
    if set(REQUIRED_COLUMNS) <= _cells_between(",", line):
        return None
    for mark, name in _DELIMITERS.items():
        if mark in line and set(REQUIRED_COLUMNS) & _cells_between(mark, line):
            return name
    return None


def _cells_between(mark: str, line: str) -> set[str]:
    return {cell.strip().strip('"') for cell in line.split(mark)}


def _read_cells(row: Row, header: list[str], cells: list[str]) -> None:
    """Read the cells of a row, if there are as many as the header has."""
    row.absent = frozenset(REQUIRED_COLUMNS) - set(header)
    if len(cells) > len(header):
        row.add_problem(
            str(len(header) + 1), f"one cell too many: the header has {len(header)}, this {len(cells)}"
        )
    elif len(cells) < len(header):
        missing = header[len(cells)] or str(len(cells) + 1)
        row.add_problem(
            missing, f"the line ends too early: the header has {len(header)} cells, this {len(cells)}"
        )
    row.is_readable = not row.problems
    if row.is_readable:
        for number, (name, cell) in enumerate(zip(header, cells, strict=True), 1):
            _read_cell(row, name, number, cell)


def _read_cell(row: Row, name: str, number: int, cell: str) -> None:
    if _SURROGATES.search(cell):
        row.add_problem(name or str(number), _NOT_UTF8)
        row.absent |= {name}
    elif not name:
        if cell.strip():
            row.add_problem(str(number), "the header has no name for this column")
    elif name.endswith(JSON_SUFFIX):
        try:
            if cell.strip():
                row.fields[name.removesuffix(JSON_SUFFIX)] = parse_json(cell)
        except NotJson as exc:
            row.add_problem(name, f"not JSON: {_split_json_error(exc)[0]}")
    elif cell or name == "prompt":
        row.fields[name] = cell


def _broken_column(header: list[str] | None, lines: list[str]) -> str:
    """Return the column in which the CSV reader gave up: let it read ever more, until it does again."""
    text, names, cells = "".join(lines), header or [], 1
    # The csv module names no column. A row with many quotes is tried at the first of them only: this is
    # quadratic, and such a file is broken anyway.
    for end in (*islice((at.end() for at in re.finditer('"', text)), _MAX_QUOTES_TRIED), len(text)):
        cells = len(next(csv.reader(text[:end].splitlines(keepends=True)), [""]))
        try:
            next(csv.reader(text[: end + 1].splitlines(keepends=True), strict=True), None)
        except csv.Error as exc:
            if "expected after" in str(exc):
                break
    return names[cells - 1] if cells <= len(names) and names[cells - 1] else str(cells)
