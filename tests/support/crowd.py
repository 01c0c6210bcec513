"""Fifty users who ask a bot at once and count its answers: what the tests of bots and apps share."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import attrs

from kie_async import KieSession, PollSchedule, Sandbox

USERS = range(1, 51)
BY_CALLBACK, BY_POLL = 35, 10
"""Of the fifty; the rest is answered after a restart."""
NOW_AND_THEN = PollSchedule(
    learns=False,
    first_s=0.05,
    tiers=((math.inf, 0.05),),
    safety_net_s=1.0,
    recheck_s=(0.05,),
    ring_gap_s=0.05,
)
"""Callbacks come first; a second later polls find the rest."""


@attrs.frozen(kw_only=True)
class Running:
    """A bot that runs."""

    kie: KieSession
    ask: Callable[[int], Awaitable[Any]]
    """Lets a user ask, through whatever the bot listens on."""


@attrs.define
class Crowd:
    """The users: what each was sent."""

    answers: list[tuple[int, str]] = attrs.field(factory=list)

    edits: list[tuple[int, str]] = attrs.field(factory=list)
    """What became of a message that was sent before."""

    def note_answer(self, user: int, text: str) -> None:
        self.answers.append((user, text))


async def until(holds: Callable[[], object]) -> None:
    """Wait until *holds*, leaving the loop to the others."""
    while not holds():  # noqa: ASYNC110  (the sandbox and the stand-ins have no event for it)
        await asyncio.sleep(0.005)


def input_for(user: int) -> dict[str, Any]:
    """Return the input of a user's task."""
    return {"prompt": f"for {user}", "result_urls": [url_for(user)]}


def url_for(user: int) -> str:
    return f"https://example.org/{user}.mp4"


async def play(
    sandbox: Sandbox, crowd: Crowd, start: Callable[[], AbstractAsyncContextManager[Running]], *, signed: bool
) -> None:
    """Ask, answer by callback and by poll, stop, start again: every user is answered once, and rightly."""
    gate = asyncio.Event()
    if signed:  # without keys a callback is confirmed by a query
        sandbox.faults.query_answer_gate = gate
    async with start() as bot:
        await asyncio.gather(*map(bot.ask, USERS))
        await until(lambda: len(sandbox.tasks) == len(USERS))
        ids = list(sandbox.tasks)

        for task_id in ids[:BY_CALLBACK]:
            sandbox.finish(task_id)
        await until(lambda: len(crowd.answers) == BY_CALLBACK)
        assert Counter(delivery.status for delivery in sandbox.deliveries) == {200: BY_CALLBACK}
        assert bot.kie.stats().callbacks_accepted + bot.kie.stats().callbacks_duplicate == BY_CALLBACK
        assert bot.kie.stats().settled_by_callback == BY_CALLBACK or not signed

        sandbox.faults.drop_callbacks = 1.0
        for task_id in ids[BY_CALLBACK : BY_CALLBACK + BY_POLL]:
            sandbox.finish(task_id)
        gate.set()
        await until(lambda: len(crowd.answers) == BY_CALLBACK + BY_POLL)
        stats = bot.kie.stats()
        assert stats.settled_by_callback + stats.settled_by_poll == BY_CALLBACK + BY_POLL
        assert stats.in_flight == len(USERS) - BY_CALLBACK - BY_POLL

    for task_id in ids[BY_CALLBACK + BY_POLL :]:
        sandbox.finish(task_id)
    async with start() as bot:
        await until(lambda: len(crowd.answers) == len(USERS))
        assert bot.kie.stats().creates == 0
    assert sorted(crowd.answers) == [(user, url_for(user)) for user in USERS]
    assert sandbox.counts["create.created"] == len(USERS)
