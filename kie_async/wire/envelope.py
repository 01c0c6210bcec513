"""Reads the envelope ``{code, msg, data}`` around every answer: a yes, a no of the service, or neither."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from .._json import NotJson, parse_json, salvage_json
from ..errors import AnswerUnreadable, KieError
from .codes import error_for, error_for_page
from .redaction import MACS_ONLY, Redactor
from .values import clean_text, read_code

_NOT_OF_THE_SERVICE = ("path", "error")
"""Keys of a no that a gateway or a web framework gives, which never saw the call as one of this API."""

_STATUSES_OF_THEIR_OWN = frozenset({405, 408, 413, 415, 429, 431})
"""What a page under these says of the call is true whoever wrote it: a pause is wanted, or another form."""


@attrs.frozen(kw_only=True)
class WireResponse:
    """One HTTP answer, read to its end."""

    status: int
    body: bytes = attrs.field(repr=False)
    retry_after_s: float | None = None
    redactor: Redactor = attrs.field(default=MACS_ONLY, repr=False, eq=False)
    """What takes the secrets of whoever asked out of all that is read from it."""


@attrs.frozen(kw_only=True)
class Envelope:
    """An answer ``{code, msg, data}``, free of secrets."""

    code: int
    top: Mapping[str, object] = attrs.field(repr=False)
    losses: tuple[str, ...] = ()
    """What was broken in it and is left out."""

    @property
    def data(self) -> object:
        """Return what the answer holds."""
        return self.top.get("data")

    @property
    def message(self) -> str:
        """Return its words; older pages of the service's documentation write ``message``."""
        return clean_text(self.top.get("msg") or self.top.get("message"))

    @property
    def is_of_the_service(self) -> bool:
        """Tell whether a no in it is one of the service, and not of something before it."""
        return not any(key in self.top for key in _NOT_OF_THE_SERVICE)


def read_envelope(body: bytes, redactor: Redactor = MACS_ONLY, *, is_own: bool = False) -> Envelope | str:
    """Return the envelope in *body*, or why there is none: no error is raised where secrets are about.

    Of answers to our *own* queries, broken parts are left out; anything else must be flawless.
    """
    try:
        cleaned = redactor.json(body)
        text = body if cleaned is None else cleaned
        found, losses = salvage_json(text) if is_own else (parse_json(text), ())
        code = read_code(found.get("code")) if isinstance(found, dict) else None
        # What was left out may have stood within a secret; a no may echo one in any form.
        is_clean = cleaned is not None and not losses and code == 200
        top = found if is_clean else redactor.tree(found)
    except NotJson as exc:
        return f"the answer is not JSON: {exc}"
    except RecursionError:
        return "the answer is not JSON: nested too deeply"
    if code is None or not isinstance(top, dict):
        return "the answer has no code"
    return Envelope(code=code, top=top, losses=losses)


def decode_answer(response: WireResponse) -> object:
    """Return the ``data`` in the answer to a call that succeeded.

    Raises:
        ApiError: The service said no, by code; or it failed or wants a pause, by HTTP status.
        AnswerUnreadable: HTTP says yes and the body cannot be read; or it says no, and the service does not.
    """
    return read_answer(response).data


def read_answer(response: WireResponse) -> Envelope:
    """Return the envelope of a yes; see `decode_answer`."""
    found = read_envelope(response.body, response.redactor, is_own=True)
    status = response.status
    if isinstance(found, str) or not (found.is_of_the_service or found.code == 200):
        raise _unreadable(response, found if isinstance(found, str) else "a no that is none of the service")
    if found.code == status == 200:
        return found
    if found.code == 200 and status != 200:
        raise _unreadable(response, "code 200")
    if 200 <= found.code < 300:
        raise AnswerUnreadable(f"HTTP {status}, code {found.code}: neither a yes nor a no")
    raise error_for(found.code, found.message, status, response.retry_after_s)


def _unreadable(response: WireResponse, why: str) -> KieError:
    """Return the error for an answer that does not come from the service itself, or cannot be read."""
    status = response.status
    if status == 200:
        return AnswerUnreadable(why)
    if status in _STATUSES_OF_THEIR_OWN or status >= 500:
        return error_for_page(status, response.retry_after_s)
    return AnswerUnreadable(f"HTTP {status} without an answer of the service ({why})")
