"""The situations of creates that no server alone can make, each with a server, plain or over TLS.

A row of `create_faults` is a server that misbehaves; here it is the caller, the process, or a second create.
"""

from __future__ import annotations

import asyncio
import os
import resource
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import attrs

from kie_async import (
    JournalLocked,
    KieError,
    KieSession,
    Limits,
    Network,
    PollSchedule,
    Rate,
    RefConflict,
    SessionMisuse,
    TaskHandle,
    TaskRequest,
)
from kie_async.creating.create_transport import CreateTransport
from kie_async.creating.kept_connection import KEEP_S
from kie_async.creating.send_gate import SendGate
from kie_async.events import Counters
from kie_async.journal.base import Journal
from kie_async.journal.intents import Intent
from kie_async.journal.memory import MemoryJournal
from kie_async.journal.sqlite import SqliteJournal
from kie_async.wire.requests import WireRequest
from support import inside
from support.clock import settle
from support.create_faults import (
    BODY,
    ENOUGH_S,
    KEY,
    SHORT_S,
    Notes,
    Word,
    after_a_create,
    creating,
    creation,
    warm_up,
    word_for,
)
from support.misbehaving import (
    Behaviour,
    Misbehaving,
    Peer,
    answer,
    breaks_off,
    certified,
    created,
    refused,
    says,
    trusting,
)

ECHO = TaskRequest(model="test/echo", input={"prompt": "a lighthouse"})
NAMED = attrs.evolve(ECHO, ref="jobs/1")
OTHER = attrs.evolve(NAMED, input={"prompt": "another"})
TURNS = 40
"""More turns of the loop than a create takes."""


class Stage:
    """Where a situation plays: a server, and sessions on it that trust its certificate.

    With *is_kept* each of them has a connection that carried a create before.
    """

    def __init__(
        self,
        server: Misbehaving,
        folder: Path,
        over: str,
        network: Network | None,
        *,
        is_kept: bool = False,
    ) -> None:
        self.server = server
        self.folder = folder
        self.over = over
        self.network = network or Network(ssl=trusting())
        self._is_cold = is_kept

    @property
    def journal(self) -> Path:
        return self.folder / "run.db"

    @asynccontextmanager
    async def session(self, **options: Any) -> AsyncIterator[KieSession]:
        """Open a session; it polls no task but one it finds again."""
        rates = Limits(create=Rate(1000, per_s=0.01))
        given = {"limits": rates, "poll": PollSchedule.fixed(60), "network": self.network} | options
        async with KieSession(KEY, base_url=self.server.url, **given) as kie:
            await self._warm_up(inside.transport_of(kie))
            yield kie

    @asynccontextmanager
    async def creating(self, **options: Any) -> AsyncIterator[CreateTransport]:
        """Open what sends creates, without a session."""
        async with creating(self.server.url, network=self.network, **options) as transport:
            await self._warm_up(transport)
            yield transport

    async def _warm_up(self, transport: CreateTransport) -> None:
        if self._is_cold:
            await warm_up(transport, self.server)
            self._is_cold = False

    async def until_read(self, count: int = 1) -> None:
        """Wait until the server has read so many bodies."""
        async with asyncio.timeout(5):
            while self._is_cold or len(self.server.bodies) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    async def intents(self) -> list[Intent]:
        """Return what a journal holds that nobody has open."""
        journal = SqliteJournal(self.journal)
        try:
            await journal.open()
            return await journal.list_intents()
        finally:
            await journal.aclose()

    async def noted(self) -> str:
        """Return what the journal holds of its one intent."""
        [intent] = await self.intents()
        return f"noted {intent.state} {intent.task_id}".rstrip()


Play = Callable[[Stage], Awaitable[list[str]]]


