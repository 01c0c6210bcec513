"""Measures what a callback costs, and whether strangers can keep genuine ones from being taken in.

Beside our mounts stand two handlers of plain aiohttp.web: one that only reads the body, and one that
also parses it and verifies its signature. Ratios are of CPU seconds of this process; the requests come
from others. In an application they come over TLS; `serve` stands behind a proxy that ends it, and is compared
with a handler that does. The last part holds 500 slow connections open and sends 1,000 junk requests a
second.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import attrs
from aiohttp import web

from kie_async import (
    CallbackReceiver,
    KieSession,
    Limits,
    PollSchedule,
    Rate,
    Sandbox,
    TaskHandle,
)
from kie_async.callbacks.address import callback_mac
from kie_async.callbacks.base import Delivery
from kie_async.sandbox import Never
from kie_async.wire.redaction import MACS_ONLY

from . import tls
from .decode import readers
from .load import Load
from .measuring import OUR_CORE, Figure, alternating, cpu_s, parser, pin, quantile, ratios, report

KEY = "a-key-from-the-settings"
SECRET = b"a callback secret"
INTENT = "0123456789abcdef" * 2
TASK = "e989621f54392584b05867f87b160672"
PATH = f"/kie/{INTENT}/{callback_mac(INTENT, secret=SECRET)}"
CHUNK, ROUNDS, LINES = 400, 25, 16
READS, VERIFIES = "a handler that only reads", "a handler that parses and verifies"
PLAIN = f"{VERIFIES}, plain"
SLOW, JUNK_PER_S, GENUINE_PER_S, SECONDS = 500, 1000, 50, 12
LOADS = list(readers().values())[-1]
"""What reads JSON in the handler beside ours: orjson if it is installed, as in ours."""
MANY = Rate(1_000_000, per_s=0.001)


@attrs.define
class Inbox:
    """A session that accepts everything and keeps nothing."""

    callback_secrets: tuple[bytes, ...] = (SECRET,)
    accepted: int = 0

    redactor = MACS_ONLY

    def owner_of(self, intent_id: str) -> str | None:
        return TASK

    async def find_noted(self, intent_id: str) -> str | None:
        return None

    async def accept(self, delivery: Delivery) -> None:
        self.accepted += 1

    def note_rejection(self, reason: str) -> None:
        raise AssertionError(reason)


def signed(task_id: str) -> dict[str, str]:
    stamp = str(int(time.time()))
    digest = hmac.digest(KEY.encode(), f"{task_id}.{stamp}".encode(), hashlib.sha256)
    return {"X-Webhook-Timestamp": stamp, "X-Webhook-Signature": base64.b64encode(digest).decode()}


def request(path: str, headers: dict[str, str], body: bytes) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: bot.example.org", "Content-Type: application/json"]
    lines += [f"Content-Length: {len(body)}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def only_read(asked: web.Request) -> web.Response:
    await asked.read()
    return web.Response()


async def parse_and_verify(asked: web.Request) -> web.Response:
    data = LOADS(await asked.read())["data"]
    message = f"{data['taskId']}.{asked.headers['X-Webhook-Timestamp']}"
    digest = base64.b64encode(hmac.digest(KEY.encode(), message.encode(), "sha256")).decode()
    if not hmac.compare_digest(digest, asked.headers["X-Webhook-Signature"]):
        return web.Response(status=401)
    assert data["state"] in ("success", "fail")
    assert not data.get("resultJson") or LOADS(data["resultJson"])
    return web.Response()


def application(receiver: CallbackReceiver) -> web.Application:
    app = web.Application()
    app.router.add_post("/read/{intent}/{mac}", only_read)
    app.router.add_post("/verify/{intent}/{mac}", parse_and_verify)
    app.router.add_routes(receiver.routes("/kie"))
    return app


@asynccontextmanager
async def listening(receiver: CallbackReceiver, *, over_tls: bool) -> AsyncIterator[int]:
    runner = web.AppRunner(application(receiver), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls.of_a_server() if over_tls else None).start()
        port: int = runner.addresses[0][1]
        yield port
    finally:
        await runner.cleanup()


@asynccontextmanager
async def session(
    receiver: CallbackReceiver, url: str, tasks: int
) -> AsyncIterator[tuple[KieSession, Sandbox, list[TaskHandle]]]:
    """Open a session with so many tasks that only a callback can end."""
    async with (
        Sandbox(durations=Never(), create_limit=None, query_limit=None, hmac_key=KEY) as sandbox,
        KieSession(
            "sandbox-key",
            base_url=sandbox.url,
            callback_url=url,
            receiver=receiver,
            max_in_flight=tasks + 1,
            limits=Limits(create=MANY, query=MANY, create_connections=16),
            poll=PollSchedule.fixed(3600),
        ) as kie,
    ):
        made = await asyncio.gather(*[kie.create("sandbox/echo", {"prompt": str(n)}) for n in range(tasks)])
        for task in sandbox.tasks.values():
            task.end_state = "success"
        yield kie, sandbox, made


# --- cost ----------------------------------------------------------------------------------------


async def cost(load: Load, rounds: int) -> list[Figure]:
    receiver = CallbackReceiver([KEY])
    receiver.attach(Inbox())
    async with (
        listening(receiver, over_tls=tls.is_on()) as port,
        listening(receiver, over_tls=False) as plain_port,
        receiver.serve("127.0.0.1", 0) as served,
    ):
        body, headers = _a_body(), signed(TASK)
        walls: dict[str, list[float]] = {}

        def over_http(name: str, path: str, port: int = port) -> Callable[[], Any]:
            asked = {"port": port, "count": CHUNK, "lines": LINES}
            asked["over_tls"] = tls.is_on() and port not in (plain_port, served.port)

            async def work() -> float:
                wanted = request(path, signed(TASK), body)
                seconds = 0.0

                async def send() -> None:
                    nonlocal seconds
                    answer = await load.ask("burst", requests=[wanted], **asked)
                    assert answer["statuses"] == {"200": CHUNK}, answer
                    seconds = answer["seconds"]

                spent = await cpu_s(send)
                walls.setdefault(name, []).append(CHUNK / seconds)
                return CHUNK / spent

            return work

        async def in_process() -> float:
            path_tail = PATH.removeprefix("/kie/")

            async def feed() -> None:
                for _ in range(CHUNK):
                    assert (await receiver.feed(path_tail, headers, body)).status == 200

            return CHUNK / await cpu_s(feed)

        tail = PATH.removeprefix("/kie")
        found = await alternating(
            {
                READS: over_http(READS, "/read" + tail),
                VERIFIES: over_http(VERIFIES, "/verify" + tail),
                PLAIN: over_http(PLAIN, "/verify" + tail, plain_port),
                "routes": over_http("routes", PATH),
                "serve": over_http("serve", PATH, served.port),
                "in process": in_process,
            },
            rounds=rounds,
            beside=[load.pid],
        )
    figures = [
        Figure(name=f"HTTP, {name}", values=values[1:], unit="a second, wall clock")
        for name, values in walls.items()
    ]
    figures += [Figure(name=name, values=values, unit="a CPU second") for name, values in found.items()]
    figures[-1] = attrs.evolve(figures[-1], at_least=40_000, goal="P4")  # in process
    for name in ("routes", "in process"):
        share = ratios(found[name], found[READS])
        figures.append(Figure(name=f"{name} / only reads", values=share, unit="of its rate"))
    for name, beside in (("routes", VERIFIES), ("serve", PLAIN)):
        figures.append(
            Figure(
                name=f"{name} / {beside.removeprefix('a handler that ')}",
                values=ratios(found[name], found[beside]),
                unit="of its rate",
                at_least=0.64,
                aims_at=0.7,
                goal="P4",
            )
        )
    return figures


def _a_body() -> bytes:
    """Return a callback as the service documents it, compact as its answers are, 700 bytes long."""
    create = {"model": "kling/ai-avatar-pro", "callBackUrl": f"https://bot.example.org{PATH}"}
    param = json.dumps(create, separators=(",", ":"))
    data = {
        "taskId": TASK,
        "model": "kling/ai-avatar-pro",
        "state": "success",
        "param": json.dumps(param, separators=(",", ":")) + " " * 150,
        "resultJson": '{"resultUrls":["https://files.example.org/results/a.mp4"]}',
        "failCode": None,
        "failMsg": None,
        "costTime": 8,
        "completeTime": 1755599644000,
        "createTime": 1755599634000,
        "updateTime": 1755599644000,
        "creditsConsumed": 80,
    }
    answer = {"code": 200, "data": data, "msg": "Playground task completed successfully."}
    return json.dumps(answer, separators=(",", ":")).encode()


async def settling(rounds: int) -> list[Figure]:
    """Feed callbacks to a real session: each settles a handle that somebody awaits."""
    rates = []
    for _ in range(rounds):
        receiver = CallbackReceiver([KEY])
        async with session(receiver, "http://127.0.0.1:9/kie", 1000) as (kie, sandbox, handles):
            waiting = [asyncio.ensure_future(_result(handle)) for handle in handles]
            await asyncio.sleep(0)
            given = [
                (
                    "/".join(str(task.callback_url).rsplit("/", 2)[-2:]),
                    signed(name),
                    sandbox.callback_body(name),
                )
                for name, task in sandbox.tasks.items()
            ]

            async def feed(
                receiver: CallbackReceiver = receiver, given: Any = given, waiting: Any = waiting
            ) -> None:
                for tail, headers, body in given:
                    await receiver.feed(tail, headers, body)
                await asyncio.gather(*waiting)

            rates.append(len(given) / await cpu_s(feed))
            assert kie.stats().settled_by_callback == len(given)
    return [Figure(name="in process, handle settled and awaited", values=rates, unit="a CPU second")]


async def _result(handle: Any) -> Any:
    return await handle


# --- abuse ---------------------------------------------------------------------------------------


async def abused(load: Load, stranger: Load, seconds: int) -> list[Figure]:
    receiver = CallbackReceiver([KEY])
    async with receiver.serve("127.0.0.1", 0) as served:
        count = GENUINE_PER_S * seconds
        async with session(receiver, served.url, count) as (kie, sandbox, _):
            front = f"http://127.0.0.1:{served.port}"
            genuine = [
                request(str(task.callback_url).removeprefix(front), signed(name), sandbox.callback_body(name))
                for name, task in sandbox.tasks.items()
            ]
            junk = [
                request(f"/kie/{INTENT}/{'a' * 26}", signed(TASK), _a_body()),
                request("/wp-login.php", {}, b"log=admin"),
                request(f"/kie/{INTENT}/{'b' * 26}", {}, b"x" * 4000),
                request("/kie/" + "c" * 200, {}, b"{}").replace(b"POST", b"GET", 1),
            ]
            broken = [
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
                b"GET / HTTP/1.1\r\n\x00\r\n\r\n",
            ]
            calm, _ = await _lag_while(asyncio.sleep(2))
            abuse = asyncio.create_task(
                stranger.ask(
                    "abuse",
                    port=served.port,
                    slow=SLOW,
                    junk=junk,
                    broken=broken,
                    per_s=JUNK_PER_S,
                    for_s=seconds + 1,
                )
            )
            await asyncio.sleep(1.5)
            lags, answer = await _lag_while(
                load.ask("genuine", port=served.port, requests=genuine, per_s=GENUINE_PER_S)
            )
            strangers = await abuse
            accepted = [answer["statuses"].get("200", 0) / count]
            assert kie.stats().settled_by_callback == accepted[0] * count, kie.stats()
    ms = [value * 1000 for value in answer["seconds"]]
    return [
        Figure(
            name="slow connections held open", values=[strangers["slow_open"]], unit="", at_least=SLOW * 0.9
        ),
        Figure(
            name="junk requests", values=[strangers["junk_per_s"]], unit="a second", at_least=JUNK_PER_S * 0.9
        ),
        Figure(name="genuine callbacks accepted", values=accepted, unit="of them", at_least=1),
        Figure(name="genuine callbacks answered, p50", values=[quantile(ms, 0.5)], unit="ms"),
        Figure(name="genuine callbacks answered, p99", values=[quantile(ms, 0.99)], unit="ms", at_most=500),
        Figure(name="genuine callbacks answered, slowest", values=[max(ms)], unit="ms"),
        Figure(name="loop lag before, p99", values=[quantile(calm, 0.99)], unit="ms"),
        Figure(name="loop lag meanwhile, p50", values=[quantile(lags, 0.5)], unit="ms"),
        Figure(name="loop lag meanwhile, p99", values=[quantile(lags, 0.99)], unit="ms", at_most=50),
        Figure(name="loop lag meanwhile, worst", values=[max(lags)], unit="ms"),
    ]


async def _lag_while(work: Any) -> tuple[list[float], Any]:
    """Return by how many milliseconds a sleeper was woken late while *work* was done, and its result."""
    lags: list[float] = []
    doing = asyncio.ensure_future(work)
    while not doing.done():
        began = time.perf_counter()
        await asyncio.sleep(0.005)
        lags.append((time.perf_counter() - began - 0.005) * 1000)
    return lags, doing.result()


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; with ``--check`` the exit status says whether the bars were met."""
    options = parser("callbacks", __doc__)
    options.add_argument("--rounds", type=int, default=ROUNDS)
    options.add_argument("--seconds", type=int, default=SECONDS, help="of abuse")
    tls.add_option(options)
    asked = options.parse_args(argv)
    tls.begin(plain=asked.plain)
    pin(OUR_CORE)

    async def run() -> list[Figure]:
        async with Load() as load, Load() as stranger:
            return [
                *await cost(load, asked.rounds),
                *await settling(max(1, asked.rounds // 8)),
                *await abused(load, stranger, asked.seconds),
            ]

    return report(asyncio.run(run()), check=asked.check, to=asked.json)
