"""Remembers uploads by what was uploaded, and for how long the service keeps them."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

import attrs

from ..models import UploadedFile

KEPT_S = 24 * 3600.0
"""How long the service keeps an upload whose answer does not say so."""

_MARGIN_S = 2 * 3600.0

_MAX_KEPT = 10_000


@attrs.frozen(kw_only=True)
class StoredUpload:
    """An upload that can be used again. Its times are seconds since the epoch, by our own clock."""

    file: UploadedFile
    stored_at: float
    expires_at: float

    @classmethod
    def of(cls, file: UploadedFile, now: float) -> StoredUpload:
        """Return what to remember of an upload that was just made."""
        return cls(file=file, stored_at=now, expires_at=now + _lifetime_s(file, now))

    def is_usable(self, now: float) -> bool:
        """Tell whether a task that waits long in its queue would still find the file.

        One that was stored in the future was stored by a clock that was wrong.
        """
        lifetime_s = self.expires_at - self.stored_at
        return self.stored_at <= now < self.expires_at - min(_MARGIN_S, lifetime_s / 4)


def _lifetime_s(file: UploadedFile, now: float) -> float:
    if file.expires_at is None:
        return KEPT_S
    # By the service's own clock, where its answer has both times: ours may be wrong by hours.
    begin = now if file.uploaded_at is None else file.uploaded_at.timestamp()
    return max(0.0, file.expires_at.timestamp() - begin)


class UploadStore(Protocol):
    """What remembers uploads: this process, or a journal, so that the next one finds them."""

    @property
    def is_shared(self) -> bool:
        """Tell whether other processes use it at the same time: then they upload by turns."""

    async def find_upload(self, key: bytes) -> StoredUpload | None:
        """Return the last upload that was saved under a key."""

    async def save_upload(self, key: bytes, upload: StoredUpload) -> None:
        """Remember an upload; it takes the place of a former one."""

    async def take_turn(self, key: bytes) -> bool:
        """Tell whether the caller may upload what is under a key: False while another process does."""

    async def end_turn(self, key: bytes) -> None:
        """Let others upload it; called by whoever was let, whatever came of it."""


class MemoryUploadStore:
    """Remembers the last uploads of this process."""

    is_shared = False

    def __init__(self, most: int = _MAX_KEPT) -> None:
        self._most = most
        self._uploads: OrderedDict[bytes, StoredUpload] = OrderedDict()

    def __len__(self) -> int:
        return len(self._uploads)

    async def find_upload(self, key: bytes) -> StoredUpload | None:
        """Return the last upload that was saved under a key."""
        return self._uploads.get(key)

    async def save_upload(self, key: bytes, upload: StoredUpload) -> None:
        """Remember an upload; the oldest makes room for it, and so do those that the service deleted."""
        self._uploads.pop(key, None)
        while self._uploads and self._has_to_go(next(iter(self._uploads.values())), upload.stored_at):
            self._uploads.popitem(last=False)
        self._uploads[key] = upload

    async def take_turn(self, key: bytes) -> bool:
        """Tell that the caller may upload: no other process is known here."""
        return True

    async def end_turn(self, key: bytes) -> None:
        """Do nothing."""

    def _has_to_go(self, oldest: StoredUpload, now: float) -> bool:
        return len(self._uploads) >= self._most or oldest.expires_at <= now


def _wall_now() -> float:
    return time.time()


class ForwardClock:
    """Seconds since the epoch that go on while the machine sleeps, and never back.

    A loop's own clock may stand still in sleep; a wall clock may be set back.
    """

    def __init__(self, monotonic: Callable[[], float], wall: Callable[[], float] = _wall_now) -> None:
        self._monotonic = monotonic
        self._wall = wall
        self._ahead_s = wall() - monotonic()

    def now(self) -> float:
        """Return the later of what the two clocks say."""
        now = self._monotonic()
        self._ahead_s = max(self._ahead_s, self._wall() - now)
        return now + self._ahead_s
