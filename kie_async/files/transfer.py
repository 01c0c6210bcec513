"""What is known of one file on its way down: how much has come, and how to ask for the rest. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping

import attrs

from ..errors import DownloadFailed, TransportError

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", re.ASCII)

_GONE_STATUSES = frozenset({403, 404, 410})

_RETRY_STATUSES = frozenset({408, 425, 429})

# Refused: media gain nothing by compression, a zip bomb gains much, and a cut stream would go unnoticed.
_COMPRESSED = frozenset({"gzip", "x-gzip", "deflate", "br", "zstd"})

# Some result hosts answer 403 to whoever does not come from the service's own page with an ordinary agent.
_AS_FROM_THE_PAGE = {
    "Referer": "https://kie.ai/",
    "User-Agent": "Mozilla/5.0 (compatible; kie_async/0.1; +https://pypi.org/project/kie-async)",
}


class LinkRefused(Exception):
    """The host has no file for a link, or none for us: the service may have a fresh link."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@attrs.define
class Transfer:
    """One file on its way, across all attempts to fetch it."""

    url: str = attrs.field(repr=False)
    received: int = 0
    total: int | None = None
    content_type: str = ""
    is_as_from_page: bool = False
    is_fresh_link: bool = False
    _validator: str = ""
    """The strong ETag or the date of what has come: a rest of another file must not be put behind it."""

    def headers(self) -> dict[str, str]:
        """Return the headers to ask with: for the rest, where there is a way to know that it fits."""
        # No API key here: result files lie on hosts that have no business with it.
        headers = {"Accept-Encoding": "identity"}
        if self.is_as_from_page:
            headers |= _AS_FROM_THE_PAGE
        if self.can_go_on:
            headers["Range"] = f"bytes={self.received}-"
            if self._validator:
                headers["If-Range"] = self._validator
        return headers

    @property
    def can_go_on(self) -> bool:
        """Tell whether a part has come that the rest can be put behind."""
        is_part = self.received > 0 and (self.total is None or self.received < self.total)
        return is_part and bool(self._validator or self.total)

    def restart(self) -> None:
        """Forget what has come."""
        self.received, self.total, self._validator = 0, None, ""

    def accept(self, status: int, headers: Mapping[str, str], length: int | None) -> None:
        """Take in the head of an answer; its body begins at `received`.

        Raises:
            LinkRefused: The host has no such file, or not for us.
            TransportError: The next time it may work.
            DownloadFailed: It will not.
        """
        if status == 206 and self.can_go_on:
            self._accept_rest(headers)
        elif status == 416 and self.can_go_on:
            self.restart()
            raise TransportError("HTTP 416")
        else:
            _check_status(status)
            self.received, self.total = 0, length
            self._validator = _validator_of(headers)
        if headers.get("Content-Encoding", "").strip().lower() in _COMPRESSED:
            raise DownloadFailed("the file came packed, which was not asked for")

    def _accept_rest(self, headers: Mapping[str, str]) -> None:
        found = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
        validator = _validator_of(headers)
        fits = found is not None and int(found[1]) == self.received
        if found is not None and found[3] != "*":
            fits = fits and int(found[3]) == (self.total or int(found[3]))
            self.total = int(found[3])
        if not fits or (validator and self._validator and validator != self._validator):
            self.restart()
            raise TransportError("the rest that came is of another file")

    def check_end(self) -> None:
        """Check that all has come.

        Raises:
            TransportError: Something is missing.
        """
        if not self.received:
            raise TransportError("the file is empty")
        if self.total is not None and self.received != self.total:
            raise TransportError(f"{self.received} of {self.total} bytes came")


def _check_status(status: int) -> None:
    if status in _GONE_STATUSES:
        raise LinkRefused(status)
    if status >= 500 or status in _RETRY_STATUSES:
        raise TransportError(f"HTTP {status}")
    if status != 200:
        raise DownloadFailed(f"HTTP {status}")


def _validator_of(headers: Mapping[str, str]) -> str:
    etag = headers.get("ETag", "").strip()
    return etag if etag.startswith('"') else headers.get("Last-Modified", "").strip()
