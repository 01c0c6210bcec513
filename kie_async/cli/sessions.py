"""Opens what a command needs: its session, with a way in for callbacks if they are wanted, or a journal."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated
from urllib.parse import urlsplit

import attrs
import typer

from .._validation import read_environment, strip_quotes
from ..callbacks.receiver import CallbackReceiver
from ..config import Budget
from ..errors import JournalAway, JournalError
from ..events import SessionEvent
from ..journal.base import Journal
from ..session import KieSession
from .journal_place import DurableJournal, JournalPlace
from .runtime import CannotRun

_DEFAULT_PORT = 8080

HMAC_KEY_VARIABLES = ["KIE_WEBHOOK_HMAC_KEY", "KIE_HMAC_KEY"]
"""Where the key of https://kie.ai/settings is found; the second one is the former name."""


def without_quotes(value: str | None) -> str | None:
    """Return what an option or its variable holds, without the blanks and quotes around it."""
    return (strip_quotes(value) or None) if value is not None else None


CallbackUrl = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        envvar="KIE_CALLBACK_URL",
        callback=without_quotes,
        help="Get callbacks: the public URL that leads to --port.",
    ),
]

Port = Annotated[
    int | None,
    typer.Option(min=1, max=65535, metavar="N", help="Where callbacks come in; 8080 if not given."),
]


AccountName = Annotated[
    str | None,
    typer.Option(
        "--account",
        metavar="NAME",
        envvar="KIE_ACCOUNT",
        callback=without_quotes,
        help="Your own name for the account: lets a journal take another key of it.",
    ),
]


@attrs.frozen(kw_only=True)
class SessionOptions:
    """What a command line chooses of a session."""

    journal: JournalPlace | Journal | None = None
    account: str | None = None
    callback_url: str | None = None
    port: int = _DEFAULT_PORT
    max_in_flight: int = 100
    budget: Budget | None = None


def check_port(port: int | None, callback_url: str | None) -> int:
    """Return where callbacks come in.

    Raises:
        BadParameter: A port was given, and no callbacks are wanted.
    """
    if port is not None and callback_url is None:
        raise typer.BadParameter("goes with --callback-url only", param_hint="--port")
    return port or _DEFAULT_PORT


@asynccontextmanager
async def open_session(
    options: SessionOptions, on_event: Callable[[SessionEvent], None] | None = None
) -> AsyncIterator[KieSession]:
    """Open the session, and where callbacks come in if they are wanted.

    Raises:
        CannotRun: The journal or the port cannot be had.
    """
    journal = options.journal
    receiver = None if options.callback_url is None else CallbackReceiver(_hmac_keys())
    session = KieSession(
        callback_url=options.callback_url,
        receiver=receiver,
        journal=journal.make_journal() if isinstance(journal, JournalPlace) else journal,
        account=options.account,
        max_in_flight=options.max_in_flight,
        budget=options.budget,
        on_event=on_event,
    )
    async with AsyncExitStack() as opened:
        try:
            if receiver is not None:
                path = urlsplit(options.callback_url or "").path
                await opened.enter_async_context(receiver.serve(port=options.port, path=path))
            kie = await opened.enter_async_context(session)
        except OSError as exc:
            raise CannotRun(f"cannot listen on port {options.port}: {exc.strerror or exc}") from None
        except JournalError as exc:
            raise CannotRun(str(exc)) from None
        yield kie


def _hmac_keys() -> list[str]:
    return [key for key in map(read_environment, HMAC_KEY_VARIABLES) if key][:1]


class CannotRunNow(CannotRun):
    """The database of the journal is away."""


@asynccontextmanager
async def open_journal(place: JournalPlace, *, to_write: bool = False) -> AsyncIterator[DurableJournal]:
    """Open a journal while the block runs, to read it or to take part in it.

    Raises:
        CannotRun: It is no journal, or is damaged, away or locked; the message says what.
    """
    journal = place.make_journal()
    try:
        await (journal.open() if to_write else journal.open_to_read())
        yield journal
    except JournalAway as exc:
        raise CannotRunNow(str(exc)) from None
    except JournalError as exc:
        raise CannotRun(str(exc)) from None
    finally:
        await journal.aclose()
