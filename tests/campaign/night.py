"""Runs a batch through a bad night and the morning after: nothing paid twice, nothing lost, sums that add up.

``python -m tests.campaign night`` runs ``kie-async batch`` as a process of its own, on a clock by which an
hour passes in a minute: the service freezes, the network is gone for an hour, 429 and 455 come, the disk is
full, the machine sleeps, answers are lost, two kills and a Ctrl-C; then a person decides on what is perhaps
paid, and ``--retry-failed`` makes what failed. At each stop results, journal and sandbox are compared.
The seed decides on the order of it all. The exit status is 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path

import attrs
from support.fast_cli import FULL
from support.link import Link

from kie_async import JobState
from kie_async.cli.demo_media import read_portrait, read_voice
from kie_async.sandbox import Lognormal, Sandbox

from . import _night_audit as audit
from ._night_audit import Books, Evening

ROOT = Path(__file__).parent.parent.parent
KEY = "kie-key-of-the-night"
MODEL = "kling/v1-avatar-standard"
CREDITS = 1_000_000.0
FAIL_RATE = 0.06
LOST_ANSWERS, REFUSALS = 3, 2
_REFUSAL = json.dumps({"code": 422, "msg": "The portrait shows no face", "data": None}).encode()
_NEVER_MADE = 15
"""So many rows may have no task when the night is over: refused, or lost in a freeze or a kill."""
_LASTS_S = {"frozen": 600, "429": 600, "455": 1200, "full disk": 900, "no network": 3600, "asleep": 900}
_PATIENCE_S = 60.0
"""Real time without progress; most of an hour by the clock of the batch."""
_MOST_COMPLAINTS = 8
"""Of one stop."""
_EXIT = {"kill": -signal.SIGKILL, "Ctrl-C": 130, "end": 1, "morning": 0}


@attrs.define
class Report:
    """What the campaign counted and what it found wrong."""

    replay: str
    lines: list[str] = attrs.field(factory=list)
    wrong: list[str] = attrs.field(factory=list)
    folder: str = ""

    @property
    def ok(self) -> bool:
        return not self.wrong

    def __str__(self) -> str:
        return "\n".join(
            [
                *self.lines,
                *(f"WRONG: {what}" for what in self.wrong),
                "all is well" if self.ok else f"FAILED; see {self.folder}; again: {self.replay}",
            ]
        )


class Client:
    """``kie-async`` in processes of their own, on a fast clock; what each says goes to files.

    The next one is started while one runs, and waits until it is told what to do: a start takes a second.
    """

    def __init__(self, folder: Path, url: str, speed: float) -> None:
        self._folder = folder
        self._speed = speed
        self._count = 0
        self._waiting: asyncio.subprocess.Process | None = None
        clean = {name: value for name, value in os.environ.items() if not name.startswith("KIE_")}
        paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        self._env = clean | {"KIE_API_KEY": KEY, "KIE_BASE_URL": url, "PYTHONPATH": paths}

    @contextlib.asynccontextmanager
    async def run(self, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
        """Begin a command, and end it if the block does not."""
        process = self._waiting or await self._start(self._count + 1)
        self._count += 1
        self._waiting = await self._start(self._count + 1)
        assert process.stdin
        process.stdin.write(json.dumps(arguments).encode() + b"\n")
        process.stdin.close()
        try:
            yield process
        finally:
            await _end(process)

    async def _start(self, number: int) -> asyncio.subprocess.Process:
        with self._said("out", number).open("wb") as out, self._said("err", number).open("wb") as err:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-W", "error", "-m", "tests.support.fast_cli", str(self._speed)),
                cwd=self._folder,
                env=self._env,
                stdin=asyncio.subprocess.PIPE,
                stdout=out,
                stderr=err,
            )

    async def aclose(self) -> None:
        """End the process that waits."""
        if self._waiting is not None:
            await _end(self._waiting)

    async def call(self, *arguments: str) -> int:
        """Run a command to its end and return its exit status."""
        async with self.run(*arguments) as process:
            return await process.wait()

    @property
    def out(self) -> str:
        """What the last command printed."""
        return self._said("out", self._count).read_text()

    @property
    def err(self) -> str:
        return self._said("err", self._count).read_text()

    def _said(self, name: str, number: int) -> Path:
        return self._folder / f"{number:02}.{name}"


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()


class Night:
    """One batch, one sandbox behind a line that can be cut, and what happens to them."""

    def __init__(
        self, evening: Evening, link: Link, report: Report, *, seed: int, speed: float, share: float
    ) -> None:
        self._evening = evening
        self._sandbox = evening.sandbox
        self._link = link
        self._report = report
        self._rng = random.Random(seed)
        self._speed = speed
        self._share = share
        self._client = Client(evening.folder, link.url, speed)
        self._process: asyncio.subprocess.Process
        self._spent = 0.0
        """What all runs had spent when the last stop came."""
        self._was_full = False
        self._creates_before = 0
        self._began = time.monotonic()
        self._events: dict[str, Callable[[], Awaitable[None]]] = {
            "frozen": self._freeze,
            "no network": self._cut,
            "429": self._throttle,
            "455": self._close_for_maintenance,
            "full disk": self._fill_disk,
            "asleep": self._sleep,
            "answers lost": self._lose_answers,
            "refusals": self._refuse,
            "kill": self._kill,
            "kill again": self._kill,
            "Ctrl-C": self._interrupt,
        }

    async def run(self) -> None:
        """Live through the night and the morning."""
        try:
            await self._run()
        finally:
            await self._client.aclose()

    async def _run(self) -> None:
        plan = self._rng.sample(sorted(self._events), len(self._events))
        rows = len(self._evening.refs)
        last = 0.9 * (rows - _NEVER_MADE) / rows
        places = [last * (number + self._rng.uniform(0.3, 1.0)) / len(plan) for number in range(len(plan))]
        left = list(zip(places, plan, strict=True))
        while True:
            stop = await self._run_until_stop(left)
            await self._audit_stop(stop)
            if stop == "end":
                break
        for place, name in left:
            self._wrong(f"the batch ended before {place:.0%}: no {name}")
        self._sandbox.faults.fail_rate = 0.0
        await self._decide()
        await self._retry()
        self._report.wrong += audit.audit_morning(self._evening, await Books.read(self._evening))

    # --- the night -----------------------------------------------------------------------------

    async def _run_until_stop(self, left: list[tuple[float, str]]) -> str:
        """Run the batch until something stops it, and return what did: the end, if nothing else."""
        self._creates_before = self._sandbox.counts["create"]
        async with self._client.run(*self._batch()) as self._process:
            ending = asyncio.create_task(self._process.wait())
            while left and await self._comes_to(left[0][0], ending):
                name = left.pop(0)[1]
                self._note(name)
                await self._events[name]()
                if name.startswith(("kill", "Ctrl-C")):
                    await ending
                    return name.removesuffix(" again")
            await self._comes_to(2.0, ending)
            return "end"

    def _batch(self, *more: str) -> tuple[str, ...]:
        # A small batch must not have left as a whole before the night has begun.
        slots = max(3, min(100, len(self._evening.refs) // 8))
        options = ("--out", "videos", "--journal", self._evening.journal.name, "--max-in-flight", str(slots))
        return ("batch", "jobs.csv", *options, *more)

    async def _comes_to(self, share: float, ending: asyncio.Task[int]) -> bool:
        """Wait until so many tasks were made; tell whether the batch still runs then."""
        seen, changed_at = -1, time.monotonic()
        while not ending.done():
            moved = len(self._sandbox.tasks) + self._ended_count()
            is_under_way = self._sandbox.counts["create"] > self._creates_before
            if is_under_way and len(self._sandbox.tasks) >= share * len(self._evening.refs):
                return True
            if moved != seen:
                seen, changed_at = moved, time.monotonic()
            elif time.monotonic() - changed_at > _PATIENCE_S:
                self._wrong(f"nothing moved for {_PATIENCE_S:g} s: {self._client.err[-600:]}")
                return False
            await asyncio.wait({ending}, timeout=0.02)
        return False

    def _ended_count(self) -> int:
        return sum(task.end_state is not None for task in self._sandbox.tasks.values())

    async def _lasts(self, name: str) -> None:
        await asyncio.sleep(_LASTS_S[name] * self._share / self._speed)

    async def _freeze(self) -> None:
        self._link.freeze()
        await self._lasts("frozen")
        self._link.thaw()

    async def _cut(self) -> None:
        await self._link.cut()
        await self._lasts("no network")
        await self._link.mend()

    async def _throttle(self) -> None:
        faults = self._sandbox.faults
        faults.create_429_next = faults.query_429_next = 10**9
        await self._lasts("429")
        faults.create_429_next = faults.query_429_next = 0

    async def _close_for_maintenance(self) -> None:
        self._sandbox.faults.maintenance = True
        await self._lasts("455")
        self._sandbox.faults.maintenance = False

    async def _fill_disk(self) -> None:
        self._was_full = True
        full = self._evening.folder / FULL
        full.touch()
        await self._lasts("full disk")
        full.unlink()

    async def _sleep(self) -> None:
        self._process.send_signal(signal.SIGSTOP)
        await self._lasts("asleep")
        self._process.send_signal(signal.SIGCONT)

    async def _lose_answers(self) -> None:
        faults = self._sandbox.faults
        faults.lose_answers_next = LOST_ANSWERS
        await self._is_used_up(lambda: faults.lose_answers_next)

    async def _refuse(self) -> None:
        faults = self._sandbox.faults
        faults.create_answers_next = [(200, _REFUSAL)] * REFUSALS
        await self._is_used_up(lambda: faults.create_answers_next)

    async def _is_used_up(self, left: Callable[[], object]) -> None:
        """Wait until a fault has struck so often, or the batch has ended."""
        ends_at = time.monotonic() + _PATIENCE_S
        while left() and self._process.returncode is None and time.monotonic() < ends_at:  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    async def _kill(self) -> None:
        await asyncio.sleep(self._rng.uniform(0.0, 0.3))
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def _interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    # --- the morning ---------------------------------------------------------------------------

    async def _decide(self) -> None:
        """Decide on what is perhaps paid, as one who reads the service's log."""
        books = await Books.read(self._evening)
        unknown = [row["ref"] for row in books.rows if row["outcome"] == JobState.PERHAPS_PAID]
        self._note(f"{len(unknown)} perhaps paid")
        if len(unknown) < LOST_ANSWERS:
            self._wrong(f"only {unknown} are perhaps paid")
        bound = {intent.task_id for intent in books.intents}
        unbound = self._sandbox.tasks.keys() - bound
        tasks = {self._sandbox.tasks[task_id].input["prompt"]: task_id for task_id in unbound}
        for number, ref in enumerate(unknown):
            # One with a task, too, is paid again: the person may not have found it.
            found = tasks.get(ref) if number else None
            if found:
                await self._operate("resolve", ref, found)
            else:
                await self._operate("resubmit", ref, "--accept-double-charge")

    async def _operate(self, command: str, ref: str, *more: str) -> None:
        status = await self._client.call("journal", command, self._evening.journal.name, ref, *more)
        if status or "Traceback" in self._client.err:
            self._wrong(f"journal {command} {ref} ended with {status}: {self._client.err[-600:]}")

    async def _retry(self) -> None:
        """Make what failed again until nothing is left."""
        self._note("--retry-failed")
        self._spent = (await Books.read(self._evening)).credits  # of a task that was resolved, too
        async with self._client.run(*self._batch("--retry-failed")) as self._process:
            await self._comes_to(10.0, asyncio.create_task(self._process.wait()))
        await self._audit_stop("morning")

    # --- what is checked -----------------------------------------------------------------------

    async def _audit_stop(self, stop: str) -> None:
        books = await Books.read(self._evening)
        states = ", ".join(f"{count} {state}" for state, count in sorted(books.states.items()))
        self._note(f"{stop}: {states}")
        found = [*audit.audit_files(self._evening, books), *audit.audit_attempts(self._evening, books)]
        found += audit.audit_errors(self._client.err, was_full=self._was_full)
        if self._process.returncode != _EXIT[stop]:
            found.append(f"it ended with {self._process.returncode}: {self._client.err[-600:]}")
        if stop != "kill":
            found += audit.audit_words(self._evening, books, self._client.out, self._spent)
        for what in found[:_MOST_COMPLAINTS]:
            self._wrong(f"{stop}: {what}")
        if len(found) > _MOST_COMPLAINTS:
            self._wrong(f"{stop}: and {len(found) - _MOST_COMPLAINTS} more")
        self._spent, self._was_full = books.credits, False

    def _note(self, what: str) -> None:
        tasks = self._sandbox.tasks
        how_far = f"{len(tasks):4} tasks, {self._ended_count():4} ended"
        self._report.lines.append(f"{time.monotonic() - self._began:6.1f} s {how_far}  {what}")

    def _wrong(self, what: str) -> None:
        self._report.wrong.append(what)


