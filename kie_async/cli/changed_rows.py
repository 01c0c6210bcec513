"""Finds the rows of a jobs file whose ref was used before for something else, before anything is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import attrs

from ..inputs.fingerprint import changed_fields, fingerprint, is_same
from ..journal.base import Journal
from .jobs_file import Jobs
from .runtime import FIELD_WORDS, PAYS_AGAIN


@attrs.frozen
class ChangedRow:
    """A row whose ref stands for another request in the journal."""

    index: int
    line: int
    ref: str
    fields: Sequence[str]
    """What changed, as far as the journal can tell."""

    def __str__(self) -> str:
        names = [f"another {FIELD_WORDS.get(field, field)}" for field in self.fields]
        what = " and ".join(names) or "other content"
        return f"line {self.line}, ref {self.ref}: made before from {what}; {PAYS_AGAIN}"


async def list_changed(
    journal: Journal, jobs: Jobs, chosen: Iterable[int], *, retry_failed: bool = False
) -> list[ChangedRow]:
    """Return the chosen rows that the journal knows from other content.

    With *retry_failed* those that failed or were refused are none: they are made anew.

    Raises:
        JournalError: It cannot be read.
        InvalidRequest: A file of a row cannot be read any more.
    """
    changed = []
    for index in chosen:
        line, request = jobs[index]
        ref = request.ref or ""
        intent = await journal.find_by_ref(ref)
        if intent is None or (retry_failed and intent.may_be_retried):
            continue
        given = await asyncio.to_thread(fingerprint, request)
        if not is_same(intent.fingerprint, given):
            changed.append(ChangedRow(index, line, ref, changed_fields(intent.fingerprint, given)))
    return changed
