"""The situations of creates that no server alone can make, each with a server, plain or over TLS.

A row of `create_faults` is a server that misbehaves; here it is the caller, the process, or a second create.
"""

from __future__ import annotations

import asyncio
import os
import resource
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
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
from kie_async.creating.send_gate import SendGate
from kie_async.events import Counters
from kie_async.journal.base import Intent, Journal
from kie_async.journal.memory import MemoryJournal
from kie_async.journal.sqlite import SqliteJournal
from kie_async.wire.requests import WireRequest
from support import inside
from support.create_faults import (
    BODY,
    KEY,
    SHORT_S,
    Word,
    creating,
    creation,
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
    """Where a situation plays: a server, and sessions on it that trust its certificate."""

    def __init__(self, server: Misbehaving, folder: Path, over: str, network: Network | None) -> None:
        self.server = server
        self.folder = folder
        self.over = over
        self.network = network or Network(ssl=trusting())

    @property
    def journal(self) -> Path:
        return self.folder / "run.db"

    def creating(self, **options: Any) -> AbstractAsyncContextManager[CreateTransport]:
        """Open a transport for creates."""
        return creating(self.server.url, network=self.network, **options)

    @asynccontextmanager
    async def session(self, **options: Any) -> AsyncIterator[KieSession]:
        """Open a session; it polls no task but one it finds again."""
        rates = Limits(create=Rate(1000, per_s=0.01))
        given = {"limits": rates, "poll": PollSchedule.fixed(60), "network": self.network} | options
        async with KieSession(KEY, base_url=self.server.url, **given) as kie:
            yield kie

    async def until_read(self, count: int = 1) -> None:
        """Wait until the server has read so many bodies."""
        async with asyncio.timeout(5):
            while len(self.server.bodies) < count:  # noqa: ASYNC110
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
    bodies: int | None = 1
    """None if that is left to chance."""
    server: Behaviour | None = None
    """By default one that makes a task of each body."""

    def __str__(self) -> str:
        return f"{self.id} {self.what}"


@attrs.frozen(kw_only=True)
class Seen:
    """What a situation led to."""

    word: str
    bodies: int


async def see(situation: Situation, over: str, network: Network | None = None) -> Seen:
    """Play a situation, ``plain`` or over ``TLS``, perhaps by way of a proxy."""
    tls = certified() if over == "TLS" else None
    async with Misbehaving(situation.server or makes_tasks(), tls=tls) as server:
        with tempfile.TemporaryDirectory() as folder:
            async with asyncio.timeout(20):
                words = await situation.play(Stage(server, Path(folder), over, network))
            await asyncio.sleep(0.01)  # what left late would arrive now
    return Seen(word=", ".join(words), bodies=len(server.bodies))


def protest(situation: Situation, seen: Seen) -> str:
    """Return what is wrong with what was seen, or nothing."""
    if seen.word != situation.ends:
        return f"{seen.word}, not {situation.ends}"
    if situation.bodies not in (None, seen.bodies):
        return f"{seen.bodies} bodies were read, not {situation.bodies}"
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


def makes_tasks(answer_s: float = 0.0) -> Behaviour:
    """Make a task of each body, and know none when asked."""

    async def behave(peer: Peer) -> None:
        if (await peer.head()).startswith("GET"):
            return await peer.send(answer(refused(404), 404))
        await peer.body()
        number = len(peer.server.bodies)
        await asyncio.sleep(answer_s)
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
        ),
    ]


async def _waits_for_the_pool(stage: Stage) -> list[str]:
    """Ask the transport past its own line: the pool of aiohttp has the last word."""
    request = WireRequest(method="POST", path="/api/v1/jobs/createTask", body=BODY)

    async def post(transport: CreateTransport) -> str:
        attempt = await transport.post(request, SendGate(partial(asyncio.sleep, 0)))
        return attempt.answer.verdict.value.replace("_", " ")

    async with creating(
        stage.server.url, network=stage.network, connections=1, timeout_s=SHORT_S
    ) as transport:
        first = asyncio.create_task(post(transport))
        await stage.until_read()
        return [await post(transport), await first][::-1]


async def _waits_for_a_place(stage: Stage) -> list[str]:
    async with creating(
        stage.server.url, network=stage.network, connections=1, timeout_s=SHORT_S
    ) as transport:
        first = asyncio.create_task(creation(transport).run())
        await stage.until_read()
        waiting = creation(transport)
        second = asyncio.create_task(waiting.run())
        await asyncio.sleep(0.02)
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
    stays = answer(created(), headers="Connection: keep-alive\r\n")

    async def keeps_alive(peer: Peer) -> None:
        await peer.request()
        await peer.send(stays)
        await peer.hang()

    return [
        Situation(
            id="A15",
            what="a server that keeps connections alive",
            ends="created, created, created, 3 connections",
            play=_three_in_a_row,
            bodies=3,
            server=keeps_alive,
        ),
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


async def _three_in_a_row(stage: Stage) -> list[str]:
    async with stage.creating(connections=1) as transport:
        words = [await outcome_of(creation(transport).run()) for _ in range(3)]
    return [*words, f"{stage.server.connections} connections"]


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
            server=makes_tasks(answer_s=0.05),
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
            server=makes_tasks(answer_s=0.1),
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
