"""``kie-async report``: writes the page and the table that show what became of a batch, or of a demo."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import attrs
import typer

from ..errors import JournalError, JournalLocked
from ..journal.base import Intent
from .output import print_err, print_out
from .report_csv import encode_csv, is_ours
from .report_data import (
    RESULTS_NAME,
    Row,
    Spent,
    find_results,
    is_file,
    read_intents,
    rows_of_journal,
    rows_of_results,
    spent_in,
)
from .report_page import About, encode_page, is_page
from .report_sums import sum_up
from .results_file import replace_file
from .runtime import DONE, CannotRun, require_folder, run_command

PAGE_NAME, TABLE_NAME = "report.html", "results.csv"

_IN_USE = "The batch is running: this page shows how it stood when the results were last written."


@attrs.frozen(kw_only=True)
class _Found:
    """What a report is made of."""

    rows: Sequence[Row]
    folder: Path
    """Where the results are."""
    spent: Spent | None = None
    notice: str = ""


def report(
    *,
    where: Annotated[
        Path,
        typer.Argument(metavar="JOURNAL|DIR", help="A journal, or the folder with a batch's results."),
    ],
    journal: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The journal, for what all runs have spent, if DIR was given."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write there; beside the results if not given.")
    ] = None,
) -> None:
    """Write report.html and results.csv: a page to show what became of a batch. Sends nothing, needs no key.

    For example: kie-async report kie-batch

    The page is one file, needs no network and shows the videos that lie beside it. Batch and demo write it
    at their end; this makes it anew. Of a journal the results are found beside it or one folder below; where
    there are none, the page has what the journal knows.
    """
    if not os.path.exists(where):
        raise typer.BadParameter(f"there is no {where}", param_hint="JOURNAL|DIR")
    if journal is not None and not os.path.exists(journal):
        # Opening a journal that is not there would make one.
        raise typer.BadParameter(f"there is no journal {journal}", param_hint="--journal")
    if os.path.isdir(where):
        run_command(_report(where / RESULTS_NAME, journal, out, title=where.resolve().name))
    elif where.suffix == ".jsonl":
        run_command(_report(where, journal, out, title=where.name))
    else:
        run_command(_report(None, where, out, title=where.name))


async def _report(results: Path | None, journal: Path | None, out: Path | None, *, title: str) -> int:
    """Write the report and print its path.

    Raises:
        CannotRun: There is nothing to report, or the files cannot be written.
    """
    found = await _find(results, journal, out)
    folder = out or found.folder
    require_folder(folder)
    path = await _write(found, folder, About(title=title, made_at=time.time(), notice=found.notice))
    print_out(str(path))
    return DONE


async def report_results(results: Path, *, title: str, began: float, journal: Path | None = None) -> None:
    """Write the report of a run beside its results and print its path, or print why there is none.

    *began* is when the run did, as unix time. What is wrong here must not change how the run itself ended.
    """
    try:
        found = await _find(results if is_file(results) else None, journal, results.parent)
        about = About(title=title, made_at=time.time(), began=began, notice=found.notice)
        print_out(str(await _write(found, results.parent, about)))
    except CannotRun as exc:
        print_err(f"no report: {exc}")


async def _find(results: Path | None, journal: Path | None, folder: Path | None) -> _Found:
    """Gather the rows; without *results*, those that belong to the journal are used if they are found.

    Raises:
        CannotRun: Nothing of it can be read.
    """
    intents, notice = await _read_journal(journal, is_needed=results is None)
    if results is None and journal is not None:
        results = await asyncio.to_thread(find_results, journal, intents)
    home = (results or journal or Path()).parent
    try:
        rows = rows_of_results(results, intents) if results else rows_of_journal(intents, folder or home)
        gathered = await asyncio.to_thread(list, rows)
    except OSError as exc:
        raise CannotRun(
            f"cannot read {results or home}: {exc.strerror};"
            " give the folder with a batch's results, or its journal"
        ) from None
    spent = spent_in(intents) if journal and not notice else None
    return _Found(rows=gathered, folder=home, spent=spent, notice=notice)


async def _read_journal(journal: Path | None, *, is_needed: bool) -> tuple[list[Intent], str]:
    """Return the intents of a journal, and what a reader must know if there are none.

    Raises:
        CannotRun: It is needed and cannot be read.
    """
    if journal is None:
        return [], ""
    try:
        return await read_intents(journal, with_records=is_needed), ""
    except JournalError as exc:
        if is_needed:
            raise CannotRun(str(exc)) from None
        return [], _IN_USE if isinstance(exc, JournalLocked) else f"The journal could not be read: {exc}"


async def _write(found: _Found, folder: Path, about: About) -> Path:
    """Write both files and return the path of the page.

    Raises:
        CannotRun: They cannot be written.
    """
    return await asyncio.to_thread(_write_files, found, folder, about)


def _write_files(found: _Found, folder: Path, about: About) -> Path:
    page, table = folder / PAGE_NAME, folder / TABLE_NAME
    sums = sum_up(found.rows, began=about.began, spent=found.spent)
    try:
        # A jobs file may have one of these names; it is nobody's to replace.
        for path, is_own in ((page, is_page), (table, is_ours)):
            if os.path.lexists(path) and not is_own(path):
                raise CannotRun(f"{path} is another's file; move it, or give another folder with --out")
        replace_file(table, encode_csv(found.rows))
        replace_file(page, [encode_page(found.rows, sums, about, folder)])
    except OSError as exc:
        raise CannotRun(f"cannot write {page}: {exc.strerror}") from None
    return page
