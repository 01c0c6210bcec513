"""``kie-async report``: writes the page and the table that show what became of a batch, or of a demo."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated

import attrs
import typer

from ..errors import JournalError
from ..journal.intents import Totals
from .journal_place import JournalPlace, check_there
from .output import print_err, print_out
from .report_csv import encode_csv, is_table
from .report_data import RESULTS_NAME, Row, is_file, rows_of_results
from .report_journal import read_journal, rows_of_journal
from .report_page import About, KeptRows, encode_page, is_page
from .report_sums import Tally
from .results_file import replace_file
from .runtime import DONE, CannotRun, require_folder, run_command

PAGE_NAME, TABLE_NAME = "report.html", "results.csv"


_WHAT_TO_GIVE = "give the folder with a batch's results, or its journal"


@attrs.frozen(kw_only=True)
class _Found:
    """What a report is made of."""

    rows: Iterable[Row]
    folder: Path
    """Where the results are."""
    totals: Totals | None = None
    notice: str = ""


def report(
    *,
    where: Annotated[
        JournalPlace,
        typer.Argument(
            parser=JournalPlace,
            metavar="JOURNAL|DIR",
            help="A journal, a file or a postgresql:// URL, or the folder with a batch's results.",
        ),
    ],
    journal: Annotated[
        JournalPlace | None,
        typer.Option(
            parser=JournalPlace,
            metavar="JOURNAL",
            help="The journal, for what all runs have spent, if DIR was given.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write there; beside the results if not given.")
    ] = None,
) -> None:
    """Write report.html and results.csv: a page to show what became of a batch. Sends nothing, needs no key.

    For example: kie-async report jobs-results

    The page is one file, needs no network and shows the videos that lie beside it. Batch and demo write it
    at their end; this makes it anew. Of a journal the results are found beside it or one folder below, of one
    in a database in the current folder; where there are none, the page has what the journal knows.
    """
    path = where.path
    if not where.is_there:
        raise typer.BadParameter(f"there is no {where}", param_hint="JOURNAL|DIR")
    if journal is not None:
        check_there(journal, "--journal")
    if path is None:
        run_command(_report(None, where, out, title=str(where)))
    elif os.path.isdir(path):
        run_command(_report(path / RESULTS_NAME, journal, out, title=path.resolve().name))
    elif path.suffix == ".jsonl":
        run_command(_report(path, journal, out, title=path.name))
    else:
        run_command(_report(None, where, out, title=path.name))


async def _report(results: Path | None, journal: JournalPlace | None, out: Path | None, *, title: str) -> int:
    """Write the report and print its path.

    Raises:
        CannotRun: There is nothing to report, or the files cannot be written.
    """
    found = await _find(results, journal, out)
    folder = out or found.folder
    require_folder(folder)
    about = About(title=title, made_at=time.time(), notice=found.notice)
    print_out(str(await asyncio.to_thread(_write_files, found, folder, about)))
    return DONE


async def report_results(
    results: Path, *, title: str, began: float, journal: JournalPlace | None = None, notice: str = ""
) -> None:
    """Write the report of a run beside its results and print its path, or print why there is none.

    *began* is when the run did, as unix time; *notice* is what a reader must know. What is wrong here must
    not change how the run itself ended.
    """
    try:
        found = await _find(results if is_file(results) else None, journal, results.parent)
        about = About(title=title, made_at=time.time(), began=began, notice=notice or found.notice)
        print_out(str(await asyncio.to_thread(_write_files, found, results.parent, about)))
    except CannotRun as exc:
        print_err(f"no report: {exc}")


async def _find(results: Path | None, journal: JournalPlace | None, folder: Path | None) -> _Found:
    """Find out what there is to report; without *results*, those of the journal are used if they are found.

    Raises:
        CannotRun: It cannot be read.
    """
    facts, notice = None, ""
    try:
        if results is not None and not is_file(results):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        if journal is not None:
            facts = await read_journal(journal, results)
    except OSError as exc:
        raise CannotRun(f"cannot read {results}: {exc.strerror}; {_WHAT_TO_GIVE}") from None
    except JournalError as exc:
        if results is None:
            raise CannotRun(f"{exc}; {_WHAT_TO_GIVE}") from None
        notice = f"The journal could not be read: {exc}"
    if facts is not None:
        results = facts.results
    home = results.parent if results is not None else journal.folder if journal is not None else Path()
    intents = facts.intents if facts else ()
    return _Found(
        rows=rows_of_results(results, intents) if results else rows_of_journal(intents, folder or home),
        folder=home,
        totals=facts.totals if facts else None,
        notice=notice,
    )


def _write_files(found: _Found, folder: Path, about: About) -> Path:
    """Write both files and return the path of the page.

    Raises:
        CannotRun: The results cannot be read, or the page not written.
    """
    page, table = folder / PAGE_NAME, folder / TABLE_NAME
    tally, kept = Tally(about.began), KeptRows()
    lines = encode_csv(_counted(found.rows, tally, kept))
    problem = _try_to_write(table, lines, is_table)
    deque(lines, maxlen=0)  # the page needs what the table did not take
    if problem:
        print_err(f"no {TABLE_NAME}: {problem}")
    sums = tally.sums(found.totals)
    if problem := _try_to_write(page, [encode_page(kept.rows(), sums, about, folder)], is_page):
        raise CannotRun(problem)
    return page


def _counted(rows: Iterable[Row], tally: Tally, kept: KeptRows) -> Iterator[Row]:
    """Yield all rows, each counted and perhaps kept for the page: there may be a million.

    Raises:
        CannotRun: They cannot be read.
    """
    try:
        for row in rows:
            tally.add(row)
            kept.add(row)
            yield row
    except OSError as exc:
        raise CannotRun(f"cannot read the results: {exc.strerror}") from None


def _try_to_write(path: Path, lines: Iterable[bytes], is_ours: Callable[[Path], bool]) -> str:
    """Write a file; return why that cannot be, nothing if it was done."""
    try:
        # A jobs file may have this name; it is nobody's to replace.
        if os.path.lexists(path) and not is_ours(path):
            return f"{path} is another's file; move it away"
        replace_file(path, lines)
    except OSError as exc:
        return f"cannot write {path}: {exc.strerror}"
    return ""
