"""How a command ends: its exit status, and one line that says why."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import typer

from ..errors import AuthenticationError, CreateOutcomeUnknown, InvalidRequest, KieError, TaskError
from ..sandbox.serving import fast_loop

DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130

_SHORTEST_KEY = 8
"""A shorter one is a test's, and hiding it would garble words."""


class CannotRun(Exception):
    """What was asked for cannot be done here; nothing was sent."""


def conduct(work: Coroutine[Any, Any, int]) -> None:
    """Run *work* to its end and leave with the exit status it returns, or with that of its error.

    Raises:
        Exit: Always.
    """
    raise typer.Exit(_status_of(work))


def _status_of(work: Coroutine[Any, Any, int]) -> int:
    try:
        with asyncio.Runner(loop_factory=fast_loop()) as runner:
            return runner.run(_interruptible(work))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return INTERRUPTED
    except (CannotRun, InvalidRequest) as exc:
        say(f"error: {exc}")
        return WRONG
    except KieError as exc:
        say(f"error: {explain(exc)}")
        return FAILED


async def _interruptible(work: Coroutine[Any, Any, int]) -> int:
    """Await *work*, which every Ctrl-C cancels; the runner's would break off the closing at the second."""
    running = asyncio.ensure_future(work)
    with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # Windows, or a thread
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, running.cancel)
    return await running


def explain(error: KieError) -> str:
    """Return what went wrong and, where there is something, what to do now."""
    match error:
        case CreateOutcomeUnknown():
            return f"money may have been spent: {error}; look at https://kie.ai/logs before you try again"
        case AuthenticationError():
            return f"{error}; check KIE_API_KEY"
        case TaskError(record=record) if record is None or not record.state.is_terminal:
            return f"{error}; later: {how_to_get(error.task_id)}"
    return str(error)


def how_to_get(task_id: str) -> str:
    """Return the command that waits for a task again."""
    return f"kie-async status {task_id} --wait"


def say(line: str) -> None:
    """Write one line to standard error, whatever it holds, but never the key."""
    sys.stderr.write(f"{without_key(' '.join(line.split()))}\n")
    sys.stderr.flush()


def without_key(text: str) -> str:
    """Return *text* without the API key, should the service have echoed it."""
    key = os.environ.get("KIE_API_KEY", "").strip()
    return text.replace(key, "***") if len(key) >= _SHORTEST_KEY else text


def require_key() -> None:
    """Check that there is an API key.

    Raises:
        CannotRun: There is none.
    """
    if not os.environ.get("KIE_API_KEY", "").strip():
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
    if not os.access(folder, os.W_OK):
        raise CannotRun(f"cannot write to the folder {folder}")


def keep_log(*, verbose: bool) -> None:
    """Let the package's log speak on standard error: errors only, or all it has to say."""
    logging.basicConfig(format="%(name)s: %(message)s", level=logging.ERROR)
    logging.getLogger("kie_async").setLevel(logging.DEBUG if verbose else logging.ERROR)
