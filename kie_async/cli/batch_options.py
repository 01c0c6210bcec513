"""What the command line chooses of a batch, and the names it takes where none are given."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

import attrs

from ..config import Budget
from ..journal.base import Journal
from .jobs_file import Jobs
from .journal_place import JournalPlace
from .report_data import RESULTS_NAME
from .runtime import CannotRun
from .sessions import SessionOptions

_FORMER_FOLDER = Path("kie-batch")
"""Where results went, whatever the name of the jobs file was."""


@attrs.frozen(kw_only=True)
class BatchOptions:
    """What the command line chooses."""

    jobs: Path
    journal: JournalPlace
    out: Path
    results: Path
    max_in_flight: int
    budget: Budget | None
    max_failures_in_a_row: int | None
    give_up_after_s: float
    grace_s: float
    callback_url: str | None
    port: int
    account: str | None
    only: frozenset[str]
    limit: int | None
    skip_changed: bool
    as_it_stands: bool
    retry_failed: bool
    name: str
    """How files are named."""
    ask_above: float
    """The credits above which a terminal is asked."""
    is_confirmed: bool = False
    is_dry_run: bool = False
    is_quiet: bool = False
    on_done: str | None = None

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

    def session(self, journal: Journal | None) -> SessionOptions:
        """Return what it chooses of the session."""
        return SessionOptions(
            journal=journal,
            callback_url=self.callback_url,
            port=self.port,
            account=self.account,
            max_in_flight=self.max_in_flight,
            budget=self.budget,
        )


def default_journal(jobs: Path) -> Path:
    """Return the journal of a jobs file: its name with ``.db`` behind it."""
    return jobs.with_name(f"{jobs.name}.db")


def default_folder(jobs: Path) -> Path:
    """Return where the results of a jobs file go: a folder of its own, or the one that it used before."""
    own = Path(f"{jobs.stem}-results")
    was_used = os.path.exists(default_journal(jobs)) and os.path.exists(_FORMER_FOLDER / RESULTS_NAME)
    return _FORMER_FOLDER if was_used and not os.path.exists(own) else own
