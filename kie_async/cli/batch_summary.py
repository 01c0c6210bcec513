"""Says in words and in variables how a batch ended."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from ..models import JobState
from .output import count_of, format_number, format_spent, print_err
from .report_sums import Sums

_VARIABLES = {
    JobState.DONE: "DONE",
    JobState.NOT_SAVED: "NOT_SAVED",
    JobState.FAILED: "FAILED",
    JobState.REFUSED: "REFUSED",
    JobState.PERHAPS_PAID: "PERHAPS_PAID",
    JobState.RUNNING: "RUNNING",
    JobState.NOT_SENT: "NOT_SENT",
}


def show_summary(sums: Sums) -> str:
    """Return the states, which add up to the number of jobs, and what was spent."""
    states = "; ".join(f"{count} {state}" for state, count in sums.states.items())
    return (
        f"{count_of(sums.total, 'job')}: {states}\n"
        f"this run {format_spent(sums.run_credits)}; all runs {format_spent(sums.all_credits)}"
    )


def run_on_done(command: str, summary: str, sums: Sums, status: int, page: Path) -> None:
    """Run the user's command with the sums in its environment, and wait for it; say so if it fails."""
    variables = {
        "STATUS": status,
        "JOBS": sums.total,
        **{name: sums.states.get(state, 0) for state, name in _VARIABLES.items()},
        "CREDITS": format_number(sums.run_credits),
        "ALL_CREDITS": format_number(sums.all_credits),
        "REPORT": page,
        "SUMMARY": summary,
    }
    added = {f"KIE_BATCH_{name}": str(value) for name, value in variables.items()}
    # A shell on purpose: the command is the user's own, such as `notify-send "$KIE_BATCH_SUMMARY"`.
    ended = subprocess.run(command, shell=True, check=False, env=os.environ | added)  # noqa: S602
    if ended.returncode:
        print_err(f"--on-done ended with {ended.returncode}: {command}")
