"""What is known of each job of a batch: counts for people, a line of the results file for programs."""

from __future__ import annotations

from collections import Counter
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
from .demo_report import number
from .jobs_file import Jobs
from .results_file import ResultsFile
from .runtime import without_key

Kind = Literal["pending", "running", "done", "failed", "unknown"]
"""Pending jobs were not sent, or not looked at in this run; running ones exist at the service, paid."""

_PENDING = (BatchStopped, BudgetExceeded, CreatesHalted)

_RUNNING = (TaskTimedOut, TaskDetached, TaskAbandoned)


class Books:
    """Keeps count of the jobs, and keeps their lines in the results file."""

    def __init__(self, jobs: Jobs, path: Path) -> None:
        self.credits = 0.0
        self.total = len(jobs)
        self.over = 0
        """Jobs of which this run has an outcome."""
        self.results = ResultsFile(path, (_facts(line, job, "pending") for line, job in jobs))
        self._jobs = jobs
        self._kinds: list[Kind] = ["pending"] * len(jobs)
        self._is_over = bytearray(len(jobs))
        self._counts: Counter[Kind] = Counter({"pending": len(jobs)})

    def __getitem__(self, kind: Kind) -> int:
        return self._counts[kind]

    def words(self) -> str:
        """Return the counts in words."""
        shown = ", ".join(f"{self[kind]} {kind}" for kind in ("done", "failed", "unknown", "running"))
        return f"{shown}, {number(self.credits)} credits"

    def note_task(self, ref: str | None, task_id: str) -> None:
        """Note that a job has a task; without an id, that nobody knows whether it has one."""
        index = None if ref is None else self._jobs.index_of(ref)
        if index is not None and not self._is_over[index]:
            self._put(index, "running" if task_id else "unknown", {"task_id": task_id})

    def note(self, outcome: Outcome) -> tuple[int, Kind]:
        """Note the outcome of a job; return the line it stands in, and what kind of outcome it is."""
        kind = kind_of(outcome.error)
        record = _record_of(outcome)
        self._is_over[outcome.index] = True
        self.over += 1
        self.credits += (record.credits or 0.0) if record else 0.0
        facts: dict[str, Any] = {"task_id": outcome.task_id, "files": [str(file) for file in outcome.files]}
        if record is not None:
            facts |= {
                "credits": record.credits,
                "duration_s": record.duration_s,
                "urls": list(record.urls),
                "result_object": None if record.result_object is None else dict(record.result_object),
            }
        if outcome.error is not None:
            facts["error"] = without_key(str(outcome.error))
        return self._put(outcome.index, kind, facts), kind

    def _put(self, index: int, kind: Kind, facts: dict[str, Any]) -> int:
        line, request = self._jobs[index]
        self.results.put(index, _facts(line, request, kind) | facts)
        self._counts[self._kinds[index]] -= 1
        self._counts[kind] += 1
        self._kinds[index] = kind
        return line


def kind_of(error: KieError | None) -> Kind:
    """Return what an outcome with this error says of its job."""
    if error is None:
        return "done"
    if isinstance(error, CreateOutcomeUnknown):
        return "unknown"
    if isinstance(error, _PENDING):
        return "pending"
    return "running" if isinstance(error, _RUNNING) else "failed"


def _record_of(outcome: Outcome) -> TaskRecord | None:
    if outcome.result is not None:
        return outcome.result.record
    return outcome.error.record if isinstance(outcome.error, TaskError) else None


def _facts(line: int, request: TaskRequest, kind: Kind) -> dict[str, Any]:
    return {
        "ref": request.ref,
        "line": line,
        "model": request.model,
        "outcome": kind,
        "task_id": "",
        "credits": None,
        "duration_s": None,
        "urls": [],
        "result_object": None,
        "files": [],
        "error": "",
    }
