"""``kie-async batch``: makes a task of each line of a file, downloads the results; run again, it goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Annotated

import attrs
import typer

from ..batch import GIVE_UP_AFTER_S, MAX_FAILURES_IN_A_ROW, Batch
from ..config import Budget
from ..errors import AuthenticationError, BatchStopped, FileError, KieError
from ..events import SessionEvent
from ..inputs.request import TaskRequest
from ..journal.sqlite import SqliteJournal
from ..session import KieSession
from .batch_ledger import BatchLedger
from .batch_progress import BatchProgress, open_progress
from .changed_rows import list_changed
from .jobs_file import Jobs, read_jobs
from .output import count_of, format_duration, print_err, print_out
from .report import report_results
from .runtime import DONE, FAILED, INTERRUPTED, CannotRun, explain, require_folder, require_key, run_command
from .sessions import CallbackUrl, Port, SessionOptions, check_port, open_session

_WRITE_RETRY_S = 60.0


@attrs.frozen(kw_only=True)
class BatchOptions:
    """What the command line chooses."""

    jobs: Path
    journal: Path
    out: Path
    results: Path
    max_in_flight: int
    budget: Budget | None
    max_failures_in_a_row: int | None
    give_up_after_s: float
    grace_s: float
    callback_url: str | None
    port: int
    only: frozenset[str]
    limit: int | None
    skip_changed: bool
    as_it_stands: bool

    def choose(self, jobs: Jobs) -> list[int]:
        """Return the places of the jobs this run is about.

        Raises:
            CannotRun: No job has a ref that was asked for.
        """
        for ref in sorted(self.only):
            if jobs.index_of(ref) is None:
                raise CannotRun(f"no job has the ref {ref}; nothing was sent")
        places = (index for index, (_, job) in enumerate(jobs) if not self.only or job.ref in self.only)
        return list(islice(places, self.limit))


def batch(
    *,
    jobs: Annotated[Path, typer.Argument(metavar="JOBS", help="The jobs: a .csv or .jsonl file.")],
    journal: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Remembers what was sent and paid; JOBS.db if not given."),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Download the results into this folder.")] = Path(
        "kie-batch"
    ),
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

    The whole file is checked first. If anything is wrong, all of it is listed and nothing is sent.

    At the end report.html and results.csv, beside the results, show what became of every job.

    Run the same command again after a crash, a Ctrl-C or an error: it goes on, and nothing is paid twice.
    Ctrl-C once sends nothing more and waits for what is paid, twice leaves at once.

    Exit status: 0 all done; 1 some failed, are unknown or still open; 2 asked wrongly, nothing was sent;
    130 interrupted before all was done.
    """
    port = check_port(port, callback_url)
    if budget_credits is not None and not budget_credits > 0:
        raise typer.BadParameter("must be above zero", param_hint="--budget-credits")
    # os.path, since pathlib's own questions raise for paths that cannot be reached.
    if os.path.isdir(jobs):
        raise typer.BadParameter(f"{jobs} is a folder, not a .csv or .jsonl file", param_hint="JOBS")
    options = BatchOptions(
        jobs=jobs,
        journal=journal or jobs.with_name(f"{jobs.name}.db"),
        out=out,
        results=results or out / "results.jsonl",
        max_in_flight=max_in_flight,
        budget=None if budget_credits is None else Budget(credits=budget_credits),
        max_failures_in_a_row=max_failures_in_a_row or None,
        give_up_after_s=give_up_after,
        grace_s=grace,
        callback_url=callback_url,
        port=port,
        only=frozenset(only or ()),
        limit=limit,
        skip_changed=skip_changed,
        as_it_stands=as_it_stands,
    )
    # The results file is replaced as a whole; it must never be one of the others.
    files = {os.path.realpath(path) for path in (options.jobs, options.journal, options.results)}
    if len(files) < 3:
        raise typer.BadParameter("the jobs, the journal and the results are three files")
    if os.path.isdir(options.results):
        raise typer.BadParameter("is a folder", param_hint="--results")
    run_command(run_batch(options))