def write_jobs(folder: Path, refs: Iterable[str]) -> None:
    """Write a table of avatar jobs that share a portrait and a voice."""
    (folder / "face.png").write_bytes(read_portrait())
    (folder / "voice.wav").write_bytes(read_voice())
    lines = [f"{ref},{MODEL},face.png,voice.wav,{ref}" for ref in refs]
    (folder / "jobs.csv").write_text("\n".join(["ref,model,image_url,audio_url,prompt", *lines, ""]))


async def run(
    rows: int, *, seed: int = 1, speed: float = 60.0, share: float = 1.0, task_s: float = 120.0
) -> Report:
    """Run the campaign in a folder that is kept if something is wrong; *share* shortens what happens."""
    folder = Path(tempfile.mkdtemp(prefix="kie-night-"))
    began = time.monotonic()
    options = f"--rows {rows} --seed {seed} --speed {speed:g} --share {share:g} --task-s {task_s:g}"
    report = Report(replay=f"python -m tests.campaign night {options}", folder=str(folder))
    refs = [f"order-{number:04}" for number in range(rows)]
    write_jobs(folder, refs)
    sandbox = Sandbox(
        api_key=KEY,
        durations=Lognormal(task_s / speed, 0.4),
        seed=seed,
        credits=CREDITS,
        create_limit=(20, 10.0 / speed),
        query_limit=None,
        callbacks=False,
    )
    sandbox.faults.fail_rate = FAIL_RATE
    async with sandbox, Link(sandbox.url) as link:
        # Media and results come over the same line: it is the network that is cut, not one address.
        sandbox._world.files.origin = link.url
        evening = Evening(folder=folder, refs=refs, sandbox=sandbox, credits=CREDITS)
        await Night(evening, link, report, seed=seed, speed=speed, share=share).run()
    report.lines.append(f"{rows} rows, seed {seed}: {time.monotonic() - began:.0f} s")
    if report.ok:
        shutil.rmtree(folder)
    return report


def main(argv: list[str]) -> int:
    """Run the campaign, print what it counted, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign night", description=__doc__)
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--speed", type=float, default=60.0, help="seconds of the batch in one of ours")
    parser.add_argument("--share", type=float, default=1.0, help="of the length of all weather")
    parser.add_argument("--task-s", type=float, default=120.0, help="what most tasks take")
    asked = vars(parser.parse_args(argv))
    report = asyncio.run(run(asked.pop("rows"), **asked))
    print(report)
    return 0 if report.ok else 1
