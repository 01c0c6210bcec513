"""``kie-async listen``: shows callbacks as they arrive, or tries whether a public URL leads here."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import time
from collections.abc import Sequence
from typing import Annotated

import typer

from .._validation import read_environment, strip_quotes
from ..callbacks.address import derive_callback_secret
from ..callbacks.base import MACS_ONLY, BodyReader, CallbackVerdict, Delivery, Headers, Redactor
from ..callbacks.receiver import CallbackReceiver
from ..callbacks.server import serve
from ..errors import CallbackRejected
from .output import print_err, print_out
from .runtime import DONE, FAILED, CannotRun, run_command
from .sessions import HMAC_KEY_VARIABLES

_MOST_SHOWN = 200

_BODY_LIMIT = 262_144

_MAC = re.compile(r"\b[a-z2-7]{26}\b")
"""The secret part of an address, which the service repeats in a task's parameters."""


def listen(
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8080,
    path: Annotated[str, typer.Option(help="Path that the callback URL ends in.")] = "/kie",
    hmac_key: Annotated[
        str,
        typer.Option(envvar=HMAC_KEY_VARIABLES, help="Verify signatures with this key of kie.ai/settings."),
    ] = "",
    check: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Send a request to this public URL and say whether it gets here."),
    ] = None,
) -> None:
    """Show callbacks as they arrive, until Ctrl-C; with --check, try whether a public URL leads here."""
    key = strip_quotes(hmac_key)
    receiver = CallbackReceiver([key] if key else [])
    run_command(_listen(receiver, host, port, path, check))


async def _listen(receiver: CallbackReceiver, host: str, port: int, path: str, check: str | None) -> int:
    """Listen until SIGINT, which is the ordinary end, or until the check is done.

    Raises:
        CannotRun: The port is taken.
    """
    try:
        async with serve(host, port, path, _Shown(receiver).handle) as served:
            if check is not None:
                return await _check(receiver, check)
            print_out(f"listening at {served.url}; Ctrl-C ends; `--check URL` tries the way from outside")
            await _until_interrupted()
    except OSError as exc:
        reason = os.strerror(exc.errno) if exc.errno is not None and exc.errno > 0 else str(exc)
        raise CannotRun(f"cannot listen on {host}:{port}: {reason}") from None
    return DONE


async def _check(receiver: CallbackReceiver, url: str) -> int:
    found = await receiver.check(url)
    if found.is_ok:
        print_out(str(found))
        return DONE
    print_err(f"error at the {found.failed_hop}: {found}")
    return FAILED


async def _until_interrupted() -> None:
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.Event().wait()


class _Shown:
    """Prints each request and what a session would have answered; an `Inbox` that takes every delivery."""

    def __init__(self, receiver: CallbackReceiver) -> None:
        key = read_environment("KIE_API_KEY")
        if not key:
            print_err("KIE_API_KEY is not set: no address is known to be right")
        self.callback_secrets: Sequence[bytes] = (
            (derive_callback_secret(key),) if key else (secrets.token_bytes(32),)
        )
        self._receiver = receiver
        receiver.attach(self)

    async def handle(self, path_tail: str, headers: Headers, read: BodyReader) -> CallbackVerdict:
        """Judge a request as a mount does, and print it."""
        body = b""
        try:
            body = await read(_BODY_LIMIT)
        except CallbackRejected as exc:
            verdict = CallbackVerdict(status=exc.status, reason=exc.reason)
        else:
            verdict = await self._receiver.feed(path_tail, headers, body)
        print_out(f"{time.strftime('%H:%M:%S')}  {_line(verdict, body)}")
        return verdict

    @property
    def redactor(self) -> Redactor:
        """Return what takes secrets out of what arrives."""
        return MACS_ONLY

    def owner_of(self, intent_id: str) -> str | None:
        """Know every intent, and the task of none."""
        return ""

    async def find_noted(self, intent_id: str) -> str | None:
        """Have no journal."""
        return None

    async def accept(self, delivery: Delivery) -> None:
        """Take in a delivery; the verdict says all there is to print."""

    def note_rejection(self, reason: str) -> None:
        """Take in a refusal; the verdict says it too."""


def _line(verdict: CallbackVerdict, body: bytes) -> str:
    """Return a verdict and what came, on one line that holds no secret and nothing a terminal would obey."""
    if verdict.record is None:
        shown = _MAC.sub("***", body[: 2 * _MOST_SHOWN].decode("utf-8", "replace"))[:_MOST_SHOWN]
        return f"{verdict.status}  {verdict.reason or 'a check'}  {len(body)} bytes  {json.dumps(shown)}"
    record = verdict.record
    signature = "signature right" if verdict.is_signed else "no key to verify with"
    parts = [str(verdict.status), record.task_id, str(record.state), signature, *record.urls]
    return "  ".join(parts)
