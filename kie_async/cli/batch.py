"""``kie-async batch``: makes a task of each line of a file, downloads the results; run again, it goes on."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Annotated

import typer

from ..batch import GIVE_UP_AFTER_S, MAX_FAILURES_IN_A_ROW
from ..config import Budget
from ..errors import InvalidRequest
from ..files.names import check_template
from ..models import JobState
from .batch_estimate import show_estimate
from .batch_ledger import BatchLedger
from .batch_options import BatchOptions, default_folder, default_journal
from .batch_progress import open_progress
from .batch_run import BatchRun
from .batch_summary import run_on_done, show_summary
from .jobs_file import read_jobs
from .journal_place import JournalPlace
from .output import count_of, print_err, print_out
from .report import PAGE_NAME, report_results
from .report_data import RESULTS_NAME
from .report_sums import Sums
from .runtime import open_log_file, require_folder, require_key, run_command, spell_command
from .sessions import AccountName, CallbackUrl, Port, check_port

_MOST_REASONS = 20

ASK_ABOVE = 500.0
"""Credits, which are 2.50 USD."""


def batch(
    context: typer.Context,
    *,
    jobs: Annotated[Path, typer.Argument(metavar="JOBS", help="The jobs: a .csv or .jsonl file.")],
    journal: Annotated[
        JournalPlace | None,
        typer.Option(
            parser=JournalPlace,
            metavar="JOURNAL",
            help="Remembers what was sent and paid: a file, JOBS.db if not given, or a postgresql:// URL.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Download the results into this folder; JOBS-results if not given."),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What became of each job; DIR/results.jsonl if not given."),
    ] = None,
    max_in_flight: Annotated[
        int, typer.Option(min=1, metavar="N", help="Most tasks unsettled at once.")
    ] = 100,
    budget_credits: Annotated[
        float | None,
        typer.Option(metavar="C", help="Begin no task once C credits are spent, all runs counted."),
    ] = None,
    max_failures_in_a_row: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Stop when N tasks of a model fail in a row; 0 is never."),
    ] = MAX_FAILURES_IN_A_ROW,
    give_up_after: Annotated[
        float,
        typer.Option(min=0.0, metavar="S", help="Wait S seconds for a full disk; 0 is not at all."),
    ] = GIVE_UP_AFTER_S,
    grace: Annotated[
        float, typer.Option(min=0.0, metavar="S", help="After Ctrl-C, wait S seconds for what is paid.")
    ] = 60.0,
    callback_url: CallbackUrl = None,
    port: Port = None,
    account: AccountName = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="REF", help="Only the job with this ref; may be repeated.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Only the first N of these jobs.")
    ] = None,
    skip_changed: Annotated[
        bool, typer.Option("--skip-changed", help="Leave out jobs that were made before from other content.")
    ] = False,
    as_it_stands: Annotated[
        bool,
        typer.Option("--as-it-stands", help="Send also what looks mistaken: names of files, unknown models."),
    ] = False,
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed", help="Make failed and refused jobs of former runs again; it costs again."
        ),
    ] = False,
    name: Annotated[
        str, typer.Option(metavar="NAME", help="How files are named: {ref}, {task_id}, {index}, {model}.")
    ] = "{ref}",
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what it would cost and how long it would take; send nothing."),
    ] = False,
    ask_above: Annotated[
        float,
        typer.Option(min=0.0, metavar="C", help="At a terminal, ask before more than C credits are spent."),
    ] = ASK_ABOVE,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Show nothing but errors and the end.")
    ] = False,
    log_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write all of the log into this file, with times.")
    ] = None,
    on_done: Annotated[
        str | None,
        typer.Option(
            metavar="CMD", help="Run this at the end, with the sums in its environment: KIE_BATCH_DONE, ..."
        ),
    ] = None,
) -> None:
    """Make a task of every line of a file, download the results. This costs credits.

    For example: kie-async batch jobs.csv --out videos, where jobs.csv holds

    \b
      ref,model,image_url,audio_url,prompt
      order-1001,kling/v1-avatar-standard,anna.png,hello.mp3,a warm smile
      order-1002,kling/v1-avatar-standard,https://example.org/otto.jpg,hello.mp3,

    The ref is your own name for a job, such as the id of an order: one ref, one paid task, for as long as
    the journal lives. The other columns are the fields of the model's input. A .jsonl file has an object
    with the same names in each line instead.

    For the Kling avatar models image_url and audio_url may be local files, their paths relative to the
    folder of the jobs file; each is uploaded once. Other models get their fields as they stand; out of a
    CSV as text, an empty cell as no field, and a column named FIELD:json as the JSON that is in it.

    The whole file is checked first. If anything is wrong, all of it is listed and nothing is sent. --dry-run
    says what it would cost and how long it would take. Above --ask-above credits a terminal is asked once;
    elsewhere the estimate is printed and the batch goes on.

    At the end report.html and results.csv, beside the results, show what became of every job. The command
    of --on-done has in its environment KIE_BATCH_STATUS (the exit status), _JOBS, _DONE, _NOT_SAVED, _FAILED,
    _REFUSED, _PERHAPS_PAID, _RUNNING, _NOT_SENT, _CREDITS (of this run), _ALL_CREDITS, _REPORT and _SUMMARY.

    Run the same command again after a crash, a Ctrl-C or an error: it goes on, and nothing is paid twice.
    Ctrl-C once sends nothing more and waits for what is paid, twice leaves at once. With --retry-failed jobs
    that failed, were refused or never sent go again under the same ref, also from changed content; never one
    that may be running or is perhaps paid. The journal keeps every attempt and its credits.

    Exit status: 0 all done; 1 some failed, are perhaps paid or still open; 2 asked wrongly, nothing was sent;
    130 interrupted before all was done.
    """
    port = check_port(port, callback_url)
    try:
        check_template("--name", name)
    except InvalidRequest as exc:
        raise typer.BadParameter(str(exc), param_hint="--name") from None
    if budget_credits is not None and not budget_credits > 0:
        raise typer.BadParameter("must be above zero", param_hint="--budget-credits")
    # os.path, since pathlib's own questions raise for paths that cannot be reached.
    if os.path.isdir(jobs):
        raise typer.BadParameter(f"{jobs} is a folder, not a .csv or .jsonl file", param_hint="JOBS")
    out = out or default_folder(jobs)
    options = BatchOptions(
        jobs=jobs,
        journal=journal or JournalPlace(str(default_journal(jobs))),
        out=out,
        results=results or out / RESULTS_NAME,
        max_in_flight=max_in_flight,
        budget=None if budget_credits is None else Budget(credits=budget_credits),
        max_failures_in_a_row=max_failures_in_a_row or None,
        give_up_after_s=give_up_after,
        grace_s=grace,
        callback_url=callback_url,
        port=port,
        account=account,
        only=frozenset(only or ()),
        limit=limit,
        skip_changed=skip_changed,
        as_it_stands=as_it_stands,
        retry_failed=retry_failed,
        name=name,
        ask_above=ask_above,
        is_confirmed=yes,
        is_dry_run=dry_run,
        is_quiet=quiet,
        on_done=on_done,
    )
    # The results file is replaced as a whole; it must never be one of the others.
    files = [path for path in (options.jobs, options.journal.path, options.results) if path is not None]
    if len({os.path.realpath(path) for path in files}) < len(files):
        raise typer.BadParameter("the jobs, the journal and the results are three files")
    if os.path.isdir(options.results):
        raise typer.BadParameter("is a folder", param_hint="--results")
    if log_file is not None:
        open_log_file(log_file)
    again = spell_command(context, "--retry-failed")
    run_command(run_batch(options, retry_command=again), journal=options.journal)


async def run_batch(options: BatchOptions, *, retry_command: str) -> int:
    """Run the batch and return the exit status; *retry_command* is what makes failed jobs again.

    Raises:
        CannotRun: Something is wrong with the file, a folder, the journal or the port; nothing was sent.
        InvalidRequest: The key or an address is wrong; nothing was sent.
    """
    with read_jobs(
        options.jobs, report=lambda problem: print_err(str(problem)), as_it_stands=options.as_it_stands
    ) as jobs:
        chosen = options.choose(jobs)
        require_key()
        if options.is_dry_run:
            return await show_estimate(options, jobs, chosen)
        for folder in (options.out, options.results.parent):
            require_folder(folder)
        if options.journal.path is not None:
            require_folder(options.journal.folder)
        ledger, began = BatchLedger(jobs, options.results), time.time()
        with open_progress(is_quiet=options.is_quiet) as progress:
            run = BatchRun(options, ledger, progress)
            await run.run(jobs, chosen)
        sums = ledger.sums(began, run.totals)
    summary = show_summary(sums)
    for text in summary.splitlines():
        print_out(text)
    _print_reasons(sums)
    if run.problem:
        print_err(f"error: {run.problem}")
    if run.is_unfinished:
        print_err("run the same command again to go on; nothing is paid twice")
    if run.failed_count and not (run.is_unfinished and options.retry_failed):  # then it is the same command
        failed = count_of(run.failed_count, "job")
        print_err(f"{failed} failed or refused; this makes them again and costs again: {retry_command}")
    await report_results(options.results, title=options.jobs.name, began=began, journal=options.journal)
    if options.on_done is not None:
        page = options.results.with_name(PAGE_NAME).absolute()
        await asyncio.to_thread(run_on_done, options.on_done, summary, sums, run.status, page)
    return run.status


def _print_reasons(sums: Sums) -> None:
    for reason in sums.reasons[:_MOST_REASONS]:
        if reason.state is not JobState.NOT_SENT:
            print_out(f"{reason.count} {reason.state}: {reason.text}")
    if (more := len(sums.reasons) + sums.more_reasons - _MOST_REASONS) > 0:
        print_out(f"and {count_of(more, 'other reason')}")
