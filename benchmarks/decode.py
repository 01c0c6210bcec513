"""Measures reading one answer, bytes to record, beside a bare JSON reader and a hand-written constructor.

The floor checks nothing: no check of duplicate keys, of sizes, of ids, of codes; nothing masked.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import attrs

from kie_async import _json
from kie_async.wire.envelope import WireResponse
from kie_async.wire.responses import decode_callback, decode_query

from .measuring import Figure, alternating, parser, report

CHUNK, ROUNDS = 400, 60
_INSTALLED = _json._orjson
TASK = "e989621f54392584b05867f87b160672"
ADDRESS = f"https://bot.example.org/kie/{'0123456789abcdef' * 2}/{'a' * 26}"
_INPUT = {"prompt": "a warm smile", "image_url": "https://files.example.org/face.png"}
_PARAM = json.dumps(
    {"model": "kling/ai-avatar-pro", "callBackUrl": ADDRESS, "input": json.dumps(_INPUT)},
    separators=(",", ":"),
)
_RESULT = '{"resultUrls":["https://files.example.org/results/a.mp4"]}'


def _body(message: str, **data: object) -> bytes:
    record = {"taskId": TASK, "model": "kling/ai-avatar-pro", **data, "param": _PARAM, "failCode": None}
    answer = {"code": 200, "msg": message, "data": {**record, "failMsg": None}}
    return json.dumps(answer, separators=(",", ":")).encode()


_ENDED = {
    "state": "success",
    "resultJson": _RESULT,
    "costTime": 8,
    "completeTime": 1755599644000,
    "createTime": 1755599634000,
    "updateTime": 1755599644000,
    "creditsConsumed": 80,
}
BODIES = {
    "pending record": _body(
        "success", state="generating", resultJson="", createTime=1755599634000, creditsConsumed=80
    ),
    "success record": _body("success", **_ENDED),
    "callback": _body("Playground task completed successfully.", **_ENDED),
}


@attrs.define
class Plain:
    """The fields of a record, as they came."""

    task_id: str
    model: str
    state: str
    urls: tuple[str, ...]
    fail_code: str
    fail_message: str
    credits: float | None
    created_at: datetime | None
    completed_at: datetime | None
    updated_at: datetime | None
    duration_s: float | None
    raw: dict[str, Any]


def plain(loads: Callable[[Any], Any], body: bytes) -> Plain:
    """Read a record without a single check."""
    data = loads(body)["data"]
    result = data["resultJson"]
    created, completed = _time(data.get("createTime")), _time(data.get("completeTime"))
    return Plain(
        data["taskId"],
        data["model"],
        data["state"],
        tuple(loads(result)["resultUrls"]) if result else (),
        data["failCode"] or "",
        data["failMsg"] or "",
        data.get("creditsConsumed"),
        created,
        completed,
        _time(data.get("updateTime")),
        (completed - created).total_seconds() if created and completed else None,
        data,
    )


def _time(value: float | None) -> datetime | None:
    return datetime.fromtimestamp(value / 1000, tz=UTC) if value else None


def readers() -> dict[str, Callable[[Any], Any]]:
    """Return the readers of JSON that are here."""
    found: dict[str, Callable[[Any], Any]] = {"stdlib": json.loads}
    try:
        found["orjson"] = importlib.import_module("orjson").loads
    except ModuleNotFoundError:
        print("orjson is not installed: measured without it")
    return found


def ours(library: str, name: str, body: bytes) -> object:
    """Read one of the bodies as a session does, with or without orjson."""
    _json._orjson = _INSTALLED if library == "orjson" else None
    if name == "callback":
        return decode_callback(body)
    return decode_query(WireResponse(status=200, body=body), TASK)


def _timed(read: Callable[[], object]) -> Callable[[], Awaitable[float]]:
    async def work() -> float:
        began = time.process_time()
        for _ in range(CHUNK):
            read()
        return (time.process_time() - began) / CHUNK * 1e6

    return work


async def measured(rounds: int) -> list[Figure]:
    """Return microseconds per body, and the ratios to the floors."""
    libraries = readers()
    things: dict[str, Callable[[], object]] = {}
    for name, body in BODIES.items():
        for library, loads in libraries.items():
            things[f"{name}, {library}"] = partial(ours, library, name, body)
            things[f"{name}, {library}, floor"] = partial(plain, loads, body)
    found = await alternating({name: _timed(read) for name, read in things.items()}, rounds=rounds)
    figures = [Figure(name=name, values=values, unit="us") for name, values in found.items()]
    for name in [name for name in things if not name.endswith("floor")]:
        pairs = zip(found[name], found[f"{name}, floor"], strict=True)
        ratios = [ours / floor for ours, floor in pairs]
        figures.append(Figure(name=f"{name} / its floor", values=ratios, unit="of its cost"))
    return figures


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; there are no bars, the ratios speak."""
    options = parser("decode", __doc__)
    options.add_argument("--rounds", type=int, default=ROUNDS)
    asked = options.parse_args(argv)
    return report(asyncio.run(measured(asked.rounds)), check=asked.check, to=asked.json)
