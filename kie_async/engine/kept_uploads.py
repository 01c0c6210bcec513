"""Keeps uploads in the journal, so that the next session, and each other one of it, uploads no file again."""

from __future__ import annotations

import hashlib
import hmac

import cattrs
from cattrs.preconf.json import make_converter

from .._secrets import Secret
from ..files.upload_store import MemoryUploadStore, StoredUpload
from ..journal.account import account_digest
from ..journal.base import Journal
from ..journal.shared import SharedJournal

_CONVERTER = make_converter()

_MOST_IN_MEMORY = 1_000
"""The journal has them all, but a portrait that a hundred requests share is not read from it each time."""

_UPLOAD_WITHIN_S = 900.0
"""So long other workers wait for an upload; if its worker dies, no longer than until that is known."""


class JournalUploadStore:
    """Remembers uploads as small notes of a journal.

    A file of another service, of a sandbox or of another account must never be used: both origins and the
    account's secret are in the key of each note, which shows neither of them, nor what was uploaded.
    """

    def __init__(self, journal: Journal, *, account: Secret, origins: tuple[str, ...]) -> None:
        self._journal = journal
        self._recent = MemoryUploadStore(_MOST_IN_MEMORY)
        self._secret = account_digest(account, "upload", *origins)

    @property
    def is_shared(self) -> bool:
        """Tell whether other workers have the journal too."""
        return isinstance(self._journal, SharedJournal)

    async def find_upload(self, key: bytes) -> StoredUpload | None:
        """Return the last upload that was saved under a key; one that cannot be read is none."""
        if (recent := await self._recent.find_upload(key)) is not None:
            return recent
        if (note := await self._journal.recall(self._name_of(key))) is None:
            return None
        try:
            return _CONVERTER.structure(note, StoredUpload)
        except (cattrs.BaseValidationError, TypeError, ValueError):
            return None

    async def save_upload(self, key: bytes, upload: StoredUpload) -> None:
        """Remember an upload for as long as the service keeps it."""
        await self._recent.save_upload(key, upload)
        for_s = upload.expires_at - upload.stored_at
        await self._journal.remember(self._name_of(key), _CONVERTER.unstructure(upload), for_s=for_s)

    async def take_turn(self, key: bytes) -> bool:
        """Tell whether this worker may upload: False while another one of a shared journal does."""
        if not isinstance(self._journal, SharedJournal):
            return True
        return await self._journal.take_turn(self._name_of(key), _UPLOAD_WITHIN_S)

    async def end_turn(self, key: bytes) -> None:
        """Let other workers upload."""
        if isinstance(self._journal, SharedJournal):
            await self._journal.end_turn(self._name_of(key))

    def _name_of(self, key: bytes) -> str:
        return f"upload:{hmac.digest(self._secret, key, hashlib.sha256).hex()}"
