"""Reads the jobs of a batch from CSV or JSONL: checks every line, keeps the requests in a temporary file.

Each line is a job: ``ref``, ``model``, then the fields of that model's input. A CSV has them as columns;
a line of JSONL is one object with the same names. In a CSV every value is text, but under a column named
``FIELD:json`` it is JSON; an empty cell is no field at all, only an empty ``prompt`` is an empty text.
"""

from __future__ import annotations

import csv
import json
import re
import stat
import tempfile
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, Self, TextIO, TypeVar

import attrs

from .._json import NotJson, parse_json
from ..errors import InvalidRequest
from ..files.local_media import kind_of
from ..files.media_types import HEAD_BYTES, check_media
from ..inputs.kling import AVATAR_MEDIA, AVATAR_MODELS, KlingAvatar
from ..inputs.request import TaskRequest
from .runtime import CannotRun

_REQUIRED_COLUMNS = ("ref", "model")
_JSON_SUFFIX = ":json"
_VALID_AVATAR: Mapping[str, Any] = {
    "image_url": "https://example.org/i.png",
    "audio_url": "https://example.org/a.mp3",
    "prompt": "",
}
"""The fields of an avatar, each with a value nothing is wrong with: so another can be judged alone."""
_MAX_QUOTES_TRIED = 200
_NO_TEMPORARY_FILE = (
    "the jobs need a temporary file, which cannot be written; set TMPDIR to a folder that can"
)
_T = TypeVar("_T")
_SURROGATES = re.compile("[\ud800-\udfff]")
_JSON_POSITION = re.compile(r"(.*): line \d+ column (\d+) \(char \d+\)", re.DOTALL)


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
class _Row:
    """One job as it stands in the file, or what is wrong with its line."""

    line: int
    fields: dict[str, Any] = attrs.field(factory=dict)
    problems: list[Problem] = attrs.field(factory=list)
    is_readable: bool = True
    absent: frozenset[str] = frozenset()
    """Columns the file does not have at all, which was said already."""

    def add_problem(self, column: str, reason: str) -> None:
        """Note that something is wrong with it."""
        self.problems.append(Problem(self.line, column, reason))


class Jobs:
    """The jobs of a file without problems. The requests are on disk, only an index of them in memory.

    Raises:
        CannotRun: There is no folder for temporary files.
    """

    def __init__(self) -> None:
        # A batch may have a million jobs: in memory is what finding one takes, the rest is on disk.
        try:
            self._spool = tempfile.TemporaryFile()  # noqa: SIM115  (closed in close)
        except OSError as exc:
            raise CannotRun(f"{_NO_TEMPORARY_FILE}: {exc.strerror or exc}") from None
        self._offsets = array("q", [0])
        self._line_numbers = array("q")
        self._line_of: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._line_numbers)

    def __iter__(self) -> Iterator[tuple[int, TaskRequest]]:
        """Yield each job's line and request, in the order of the file."""
        return (self[index] for index in range(len(self)))

    def close(self) -> None:
        """Delete the temporary file."""
        self._spool.close()

    def requests(self) -> Iterator[TaskRequest]:
        """Yield the requests in the order of the file."""
        return (request for _, request in self)

    def __getitem__(self, index: int) -> tuple[int, TaskRequest]:
        """Return the line and the request of a job."""
        begin, end = self._offsets[index], self._offsets[index + 1]
        self._spool.seek(begin)
        ref, model, fields, media = json.loads(self._spool.read(end - begin))
        fields.update({name: Path(fields[name]) for name in media})
        return self._line_numbers[index], TaskRequest(model=model, input=fields, ref=ref)

    def index_of(self, ref: str) -> int | None:
        """Return the place of the job with this ref."""
        line = self._line_of.get(ref)
        return None if line is None else bisect_left(self._line_numbers, line)

    def flush(self) -> None:
        """Write what is still in memory to the temporary file.

        Raises:
            CannotRun: There is no room for it.
        """
        with _spooling():
            self._spool.flush()

    def claim(self, ref: str, line: int) -> int:
        """Return the line of the first job with this ref: *line*, if there was none yet."""
        return self._line_of.setdefault(ref, line)

    def add(self, line: int, request: TaskRequest) -> None:
        """Keep one more job."""
        # JSON has no paths; which of the texts are files is remembered beside them.
        media = [name for name, value in request.input.items() if isinstance(value, Path)]
        fields = {name: str(value) if name in media else value for name, value in request.input.items()}
        encoded = json.dumps([request.ref, request.model, fields, media]).encode()
        with _spooling():
            self._spool.seek(self._offsets[-1])
            self._spool.write(encoded)
        self._offsets.append(self._offsets[-1] + len(encoded))
        self._line_numbers.append(line)