@attrs.frozen(kw_only=True)
class Situation:
    """What happens, how each of its creates must end, and how many bodies may have been read."""

    id: str
    what: str
    ends: str
    play: Play
    """Plays it and returns its words."""
    ends_kept: str = ""
    """How they end on a connection that was kept, if not alike."""
    bodies_kept: int | None = None
    is_at_once: bool = False
    """Whether it needs a server right beside us: what it does must be seen in the next moment."""
    bodies: int | None = 1
    """None if that is left to chance."""
    server: Behaviour | None = None
    """By default one that makes a task of each body."""

    @property
    def ways(self) -> tuple[str, ...]:
        """Return how it is played."""
        return "plain", "TLS", "plain, kept", "TLS, kept"

    @property
    def may_share(self) -> bool:
        """Tell whether others may play beside it: most count what the process has, or turns of its loop."""
        return self.id == "A15"

    def __str__(self) -> str:
        return f"{self.id} {self.what}"


@attrs.frozen(kw_only=True)
class Seen:
    """What a situation led to."""

    word: str
    bodies: int


async def see(situation: Situation, way: str, network: Network | None = None) -> Seen:
    """Play a situation, ``plain`` or over ``TLS``, on a fresh or a ``kept`` connection, maybe by a proxy."""
    over, _, kept = way.partition(", ")
    tls = certified() if over == "TLS" else None
    behave = situation.server or makes_tasks()
    async with Misbehaving(after_a_create(behave) if kept else behave, tls=tls) as server:
        with tempfile.TemporaryDirectory() as folder:
            async with asyncio.timeout(20):
                stage = Stage(server, Path(folder), over, network, is_kept=bool(kept))
                words = await situation.play(stage)
            await asyncio.sleep(0.01)  # what left late would arrive now
    return Seen(word=", ".join(words), bodies=len(server.bodies))


def protest(situation: Situation, seen: Seen, way: str) -> str:
    """Return what is wrong with what was seen, or nothing."""
    ends, bodies = situation.ends, situation.bodies
    if way.endswith("kept"):
        ends, bodies = situation.ends_kept or ends, situation.bodies_kept or bodies
    if seen.word != ends:
        return f"{seen.word}, not {ends}"
    if bodies not in (None, seen.bodies):
        return f"{seen.bodies} bodies were read, not {bodies}"
    return ""


def word_of(outcome: object) -> str:
    """Return the word for what a caller got."""
    words: tuple[tuple[type, str], ...] = (
        (asyncio.CancelledError, "given up"),
        (SessionMisuse, "closed"),
        (RefConflict, "conflict"),
        (JournalLocked, "locked"),
    )
    if isinstance(outcome, BaseException):
        return next((word for kind, word in words if isinstance(outcome, kind)), word_for(outcome))
    return Word.CREATED


async def outcome_of(create: Awaitable[object]) -> str:
    """Await a create and return the word for its end."""
    [outcome] = await asyncio.gather(create, return_exceptions=True)
    return word_of(outcome)


def makes_tasks(answer_s: float = 0.0, *, is_held_back: bool = False) -> Behaviour:
    """Make a task of each body, and know none when asked; one held back answers when `may_answer` is set."""

    async def behave(peer: Peer) -> None:
        if (await peer.head()).startswith("GET"):
            return await peer.send(answer(refused(404), 404))
        await peer.body()
        number = len(peer.server.bodies)
        await asyncio.sleep(answer_s)
        if is_held_back:
            await peer.server.may_answer.wait()
        return await peer.send(answer(created(f"task_{number}")))

    return behave


class SlowNotes(MemoryJournal):
    """Takes its time for the note before the first byte."""

    async def mark_sending(self, intent: Intent) -> None:
        await asyncio.sleep(SHORT_S)


# --- the situations ------------------------------------------------------------------------------


def situations() -> list[Situation]:
    """Return the whole table."""
    return [
        *_places_and_files(),
        *_connections_and_ids(),
        *_given_up(),
        *_ends_of_the_process(),
        *_things_of_the_user(),
        *_the_same_again(),
    ]


def _places_and_files() -> list[Situation]:
    """Nothing can leave, for want of a place or of a file descriptor: A6, A7."""
    hangs = breaks_off(b"", "hang")
    return [
        Situation(
            id="A6",
            what="the pool has no connection left in time",
            ends="unknown, not sent",
            play=_waits_for_the_pool,
            server=hangs,
        ),
        Situation(
            id="A6",
            what="given up in line for a place",
            ends="given up, unknown",
            play=_waits_for_a_place,
            server=hangs,
        ),
        Situation(
            id="A7",
            what="no file descriptor is left",
            ends="not sent, not hot",
            play=_without_files,
            bodies=0,
            ends_kept="created, 0 retries",  # it needs no further one
            bodies_kept=1,
        ),
    ]


