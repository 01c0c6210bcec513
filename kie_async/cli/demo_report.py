"""Records what became of each job of the demo, and sums them up in one line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import attrs

from ..inputs.kling import KlingAvatar
from ..models import JobState
from .output import format_number
from .report_data import describe_request

_OUTCOMES = {
    "planned": JobState.NOT_SENT,
    "refused": JobState.REFUSED,
    "fail": JobState.FAILED,
    "success": JobState.NOT_SAVED,
}
"""Of a job without a file."""


@attrs.define(kw_only=True, eq=False)
class Job:
    """One video of the demo."""

    number: int
    prompt: str = "a warm smile"
    state: str = "planned"
    created_at: float | None = None
    """Seconds on the loop's clock, as the next."""
    settled_at: float | None = None
    ended_at: datetime | None = None
    """The same on the calendar."""
    task_id: str = ""
    source: str = ""
    """What brought its end first: ``callback`` or ``poll``."""
    credits: float | None = None
    file: Path | None = None
    """Set once the video is on disk."""
    error: str = ""

    @property
    def ref(self) -> str:
        """Return the key under which the session's events name this job."""
        return f"job-{self.number}"

    @property
    def file_name(self) -> str:
        """Return what its video is named, without the ending: ``03-surprised-and-delighted``."""
        return f"{self.number:02}-{'-'.join(self.prompt.replace(',', '').split())}"

    @property
    def seconds(self) -> float | None:
        """Return how long the task took as seen from here: from its id to its outcome."""
        if self.created_at is None or self.settled_at is None:
            return None
        return self.settled_at - self.created_at

    @property
    def is_over(self) -> bool:
        """Return whether nothing more will come of it."""
        return self.file is not None or bool(self.error)

    @property
    def outcome(self) -> JobState:
        """Return how it ended, in the words of a report."""
        if self.file is not None:
            return JobState.DONE
        return _OUTCOMES.get(self.state, JobState.RUNNING)

    def results_line(self, avatar: KlingAvatar, folder: Path) -> dict[str, Any]:
        """Return its line in a results file in *folder*, as a batch writes it; *avatar* is what all share."""
        request = avatar.as_request()
        return {
            "ref": self.ref,
            "line": self.number,
            "model": request.model,
            "outcome": self.outcome.value,
            "task_id": self.task_id,
            "credits": self.credits,
            "duration_s": None if self.seconds is None else round(self.seconds, 3),
            "files": [str(self.file)] if self.file else [],
            "error": self.error,
            "told_by": self.source,
            "ended_at": "" if self.ended_at is None else self.ended_at.isoformat(),
            **describe_request(request, folder),
            "prompt": self.prompt,
        }


@attrs.frozen(kw_only=True)
class Report:
    """The whole demo, when it is over."""

    jobs: Sequence[Job]
    elapsed_s: float
    refusals: int
    """Answers of the service that said: too many requests."""
    folder: Path

    @property
    def saved(self) -> int:
        """Return how many videos are on disk."""
        return sum(job.file is not None for job in self.jobs)

    @property
    def is_complete(self) -> bool:
        """Return whether every job ended in a video."""
        return self.saved == len(self.jobs)

    def summary(self) -> str:
        """Return all of it in one line."""
        by = Counter(job.source for job in self.jobs)
        price = sum(job.credits or 0.0 for job in self.jobs)
        return (
            f"{self.saved} of {len(self.jobs)} videos in {self.elapsed_s:.1f} s: "
            f"{by['callback']} told by callback, {by['poll']} by poll; {format_number(price)} credits; "
            f"{self.refusals} answers 429; files in {self.folder}"
        )
