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
from .demo_display import waiting
from .demo_report import number
from .output import put, show, show_id
from .runtime import DONE, FAILED, CannotRun, conduct, explain, how_to_get, require_folder, require_key, say

Out = Annotated[Path | None, typer.Option(help="Download the results into this folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Timeout = Annotated[float | None, typer.Option(help="Seconds to wait for the end; one hour if not given.")]


@attrs.frozen(kw_only=True)
class Wanted:
    """What to do about a task."""

    out: Path | None
    as_json: bool
    timeout_s: float | None
    is_new: bool = False
    """Whether it was created just now, its id shown already."""

    def show(self, record: TaskRecord, files: Sequence[Path] = ()) -> None:
        """Show what came of it."""
        show(record, files, as_json=self.as_json, is_id_shown=self.is_new)


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
    wanted = Wanted(out=out, as_json=as_json, timeout_s=timeout, is_new=True)
    conduct(_run(name, model, image, audio, prompt, input, wanted))


async def _run(
    name: str | None,
    model: str | None,
    image: str | None,
    audio: str | None,
    prompt: str,
    input: str | None,
    wanted: Wanted,
) -> int:
    if name and model and name != model:
        raise CannotRun(f"two models: {name} and {model}")
    model = name or model
    if input is not None:
        if image or audio or prompt:
            raise CannotRun("give either --input, or --image, --audio and --prompt")
        wish = TaskRequest(model=_required(model, "a model"), input=_read_input(input))
    else:
        face, voice = _required(image, "--image"), _required(audio, "--audio")
        avatar = cast(AvatarModel, model or "kling/v1-avatar-standard")  # checked by KlingAvatar
        wish = KlingAvatar(image_url=face, audio_url=voice, prompt=prompt, model=avatar).as_request()
    return await run_one(wish, wanted)


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


async def run_one(wish: TaskRequest, wanted: Wanted) -> int:
    """Create a task and see it through; return the exit status.

    Raises:
        CannotRun: There is no key, or the folder cannot be made; nothing was sent.
        KieError: What `KieSession.create` raises.
    """
    require_key()
    if wanted.out is not None:
        require_folder(wanted.out)
    news = _News(as_json=wanted.as_json)
    try:
        async with news.session() as kie:
            return await _see_through(kie, await kie.create(wish, timeout_s=wanted.timeout_s), wanted)
    except asyncio.CancelledError:
        say(f"interrupted: {news.what_became()}")
        raise


class _News:
    """Shows the id of the task the moment there is one, and knows what an interrupt left behind."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._task_id = ""
        self._is_unknown = False
        self._is_certain = True

    @asynccontextmanager
    async def session(self) -> AsyncIterator[KieSession]:
        """Open a session whose events come here, and close it so that nothing stays in doubt."""
        kie = await KieSession(on_event=self.note).open()
        self._is_certain = False
        try:
            yield kie
        except asyncio.CancelledError:
            if not self._task_id:
                say("interrupted: closing; a create under way gets 10 s to tell its id")
            raise
        finally:
            await kie.aclose()
            self._is_certain = not self._is_unknown  # a second interrupt does not come to here

    def note(self, event: SessionEvent) -> None:
        """Be the session's hook: also the id of a create whose caller was interrupted comes here."""
        if event.kind == "created":
            self._task_id = event.task_id
            show_id(event.task_id, as_json=self._as_json)
        elif event.kind == "unknown":
            self._is_unknown = True

    def what_became(self) -> str:
        """Return what an interrupted user needs to know."""
        if self._task_id:
            return f"task {self._task_id} goes on and is billed; later: {how_to_get(self._task_id)}"
        if self._is_certain:
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
    wanted = Wanted(out=out, as_json=as_json, timeout_s=timeout)
    conduct(_wait_for(task_id, wanted) if wait else _look_at(task_id, wanted))


async def _look_at(task_id: str, wanted: Wanted) -> int:
    require_key()
    async with KieSession() as kie:
        return await _finish(kie, await kie.query(task_id), wanted)


async def _wait_for(task_id: str, wanted: Wanted) -> int:
    require_key()
    try:
        async with KieSession() as kie:
            return await _see_through(kie, kie.attach(task_id, timeout_s=wanted.timeout_s), wanted)
    except asyncio.CancelledError:
        say(f"interrupted: task {task_id} goes on; later: {how_to_get(task_id)}")
        raise


# --- both ------------------------------------------------------------------------------------------


async def _see_through(kie: KieSession, handle: TaskHandle, wanted: Wanted) -> int:
    """Wait for a task's end, download, print; return the exit status."""
    try:
        with waiting(f"waiting for {handle.task_id}"):
            record = (await handle).record
    except TaskError as exc:
        if exc.record is None or not exc.record.state.is_terminal:
            raise
        wanted.show(exc.record)
        say(f"error: {explain(exc)}")
        return FAILED
    return await _finish(kie, record, wanted)


async def _finish(kie: KieSession, record: TaskRecord, wanted: Wanted) -> int:
    """Download what a record offers, print it, and return the exit status it stands for."""
    files: list[Path] = []
    error: KieError | None = None
    if wanted.out is not None and record.urls:
        require_folder(wanted.out)
        try:
            files = await kie.download(record, wanted.out)
        except FileError as exc:
            error = exc
    wanted.show(record, files)
    if error is not None:
        again = "" if isinstance(error, ResultExpired) else f"; again: {how_to_get(record.task_id)} --out DIR"
        say(f"error: {error}{again}")
    return FAILED if error is not None or record.state is TaskState.FAIL else DONE


# --- credits ---------------------------------------------------------------------------------------


def balance() -> None:
    """Show the account's balance in credits."""
    conduct(_balance())


async def _balance() -> int:
    require_key()
    async with KieSession() as kie:
        put(number(await kie.credits()))
    return DONE
