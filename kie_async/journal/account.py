"""Keeps a journal to one account of one service, which it notes so that its file reveals no key and no name.

A journal answers for the refs in it. Used with another service, such as the real one after a rehearsal on a
sandbox, or with another account, it would answer for tasks that are not there, and nothing would be made.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence

import attrs

from .._secrets import Secret
from .._validation import is_loopback
from ..errors import JournalError

_NAME_ROUNDS = 100_000


@attrs.frozen(kw_only=True)
class Account:
    """The account that a session speaks for, and where its service is."""

    url: str
    """Of the API, in the one form that `check_origin` gives."""
    key: Secret
    name: Secret | None = None
    """What the user calls it, as `derive_account_name` gives it; None if he does not."""

    @property
    def secret(self) -> Secret:
        """Return what stands for the account: its name, which outlives its keys, else the key."""
        return self.key if self.name is None else self.name


@attrs.frozen
class AccountNote:
    """What a journal notes of an account: where it is, and the digest of one key or of its name."""

    url: str
    kind: str
    """``key`` or ``name``."""
    salt: bytes
    digest: bytes

    @classmethod
    def of(cls, url: str, kind: str, secret: Secret) -> AccountNote:
        """Return a new note."""
        salt = secrets.token_bytes(16)
        return cls(url, kind, salt, _salted_digest(secret, salt))

    def is_of(self, secret: Secret) -> bool:
        """Tell whether it was made of this key or name."""
        return hmac.compare_digest(self.digest, _salted_digest(secret, self.salt))


def derive_account_name(name: str) -> Secret:
    """Return what stands for the name of an account.

    A name can be guessed, and a key cannot: so each guess at a name is made to cost something.
    """
    return Secret(hashlib.pbkdf2_hmac("sha256", name.encode(), b"kie_async account", _NAME_ROUNDS))


def account_digest(account: Secret, *labels: str) -> bytes:
    """Return a digest of *labels* that differs from account to account, and shows neither."""
    return hmac.digest(account, "\n".join(labels).encode(), hashlib.sha256)


def notes_to_add(noted: Sequence[AccountNote], account: Account, *, journal: str) -> list[AccountNote]:
    """Return what a journal is yet to note of the account that it is opened with.

    Without notes it takes any. A key that is new needs the account's name, which is taken at its word once.

    Raises:
        JournalError: It belongs to another one; *journal* is what the message calls it.
    """
    for note in noted:
        if _service_of(note.url) != _service_of(account.url):
            raise JournalError(
                f"{journal} belongs to {note.url}, this session speaks to {account.url}; use another journal"
            )
    names = [note for note in noted if note.kind == "name"]
    is_known_name = account.name is not None and any(note.is_of(account.name) for note in names)
    is_known_key = any(note.is_of(account.key) for note in noted if note.kind == "key")
    if names and account.name is not None and not is_known_name:
        raise JournalError(
            f"{journal} belongs to another account of {account.url} than the one that account= (kie-async: "
            "--account) names; use another journal"
        )
    if noted and account.name is None and not is_known_key:
        raise JournalError(_new_key(journal, account.url, is_named=bool(names)))
    added = [] if is_known_key else [AccountNote.of(account.url, "key", account.key)]
    if account.name is not None and not is_known_name:
        added.append(AccountNote.of(account.url, "name", account.name))
    return added


def _new_key(journal: str, url: str, *, is_named: bool) -> str:
    which = "the name it was given" if is_named else "a name of yours"
    return (
        f"{journal} was made with another key of {url}; if this one is right and of the same account, say so "
        f"once with account='{which}' (kie-async: --account NAME), else use another journal"
    )


def _service_of(url: str) -> str:
    """Return the URL of a service in a form in which all of this machine are one."""
    # A sandbox, or a proxy before one, has another port each time it is started, and takes no money. What
    # matters is that a rehearsal here is not taken for the real thing elsewhere.
    return "this machine" if is_loopback(url) else url


def _salted_digest(secret: Secret, salt: bytes) -> bytes:
    # The salt keeps two journals from showing that they are of one account. A key cannot be guessed, and a
    # name is stretched before, so a plain HMAC will do.
    return hmac.digest(secret, b"kie_async journal " + salt, hashlib.sha256)
