"""Writes ``report.html``: one file with data, style and script inside, which needs no network."""

from __future__ import annotations

import html
import json
import os
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from importlib.resources import files
from operator import itemgetter
from pathlib import Path
from typing import Any
from urllib.parse import quote

import attrs

from .. import __version__
from ..models import JobState
from .output import without_key
from .report_data import Row, kind_of
from .report_sums import USD_PER_CREDIT, Sums, plain_reason

_MOST_ROWS = 20_000
"""More would not open on a phone; those that are not done are kept first."""

_MOST_PROMPT_CHARS = 4000

_GENERATOR = b'<meta name="generator" content="kie_async">'

_SLOT = re.compile(r"@@([A-Z]+)@@")

# A script element ends at "</script" wherever that stands; the others end lines in old JavaScript.
_UNSAFE = re.compile("[<>&\u2028\u2029]")


@attrs.frozen(kw_only=True)
class About:
    """What a page says of itself."""

    title: str
    made_at: float
    """Unix time, as the next."""
    began: float | None = None
    """When this run did, None for a report of all runs."""
    notice: str = ""


class KeptRows:
    """Keeps of any number of rows those that a page shows, in their order."""

    def __init__(self) -> None:
        self._count = 0
        self._done: list[tuple[int, Row]] = []
        self._others: list[tuple[int, Row]] = []

    def add(self, row: Row) -> None:
        """Keep a row, if there is room."""
        kept = self._done if row.state is JobState.DONE else self._others
        if len(kept) < _MOST_ROWS:
            kept.append((self._count, row))
        self._count += 1

    def rows(self) -> list[Row]:
        """Return the rows kept: those that are done only as far as the others leave room."""
        kept = sorted([*self._others, *self._done][:_MOST_ROWS], key=itemgetter(0))
        return [row for _, row in kept]


def is_page(path: Path) -> bool:
    """Tell whether a file is a page that was written here."""
    with path.open("rb") as file:
        return _GENERATOR in file.read(2000)


def encode_page(rows: Sequence[Row], sums: Sums, about: About, folder: Path) -> bytes:
    """Return the page, for a file in *folder*: what lies there is named by its path from there."""
    style, script = _read("report.css"), _read("report.js")
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; "
        "img-src 'self' file: data:; media-src 'self' file:; base-uri 'none'; form-action 'none'"
    )
    slots = {
        "POLICY": policy,
        "TITLE": html.escape(without_key(about.title)),
        "STYLE": style,
        "SCRIPT": script,
        "DATA": encode_data(_data(rows, sums, about, folder)),
    }
    page = _SLOT.sub(lambda slot: slots[slot[1]], _read("report.html"))
    return page.encode(errors="replace")


def encode_data(data: object) -> str:
    """Return JSON that is safe inside of a script element."""
    text = without_key(json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False))
    return _UNSAFE.sub(lambda mark: f"\\u{ord(mark[0]):04x}", text)


def _read(name: str) -> str:
    return files(__package__).joinpath("page", name).read_text(encoding="utf-8")


def _digest(content: str) -> str:
    return f"sha256-{b64encode(sha256(content.encode()).digest()).decode()}"


def _data(rows: Sequence[Row], sums: Sums, about: About, folder: Path) -> dict[str, Any]:
    reasons = {(reason.state, reason.text): number for number, reason in enumerate(sums.reasons)}
    places = _Places(folder)
    return {
        "version": __version__,
        "made_at": about.made_at,
        "began": about.began,
        "notice": about.notice,
        "usd_per_credit": USD_PER_CREDIT,
        "sums": attrs.asdict(sums),
        "rows": [_row_data(row, reasons, places) for row in rows],
    }


def _row_data(row: Row, reasons: Mapping[tuple[JobState, str], int], places: _Places) -> dict[str, Any]:
    data = {
        "ref": row.ref,
        "state": row.state.value,
        "model": row.model,
        "prompt": row.prompt[:_MOST_PROMPT_CHARS],
        "poster": places.poster(row.image),
        "task_id": row.task_id,
        "took_s": row.took_s,
        "credits": row.credits,
        "told_by": row.source,
        "ended_at": row.ended_at,
        "reason": row.reason,
        "why": None if row.state is JobState.DONE else reasons.get((row.state, plain_reason(row))),
        "files": list(places.of_files(row.files)),
        "urls": [url for url in row.urls if url.startswith("https://")],
    }
    return {name: value for name, value in data.items() if value not in (None, "", [])}


class _Places:
    """Names local files by their paths from the page's folder; asks only once for a portrait of many rows."""

    def __init__(self, folder: Path) -> None:
        self._folder = os.path.abspath(folder)
        self.poster = lru_cache(maxsize=None)(self._poster)

    def of_files(self, paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
        for path in paths:
            kind = kind_of(path)
            found = {"name": path.name, "src": self._path_to(path), "kind": kind}
            yield found if os.path.isfile(path) else found | {"missing": True}

    def _poster(self, image: str) -> str:
        is_local = bool(image) and "://" not in image
        is_image = kind_of(Path(image)) == "image"
        return self._path_to(Path(image)) if is_local and is_image and os.path.isfile(image) else ""

    def _path_to(self, path: Path) -> str:
        try:
            relative = os.path.relpath(path, self._folder)
        except ValueError:  # another drive
            return ""
        # As bytes: the name may be in no encoding. A colon is escaped, so that no name reads as a scheme.
        return quote(os.fsencode(relative.replace(os.sep, "/")))
