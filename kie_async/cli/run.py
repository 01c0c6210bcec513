"""``kie-async run``: makes one task, waits for it, downloads its results."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, cast

import attrs
import typer

from ..events import SessionEvent
from ..inputs.kling import AVATAR_MODELS, AvatarModel, KlingAvatar
from ..inputs.request import TaskRequest
from ..session import KieSession
from .journal_place import JournalPlace
from .output import print_err, show_expected, show_id
from .runtime import CannotRun, require_folder, require_key, run_command, wait_command
from .sessions import AccountName, CallbackUrl, Port, SessionOptions, check_port, open_session
from .tasks import AsJson, TaskOptions, Timeout, await_end


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
    fields: Annotated[
        list[str] | None,
        typer.Option(
            "--field", "-f", metavar="NAME=TEXT", help="One field; NAME:json=VALUE for what is no text."
        ),
    ] = None,
    ref: Annotated[
        str | None,
        typer.Option(help="Your own name for the task, with --journal: the same one is never paid twice."),
    ] = None,
    journal: Annotated[
        JournalPlace | None,
        typer.Option(
            parser=JournalPlace,
            metavar="JOURNAL",
            help="Remember there what was sent and paid: a file, or postgresql://USER@HOST/DATABASE.",
        ),
    ] = None,
    account: AccountName = None,
    callback_url: CallbackUrl = None,
    port: Port = None,
    out: Annotated[Path, typer.Option(help="Download the results into this folder.")] = Path(),
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Create one task, wait for it, download its results. This costs credits.

    A portrait and a voice: kie-async run --image face.png --audio voice.mp3

    Any model: kie-async run nano-banana-2 -f prompt='a lighthouse'
    """
    if ref is not None and journal is None:
        raise typer.BadParameter("goes with --journal only: without one it is forgotten", param_hint="--ref")
    asked = _Asked(
        models=(name, model),
        image=image,
        audio=audio,
        prompt=prompt,
        input=input,
        fields=fields or (),
        ref=ref,
    )
    session = SessionOptions(
        journal=journal, account=account, callback_url=callback_url, port=check_port(port, callback_url)
    )
    options = TaskOptions(out=out, as_json=as_json, timeout_s=timeout)
    run_command(_run(asked, session, options), journal=journal)


@attrs.frozen(kw_only=True)
class _Asked:
    """The task that the command line describes, in one of its two ways."""

    models: tuple[str | None, str | None]
    """As an argument and as an option."""
    image: str | None
    audio: str | None
    prompt: str
    input: str | None
    fields: Sequence[str]
    ref: str | None

    def as_request(self) -> TaskRequest:
        """Return the request.

        Raises:
            CannotRun: Something is missing, or given in both ways.
            InvalidRequest: A field is wrong.
        """
        name, option = self.models
        if name and option and name != option:
            raise CannotRun(f"two models: {name} and {option}")
        model = name or option
        fields = _read_fields(self.input, self.fields)
        if self.image or self.audio or self.prompt:
            if fields is not None:
                raise CannotRun("give either --input and -f, or --image, --audio and --prompt")
        elif fields is None and model is not None and model not in AVATAR_MODELS:
            raise CannotRun(f"""{model} takes its fields by --input '{{"prompt": ...}}' or -f prompt=...""")
        if fields is None:
            return self._as_avatar(model or AVATAR_MODELS[0])
        if model is None:
            raise CannotRun("a model is missing: kie-async run MODEL -f prompt=...")
        return TaskRequest(model=model, input=fields, ref=self.ref)

    def _as_avatar(self, model: str) -> TaskRequest:
        if not self.image or not self.audio:
            missing = "--audio" if self.image else "--image"
            raise CannotRun(f"{missing} is missing: give --image and --audio, or a model and -f prompt=...")
        avatar = KlingAvatar(
            image_url=self.image,
            audio_url=self.audio,
            prompt=self.prompt,
            model=cast(AvatarModel, model),  # checked there
        )
        return avatar.as_request(ref=self.ref)


def _read_fields(text: str | None, fields: Sequence[str]) -> dict[str, Any] | None:
    """Return the fields that ``--input`` and ``-f`` give together; None if neither is there.

    Raises:
        CannotRun: One cannot be read, or is given twice.
    """
    if text is None and not fields:
        return None
    given = {} if text is None else _read_input(text)
    for field in fields:
        name, is_field, value = field.partition("=")
        name, is_json, _ = name.partition(":json")
        if not is_field or not name:
            raise CannotRun(f"-f must look like NAME=TEXT, got {field!r}")
        if name in given:
            raise CannotRun(f"the field {name} is given twice")
        given[name] = _read_json(f"{name}:json", value) if is_json else value
    return given


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
    fields = _read_json("--input", text)
    if not isinstance(fields, dict):
        raise CannotRun("--input must be a JSON object: the model's fields")
    return fields


def _read_json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise CannotRun(f"{name} is not JSON: {exc}") from None


async def _run(asked: _Asked, session: SessionOptions, options: TaskOptions) -> int:
    """Create a task, wait for its end and download; return the exit status.

    Raises:
        CannotRun: Something is missing: an option, the key, a folder; nothing was sent.
        KieError: What `KieSession.create` raises.
    """
    request = asked.as_request()
    require_key()
    if options.out is not None:
        require_folder(options.out)
    reporter = _CreateReporter(options)
    try:
        async with reporter.open_session(session) as kie:
            handle = await kie.create(request, timeout_s=options.timeout_s)
            expected_s = kie.expected_s(request.model)
            if expected_s is not None and not handle.is_done and not options.as_json:
                show_expected(expected_s)
            return await await_end(kie, handle, reporter.options)
    except asyncio.CancelledError:
        print_err(f"interrupted: {reporter.interrupt_summary()}")
        raise


class _CreateReporter:
    """Shows the id of a task as soon as it has one, and says what an interrupt left behind."""

    def __init__(self, options: TaskOptions) -> None:
        self.options = options
        self._task_id = ""
        self._is_unknown = False
        self._is_closed = True
        """Whether no create can be under way: before the session opens, and after its whole close."""

    @asynccontextmanager
    async def open_session(self, session: SessionOptions) -> AsyncIterator[KieSession]:
        """Open a session whose events come here, and close it so that nothing stays in doubt."""
        first: asyncio.CancelledError | None = None
        self._is_closed = False
        try:
            async with open_session(session, self.note_event) as kie:
                try:
                    yield kie
                except asyncio.CancelledError as exc:
                    first = exc
                    if not self._task_id:
                        print_err("interrupted: closing; a create under way gets 10 s to learn its id")
                    raise
        except asyncio.CancelledError as exc:
            # A second interrupt ends the close early, with a cancellation of its own.
            self._is_closed = exc is first
            raise

    def note_event(self, event: SessionEvent) -> None:
        """Take one event: the session's ``on_event``, called also after its caller was interrupted."""
        if event.kind == "created":
            self._task_id = event.task_id
            show_id(event.task_id, as_json=self.options.as_json)
            self.options = attrs.evolve(self.options, is_id_shown=True)
        elif event.kind == "unknown":
            self._is_unknown = True

    def interrupt_summary(self) -> str:
        """Return what became of the create, for the user who interrupted it."""
        if self._task_id:
            again = wait_command(self._task_id, self.options.out)
            return f"task {self._task_id} goes on and is billed; later: {again}"
        if self._is_closed and not self._is_unknown:
            return "no task was created"
        return "money may have been spent: no answer to a create came; look at https://kie.ai/logs"
