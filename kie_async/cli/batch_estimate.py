"""Reckons what a batch will cost and how long it will take, before anything is sent."""

from __future__ import annotations

import asyncio
import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress

import attrs

from ..config import Limits
from ..errors import KieError
from ..files.audio_length import measure_length
from ..inputs.prices import find_audio
from ..inputs.request import TaskRequest
from ..journal.base import Journal
from ..session import KieSession
from .batch_options import BatchOptions
from .jobs_file import Jobs
from .output import count_of, format_duration, format_number, format_spent, print_err, print_out
from .runtime import DONE, CannotRun
from .sessions import open_session

_BREATHER = 200
"""After so many rows the loop has its turn."""


@attrs.define
class BatchEstimate:
    """What a batch comes to, as far as that is known."""

    slots: int
    """How many tasks run at once."""
    rows: int = 0
    """What would be sent."""
    known: int = 0
    """What former runs have sent."""
    audio_s: float = 0.0
    credits: float = 0.0
    high: float = 0.0
    """What it may come to at most."""
    unpriced: int = 0
    """Rows whose price nobody knows."""
    balance: float | None = None
    models: Counter[str] = attrs.field(factory=Counter)

    def add(self, kie: KieSession, request: TaskRequest) -> None:
        """Take in one more row that would be sent."""
        self.rows += 1
        self.models[request.model] += 1
        local = (audio for audio in find_audio(request.input) if not isinstance(audio, str))
        self.audio_s += sum(measure_length(audio) or 0.0 for audio in local)
        price = kie.price(request)
        if price is None:
            self.unpriced += 1
        else:
            self.credits += price.credits
            self.high += price.high

    async def read_balance(self, kie: KieSession) -> None:
        """Ask the service for the balance; one that is out of reach is no reason to say nothing."""
        with suppress(KieError):
            self.balance = await kie.credits()

    def takes_s(self, kie: KieSession) -> float | None:
        """Return how long it takes under the limits; None if a model is unknown."""
        expected_s = {model: kie.expected_s(model) for model in self.models}
        whole_s = [(expected_s[model] or 0.0) * count for model, count in self.models.items()]
        if not self.rows or None in expected_s.values():
            return None
        create, before = Limits().create, self.rows - 1
        for_permits_s = before // create.count * create.per_s
        for_slots_s = before // self.slots * sum(whole_s) / self.rows
        return max(for_permits_s, for_slots_s) + max(filter(None, expected_s.values()))

    def lines(self, kie: KieSession) -> Iterator[str]:
        """Yield what there is to say."""
        earlier = f"; {count_of(self.known, 'job')} of former runs" if self.known else ""
        yield f"{count_of(self.rows, 'job')} to send{earlier}"
        if self.audio_s:
            yield f"audio {format_duration(self.audio_s)} in local files"
        most = f", {format_number(self.high)} at most" if self.high > self.credits * 1.001 else ""
        without = f", without {count_of(self.unpriced, 'job')} of unknown price" if self.unpriced else ""
        yield f"cost {format_spent(self.credits)}{most}{without}"
        if self.balance is not None:
            short = self.credits - self.balance
            missing = f", {format_number(short)} too few" if short > 0 else ""
            yield f"balance {format_spent(self.balance)}{missing}"
        takes_s = self.takes_s(kie)
        if takes_s is not None:
            yield f"time about {format_duration(takes_s)}, {self.slots} at once"


async def estimate_batch(
    kie: KieSession, journal: Journal | None, jobs: Jobs, chosen: Sequence[int], options: BatchOptions
) -> BatchEstimate:
    """Return what the chosen jobs come to that no former run has sent."""
    found = BatchEstimate(options.max_in_flight)
    for number, index in enumerate(chosen):
        request = jobs[index][1]
        intent = None if journal is None else await journal.find_by_ref(request.ref or "")
        if intent is None or (options.retry_failed and intent.may_be_retried):
            found.add(kie, request)
        else:
            found.known += 1
        if number % _BREATHER == 0:
            await asyncio.sleep(0)
    return found


async def show_estimate(options: BatchOptions, jobs: Jobs, chosen: Sequence[int]) -> int:
    """Print what a batch comes to, send nothing, and return the exit status."""
    # What was learned is in the journal; one that is not there is not made.
    journal = options.journal.make_journal() if options.journal.is_there else None
    session = attrs.evolve(options.session(journal), callback_url=None)
    async with open_session(session) as kie:
        found = await estimate_batch(kie, journal, jobs, chosen, options)
        await found.read_balance(kie)
        for line in found.lines(kie):
            print_out(line)
    print_out("dry run: nothing was sent")
    return DONE


async def confirm(
    kie: KieSession, journal: Journal, jobs: Jobs, chosen: Sequence[int], options: BatchOptions
) -> None:
    """Ask whoever sits at the terminal before a batch that costs much; elsewhere say what it comes to.

    Raises:
        CannotRun: He said no; nothing was sent.
    """
    if options.is_confirmed or math.isinf(options.ask_above):
        return
    found = await estimate_batch(kie, journal, jobs, chosen, options)
    if found.credits <= options.ask_above:
        return
    await found.read_balance(kie)
    is_asked = sys.stdin.isatty() and sys.stderr.isatty()
    if is_asked or not options.is_quiet:
        for line in found.lines(kie):
            print_err(line)
    if is_asked and not await _agrees():
        raise CannotRun("nothing was sent")


async def _agrees() -> bool:
    sys.stderr.write("Send them? [y/N] ")
    sys.stderr.flush()
    loop = asyncio.get_running_loop()
    typed: asyncio.Future[None] = loop.create_future()
    with suppress(NotImplementedError):  # Windows, which then waits where it reads
        loop.add_reader(sys.stdin, lambda: None if typed.done() else typed.set_result(None))
        try:
            await typed  # so that Ctrl-C ends it
        finally:
            loop.remove_reader(sys.stdin)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}
