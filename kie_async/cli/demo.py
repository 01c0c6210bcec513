"""``kie-async demo``: many talking-head videos made by the sandbox, over real sockets, without a key."""

from __future__ import annotations

import asyncio
import math
import random
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Annotated

import attrs
import typer
from rich.console import Console

from ..callbacks.receiver import CallbackReceiver
from ..config import PollSchedule
from ..errors import KieError
from ..events import SessionEvent
from ..inputs.kling import KlingAvatar
from ..sandbox import Durations, Faults, Lognormal, Sandbox
from ..session import KieSession
from . import demo_media as voice_and_face
from .demo_display import Board, make_board, make_console, show_report
from .demo_report import Job, Report
from .runtime import DONE, FAILED, conduct, require_folder, require_renderer, say

# The real service takes minutes (median about 120 s) and its callbacks some seconds. The demo's clock
# runs 24 times as fast: tasks take about 5 s, the safety net under the callbacks spans 2.5 s, not 60.
# The limits are the real ones, unscaled: 20 creates in 10 s and 10 queries a second. So the interval
# without callbacks is scaled less than the rest: some 20 tasks in flight are 8 queries a second.
_DURATIONS = Lognormal(5.0, 0.42)
_CALLBACK_DELAY_S = 0.25
_SCHEDULE = PollSchedule(first_s=2.5, tiers=((10.0, 2.5), (math.inf, 4.0)), safety_net_s=2.5)

_KEY = "sandbox-key"
_TASK_TIMEOUT_S = 120.0
_DOWNLOADS = 8
"""Results fetched at once."""
_CREDITS = 1e9


@attrs.frozen(kw_only=True)
class DemoOptions:
    """What can be chosen."""

    jobs: int
    image: Path | None
    audio: Path | None
    out: Path
    callbacks: bool
    max_in_flight: int
    seed: int
    faults: Faults
    durations: Durations = _DURATIONS


def demo(
    *,
    jobs: Annotated[int, typer.Option(min=1, help="How many videos to make.")] = 20,
    image: Annotated[
        Path | None, typer.Option(help="Portrait: JPEG, PNG or WebP; else one is drawn.")
    ] = None,
    audio: Annotated[
        Path | None, typer.Option(help="Voice: MP3, WAV, AAC, M4A or OGG; else one is made.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the videos.")] = Path("kie-demo"),
    callbacks: Annotated[
        bool, typer.Option("--callbacks/--no-callbacks", help="Get callbacks, or only poll.")
    ] = True,
    drop_callbacks: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, metavar="SHARE", help="Lose this share of the callbacks, 0 to 1."),
    ] = 0.0,
    max_in_flight: Annotated[int, typer.Option(min=1, help="Most tasks unsettled at once.")] = 100,
    seed: Annotated[int, typer.Option(help="Another seed, other durations.")] = 0,
) -> None:
    """Make videos with the sandbox: a local stand-in for the service. Needs no key and costs nothing."""
    options = DemoOptions(
        jobs=jobs,
        image=image,
        audio=audio,
        out=out,
        callbacks=callbacks,
        max_in_flight=max_in_flight,
        seed=seed,
        faults=Faults(drop_callbacks=drop_callbacks),
    )
    conduct(run_demo(options, make_console()))


async def run_demo(options: DemoOptions, console: Console) -> int:
    """Run the whole demo and return the exit status.

    Raises:
        CannotRun: PyAV is missing, or the folder cannot be made.
        InvalidRequest: The portrait or the voice cannot be used.
    """
    require_renderer()
    require_folder(options.out)
    wish = _wish(options)
    jobs = [Job(number=number) for number in range(1, options.jobs + 1)]
    try:
        report = await _make_all(options, wish, jobs, console)
    except asyncio.CancelledError:
        say(f"interrupted: {sum(job.file is not None for job in jobs)} videos are in {options.out}")
        raise
    show_report(console, report)
    return DONE if report.is_complete else FAILED


def _wish(options: DemoOptions) -> KlingAvatar:
    """Return the one wish of all jobs: local files, which the session uploads once."""
    image, audio = options.image, options.audio
    if image is None:
        image = options.out / "portrait.png"
        image.write_bytes(voice_and_face.portrait())
    if audio is None:
        audio = options.out / "voice.wav"
        audio.write_bytes(voice_and_face.voice())
    return KlingAvatar(image_url=image, audio_url=audio, prompt="a warm smile")


