"""Names the journal of a command: a file, or the URL of a PostgreSQL database that several workers share."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

import attrs
import typer

from .._validation import check_journal_path
from ..errors import InvalidRequest
from ..journal.postgres import PostgresJournal, is_dsn
from ..journal.sqlite import SqliteJournal

DurableJournal = SqliteJournal | PostgresJournal

_NAME = re.compile(r"(.*)#([a-z][a-z0-9_]{0,39})", re.DOTALL)

_WITHOUT_SECRETS = re.compile(
    r"(postgres(?:ql)?://)(?:([^:@/?#]*)(?::[^@/?#]*)?(@))?((?:[\w.,%-]|\[[\w:.%]*\]|:\d+)*(?:/[^@?#/]*)?)"
    r"(?:\?[^@]*)?"
)
"""A URL whose password is surely where it belongs. Of any other nothing is shown: it may be anywhere."""


@attrs.frozen
class JournalPlace:
    """Where a journal is. As text it is the path, or the URL without what may hold a password."""

    given: str = attrs.field(repr=False)

    @given.validator
    def _check_given(self, _: object, given: str) -> None:
        if not is_dsn(given):
            try:
                check_journal_path(given)
            except InvalidRequest as exc:
                raise typer.BadParameter(str(exc)) from None

    @property
    def path(self) -> Path | None:
        """Return the file; None if it is in a database."""
        return None if is_dsn(self.given) else Path(self.given)

    @property
    def folder(self) -> Path:
        """Return where results are searched for: beside the file, or here."""
        return Path() if self.path is None else self.path.parent

    @property
    def is_there(self) -> bool:
        """Tell whether the file is there; of a database that is known when it is asked."""
        return self.path is None or os.path.exists(self.path)  # unlike `Path.exists` it never raises

    def __str__(self) -> str:
        if self.path is not None:
            return str(self.path)
        dsn, name = self._split()
        shown = _WITHOUT_SECRETS.fullmatch(dsn)
        place = "".join(filter(None, shown.groups())) if shown else "postgresql://..."
        return f"{place}#{name}" if name else place

    def _split(self) -> tuple[str, str]:
        """Return the URL of the database, and the name of the journal in it, if one is given."""
        named = _NAME.fullmatch(self.given)
        return (named[1], named[2]) if named else (self.given, "")

    def make_journal(self, *, keep_bodies: bool = False) -> DurableJournal:
        """Return the journal, not open yet.

        Raises:
            InvalidRequest: It is in a database, and the driver is not installed.
        """
        if self.path is not None:
            return SqliteJournal(self.path, keep_bodies=keep_bodies)
        dsn, name = self._split()
        return PostgresJournal(dsn, name=name or "main", keep_bodies=keep_bodies)


def check_there(place: JournalPlace, hint: str) -> JournalPlace:
    """Return *place*: to open a file that is not there would make one. *hint* is what it is called.

    Raises:
        BadParameter: There is no such file.
    """
    if not place.is_there:
        raise typer.BadParameter(f"there is no journal {place}", param_hint=hint)
    return place


JournalArgument = Annotated[
    JournalPlace,
    typer.Argument(
        parser=JournalPlace,
        metavar="JOURNAL",
        help="The journal: a file, or postgresql://USER@HOST/DATABASE.",
    ),
]