@contextmanager
def _spooling() -> Iterator[None]:
    """Keep a full disk from being taken for a jobs file that cannot be read."""
    try:
        yield
    except OSError as exc:
        raise CannotRun(f"{_NO_TEMPORARY_FILE} in {tempfile.gettempdir()}: {exc.strerror}") from None


def read_jobs(path: Path, *, report: Callable[[Problem], None]) -> Jobs:
    """Return the jobs in a file, all of them checked; whatever is wrong is reported first, all of it.

    Relative paths of local files start from the folder of the jobs file.

    Raises:
        CannotRun: The file cannot be read, something in it is wrong, or it holds no job.
    """
    rows_of = {".csv": _csv_rows, ".jsonl": _jsonl_rows}.get(path.suffix.lower())
    if rows_of is None:
        raise CannotRun(f"{path}: a jobs file ends in .csv or .jsonl")
    jobs = Jobs()
    # A batch run again in one process must see files that were mended in between.
    _media_problem.cache_clear()
    try:
        # What is not UTF-8 is let through as half characters, which are found and reported cell by cell.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            count = _check_rows(rows_of(file), jobs, path.parent, report)
        if count:
            raise CannotRun(f"{path}: {count} problem{'s' * (count > 1)}; nothing was sent")
        if not jobs:
            raise CannotRun(f"{path} holds no job")
        jobs.flush()
    except OSError as exc:
        jobs.close()
        raise CannotRun(f"cannot read {path}: {exc.strerror}") from None
    except BaseException:
        jobs.close()
        raise
    return jobs


def _check_rows(rows: Iterable[_Row], jobs: Jobs, folder: Path, report: Callable[[Problem], None]) -> int:
    """Check and keep all rows; return how many problems were reported."""
    count = 0
    for row in rows:
        request = _check_job(row, jobs, folder) if row.is_readable else None
        for problem in row.problems:
            report(problem)
        count += len(row.problems)
        # After the first problem nothing will be sent, so nothing more need be kept.
        if request is not None and not count:
            jobs.add(row.line, request)
    return count


# --- the two kinds of file -------------------------------------------------------------------------


def _jsonl_rows(file: TextIO) -> Iterator[_Row]:
    for number, text in enumerate(map(str.rstrip, file), 1):
        if not text:
            continue
        row = _Row(number)
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


def _csv_rows(file: TextIO) -> Iterator[_Row]:
    lines = _LineRecorder(file)
    reader = csv.reader(lines, strict=True)
    header: list[str] | None = None
    while True:
        row = _Row(reader.line_num + 1)
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
        if not row.is_readable:
            yield row
        elif header is None and any(cells):
            header = [name.strip() for name in cells]
            yield _check_header(header, row)
        elif header is not None and any(cell.strip() for cell in cells):
            _read_cells(row, header, cells)
            yield row
    if header is None:  # so that an empty file names the columns it lacks
        yield _check_header([], _Row(1))


def _check_header(header: list[str], row: _Row) -> _Row:
    row.is_readable = False
    fields = [name.removesuffix(_JSON_SUFFIX) for name in header]
    for number, name in enumerate(header):
        if _SURROGATES.search(name):
            row.add_problem(str(number + 1), "not UTF-8 text")
        elif name and fields[number] in fields[:number]:
            row.add_problem(name, "stands in the header twice")
    for name in _REQUIRED_COLUMNS:
        if name not in header:
            found = ", ".join(header[:8]) + (", ..." if len(header) > 8 else "")
            row.add_problem(name, f"missing in the header, which has: {found or 'nothing'}")
    return row


