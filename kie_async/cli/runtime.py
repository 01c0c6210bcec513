"""Runs a command's coroutine, turns its end into an exit status and one line, and checks what it needs."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import shlex
import signal
import sys
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any

import typer

from .._validation import read_environment
from ..batch import STOP_WAS_CALLED
from ..errors import (
    AuthenticationError,
    BatchStopped,
    CreateOutcomeUnknown,
    InvalidRequest,
    KieError,
    RefConflict,
    TaskError,
    TaskFailed,
)
from ..files.part_file import try_to_write
from ..sandbox.serving import fast_loop
from .journal_place import JournalPlace
from .output import LogFormatter, print_err

DONE, FAILED, ASKED_WRONGLY, INTERRUPTED = 0, 1, 2, 130

FIELD_WORDS = {"image_url": "portrait", "audio_url": "voice"}
"""What people call the fields of an avatar."""


PAYS_AGAIN = "a new ref makes and pays it again"


class CannotRun(Exception):
    """What was asked for cannot be done here; nothing was sent."""


def run_command(work: Coroutine[Any, Any, int], *, journal: JournalPlace | None = None) -> None:
    """Run *work* to its end and leave with the exit status it returns, or with that of its error.

    *journal* is the one in use, for what an error says.

    Raises:
        Exit: Always.
    """
    raise typer.Exit(_status_of(work, journal))


def _status_of(work: Coroutine[Any, Any, int], journal: JournalPlace | None) -> int:
    try:
        with asyncio.Runner(loop_factory=fast_loop()) as runner:
            return runner.run(_interruptible(work))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return INTERRUPTED
    except CannotRun as exc:
        print_err(f"error: {exc}")
        return ASKED_WRONGLY
    except InvalidRequest as exc:
        print_err(f"error: {plain_words(exc)}")
        return ASKED_WRONGLY
    except KieError as exc:
        print_err(f"error: {explain(exc, journal)}")
        return FAILED


async def _interruptible(work: Coroutine[Any, Any, int]) -> int:
    """Await *work*, which every Ctrl-C cancels."""
    # The runner's own handler would raise at the second Ctrl-C, in the middle of closing the session.
    running = asyncio.ensure_future(work)
    with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # Windows, or a thread
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, running.cancel)
    return await running


def explain(error: KieError, journal: JournalPlace | None = None) -> str:
    """Return what went wrong and, where there is something, what to do now; *journal* is the one in use."""
    match error:
        case CreateOutcomeUnknown():
            decide = f", then: {decide_command(error, journal)}" if journal else " before you try again"
            return f"money may have been spent: {plain_words(error)}; look at https://kie.ai/logs{decide}"
        case TaskError(record=record) if record is None or not record.state.is_terminal:
            return f"{error}; later: {wait_command(error.task_id)}"
    return plain_words(error)


def plain_words(error: KieError) -> str:
    """Return what went wrong in the words of the command line, which are not for those who write Python."""
    match error:
        case RefConflict():
            names = [FIELD_WORDS.get(field, field) for field in error.changed]
            what = f" (its {', '.join(names)} changed)" if names else ""
            return f"row {error.ref!r} was made before from other content{what}; {PAYS_AGAIN}"
        case AuthenticationError():
            return f"the key was refused ({error.code}); check KIE_API_KEY"
        case CreateOutcomeUnknown():
            named = f"; the answer named task {error.candidate_task_id}" if error.candidate_task_id else ""
            return f"no answer proved what a create became ({error.reason}{named}); intent {error.intent_id}"
        case TaskFailed():
            return str(TaskFailed(error.task_id, error.record, error.intent_id))
        case BatchStopped(reason=reason) if reason == STOP_WAS_CALLED:
            return str(BatchStopped("it was interrupted"))
    return str(error)


def decide_command(error: CreateOutcomeUnknown, journal: JournalPlace) -> str:
    """Return the command that says which task a create became, and its two neighbours."""
    name = shlex.quote(error.ref or error.intent_id)
    return (
        f"kie-async journal resolve {shlex.quote(str(journal))} {name} {error.candidate_task_id or 'TASK_ID'}"
        " (or write-off, or resubmit)"
    )


def spell_command(context: typer.Context, *more: str) -> str:
    """Return the command as it was given, its arguments before its options, and *more* options behind it."""
    words = [*context.command_path.split()]
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is None or source.name != "COMMANDLINE":
            continue
        option = [parameter.opts[0]] if parameter.opts[0].startswith("-") else []
        value = context.params[parameter.name or ""]
        for each in value if isinstance(value, list) else [value]:
            words += option if each is True else [*option, str(each)]
    return shlex.join([*words, *(option for option in more if option not in words)])


def wait_command(task_id: str, out: Path | None = None) -> str:
    """Return the command that waits for a task again, and fetches its results into *out*."""
    fetch = "" if out is None else f" --out {shlex.quote(str(out))}"
    return f"kie-async status {task_id} --wait{fetch}"


def require_key() -> None:
    """Check that there is an API key.

    Raises:
        CannotRun: There is none.
    """
    if not read_environment("KIE_API_KEY"):
        raise CannotRun("no API key: set KIE_API_KEY to a key from https://kie.ai/api-key")


def require_renderer() -> None:
    """Check that films can be made.

    Raises:
        CannotRun: PyAV is not installed.
    """
    if importlib.util.find_spec("av") is None:
        raise CannotRun("rendering videos needs PyAV: pip install 'kie_async[sandbox]'")


def require_folder(folder: Path) -> None:
    """Make *folder* if need be: better now than after a task was paid for.

    Raises:
        CannotRun: It cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise CannotRun(f"cannot make the folder {folder}: {exc.strerror}") from None
    try:
        try_to_write(folder)
    except OSError as exc:
        raise CannotRun(f"cannot write to the folder {folder}: {exc.strerror}") from None