async def run_batch(options: BatchOptions) -> int:
    """Run the batch and return the exit status.

    Raises:
        CannotRun: Something is wrong with the file, a folder, the journal or the port; nothing was sent.
        InvalidRequest: The key or an address is wrong; nothing was sent.
    """
    with read_jobs(
        options.jobs, report=lambda problem: print_err(str(problem)), as_it_stands=options.as_it_stands
    ) as jobs:
        chosen = options.choose(jobs)
        require_key()
        for folder in (options.out, options.results.parent, options.journal.parent):
            require_folder(folder)
        ledger, began = BatchLedger(jobs, options.results), time.time()
        with open_progress() as progress:
            run = _CommandRun(options, ledger, progress)
            await run.run(jobs, chosen)
    print_out(f"{len(jobs)} jobs: {ledger.summary()}; see {options.results}")
    status = run.report_status()
    await report_results(options.results, title=options.jobs.name, began=began, journal=options.journal)
    return status


class _CommandRun:
    """One run of the command, from the opening of the session to its close."""

    def __init__(self, options: BatchOptions, ledger: BatchLedger, progress: BatchProgress) -> None:
        self._options = options
        self._ledger = ledger
        self._progress = progress
        self._journal = SqliteJournal(options.journal, keep_bodies=True)
        self._chosen: Sequence[int] = ()
        """The places in the file of the jobs this run is about, in their order."""
        self._interrupts = 0
        self._settled_count = 0
        """Tasks that settled in this run: what the ETA is reckoned from."""
        self._problem = ""
        """What went wrong beside the jobs; empty if nothing did."""

    def report_status(self) -> int:
        """Print what is left to do, and return the exit status."""
        if self._problem:
            print_err(f"error: {self._problem}")
        if self._ledger.count("pending") or self._ledger.count("running"):
            print_err("run the same command again to go on; nothing is paid twice")
        elif not self._problem and not self._ledger.count("failed") and not self._ledger.count("unknown"):
            return DONE
        return INTERRUPTED if self._interrupts else FAILED

    async def run(self, jobs: Jobs, chosen: Sequence[int]) -> None:
        """Create, wait and download until every chosen job has an outcome, or it is time to leave.

        Raises:
            CannotRun: A job was made before from other content; nothing was sent.
        """
        is_open = False
        try:
            async with open_session(self._session_options(), self._note_event) as kie:
                self._chosen = await self._without_changed(jobs, chosen)
                is_open = True
                for handle in await kie.resume():
                    self._ledger.record_task(handle.ref, handle.task_id)
                # The batch joins these by their refs, so none is created again.
                if await self._can_save() and await self._takes_key(kie):
                    await self._consume(self._begin(kie, (jobs[index][1] for index in self._chosen)))
        finally:
            # If it never opened, the file is another's: a former run's, or that of whoever has the journal.
            if is_open:
                await self._write_results()

    async def _without_changed(self, jobs: Jobs, chosen: Sequence[int]) -> Sequence[int]:
        changed = await list_changed(self._journal, jobs, chosen)
        for row in changed:
            self._progress.print_line(str(row))
        if changed and not self._options.skip_changed:
            raise CannotRun(
                f"{count_of(len(changed), 'job')} changed; nothing was sent; --skip-changed leaves them out"
            )
        left_out = {row.index for row in changed}
        return [index for index in chosen if index not in left_out]

    def _session_options(self) -> SessionOptions:
        options = self._options
        return SessionOptions(
            journal=self._journal,
            callback_url=options.callback_url,
            port=options.port,
            max_in_flight=options.max_in_flight,
            budget=options.budget,
        )

    async def _can_save(self) -> bool:
        """Tell whether the results file can be written."""
        await self._write_results()
        return not self._problem

    async def _takes_key(self, kie: KieSession) -> bool:
        """Tell whether the service takes the key; if it cannot be asked now, the batch will see."""
        if (await self._journal.load_totals()).settled >= self._ledger.total:
            return True  # all was done in former runs, as it seems: then nothing need be sent
        try:
            await kie.credits()
        except AuthenticationError as exc:
            self._problem = explain(exc)
        except KieError:
            pass
        return not self._problem

    def _begin(self, kie: KieSession, requests: Iterable[TaskRequest]) -> Batch:
        return kie.batch(
            requests,
            download_to=self._options.out,
            max_failures_in_a_row=self._options.max_failures_in_a_row,
            give_up_after_s=self._options.give_up_after_s,
        )

    async def _write_results(self) -> None:
        try:
            await self._ledger.results.write()
        except OSError as exc:
            self._problem = f"cannot write {self._options.results}: {exc.strerror}"

    async def _consume(self, batch: Batch) -> None:
        """Read the outcomes to the end, or until it is time to leave."""
        reading = asyncio.create_task(self._read_outcomes(batch))
        # In tasks of their own: outcomes may be minutes apart, and the bar and the file must keep moving.
        background = [
            asyncio.create_task(self._update_progress()),
            asyncio.create_task(self._write_changes()),
        ]
        self._install_signal_handlers(batch, reading)
        try:
            await asyncio.wait({reading})
        finally:
            for task in (reading, *background):
                task.cancel()
            await asyncio.gather(reading, *background, return_exceptions=True)
        if not reading.cancelled():
            reading.result()

    def _install_signal_handlers(self, batch: Batch, reading: asyncio.Task[None]) -> None:
        """Let SIGINT and SIGTERM stop the batch in steps: send no more, wait no more, leave."""
        loop, main = asyncio.get_running_loop(), asyncio.current_task()

        def interrupt() -> None:
            self._interrupts += 1
            if self._interrupts == 1:
                batch.stop()
                loop.call_later(self._options.grace_s, reading.cancel)
                self._progress.print_line(
                    "interrupted: nothing more is sent; waiting for what is paid, "
                    f"{self._options.grace_s:g} s at most; Ctrl-C again to leave now"
                )
            elif self._interrupts == 2:
                # The session's close still waits for task ids under way, ten seconds at most.
                reading.cancel()
            elif main is not None:
                main.cancel()

        with suppress(NotImplementedError, RuntimeError, ValueError):  # Windows, or a thread
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, interrupt)

    async def _read_outcomes(self, batch: Batch) -> None:
        try:
            async for sent in batch:
                outcome = attrs.evolve(sent, index=self._chosen[sent.index])
                line, state = self._ledger.record_outcome(outcome)
                if outcome.error is not None and not isinstance(outcome.error, BatchStopped):
                    again = "; run again to fetch it" if isinstance(outcome.error, FileError) else ""
                    self._progress.print_line(
                        f"line {line}, ref {outcome.ref}: {state}: "
                        f"{explain(outcome.error, self._options.journal)}{again}"
                    )
        except BatchStopped as exc:
            self._problem = explain(exc.__cause__ if isinstance(exc.__cause__, KieError) else exc)

    # --- in the background --------------------------------------------------------------------------

    def _note_event(self, event: SessionEvent) -> None:
        """Record what an event says of a job; this is the session's ``on_event``."""
        if event.kind in {"created", "adopted"}:
            self._ledger.record_task(event.ref, event.task_id)
        elif event.kind == "settled":
            self._settled_count += 1
            self._ledger.record_end(event.ref, event.source)

    async def _update_progress(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            await asyncio.sleep(self._progress.interval_s)
            ledger, eta = self._ledger, ""
            if self._settled_count:
                still = ledger.total - ledger.ended
                eta = f", ETA {format_duration((loop.time() - began) / self._settled_count * still)}"
            self._progress.show(ledger.ended, ledger.total, ledger.summary() + eta)

    async def _write_changes(self) -> None:
        while True:
            try:
                await self._ledger.results.write_changes()
            except OSError as exc:
                # A full disk must not end the wait for tasks that are paid.
                self._progress.print_line(f"cannot write {self._options.results} now: {exc.strerror}")
                await asyncio.sleep(_WRITE_RETRY_S)
