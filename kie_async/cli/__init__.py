"""Runs ``kie-async``, or says how to install the libraries it needs: the ``cli`` extra."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer

_NEEDS_EXTRA = "the command line needs: pip install 'kie_async[cli]'"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit status.

    Raises:
        SystemExit: Always; 0 done, 1 failed, 2 asked wrongly, 130 interrupted.
    """
    _fill_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        # What the service says may not fit the terminal's alphabet; that must not end a paid wait.
        getattr(stream, "reconfigure", dict)(errors="backslashreplace")
    try:
        _load()(args=arguments, prog_name="kie-async")
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as exc:  # a full disk, a path too long: a traceback would help nobody
        sys.stderr.write(f"error: {exc}\n")
        sys.exit(1)


def _fill_closed_streams() -> None:
    """Put the null device where a standard stream is closed: the next file opened would get its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            setattr(sys, name, open(number, "r" if name == "stdin" else "w", closefd=False))  # noqa: SIM115


def _load() -> typer.Typer:
    try:
        # Not at the top: typer and rich come with the extra, and this must be importable without.
        from .app import app
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] not in {"typer", "rich"}:
            raise
        sys.stderr.write(f"{_NEEDS_EXTRA}\n")
        sys.exit(2)
    return app
