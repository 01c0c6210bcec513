"""Audits a batch at a stop: results file, journal and sandbox must say the same of every job and credit."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs

from kie_async import JobState, SqliteJournal
from kie_async.journal.intents import Intent, IntentState
from kie_async.sandbox import Sandbox

_WITH_RESULT = {JobState.DONE, JobState.NOT_SAVED}
_ON_THE_WAY = {JobState.QUEUED, JobState.SENDING}
_MAY_HAVE_A_TASK = {IntentState.SENDING, IntentState.UNKNOWN, IntentState.WRITTEN_OFF}
_ENDS = {IntentState.SUCCEEDED: "success", IntentState.FAILED: "fail"}
_COUNTS = re.compile(r"(\d+) jobs?: (\d+ [a-z, ]+(?:; \d+ [a-z, ]+)*)$", re.MULTILINE)
_SPENT = re.compile(r"this run ([\d.,]+) credits \(.*\); all runs ([\d.,]+) credits \(")
_DATA = re.compile(r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', re.DOTALL)
_NEVER_SAID = ("Traceback (most", "Exception ignored", "never retrieved", "Warning:")
_CREDIT = 0.005
"""Sums are printed in so many digits."""


@attrs.frozen(kw_only=True)
class Evening:
    """Where a batch runs, and the service that it runs against."""

    folder: Path
    refs: Sequence[str]
    sandbox: Sandbox
    credits: float
    """What the account had at the beginning."""

    @property
    def journal(self) -> Path:
        return self.folder / "jobs.csv.db"

    @property
    def out(self) -> Path:
        return self.folder / "videos"


@attrs.frozen(kw_only=True)
class Books:
    """What is written down at one stop."""

    rows: Sequence[dict[str, Any]]
    intents: Sequence[Intent]

    @classmethod
    async def read(cls, evening: Evening) -> Books:
        """Read the results file and the journal as they were left."""
        results, journal = evening.out / "results.jsonl", SqliteJournal(evening.journal)
        rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
        if not evening.journal.exists():
            return cls(rows=rows, intents=[])
        await journal.open_to_read()
        try:
            return cls(rows=rows, intents=[intent async for intent in journal.iterate_intents()])
        finally:
            await journal.aclose()

    @property
    def states(self) -> Counter[str]:
        return Counter(row["outcome"] for row in self.rows)

    @property
    def credits(self) -> float:
        """What the settled tasks took, as the journal has it."""
        return sum(intent.credits or 0.0 for intent in self.intents if intent.has_ended)


def audit_files(evening: Evening, books: Books) -> Iterator[str]:
    """Hold the results file against jobs and service: also as a kill left it."""
    if books.rows and [row["ref"] for row in books.rows] != list(evening.refs):
        yield f"the results have {len(books.rows)} rows, or other refs, for {len(evening.refs)} jobs"
    if strange := books.states.keys() - set(JobState):
        yield f"the results have the states {sorted(strange)}"
    for row in books.rows:
        task = evening.sandbox.tasks.get(row["task_id"])
        ended = task.end_state if task and task.input["prompt"] == row["ref"] else None
        if row["outcome"] in _WITH_RESULT and ended != "success":
            yield f"{row['ref']} is {row['outcome']}, its task {row['task_id'] or 'none'} {ended}"
        if row["outcome"] == JobState.FAILED and ended != "fail":
            yield f"{row['ref']} is failed, its task {row['task_id'] or 'none'} {ended}"
        files = [evening.folder / name for name in row["files"]]
        if row["outcome"] == JobState.DONE and not (files and all(map(_has_content, files))):
            yield f"{row['ref']} is done, its files {row['files']}"


def _has_content(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def audit_attempts(evening: Evening, books: Books) -> Iterator[str]:
    """Hold the journal against the service: each attempt is one task at most, and each task an attempt's."""
    tasks, bound = evening.sandbox.tasks, {intent.task_id for intent in books.intents if intent.task_id}
    open_refs = Counter(intent.ref for intent in books.intents if intent.state in _MAY_HAVE_A_TASK)
    if foreign := bound - tasks.keys():
        yield f"the service has no tasks {sorted(foreign)}"
    unbound = Counter(task.input["prompt"] for task_id, task in tasks.items() if task_id not in bound)
    spare = open_refs[None]  # an attempt that was sent again lost its ref to its successor
    for ref, count in unbound.items():
        spare -= max(0, count - open_refs[ref])
    if spare < 0:
        yield f"the service has tasks that no attempt can be: {unbound - open_refs}"
    for intent in books.intents:
        task = tasks.get(intent.task_id)
        if task is None:
            continue
        if intent.ref is not None and task.input["prompt"] != intent.ref:
            yield f"{intent.ref} is bound to the task of {task.input['prompt']}"
        if intent.has_ended and (task.end_state, task.credits) != (_ENDS[intent.state], intent.credits):
            ended = f"{task.end_state} for {task.credits}"
            yield f"{intent.ref} {intent.state} for {intent.credits}, its task {ended}"
    spent = sum(task.credits for task in tasks.values())
    if abs(evening.credits - evening.sandbox.balance - spent) > _CREDIT:
        yield f"the sandbox itself took {evening.credits - evening.sandbox.balance} for {spent}"


