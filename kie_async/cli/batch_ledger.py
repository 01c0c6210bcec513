"""Counts how the jobs of a batch stand, and writes what became of each into the results file."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from ..batch import Outcome
from ..errors import (
    BatchStopped,
    BudgetExceeded,
    CreateOutcomeUnknown,
    CreatesHalted,
    KieError,
    TaskAbandoned,
    TaskDetached,
    TaskError,
    TaskTimedOut,
)
from ..inputs.request import TaskRequest
from ..models import TaskRecord
from .jobs_file import Jobs
from .output import format_number, without_key
from .report_data import describe_request, read_lines
from .results_file import ResultsFile

JobState = Literal["pending", "running", "done", "failed", "unknown"]
"""Pending jobs were not sent, or not reached in this run; running ones exist at the service, paid."""

_NOT_SENT_ERRORS = (BatchStopped, BudgetExceeded, CreatesHalted)

_STILL_RUNNING_ERRORS = (TaskTimedOut, TaskDetached, TaskAbandoned)


class BatchLedger:
    """Keeps the state of every job, their counts, and their lines in the results file."""

    def __init__(self, jobs: Jobs, path: Path) -> None:
        self.credits = 0.0
        self.total = len(jobs)
        self.ended = 0
        """Jobs of which this run has an outcome."""
        self._jobs = jobs
        self._folder = path.parent
        self._ends = _read_ends(path)
        self.results = ResultsFile(path, (self._line(line, job, "pending") for line, job in jobs))
        self._states: list[JobState] = ["pending"] * len(jobs)
        self._has_outcome = bytearray(len(jobs))
        self._counts: Counter[JobState] = Counter({"pending": len(jobs)})

    def count(self, state: JobState) -> int:
        """Return how many jobs are in this state."""
        return self._counts[state]

    def summary(self) -> str:
        """Return the counts and the credits in words."""
        counts = ", ".join(
            f"{self.count(state)} {state}" for state in ("done", "failed", "unknown", "running")
        )
        return f"{counts}, {format_number(self.credits)} credits"

    def record_task(self, ref: str | None, task_id: str) -> None:
        """Record that a job has a task; without an id, that nobody knows whether it has one."""
        index = None if ref is None else self._jobs.index_of(ref)
        # An event may come after the outcome, which says more.
        if index is not None and not self._has_outcome[index]:
            self._set(index, "running" if task_id else "unknown", {"task_id": task_id})

    def record_end(self, ref: str | None, source: str) -> None:
        """Record that a job's task was seen to end now, by a callback or by a poll."""
        if ref is not None and source:
            self._ends[ref] = (source, _iso(datetime.now(UTC)))

    def record_outcome(self, outcome: Outcome) -> tuple[int, JobState]:
        """Record the outcome of a job; return the line it stands in, and the state it ends in."""
        state = state_after(outcome.error)
        record = _record_of(outcome)
        self._has_outcome[outcome.index] = True
        self.ended += 1
        self.credits += (record.credits or 0.0) if record else 0.0
        fields: dict[str, Any] = {"task_id": outcome.task_id, "files": [str(file) for file in outcome.files]}
        if record is not None:
            fields |= _record_fields(record)
            if record.completed_at is not None:  # if this run did not see it end, the service's word counts
                self._ends.setdefault(outcome.ref or "", ("", _iso(record.completed_at)))
        if outcome.error is not None:
            fields["error"] = without_key(str(outcome.error))
        return self._set(outcome.index, state, fields), state

    def _set(self, index: int, state: JobState, fields: dict[str, Any]) -> int:
        line, request = self._jobs[index]
        self.results.set_line(index, self._line(line, request, state) | fields)
        self._counts[self._states[index]] -= 1
        self._counts[state] += 1
        self._states[index] = state
        return line

    def _line(self, line: int, request: TaskRequest, state: JobState) -> dict[str, Any]:
        source, ended_at = self._ends.get(request.ref or "", ("", ""))
        return {
            "ref": request.ref,
            "line": line,
            "model": request.model,
            "outcome": state,
            "task_id": "",
            "credits": None,
            "duration_s": None,
            "urls": [],
            "result_object": None,
            "files": [],
            "error": "",
            "told_by": source,
            "ended_at": ended_at,
            **describe_request(request, self._folder),
        }


def _iso(time: datetime) -> str:
    return f"{time:%Y-%m-%dT%H:%M:%S.%fZ}"


def _read_ends(path: Path) -> dict[str, tuple[str, str]]:
    """Return what told of the ends that former runs saw, and when, by ref: no journal knows that."""
    ends = {}
    with suppress(OSError):
        for line in read_lines(path):
            ref, source, ended_at = line.get("ref"), line.get("told_by"), line.get("ended_at")
            if isinstance(ref, str) and isinstance(source, str) and isinstance(ended_at, str) and ended_at:
                ends[ref] = (source, ended_at)
    return ends


def state_after(error: KieError | None) -> JobState:
    """Return the state of a job whose outcome has this error."""
    if error is None:
        return "done"
    if isinstance(error, CreateOutcomeUnknown):
        return "unknown"
    if isinstance(error, _NOT_SENT_ERRORS):
        return "pending"
    return "running" if isinstance(error, _STILL_RUNNING_ERRORS) else "failed"


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