async def _waits_for_the_pool(stage: Stage) -> list[str]:
    """Ask the transport past its own line: the pool of aiohttp has the last word."""
    request = WireRequest(method="POST", path="/api/v1/jobs/createTask", body=BODY)

    async def post(transport: CreateTransport) -> str:
        attempt = await transport.post(request, SendGate(partial(asyncio.sleep, 0)))
        return attempt.answer.verdict.value.replace("_", " ")

    async with stage.creating(connections=1, timeout_s=ENOUGH_S) as transport:
        first, second = asyncio.create_task(post(transport)), asyncio.create_task(post(transport))
        return [await first, await second]


async def _waits_for_a_place(stage: Stage) -> list[str]:
    async with stage.creating(connections=1, timeout_s=ENOUGH_S) as transport:
        first = asyncio.create_task(creation(transport).run())
        await stage.until_read()
        waiting = creation(transport)
        second = asyncio.create_task(waiting.run())
        await settle()
        assert waiting.stop()
        second.cancel()
        return [await outcome_of(second), await outcome_of(first)]


async def _without_files(stage: Stage) -> list[str]:
    counters = Counters()
    async with stage.creating() as transport:
        with no_more_files():
            word = await outcome_of(creation(transport, counters=counters, patience_s=0.8).run())
    return [word, "not hot" if 1 <= counters.retries <= 3 else f"{counters.retries} retries"]