def audit_words(evening: Evening, books: Books, out: str, spent_before: float) -> Iterator[str]:
    """Hold what a run that came to its end has printed against the books."""
    if on_the_way := _ON_THE_WAY & books.states.keys():
        yield f"nothing runs, and jobs are {sorted(on_the_way)}"
    by_ref = defaultdict(list)
    for intent in books.intents:
        by_ref[intent.ref].append(intent)
    for row in books.rows:
        known = {_plain(intent) for intent in by_ref[row["ref"]]} or {JobState.NOT_SENT}
        said = JobState.DONE if row["outcome"] == JobState.NOT_SAVED else row["outcome"]
        if said not in known:
            yield f"{row['ref']} is {row['outcome']}, in the journal {sorted(known)}"
    if not (counts := _COUNTS.match(out)):
        yield f"the sums are not the first line: {out[:200]!r}"
        return
    parts = (part.split(" ", 1) for part in counts[2].split("; "))
    shown = Counter({state: int(count) for count, state in parts})
    if shown != books.states or not shown.total() == int(counts[1]) == len(evening.refs):
        yield f"it says {counts[0]!r}, the results have {dict(books.states)}"
    if not (spent := _SPENT.search(out)):
        yield f"it does not say what was spent: {out[:300]!r}"
    elif abs(_number(spent[2]) - books.credits) > _CREDIT:
        yield f"all runs took {books.credits} credits, it says {spent[2]}"
    elif abs(_number(spent[1]) - (books.credits - spent_before)) > _CREDIT:
        yield f"this run took {books.credits - spent_before} credits, it says {spent[1]}"


def _plain(intent: Intent) -> JobState:
    """Return the state of a row whose last attempt this is."""
    return JobState.NOT_SENT if intent.state is IntentState.NOT_CREATED else intent.job_state


def _number(text: str) -> float:
    return float(text.replace(",", ""))


def audit_errors(err: str, *, was_full: bool) -> Iterator[str]:
    """Look for what no operator should have to read."""
    for words in _NEVER_SAID:
        if words in err:
            yield f"standard error has {words!r}: {err[err.index(words) :][:600]}"
    full = [line for line in err.splitlines() if "No space left" in line]
    if was_full and len(full) > 2:  # folder and results file
        yield f"the full disk is said {len(full)} times: {full[:6]}"


def audit_morning(evening: Evening, books: Books) -> Iterator[str]:
    """Check that every job is done or has a named end, and that page and table show them all."""
    count = len(evening.refs)
    if open_states := books.states.keys() - {JobState.DONE, JobState.REFUSED, JobState.FAILED}:
        yield f"not at their end: { ({state: books.states[state] for state in open_states}) }"
    for row in books.rows:
        if row["outcome"] != JobState.DONE and not row["error"]:
            yield f"{row['ref']} is {row['outcome']}, and nothing says why"
    files = [name for row in books.rows for name in row["files"]]
    if len(set(files)) != len(files):
        yield "rows share files"
    page = (evening.out / "report.html").read_text()
    shown = json.loads(found[1])["rows"] if (found := _DATA.search(page)) else []
    videos = [file for row in shown for file in row.get("files", ()) if not file.get("missing")]
    if len(shown) != count or len(videos) != books.states[JobState.DONE]:
        yield f"report.html has {len(shown)} jobs and {len(videos)} videos"
    with (evening.out / "results.csv").open(encoding="utf-8-sig", newline="") as table:
        if (lines := sum(1 for _ in csv.DictReader(table))) != count:
            yield f"results.csv has {lines} rows"