async def _make_all(options: DemoOptions, wish: KlingAvatar, jobs: Sequence[Job], console: Console) -> Report:
    loop = asyncio.get_running_loop()
    board = make_board(console, jobs)
    async with _opened(options, jobs, board, console) as (sandbox, kie):
        await _upload(kie, wish, console)
        began = loop.time()
        downloads = asyncio.Semaphore(_DOWNLOADS)
        with board:
            async with asyncio.TaskGroup() as group:
                for job in jobs:
                    group.create_task(_make(kie, wish, job, downloads, options.out, board))
        return Report(
            jobs=jobs,
            elapsed_s=loop.time() - began,
            refusals=sandbox.counts["create.429"] + sandbox.counts["query.429"],
            folder=options.out,
        )


async def _upload(kie: KieSession, wish: KlingAvatar, console: Console) -> None:
    """Upload what all jobs share. The session would do it by itself, but a bad file should end all."""
    files = [Path(wish.image_url), Path(wish.audio_url)]
    for file in files:
        await kie.upload(file)
    console.print(f"uploaded   {files[0]} and {files[1]}, once for all jobs", soft_wrap=True)


async def _make(
    kie: KieSession, wish: KlingAvatar, job: Job, downloads: asyncio.Semaphore, folder: Path, board: Board
) -> None:
    """Make one video, from the create to the file."""
    try:
        result = await (await kie.create(wish, ref=job.ref))
        async with downloads:
            job.file = (await kie.download(result, folder))[0]
    except KieError as exc:
        job.error = str(exc)
        if job.state == "planned":
            job.state = "refused"
    board.show(job)


@asynccontextmanager
async def _opened(
    options: DemoOptions, jobs: Sequence[Job], board: Board, console: Console
) -> AsyncIterator[tuple[Sandbox, KieSession]]:
    """Open the stand-in service, the receiver for its callbacks, and the session between them."""
    hmac_key = secrets.token_hex(16)
    async with AsyncExitStack() as opened:
        sandbox = await opened.enter_async_context(_sandbox(options, hmac_key))
        console.print(f"sandbox    {sandbox.url}; 20 creates per 10 s, 10 queries per s", soft_wrap=True)
        receiver = callback_url = None
        if options.callbacks:
            receiver = CallbackReceiver(hmac_keys=[hmac_key])
            callback_url = (await opened.enter_async_context(receiver.serve("127.0.0.1", 0))).url
        console.print(_callback_words(callback_url, options.faults.drop_callbacks), soft_wrap=True)
        session = KieSession(
            _KEY,
            base_url=sandbox.url,
            callback_url=callback_url,
            receiver=receiver,
            max_in_flight=options.max_in_flight,
            poll=_SCHEDULE,
            task_timeout_s=_TASK_TIMEOUT_S,
            on_event=_Notes(jobs, board).note,
            rng=random.Random(options.seed),
        )
        yield sandbox, await opened.enter_async_context(session)


def _sandbox(options: DemoOptions, hmac_key: str) -> Sandbox:
    return Sandbox(
        api_key=_KEY,
        durations=options.durations,
        seed=options.seed,
        credits=_CREDITS,
        hmac_key=hmac_key,
        callback_delay_s=_CALLBACK_DELAY_S,
        render=True,
        faults=options.faults,
    )


def _callback_words(url: str | None, dropped: float) -> str:
    if url is None:
        return "callbacks  none; every end is found by polling"
    lost = f"; {dropped:.0%} get lost, polling finds the rest" if dropped else ""
    return f"callbacks  {url}, signed{lost}"


class _Notes:
    """Writes the session's events into the jobs."""

    def __init__(self, jobs: Sequence[Job], board: Board) -> None:
        self._jobs = {job.ref: job for job in jobs}
        self._board = board

    def note(self, event: SessionEvent) -> None:
        """Be the session's hook."""
        job = self._jobs[event.ref or ""]
        now = asyncio.get_running_loop().time()
        if event.kind == "created":
            job.created_at, job.state = now, "created"
        elif event.kind == "settled":
            job.settled_at, job.source = now, event.source
        if event.record is not None:
            job.state, job.credits = str(event.record.state), event.record.credits
        self._board.show(job)
