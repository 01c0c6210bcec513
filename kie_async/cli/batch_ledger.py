"""Counts how the jobs of a batch stand, and writes what became of each into the results file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..batch import Outcome
from ..errors import TaskError
from ..inputs.request import TaskRequest
from ..journal.intents import Intent, Totals
from ..models import JobState, TaskRecord
from .jobs_file import Jobs
from .journal_place import DurableJournal
from .output import without_key
from .report_data import describe_request, ended_at_of, read_lines, reason_of, row_of_line
from .report_journal import with_end
from .report_sums import Sums, Tally
from .results_file import ResultsFile
from .runtime import plain_words

_NO_ANSWER = "no answer proved what a create became"

_ON_THE_WAY = frozenset({JobState.QUEUED, JobState.SENDING, JobState.RUNNING})

OVER = frozenset({JobState.DONE, JobState.NOT_SAVED, JobState.FAILED, JobState.REFUSED})
"""How a job stands of which nothing more is to be expected; perhaps paid it is until somebody looks."""


class BatchLedger:
    """Keeps the state of every job, their counts, and their lines in the results file.

    The file's last state counts: what former runs noted of a task stays, as far as the journal agrees.
    """

    def __init__(self, jobs: Jobs, path: Path) -> None:
        self.total = len(jobs)
        self.ended = 0
        """Jobs of which this run has an outcome."""
        self._jobs = jobs
        self._folder = path.parent
        self._former = _read_former(path)
        self._ends = {
            ref: (str(line["told_by"]), str(line["ended_at"]))
            for ref, line in self._former.items()
            if line.get("told_by") is not None and line.get("ended_at")
        }
        """What brought the ends that were seen, and when, by ref: no journal knows that."""
        self._states = [JobState.NOT_SENT] * len(jobs)
        self._earlier: dict[int, dict[str, Any]] = {}
        """The lines of jobs that are to go again and have not yet."""
        self._has_outcome = bytearray(len(jobs))
        self._counts = Counter({JobState.NOT_SENT: len(jobs)})
        self.results = ResultsFile(path, (self._line(*jobs[index]) for index in range(len(jobs))))

    async def begin(
        self, journal: DurableJournal, chosen: Collection[int], *, retry_failed: bool = False
    ) -> None:
        """Take in what the journal knows of the jobs; the others of those *chosen* are queued.

        So are those that were clearly refused, and with *retry_failed* all that failed or were refused.
        """
        stays = bytearray(len(self._states))
        async for intent in journal.iterate_intents():
            index = None if intent.ref is None else self._jobs.index_of(intent.ref)
            if index is not None:
                former = self._former.get(intent.ref or "", {})
                self._take_in(index, await with_end(journal, intent), former)
                stays[index] = not (intent.frees_its_ref or (retry_failed and intent.may_be_retried))
        self._former.clear()
        for index in chosen:
            if not stays[index]:
                self._queue(index)

    def _queue(self, index: int) -> None:
        if self._states[index] is not JobState.NOT_SENT:
            self._earlier[index] = self.results.line(index)
        self._set(index, JobState.QUEUED, {})

    def _take_in(self, index: int, intent: Intent, former: Mapping[str, Any]) -> None:
        """Take in what the journal says of a job, and what a *former* line says of the same state."""
        state, was = intent.job_state, former.get("outcome")
        # Without a task it is about the same create as long as the word for it is the same.
        is_same = was == state or bool(intent.task_id and was not in _ON_THE_WAY)
        if former.get("task_id") != intent.task_id or not is_same:
            former = {}
        if state is JobState.DONE and former.get("outcome") != JobState.DONE:
            state = JobState.NOT_SAVED
        fields = {"task_id": intent.task_id, "credits": intent.credits}
        if state is not JobState.NOT_SENT:
            fields["error"] = without_key(reason_of(intent))
        self._note_end(intent)
        self._set(index, state, {**fields, **former})

    def _note_end(self, intent: Intent) -> None:
        """Take in when a task ended if no run has seen that, or only the end of an earlier attempt."""
        _, known = self._ends.get(intent.ref or "", ("", ""))
        if (ended_at := ended_at_of(intent)) is not None and known < _iso_of(intent.planned_ms / 1000):
            self._ends[intent.ref or ""] = ("", _iso_of(ended_at))

    def end(self) -> None:
        """Take in that nothing more will be sent: what was to go again and did not stands as it stood."""
        for index, state in enumerate(self._states):
            if state in {JobState.QUEUED, JobState.SENDING}:
                earlier = self._earlier.get(index, {})
                self._set(index, JobState(earlier.get("outcome", JobState.NOT_SENT)), earlier)

    async def catch_up(self, journal: DurableJournal) -> None:
        """Take in what came to the journal, until the session was closed, of jobs without an outcome.

        Raises:
            JournalError: It cannot be read any more.
        """
        if not self.count(*_ON_THE_WAY):
            return
        async for intent in journal.iterate_intents():
            index = None if intent.ref is None else self._jobs.index_of(intent.ref)
            if index is None or self._states[index] not in {*_ON_THE_WAY} - {intent.job_state}:
                continue
            former = self._earlier.get(index) or self.results.line(index)
            self._take_in(index, await with_end(journal, intent), former)

    # --- counting ------------------------------------------------------------------------------

    def count(self, *states: JobState) -> int:
        """Return how many jobs are in one of these states."""
        return sum(self._counts[state] for state in states)

    def count_chosen(self, chosen: Iterable[int]) -> Counter[JobState]:
        """Return how many of some jobs are in each state."""
        return Counter(self._states[index] for index in chosen)

    def sums(self, began: float, totals: Totals | None) -> Sums:
        """Return the sums of all jobs, each in them once; *totals* is what the journal knows of all runs.

        *began* is when this run did, as unix time.
        """
        tally = Tally(began)
        for line in self.results.read_lines():
            tally.add(row_of_line(line, self._folder))
        return tally.sums(totals)

    # --- what becomes of a job -----------------------------------------------------------------

    def record_task(self, ref: str | None, task_id: str) -> None:
        """Record that a job has a task; without an id, that nobody knows whether it has one."""
        index = None if ref is None else self._jobs.index_of(ref)
        # An event may come after the outcome, which says more.
        if index is not None and not self._has_outcome[index]:
            state = JobState.RUNNING if task_id else JobState.PERHAPS_PAID
            if task_id or self._states[index] is not state:  # else a former run has noted why
                self._earlier.pop(index, None)
                self._set(index, state, {"task_id": task_id, "error": "" if task_id else _NO_ANSWER})

    def record_end(self, ref: str | None, source: str) -> None:
        """Record that a job's task was seen to end now, by a callback or by a poll."""
        if ref is not None and source:
            self._ends[ref] = (source, _iso(datetime.now(UTC)))

    def record_outcome(self, outcome: Outcome) -> tuple[int, JobState]:
        """Record the outcome of a job; return the line it stands in, and the state it ends in."""
        record = _record_of(outcome)
        self._has_outcome[outcome.index] = True
        self.ended += 1
        fields: dict[str, Any] = {"task_id": outcome.task_id, "files": [str(file) for file in outcome.files]}
        fields["saved_by"] = outcome.saved_by
        if record is not None:
            fields |= _record_fields(record)
            if record.completed_at is not None:  # if this run did not see it end, the service's word counts
                self._ends.setdefault(outcome.ref or "", ("", _iso(record.completed_at)))
        if outcome.error is not None:
            fields["error"] = without_key(plain_words(outcome.error))
        state = outcome.state
        if state is JobState.NOT_SENT and outcome.index in self._earlier:
            fields = self._earlier[outcome.index]
            state = JobState(fields["outcome"])
        return self._set(outcome.index, state, fields), outcome.state

    def _set(self, index: int, state: JobState, fields: dict[str, Any]) -> int:
        line, request = self._jobs[index]
        self.results.set_line(index, self._line(line, request) | fields | {"outcome": state, "line": line})
        self._counts[self._states[index]] -= 1
        self._counts[state] += 1
        self._states[index] = state
        return line

    def _line(self, line: int, request: TaskRequest) -> dict[str, Any]:
        source, ended_at = self._ends.get(request.ref or "", ("", ""))
        return {
            "ref": request.ref,
            "line": line,
            "model": request.model,
            "outcome": JobState.NOT_SENT,
            "task_id": "",
            "credits": None,
            "duration_s": None,
            "urls": [],
            "result_object": None,
            "files": [],
            "saved_by": "",
            "error": "",
            "told_by": source,
            "ended_at": ended_at,
            **describe_request(request, self._folder),
        }


def _iso_of(time: float) -> str:
    return _iso(datetime.fromtimestamp(time, UTC))


def _iso(time: datetime) -> str:
    return f"{time:%Y-%m-%dT%H:%M:%S.%fZ}"


def _read_former(path: Path) -> dict[str, dict[str, Any]]:
    """Return the lines that a former run left, by ref."""
    lines = {}
    with suppress(OSError):
        for line in read_lines(path):
            if isinstance(ref := line.get("ref"), str):
                lines[ref] = dict(line)
    return lines


def _record_of(outcome: Outcome) -> TaskRecord | None:
    if outcome.result is not None:
        return outcome.result.record
    return outcome.error.record if isinstance(outcome.error, TaskError) else None


def _record_fields(record: TaskRecord) -> dict[str, Any]:
    return {
        "credits": record.credits,
        "duration_s": record.duration_s,
        "urls": list(record.urls),
        "result_object": None if record.result_object is None else dict(record.result_object),
    }
