"""``kie-async run``, ``status`` and ``credits``: one task at a time, on the real service."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, cast

import attrs
import typer

from ..errors import FileError, KieError, ResultExpired, TaskError
from ..events import SessionEvent
from ..handle import TaskHandle
from ..inputs.kling import AvatarModel, KlingAvatar
from ..inputs.request import TaskRequest
from ..models import TaskRecord, TaskState
from ..session import KieSession
from .output import format_number, print_err, print_out, show_id, show_spinner, show_task
from .runtime import DONE, FAILED, CannotRun, explain, require_folder, require_key, run_command, wait_command

Out = Annotated[Path | None, typer.Option(help="Download the results into this folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Timeout = Annotated[float | None, typer.Option(help="Seconds to wait for the end; one hour if not given.")]


@attrs.frozen(kw_only=True)
class TaskOptions:
    """How to show a task, how long to wait for it, where to put its results."""

    out: Path | None
    as_json: bool
    timeout_s: float | None
    is_new: bool = False
    """Whether it was created just now, its id shown already."""

    def show(self, record: TaskRecord, files: Sequence[Path] = ()) -> None:
        """Show what came of it."""
        show_task(record, files, as_json=self.as_json, is_id_shown=self.is_new)


# --- run -------------------------------------------------------------------------------------------


def run(
    *,
    name: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="The model; another way to say --model.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The model; kling/v1-avatar-standard if not given.")
    ] = None,
    image: Annotated[str | None, typer.Option(help="Portrait: a file or a URL.")] = None,
    audio: Annotated[str | None, typer.Option(help="Voice: a file or a URL.")] = None,
    prompt: Annotated[str, typer.Option(help="What the face should express.")] = "",
    input: Annotated[
        str | None, typer.Option("--input", metavar="JSON|@FILE", help="The fields of any model, instead.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Download the results into this folder.")] = Path(),
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Create one task, wait for it, download its results. This costs credits.

    A portrait and a voice: kie-async run --image face.png --audio voice.mp3

    Any model: kie-async run nano-banana-2 --input '{"prompt": "a lighthouse"}'
    """
    options = TaskOptions(out=out, as_json=as_json, timeout_s=timeout, is_new=True)
    run_command(_run(name, model, image, audio, prompt, input, options))


async def _run(
    name: str | None,
    model: str | None,
    image: str | None,
    audio: str | None,
    prompt: str,
    input: str | None,
    options: TaskOptions,
) -> int:
    if name and model and name != model:
        raise CannotRun(f"two models: {name} and {model}")
    model = name or model
    if input is not None:
        if image or audio or prompt:
            raise CannotRun("give either --input, or --image, --audio and --prompt")
        request = TaskRequest(model=_required(model, "a model"), input=_read_input(input))
    else:
        face, voice = _required(image, "--image"), _required(audio, "--audio")
        avatar = cast(AvatarModel, model or "kling/v1-avatar-standard")  # checked by KlingAvatar
        request = KlingAvatar(image_url=face, audio_url=voice, prompt=prompt, model=avatar).as_request()
    return await run_one(request, options)


def _required(value: str | None, name: str) -> str:
    if not value:
        raise CannotRun(f"{name} is missing: give --image and --audio, or a model with --input")
    return value


def _read_input(text: str) -> dict[str, Any]:
    """Return the object in *text*, or in the file it names with an @.

    Raises:
        CannotRun: There is none.
    """
    if text.startswith("@"):
        try:
            text = Path(text[1:]).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            raise CannotRun(f"cannot read {text[1:]}: {getattr(exc, 'strerror', None) or exc}") from None
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise CannotRun(f"--input is not JSON: {exc}") from None
    if not isinstance(fields, dict):
        raise CannotRun("--input must be a JSON object: the model's fields")
    return fields


async def run_one(request: TaskRequest, options: TaskOptions) -> int:
    """Create a task, wait for its end and download; return the exit status.

    Raises:
        CannotRun: There is no key, or the folder cannot be made; nothing was sent.
        KieError: What `KieSession.create` raises.
    """
    require_key()
    if options.out is not None:
        require_folder(options.out)
    reporter = _CreateReporter(as_json=options.as_json)
    try:
        async with reporter.open_session() as kie:
            return await _await_end(kie, await kie.create(request, timeout_s=options.timeout_s), options)
    except asyncio.CancelledError:
        print_err(f"interrupted: {reporter.interrupt_summary()}")
        raise


class _CreateReporter:
    """Shows the id of a task as soon as it has one, and says what an interrupt left behind."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._task_id = ""
        self._is_unknown = False
        self._is_closed = True
        """Whether no create can be under way: before the session opens, and after its whole close."""

    @asynccontextmanager
    async def open_session(self) -> AsyncIterator[KieSession]:
        """Open a session whose events come here, and close it so that nothing stays in doubt."""
        kie = await KieSession(on_event=self.note_event).open()
        self._is_closed = False
        try:
            yield kie
        except asyncio.CancelledError:
            if not self._task_id:
                print_err("interrupted: closing; a create under way gets 10 s to learn its id")
            raise
        finally:
            await kie.aclose()
            # A second interrupt ends `aclose` early and does not come to here.
            self._is_closed = True

    def note_event(self, event: SessionEvent) -> None:
        """Take one event: the session's ``on_event``, called also after its caller was interrupted."""
        if event.kind == "created":
            self._task_id = event.task_id
            show_id(event.task_id, as_json=self._as_json)
        elif event.kind == "unknown":
            self._is_unknown = True

    def interrupt_summary(self) -> str:
        """Return what became of the create, for the user who interrupted it."""
        if self._task_id:
            return f"task {self._task_id} goes on and is billed; later: {wait_command(self._task_id)}"
        if self._is_closed and not self._is_unknown:
            return "no task was created"
        return "money may have been spent: no answer to a create came; look at https://kie.ai/logs"


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
            return await _await_end(kie, kie.attach(task_id, timeout_s=options.timeout_s), options)
    except asyncio.CancelledError:
        print_err(f"interrupted: task {task_id} goes on; later: {wait_command(task_id)}")
        raise


# --- run and status -------------------------------------------------------------------------------


async def _await_end(kie: KieSession, handle: TaskHandle, options: TaskOptions) -> int:
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
            "" if isinstance(error, ResultExpired) else f"; again: {wait_command(record.task_id)} --out DIR"
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