_SHOWN_LEVELS = {
    # What is said of files beforehand saves a task that would fail.
    "kie_async.uploads": logging.WARNING,
    # Whoever sees nothing happen for an hour must know why, and when it is over.
    "kie_async.weather": logging.INFO,
}
"""What standard error shows of the log without being asked; of all else, errors."""


class _StderrHandler(logging.Handler):
    """Writes to what standard error is at that time: a board puts itself in its place."""

    def __init__(self, *, shows_all: bool) -> None:
        super().__init__()
        self._shows_all = shows_all
        self.setFormatter(LogFormatter("%(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, if it is to be shown."""
        is_worth_it = record.levelno >= _SHOWN_LEVELS.get(record.name, logging.ERROR)
        # What goes on for an hour is said when it begins and when it is over, and shown in between.
        if not self._shows_all and (not is_worth_it or getattr(record, "is_repeated", False)):
            return
        try:
            sys.stderr.write(f"{self.format(record)}\n")
        except (OSError, ValueError):
            self.handleError(record)


def configure_log(*, verbose: bool) -> None:
    """Send the package's log to standard error: errors, files and what is waited for, or all of it."""
    logging.basicConfig(handlers=[_StderrHandler(shows_all=verbose)], level=logging.ERROR)
    _set_levels(dict.fromkeys(_SHOWN_LEVELS, logging.DEBUG) if verbose else _SHOWN_LEVELS, verbose=verbose)


def open_log_file(path: Path) -> None:
    """Write all of the package's log into a file too, with times.

    Raises:
        BadParameter: It cannot be written.
    """
    try:
        handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    except OSError as exc:
        reason = f"cannot write {path}: {exc.strerror}"
        raise typer.BadParameter(reason, param_hint="--log-file") from None
    handler.setFormatter(LogFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger("kie_async").addHandler(handler)
    _set_levels(dict.fromkeys(_SHOWN_LEVELS, logging.DEBUG), verbose=True)


def _set_levels(levels: Mapping[str, int], *, verbose: bool) -> None:
    logging.getLogger("kie_async").setLevel(logging.DEBUG if verbose else logging.ERROR)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
