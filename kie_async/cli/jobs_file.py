"""Reads the jobs of a batch from CSV or JSONL: checks every line, keeps the requests in a temporary file.

Each line is a job: ``ref``, ``model``, then the fields of that model's input. A CSV has them as columns;
a line of JSONL is one object with the same names. In a CSV every value is text, but under a column named
``FIELD:json`` it is JSON; an empty cell is no field at all, only an empty ``prompt`` is an empty text. A
column, or a name, that ends in ``:file`` holds the path of a file to upload.
"""

from __future__ import annotations

import json
import tempfile
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from ..inputs.request import TaskRequest
from .jobs_check import check_job, forget_media
from .jobs_rows import Problem, Row, csv_rows, jsonl_rows, name_foreign_kind
from .runtime import CannotRun

_NO_TEMPORARY_FILE = (
    "the jobs need a temporary file, which cannot be written; set TMPDIR to a folder that can"
)

_HEAD_BYTES = 8


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


def read_jobs(path: Path, *, report: Callable[[Problem], None], as_it_stands: bool = False) -> Jobs:
    """Return the jobs in a file, all of them checked; whatever is wrong is reported first, all of it.

    Relative paths of local files start from the folder of the jobs file. What only looks mistaken, such as
    a model that is nearly a known one, is a problem too unless it is to be sent *as_it_stands*.

    Raises:
        CannotRun: The file cannot be read, something in it is wrong, or it holds no job.
    """
    rows_of = {".csv": csv_rows, ".jsonl": jsonl_rows}.get(path.suffix.lower())
    if foreign := _foreign_kind(path):
        raise CannotRun(f"{path} {foreign}")
    if rows_of is None:
        raise CannotRun(
            f"{path}: a jobs file ends in .csv or .jsonl; save a table as CSV with commas, in UTF-8"
        )
    jobs = Jobs()
    # A batch run again in one process must see files that were mended in between.
    forget_media()
    try:
        # What is not UTF-8 is let through as half characters, which are found and reported cell by cell.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            count = _check_rows(rows_of(file), jobs, path.parent, report, as_it_stands)
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


def _foreign_kind(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return name_foreign_kind(file.read(_HEAD_BYTES))
    except OSError:  # said when it is opened to be read
        return ""


def _check_rows(
    rows: Iterable[Row], jobs: Jobs, folder: Path, report: Callable[[Problem], None], as_it_stands: bool
) -> int:
    """Check and keep all rows; return how many problems were reported."""
    count = 0
    for row in rows:
        request = check_job(row, jobs.claim, folder, as_it_stands) if row.is_readable else None
        for problem in row.problems:
            report(problem)
        count += len(row.problems)
        # After the first problem nothing will be sent, so nothing more need be kept.
        if request is not None and not count:
            jobs.add(row.line, request)
    return count
