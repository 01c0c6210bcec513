"""``kie-async demo``: makes many talking-head videos with the sandbox, over real sockets, without a key."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, cast

import attrs
import typer
from rich.console import Console

from ..callbacks.receiver import CallbackReceiver
from ..errors import KieError
from ..events import SessionEvent
from ..inputs.kling import KlingAvatar
from ..sandbox import Durations, Faults, Sandbox
from ..session import KieSession
from .demo_display import DemoProgress, make_console, make_progress, show_report
from .demo_media import read_portrait, read_voice
from .demo_report import Job, Report
from .demo_service import (
    BALANCE,
    CALLBACK_DELAY_S,
    POLL_SCHEDULE,
    SANDBOX_KEY,
    TASK_DURATIONS,
    TASK_TIMEOUT_S,
)
from .demo_workers import WorkersOptions, run_workers_demo
from .output import print_err
from .report import report_results
from .report_data import RESULTS_NAME
from .results_file import ResultsFile
from .runtime import DONE, FAILED, require_folder, require_renderer, run_command

_MAX_DOWNLOADS = 8
"""Results fetched at once."""

_NOTICE = "Made with the sandbox on this machine: nothing was paid. The credits are the service's prices."

_PROMPTS = (
    *("a warm smile", "calm, with a slow nod", "surprised and delighted", "thoughtful, eyes to the side"),
    *("a wink at the end", "serious, like a newsreader", "about to laugh", "proud and a little shy"),
    *(
        "sleepy, first thing in the morning",
        "telling a secret",
        "cheerful, head tilted",
        "sure of every word",
    ),
)


@attrs.frozen(kw_only=True)
class DemoOptions:
    """What the command line chooses."""

    jobs: int
    image: Path | None
    audio: Path | None
    out: Path
    callbacks: bool
    max_in_flight: int
    seed: int
    faults: Faults
    durations: Durations = TASK_DURATIONS


def demo(
    *,
    jobs: Annotated[int, typer.Option(min=1, help="How many videos to make.")] = 20,
    image: Annotated[
        Path | None, typer.Option(help="Portrait: JPEG, PNG or WebP; a built-in one if not given.")
    ] = None,
    audio: Annotated[
        Path | None, typer.Option(help="Voice: MP3, WAV, AAC, M4A or OGG; a built-in one if not given.")
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
    workers: Annotated[
        int | None,
        typer.Option(min=2, metavar="N", help="N processes on one PostgreSQL journal; one is killed."),
    ] = None,
) -> None:
    """Make videos with the sandbox: a local stand-in for the service. Needs no key and costs nothing.

    With --workers there are no videos to see, but who does what: every process asks for every job, one is
    killed in the middle, and a table shows who created each task, who was called back and who took over.
    """
    if workers is not None:
        shared = WorkersOptions(workers=workers, jobs=jobs, seed=seed)
        run_command(run_workers_demo(shared, make_console()))
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
    run_command(run_demo(options, make_console()))


async def run_demo(options: DemoOptions, console: Console) -> int:
    """Run the whole demo and return the exit status.

    Raises:
        CannotRun: PyAV is missing, or the folder cannot be made.
        InvalidRequest: The portrait or the voice cannot be used.
    """
    require_renderer()
    require_folder(options.out)
    request = _make_request(options)
    began = time.time()
    jobs = [
        Job(number=number, prompt=_PROMPTS[(number - 1) % len(_PROMPTS)])
        for number in range(1, options.jobs + 1)
    ]
    try:
        report = await _make_all(options, request, jobs, console)
    except asyncio.CancelledError:
        print_err(f"interrupted: {sum(job.file is not None for job in jobs)} videos are in {options.out}")
        raise
    show_report(console, report)
    await _write_report(report, request, began)
    return DONE if report.is_complete else FAILED


async def _write_report(report: Report, avatar: KlingAvatar, began: float) -> None:
    """Write the results as a batch does, and the page that shows them."""
    folder = report.folder
    results = ResultsFile(folder / RESULTS_NAME, (job.results_line(avatar, folder) for job in report.jobs))
    try:
        await results.write()
    except OSError as exc:
        print_err(f"no report: cannot write {results.path}: {exc.strerror}")
    else:
        await report_results(results.path, title="The demo", began=began, notice=_NOTICE)


def _make_request(options: DemoOptions) -> KlingAvatar:
    """Return the one request of all jobs: local files, which the session uploads once."""
    # Written beside the videos, so that people can see and hear what these were made of.
    image, audio = options.image, options.audio
    if image is None:
        image = options.out / "portrait.png"
        image.write_bytes(read_portrait())
    if audio is None:
        audio = options.out / "voice.wav"
        audio.write_bytes(read_voice())
    return KlingAvatar(image_url=image, audio_url=audio, prompt="a warm smile")


async def _make_all(
    options: DemoOptions, request: KlingAvatar, jobs: Sequence[Job], console: Console
) -> Report:
    loop = asyncio.get_running_loop()
    progress = make_progress(console, jobs)
    async with _open(options, jobs, progress, console) as (sandbox, kie):
        await _upload(kie, request, console)
        began = loop.time()
        downloads = asyncio.Semaphore(_MAX_DOWNLOADS)
        with progress:
            async with asyncio.TaskGroup() as group:
                for job in jobs:
                    group.create_task(_make(kie, request, job, downloads, options.out, progress))
        return Report(
            jobs=jobs,
            elapsed_s=loop.time() - began,
            refusals=sandbox.counts["create.429"] + sandbox.counts["query.429"],
            folder=options.out,
        )


async def _upload(kie: KieSession, request: KlingAvatar, console: Console) -> None:
    """Upload what all jobs share."""
    # The session would do it at the first create; done here, a bad file ends the demo, not every job.
    files = cast(Path, request.image_url), cast(Path, request.audio_url)
    for file in files:
        await kie.upload(file)
    console.print(f"uploaded   {files[0]} and {files[1]}, once for all jobs", soft_wrap=True)


async def _make(
    kie: KieSession,
    request: KlingAvatar,
    job: Job,
    downloads: asyncio.Semaphore,
    folder: Path,
    progress: DemoProgress,
) -> None:
    """Make one video, from the create to the file."""
    try:
        avatar = attrs.evolve(request, prompt=job.prompt)
        result = await (await kie.create(avatar, ref=job.ref))
        async with downloads:
            job.file = (await kie.download(result, folder, name=job.file_name))[0]
    except KieError as exc:
        job.error = str(exc)
        if job.state == "planned":
            job.state = "refused"
    progress.show(job)


@asynccontextmanager
async def _open(
    options: DemoOptions, jobs: Sequence[Job], progress: DemoProgress, console: Console
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
        console.print(_callback_line(callback_url, options.faults.drop_callbacks), soft_wrap=True)
        session = KieSession(
            SANDBOX_KEY,
            base_url=sandbox.url,
            callback_url=callback_url,
            receiver=receiver,
            max_in_flight=options.max_in_flight,
            poll=POLL_SCHEDULE,
            task_timeout_s=TASK_TIMEOUT_S,
            on_event=_JobUpdater(jobs, progress).note_event,
            rng=random.Random(options.seed),
        )
        yield sandbox, await opened.enter_async_context(session)


def _sandbox(options: DemoOptions, hmac_key: str) -> Sandbox:
    return Sandbox(
        api_key=SANDBOX_KEY,
        durations=options.durations,
        seed=options.seed,
        credits=BALANCE,
        hmac_key=hmac_key,
        callback_delay_s=CALLBACK_DELAY_S,
        render=True,
        faults=options.faults,
    )


def _callback_line(url: str | None, dropped: float) -> str:
    if url is None:
        return "callbacks  none; every end is found by polling"
    lost = f"; {dropped:.0%} get lost, polling finds the rest" if dropped else ""
    return f"callbacks  {url}, signed{lost}"


class _JobUpdater:
    """Updates the jobs from the session's events."""

    def __init__(self, jobs: Sequence[Job], progress: DemoProgress) -> None:
        self._jobs = {job.ref: job for job in jobs}
        self._progress = progress

    def note_event(self, event: SessionEvent) -> None:
        """Update the job of an event and show it; this is the session's ``on_event``."""
        job = self._jobs[event.ref or ""]  # every task of the demo has a ref
        now = asyncio.get_running_loop().time()
        if event.kind == "created":
            job.created_at, job.state, job.task_id = now, "created", event.task_id
        elif event.kind == "settled":
            job.settled_at, job.ended_at, job.source = now, datetime.now(UTC), event.source
        if event.record is not None:
            job.state, job.credits = str(event.record.state), event.record.credits
        self._progress.show(job)
