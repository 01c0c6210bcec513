"""Runs a batch from the opening of the session to its close: events, outcomes, the board, interrupts."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterable, Sequence
from contextlib import suppress

import attrs

from ..batch import Batch
from ..errors import AuthenticationError, BatchStopped, FileError, JournalError, KieError
from ..events import SessionEvent, Weather
from ..inputs.request import TaskRequest
from ..journal.intents import Totals
from ..models import JobState
from ..session import KieSession
from .batch_estimate import confirm
from .batch_ledger import OVER, BatchLedger
from .batch_options import BatchOptions
from .batch_progress import BatchProgress, Board
from .changed_rows import list_changed
from .jobs_file import Jobs
from .output import count_of, print_err
from .runtime import DONE, FAILED, INTERRUPTED, CannotRun, explain
from .sessions import open_session

_WRITE_RETRY_S = 60.0

_STILL_OPEN = (JobState.NOT_SENT, JobState.QUEUED, JobState.SENDING, JobState.RUNNING)


class BatchRun:
    """One run of the command."""

    def __init__(self, options: BatchOptions, ledger: BatchLedger, progress: BatchProgress) -> None:
        self._options = options
        self._ledger = ledger
        self._progress = progress
        # With the requests, so that `journal resubmit` can send one again.
        self._journal = options.journal.make_journal(keep_bodies=True)
        self._chosen: Sequence[int] = ()
        """The places in the file of the jobs this run is about, in their order."""
        self._weather: dict[str, Weather] = {}
        """What keeps it from getting on, by its kind."""
        self._interrupts = 0
        self._settled_count = 0
        """Tasks that settled in this run: what the time left is reckoned from."""
        self._began = self._loop_now()
        self._credits = 0.0
        """What those took that settled in this run."""
        self.totals: Totals | None = None
        """What the journal knows of all runs, at the end of this one."""
        self.problem = ""
        """What went wrong beside the jobs; empty if nothing did."""

    @staticmethod
    def _loop_now() -> float:
        return asyncio.get_running_loop().time()

    @property
    def is_unfinished(self) -> bool:
        """Tell whether the same command has something left to do."""
        counts = self._ledger.count_chosen(self._chosen)
        return any(counts[state] for state in (*_STILL_OPEN, JobState.NOT_SAVED))

    @property
    def failed_count(self) -> int:
        """Return how many of the chosen jobs failed or were refused."""
        counts = self._ledger.count_chosen(self._chosen)
        return counts[JobState.FAILED] + counts[JobState.REFUSED]

    @property
    def status(self) -> int:
        """Return the exit status."""
        is_done = self._ledger.count_chosen(self._chosen)[JobState.DONE] == len(self._chosen)
        if is_done and not self.problem:
            return DONE
        return INTERRUPTED if self._interrupts else FAILED

    async def run(self, jobs: Jobs, chosen: Sequence[int]) -> None:
        """Create, wait and download until every chosen job has an outcome, or it is time to leave.

        Raises:
            CannotRun: A job was made before from other content; nothing was sent.
        """
        is_open = False
        try:
            async with open_session(self._options.session(self._journal), self._note_event) as kie:
                self._chosen = await self._without_changed(jobs, chosen)
                retry_failed = self._options.retry_failed
                await self._ledger.begin(self._journal, self._chosen, retry_failed=retry_failed)
                is_open = True
                for handle in await kie.resume():
                    self._ledger.record_task(handle.ref, handle.task_id)
                # The batch joins these by their refs, so none is created again.
                if await self._can_save() and await self._takes_key(kie):
                    await confirm(kie, self._journal, jobs, self._chosen, self._options)
                    await self._consume(self._begin(kie, (jobs[index][1] for index in self._chosen)))
        finally:
            # If it never opened, the file is another's: a former run's, or that of whoever has the journal.
            if is_open:
                await self._end()
                await self._write_results()

    async def _end(self) -> None:
        # From the closed journal: tasks may end, and creates get their ids, until the session is closed.
        journal = self._options.journal.make_journal()
        try:
            with suppress(JournalError):
                await journal.open_to_read()
                self.totals = await journal.load_totals()
                await self._ledger.catch_up(journal)
        finally:
            self._ledger.end()
            await journal.aclose()

    async def _without_changed(self, jobs: Jobs, chosen: Sequence[int]) -> Sequence[int]:
        retry_failed = self._options.retry_failed
        changed = await list_changed(self._journal, jobs, chosen, retry_failed=retry_failed)
        for row in changed:
            print_err(str(row))
        if changed and not self._options.skip_changed:
            raise CannotRun(
                f"{count_of(len(changed), 'job')} changed; nothing was sent; --skip-changed leaves them out"
            )
        left_out = {row.index for row in changed}
        return [index for index in chosen if index not in left_out]

    async def _can_save(self) -> bool:
        """Tell whether the results file can be written."""
        await self._write_results()
        return not self.problem

    async def _takes_key(self, kie: KieSession) -> bool:
        """Tell whether the service takes the key; if it cannot be asked now, the batch will see."""
        counts = self._ledger.count_chosen(self._chosen)
        is_over = sum(counts[state] for state in OVER) == len(self._chosen)
        if is_over and not self._options.retry_failed:
            return True  # all was done in former runs: then nothing need be sent
        try:
            await kie.credits()
        except AuthenticationError as exc:
            self.problem = explain(exc)
        except KieError:
            pass
        return not self.problem

    def _begin(self, kie: KieSession, requests: Iterable[TaskRequest]) -> Batch:
        return kie.batch(
            requests,
            download_to=self._options.out,
            max_failures_in_a_row=self._options.max_failures_in_a_row,
            give_up_after_s=self._options.give_up_after_s,
            retry_failed=self._options.retry_failed,
            name=self._options.name,
        )

    async def _write_results(self) -> None:
        try:
            await self._ledger.results.write()
        except OSError as exc:
            self.problem = f"cannot write {self._options.results}: {exc.strerror}"

    async def _consume(self, batch: Batch) -> None:
        """Read the outcomes to the end, or until it is time to leave."""
        reading = asyncio.create_task(self._read_outcomes(batch))
        # In tasks of their own: outcomes may be minutes apart, and board and file must keep moving.
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
                    reason = explain(outcome.error, journal=self._options.journal)
                    self._progress.print_line(f"line {line}, ref {outcome.ref}: {state}: {reason}{again}")
        except BatchStopped as exc:
            self.problem = explain(exc.__cause__ if isinstance(exc.__cause__, KieError) else exc)

    # --- in the background --------------------------------------------------------------------------

    def _note_event(self, event: SessionEvent) -> None:
        """Record what an event says of a job; this is the session's ``on_event``."""
        if event.kind in {"created", "adopted", "unknown"}:
            self._ledger.record_task(event.ref, event.task_id)
        elif event.kind == "settled":
            self._settled_count += 1
            self._credits += (event.record.credits or 0.0) if event.record else 0.0
            self._ledger.record_end(event.ref, event.source)
        elif event.weather is not None:
            self._note_weather(event.weather)

    def _note_weather(self, weather: Weather) -> None:
        was_known = self._weather.pop(weather.kind, None) is not None
        if not weather.is_over:
            self._weather[weather.kind] = weather
        if was_known == weather.is_over:  # it began, or ended
            self._progress.show(self._board())

    def _board(self) -> Board:
        ledger, counts = self._ledger, self._ledger.count_chosen(self._chosen)
        running = counts[JobState.RUNNING]
        over = sum(counts[state] for state in (*OVER, JobState.PERHAPS_PAID))
        left_s = None
        if self._settled_count and not self._interrupts:
            per_job_s = (self._loop_now() - self._began) / self._settled_count
            left_s = per_job_s * (len(self._chosen) - over)
        is_full = running >= self._options.max_in_flight
        return Board(
            total=ledger.total,
            done=ledger.count(JobState.DONE, JobState.NOT_SAVED),
            failed=ledger.count(JobState.FAILED, JobState.REFUSED),
            perhaps_paid=ledger.count(JobState.PERHAPS_PAID),
            running=running,
            waiting=counts[JobState.QUEUED] + counts[JobState.SENDING],
            waits_for="" if self._interrupts else "a slot" if is_full else "the limit",
            credits=self._credits,
            left_s=left_s if len(self._chosen) > over else None,
            weather=tuple(self._weather.values()),
        )

    async def _update_progress(self) -> None:
        while True:
            await asyncio.sleep(self._progress.interval_s)
            self._progress.show(self._board())

    async def _write_changes(self) -> None:
        results, path = self._ledger.results, self._options.results
        while True:
            try:
                await results.write_changes()
            except OSError as exc:
                # A full disk must not end the wait for tasks that are paid.
                self._progress.print_line(f"cannot write {path} now: {exc.strerror}")
            await self._until_written()
            self._progress.print_line(f"{path} can be written again")

    async def _until_written(self) -> None:
        while True:
            await asyncio.sleep(_WRITE_RETRY_S)
            with suppress(OSError):
                await self._ledger.results.write()
                return