@contextmanager
def no_more_files() -> Iterator[None]:
    """Let this process open no further file, socket or pipe."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.close(lowest := os.dup(0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _connections_and_ids() -> list[Situation]:
    """What one create may not take over from another: A15, A23."""
    return [
        *_kept_connections(),
        Situation(
            id="A23",
            what="one id for two creates",
            ends="created, unknown",
            play=_two_creates,
            bodies=2,
            server=says(answer(created())),
        ),
        Situation(
            id="A23",
            what="the id of a task of a former run",
            ends="created, unknown",
            play=_two_runs,
            bodies=2,
            server=says(answer(created())),
        ),
    ]


def _kept_connections() -> list[Situation]:
    """When a connection carries a second create, and that nothing is sent on one that shows its end: A15."""
    row = partial(Situation, id="A15", bodies=2)
    another = answer(created("another"))
    tails = {"another answer": another, "half an answer": another[:30], "a byte": b"H"}
    close = "Connection: close\r\n"
    one, two = "created, created, 1 connection", "created, created, 2 connections"
    noted_twice = f"{two}, sending, sending, unsent, sending"
    slow = partial(_two_in_a_row, commit_s=SHORT_S)
    return [
        row(what="it stays", ends=one, play=_two_in_a_row, server=keeps()),
        row(what="the answer came in chunks", ends=one, play=_two_in_a_row, server=keeps(is_chunked=True)),
        row(what="it is told to close", ends=two, play=_two_in_a_row, server=keeps(headers=close)),
        row(what="HTTP/1.0", ends=two, play=_two_in_a_row, server=keeps(version=b"1.0")),
        row(
            what="a second later",
            ends=two,
            play=partial(_two_in_a_row, pause_s=KEEP_S + 0.05),
            server=keeps(),
        ),
        row(
            what="the note takes a second",
            ends=noted_twice,
            ends_kept="created, created, 3 connections, sending, unsent, sending, sending, unsent, sending",
            play=partial(_two_in_a_row, commit_s=KEEP_S + 0.05),
            server=keeps(),
        ),
        *(
            row(
                what=f"it {what} at once",
                ends=two,
                play=_two_in_a_row,
                server=keeps(then=then),
                is_at_once=True,
            )
            for what, then in _ends(another).items()
        ),
        *(
            row(
                what=f"it {what}, and a moment passes",
                ends=two,
                play=partial(_two_in_a_row, pause_s=0.05),
                server=keeps(then=then),
            )
            for what, then in _ends(another).items()
        ),
        *(
            row(
                what=f"it {what} while it is noted",
                ends=noted_twice,
                play=slow,
                server=keeps(then=then, once_noted=True),
            )
            for what, then in _ends(another).items()
        ),
        *(
            row(what=f"{what} in the same packet", ends=two, play=_two_in_a_row, server=keeps(tail=tail))
            for what, tail in tails.items()
        ),
        row(
            what="it ends, and nobody listens any more",
            ends="created, not sent, 1 connection",
            play=partial(_two_in_a_row, stops=True),
            server=keeps(then=_closes_it),
            bodies=1,
        ),
    ]


Then = Callable[[Peer], Awaitable[None]]


async def _closes_it(peer: Peer) -> None:
    peer.close()


def _ends(another: bytes) -> dict[str, Then]:
    """Return what a server may do to a connection that waits."""

    async def resets(peer: Peer) -> None:
        peer.reset()

    async def answers_again(peer: Peer) -> None:
        await peer.send(another)

    async def begins_to_answer(peer: Peer) -> None:
        await peer.send(another[:30])

    return {
        "closes": _closes_it,
        "resets": resets,
        "answers again": answers_again,
        "begins to answer again": begins_to_answer,
    }


def keeps(
    *,
    headers: str = "",
    version: bytes = b"1.1",
    is_chunked: bool = False,
    tail: bytes = b"",
    then: Then | None = None,
    once_noted: bool = False,
) -> Behaviour:
    """Make a task of each body and keep the connection; the first one meets its end early.

    With *once_noted* that is when the next create is being noted, which sets `may_answer`.
    """

    async def behave(peer: Peer) -> None:
        while True:
            await peer.request()
            raw = answer(created(f"task_{len(peer.server.bodies)}"), headers=headers)
            if is_chunked:
                body = raw.partition(b"\r\n\r\n")[2]
                raw = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(body), body)
                raw += b"0\r\n\r\n"
            await peer.send(raw.replace(b"1.1", version, 1) + tail)
            if then is not None and peer.number == 1:
                if once_noted:
                    await peer.server.may_answer.wait()
                await then(peer)

    return behave


async def _two_in_a_row(
    stage: Stage, *, pause_s: float = 0.0, commit_s: float = 0.0, stops: bool = False
) -> list[str]:
    async def commit() -> None:
        if notes.notes.count("sending") > 1:
            stage.server.may_answer.set()
        await asyncio.sleep(commit_s)

    notes = Notes(commit if commit_s else None)
    counters = Counters()
    async with stage.creating(connections=1) as transport:
        words = [await outcome_of(creation(transport, journal=notes, counters=counters).run())]
        if stops:
            stage.server.stop_listening()
        await asyncio.sleep(pause_s)
        words.append(await outcome_of(creation(transport, journal=notes, counters=counters).run()))
    connections = stage.server.connections
    words.append(f"{connections} connection{'s' if connections > 1 else ''}")
    words += notes.notes if commit_s else []
    return words + ([f"{counters.retries} retries"] if counters.retries else [])


async def _two_creates(stage: Stage) -> list[str]:
    async with stage.session() as kie:
        return [await outcome_of(kie.create(ECHO)) for _ in range(2)]


async def _two_runs(stage: Stage) -> list[str]:
    words = []
    for _ in range(2):
        async with stage.session(journal=stage.journal) as kie:
            words.append(await outcome_of(kie.create(ECHO)))
    return words


def _given_up() -> list[Situation]:
    """The caller is cancelled: A25."""
    row = partial(Situation, id="A25")
    return [
        row(what="given up in line for the limit", ends="created, given up", play=_in_the_limiters_line),
        row(what="given up while it is noted", ends="given up, free", play=_while_it_is_noted, bodies=0),
        row(
            what="given up after the body left",
            ends="given up, in flight, found by its ref, noted CREATED task_1",
            play=_after_the_body_left,
            server=makes_tasks(is_held_back=True),
        ),
        row(
            what="given up at every turn of the loop",
            ends="some left, none twice, no id lost",
            play=_at_every_turn,
            bodies=None,
        ),
    ]


async def _in_the_limiters_line(stage: Stage) -> list[str]:
    async with stage.session(limits=Limits(create=Rate(1, per_s=60))) as kie:
        first = await outcome_of(kie.create(ECHO))
        return [first, await _given_up_after(kie, 0.02)]


async def _while_it_is_noted(stage: Stage) -> list[str]:
    async with stage.session(journal=SlowNotes(), max_in_flight=1) as kie:
        word = await _given_up_after(kie, SHORT_S / 2)
        await asyncio.sleep(SHORT_S)
        return [word, "free" if inside.has_free_slot(kie) else "not free"]


async def _after_the_body_left(stage: Stage) -> list[str]:
    async with stage.session(journal=stage.journal) as kie:
        creating = asyncio.create_task(kie.create(NAMED))
        await stage.until_read()
        creating.cancel()
        words = [await outcome_of(creating)]
        stage.server.may_answer.set()
        async with asyncio.timeout(5):
            while not kie.stats().in_flight:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        handle = kie.attach("task_1")
        words += ["in flight"] if handle.request is not None else []  # the one that was being made
        words += ["found by its ref"] if await kie.create(NAMED) is handle else []
    return [*words, await stage.noted()]


async def _at_every_turn(stage: Stage) -> list[str]:
    async with stage.session(max_in_flight=TURNS) as kie:
        for turns in range(TURNS):
            creating = asyncio.create_task(kie.create("test/echo", {"turns": turns}))
            for _ in range(turns):
                await asyncio.sleep(0)
            creating.cancel()
            await asyncio.wait({creating})
        await inside.until_nothing_is_sent(kie)
        known = inside.task_ids(kie)
    bodies = stage.server.bodies
    made = {f"task_{number}" for number in range(1, len(bodies) + 1)}
    return [
        "some left" if 0 < len(bodies) < TURNS else "all or none left",
        "none twice" if len(set(bodies)) == len(bodies) else "a body twice",
        "no id lost" if made == known else f"lost {made - known}, invented {known - made}",
    ]


async def _given_up_after(kie: KieSession, seconds: float) -> str:
    creating = asyncio.create_task(kie.create(ECHO))
    await asyncio.sleep(seconds)
    creating.cancel()
    return await outcome_of(creating)


def _ends_of_the_process() -> list[Situation]:
    """The session closes, or the loop ends, while a create is on its way: A26."""
    row = partial(Situation, id="A26")
    return [
        row(
            what="the session closes, the body has left",
            ends="created, noted CREATED task_1",
            play=partial(_closes, after_bodies=1),
            server=makes_tasks(is_held_back=True),
        ),
        row(
            what="the session closes before the first byte",
            ends="closed",
            play=partial(_closes, after_bodies=0),
            bodies=0,
        ),
        row(
            what="asyncio.run ends, the body has left",
            ends="noted UNKNOWN",
            play=_run_ends,
            server=breaks_off(b"", "hang"),
        ),
    ]


async def _closes(stage: Stage, after_bodies: int) -> list[str]:
    journal: Path | Journal = stage.journal if after_bodies else SlowNotes()
    async with stage.session(journal=journal) as kie:
        creating = asyncio.create_task(kie.create(ECHO))
        await stage.until_read(after_bodies)
        await asyncio.sleep(0.02)
        asyncio.get_running_loop().call_later(0.1, stage.server.may_answer.set)  # while it closes
    word = await outcome_of(creating)
    return [word, await stage.noted()] if after_bodies else [word]


async def _run_ends(stage: Stage) -> list[str]:
    """Run a program whose main ends while another of its tasks creates; its end cancels them all."""
    creating: list[asyncio.Task[None]] = []

    async def works() -> None:
        async with stage.session(journal=stage.journal) as kie:
            await kie.create(ECHO)

    async def program() -> None:
        creating.append(asyncio.create_task(works()))
        await stage.until_read()

    await asyncio.to_thread(asyncio.run, program())
    return [await stage.noted()]


def _things_of_the_user() -> list[Situation]:
    """What a user or the environment has set up for other requests touches no create: A28."""
    row = partial(Situation, id="A28")
    return [
        row(what="proxies and a netrc of the environment", ends="created, with our key", play=_environment),
        row(
            what="a session whose middleware sends twice",
            ends="no way in, unknown",
            play=_a_session_that_sends_twice,
            server=breaks_off(b"", "close"),
        ),
    ]


async def _environment(stage: Stage) -> list[str]:
    async with Misbehaving(says(answer(created("of the proxy")))) as proxy:
        with set_in_environment(stage.folder, proxy.url):
            async with stage.session() as kie:
                word = await outcome_of(kie.create(ECHO))
        words = [word, "through the proxy"] if proxy.connections else [word]
    is_ours = f"\r\nAuthorization: Bearer {KEY}\r\n" in stage.server.heads[0]
    return [*words, "with our key" if is_ours else "with another key"]


@contextmanager
def set_in_environment(folder: Path, proxy: str) -> Iterator[None]:
    """Set each variable that can lead a request to a proxy, or give it credentials."""
    netrc = folder / "netrc"
    netrc.write_text("machine 127.0.0.1 login eve password eves-password\n")
    netrc.chmod(0o600)
    names = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
    given = dict.fromkeys((*names[:3], *(name.upper() for name in names[:3])), proxy)
    before = dict(os.environ)
    os.environ.update(given, NETRC=str(netrc))
    for name in ("no_proxy", "NO_PROXY"):
        os.environ.pop(name, None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


async def _a_session_that_sends_twice(stage: Stage) -> list[str]:
    async def sends_twice(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> Any:
        await send(request)
        return await send(request)

    async with aiohttp.ClientSession(middlewares=(sends_twice,)) as theirs:
        ways_in = [name for name in ("session", "http", "client", "connector") if _takes(name, theirs)]
        ways_in += [name for name in ("middlewares", "trace_configs") if _takes(name, (sends_twice,))]
        async with stage.session() as kie:
            word = await outcome_of(kie.create(ECHO))
    return [*(ways_in or ["no way in"]), word]


def _takes(name: str, value: object) -> bool:
    given: dict[str, Any] = {name: value}
    try:
        KieSession(KEY, **given)
    except TypeError:
        return False
    return True


def _the_same_again() -> list[Situation]:
    """One ref is one task, whoever asks for it: A30."""
    row = partial(Situation, id="A30", server=makes_tasks(answer_s=0.02))
    return [
        row(what="the same body, ten at once", ends="1 handle", play=_ten_at_once),
        row(what="another body, at once and later", ends="created, conflict, conflict", play=_another_body),
        row(
            what="the same body in the next run",
            ends="created, created, task_1 task_1",
            play=_in_the_next_run,
        ),
        row(what="two sessions on one journal", ends="created, locked", play=_on_one_journal),
    ]


async def _ten_at_once(stage: Stage) -> list[str]:
    async with stage.session() as kie:
        handles = await asyncio.gather(*(kie.create(NAMED) for _ in range(10)))
    return [f"{len(set(handles))} handle"]


async def _another_body(stage: Stage) -> list[str]:
    async with stage.session() as kie:
        both = await asyncio.gather(kie.create(NAMED), kie.create(OTHER), return_exceptions=True)
        late = OTHER if isinstance(both[0], TaskHandle) else NAMED  # either may come first
        return [*sorted(map(word_of, both), reverse=True), await outcome_of(kie.create(late))]


async def _in_the_next_run(stage: Stage) -> list[str]:
    outcomes: list[TaskHandle | KieError] = []
    for _ in range(2):
        async with stage.session(journal=stage.journal) as kie:
            outcomes += await asyncio.gather(kie.create(NAMED), return_exceptions=True)  # type: ignore[arg-type]
    ids = " ".join(outcome.task_id for outcome in outcomes if isinstance(outcome, TaskHandle))
    return [*map(word_of, outcomes), ids]


async def _on_one_journal(stage: Stage) -> list[str]:
    async def another() -> TaskHandle:
        async with stage.session(journal=stage.journal) as kie:
            return await kie.create(NAMED)

    async with stage.session(journal=stage.journal) as kie:
        return [await outcome_of(kie.create(NAMED)), await outcome_of(another())]
