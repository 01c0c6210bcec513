"""A service in forty lines that remembers nothing: every task succeeds at the first poll.

``python -m tests.campaign stub`` prints its URL and serves until it is killed.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Sequence

_ids = itertools.count(1)


def answer(target: str) -> bytes:
    """Return the body that answers a request for *target*."""
    data: dict[str, object]
    if target.startswith("/api/v1/jobs/createTask"):
        data = {"taskId": f"stub{next(_ids):09d}"}
    else:
        task_id = target.partition("taskId=")[2]
        urls = {"resultUrls": [f"http://127.0.0.1/{task_id}.mp4"]}
        data = {
            "taskId": task_id,
            "model": "sandbox/echo",
            "state": "success",
            "resultJson": json.dumps(urls),
            "creditsConsumed": 1,
            "createTime": 1_767_225_600_000,
            "completeTime": 1_767_225_601_000,
        }
    return json.dumps({"code": 200, "msg": "success", "data": data}).encode()


async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            target = head.split(" ", 2)[1]
            if "content-length: " in head:
                await reader.readexactly(int(head.partition("content-length: ")[2].partition("\r")[0]))
            body = answer(target.replace("createtask", "createTask").replace("taskid", "taskId"))
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
                + body
            )
            if "connection: close" in head:
                break
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def serve() -> None:
    server = await asyncio.start_server(serve_one, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    print(f"http://{host}:{port}", flush=True)
    await server.serve_forever()


def main(argv: Sequence[str]) -> int:
    asyncio.run(serve())
    return 0
