"""``kie-async status`` and ``credits``; and how a single task is waited for, fetched and shown."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import attrs
import typer

from ..errors import FileError, KieError, ResultExpired, TaskError
from ..handle import TaskHandle
from ..models import TaskRecord, TaskState
from ..session import KieSession
from .output import format_number, print_err, print_out, show_spinner, show_task
from .runtime import DONE, FAILED, explain, require_folder, require_key, run_command, wait_command

Out = Annotated[Path | None, typer.Option(help="Download the results into this folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Timeout = Annotated[float | None, typer.Option(help="Seconds to wait for the end; one hour if not given.")]


@attrs.frozen(kw_only=True)
class TaskOptions:
    """How to show a task, how long to wait for it, where to put its results."""

    out: Path | None
    as_json: bool
    timeout_s: float | None
    is_id_shown: bool = False

    def show(self, record: TaskRecord, files: Sequence[Path] = ()) -> None:
        """Show what came of it."""
        show_task(record, files, as_json=self.as_json, is_id_shown=self.is_id_shown)


# --- status ----------------------------------------------------------------------------------------


def status(
    *,
    task_id: Annotated[str, typer.Argument(metavar="ID", help="The task's id.")],
    wait: Annotated[bool, typer.Option("--wait", help="Wait for its end.")] = False,
    out: Out = None,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Show how a task stands; it may have been created anywhere. Exits with 1 if the task failed."""
    options = TaskOptions(out=out, as_json=as_json, timeout_s=timeout)
    run_command(_attach(task_id, options) if wait else _query(task_id, options))


async def _query(task_id: str, options: TaskOptions) -> int:
    require_key()
    async with KieSession() as kie:
        return await _show_and_download(kie, await kie.query(task_id), options)


async def _attach(task_id: str, options: TaskOptions) -> int:
    require_key()
    try:
        async with KieSession() as kie:
            await kie.query(task_id)  # an id that is mistyped is said at once, not after a grace
            return await await_end(kie, kie.attach(task_id, timeout_s=options.timeout_s), options)
    except asyncio.CancelledError:
        print_err(f"interrupted: task {task_id} goes on; later: {wait_command(task_id, options.out)}")
        raise


# --- also for ``run`` ------------------------------------------------------------------------------


async def await_end(kie: KieSession, handle: TaskHandle, options: TaskOptions) -> int:
    """Wait for a task's end, download, print; return the exit status."""
    try:
        with show_spinner(f"waiting for {handle.task_id}"):
            record = (await handle).record
    except TaskError as exc:
        if exc.record is None or not exc.record.state.is_terminal:
            raise
        options.show(exc.record)
        print_err(f"error: {explain(exc)}")
        return FAILED
    return await _show_and_download(kie, record, options)


async def _show_and_download(kie: KieSession, record: TaskRecord, options: TaskOptions) -> int:
    """Download what a record offers, print it, and return the exit status it stands for."""
    files: list[Path] = []
    error: KieError | None = None
    if options.out is not None and record.urls:
        require_folder(options.out)
        try:
            files = await kie.download(record, options.out)
        except FileError as exc:
            error = exc
    options.show(record, files)
    if error is not None:
        again = (
            ""
            if isinstance(error, ResultExpired)
            else f"; again: {wait_command(record.task_id, options.out)}"
        )
        print_err(f"error: {error}{again}")
    return FAILED if error is not None or record.state is TaskState.FAIL else DONE


# --- credits ---------------------------------------------------------------------------------------


def balance() -> None:
    """Show the account's balance in credits."""
    run_command(_balance())


async def _balance() -> int:
    require_key()
    async with KieSession() as kie:
        print_out(format_number(await kie.credits()))
    return DONE