def _read_cells(row: _Row, header: list[str], cells: list[str]) -> None:
    """Read the cells of a row, if there are as many as the header has."""
    row.absent = frozenset(_REQUIRED_COLUMNS) - set(header)
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


def _read_cell(row: _Row, name: str, number: int, cell: str) -> None:
    if _SURROGATES.search(cell):
        row.add_problem(name or str(number), "not UTF-8 text")
    elif not name:
        if cell.strip():
            row.add_problem(str(number), "the header has no name for this column")
    elif name.endswith(_JSON_SUFFIX):
        try:
            if cell.strip():
                row.fields[name.removesuffix(_JSON_SUFFIX)] = parse_json(cell)
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


# --- one job ---------------------------------------------------------------------------------------


def _check_job(row: _Row, jobs: Jobs, folder: Path) -> TaskRequest | None:
    """Return the request a row stands for; what is wrong with it is noted in it."""
    fields = dict(row.fields)
    ref, model = fields.pop("ref", None), fields.pop("model", None)
    if _check_key(row, "ref", ref, partial(TaskRequest, model="any", input={}, ref=ref)):
        line = jobs.claim(ref, row.line)
        if line != row.line:
            row.add_problem("ref", f"{ref!r} is the ref of line {line} already")
    if (
        _check_key(row, "model", model, partial(TaskRequest, model=model, input={}))
        and model in AVATAR_MODELS
    ):
        fields = _check_avatar(row, model, fields, folder)
    for name, value in fields.items():
        _try_to_make(row, name, partial(TaskRequest, model="any", input={name: value}))
    return None if row.problems or row.absent else TaskRequest(model=model, input=fields, ref=ref)


def _check_key(row: _Row, name: str, value: object, make: Callable[[], object]) -> bool:
    """Return whether the ref or the model of a row is good; note what is wrong with it."""
    if name in row.absent:
        return False
    if value is None:
        row.add_problem(name, "missing")
        return False
    return _try_to_make(row, name, make) is not None


def _try_to_make(row: _Row, name: str, make: Callable[[], _T]) -> _T | None:
    """Return what *make* makes, or note why that is refused."""
    try:
        return make()
    except InvalidRequest as exc:
        row.add_problem(name, str(exc).removeprefix(f"{name} "))
        return None


def _check_avatar(row: _Row, model: str, given: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the fields of an avatar, local files as paths; note every field that is wrong."""
    for name in given:
        if name not in _VALID_AVATAR:
            row.add_problem(name, f"{model} has no such field; it takes {', '.join(_VALID_AVATAR)}")
    fields: dict[str, Any] = {}
    for name in _VALID_AVATAR:
        if name not in given and name in AVATAR_MEDIA:
            row.add_problem(name, "missing")
            continue
        # The class stops at the first wrong field; made once for each field, it finds them all.
        avatar = _try_to_make(row, name, partial(KlingAvatar, **{**_VALID_AVATAR, name: given.get(name, "")}))
        value = getattr(avatar, name, None)
        fields[name] = folder / value if isinstance(value, Path) else value
        if isinstance(value, Path) and (reason := _media_problem(fields[name], name)):
            row.add_problem(name, reason)
    return fields


@lru_cache(maxsize=4096)
def _media_problem(path: Path, field: str) -> str:
    """Return why a local file cannot be uploaded for a field of an avatar; nothing if it can."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its writer
            return f"{path} is not a file"
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
            seen = kind_of(file, head, status.st_size, path, field)
            kind = check_media(str(path), head, status.st_size, seen)
    except InvalidRequest as exc:
        return str(exc)
    except (OSError, ValueError) as exc:
        return f"cannot read {path}: {getattr(exc, 'strerror', None) or exc}"
    family = AVATAR_MEDIA[field]
    return "" if kind.family == family else f"{path} is {kind.family}, not {family}, by its content"
