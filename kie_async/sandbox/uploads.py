"""aiohttp handlers of the file upload API, and of the host that serves uploads and results.

https://docs.kie.ai/file-upload-api/quickstart
"""

from __future__ import annotations

import base64
import binascii
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
from aiohttp import BodyPartReader, web

from .catalogue import Refusal
from .files import FileStore, StoredFile, placeholder
from .tasks import SandboxTask, encode_json
from .world import World

Films = Callable[[SandboxTask], Awaitable[bytes]]

_BASE64_LIMIT = 10 * 1024 * 1024
_STREAM_LIMIT = 200 * 1024 * 1024
_BAD_BASE64 = "Base64 decoding failed: Invalid Base64 format"


@attrs.define(kw_only=True, eq=False)
class FileHost:
    """Takes uploads and serves them again, results beside them."""

    world: World
    films: Films | None
    """Renders the result of an avatar task; None serves placeholders."""

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of the upload and the download host."""
        return [
            web.post("/api/file-stream-upload", self._uploading(self._from_stream)),
            web.post("/api/file-base64-upload", self._uploading(self._from_base64)),
            web.post("/api/file-url-upload", self._uploading(self._from_url)),
            web.get("/files/results/{name}", self._serve_result),
            web.get("/files/{path:.+}", self._serve_upload),
        ]

    def _uploading(
        self, receive: Callable[[web.Request], Awaitable[StoredFile]]
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def answer(request: web.Request) -> web.Response:
            self.world.counts["upload"] += 1
            try:
                self._judge(request)
                file = await receive(request)
            except Refusal as refusal:
                self.world.counts[f"upload.{refusal.code}"] += 1
                return _upload_answer(refusal.code, refusal.msg)
            return _upload_answer(200, "File uploaded successfully", self.world.files.describe(file))

        return answer

    def _judge(self, request: web.Request) -> None:
        authorization = request.headers.get("Authorization", "")
        refusal = self.world.judge_arrival("upload", authorization, time.monotonic())
        if refusal is not None and refusal.code == 401:
            raise Refusal(401, "Authentication failed: Invalid API Key")
        if refusal is not None:
            raise refusal

    async def _from_stream(self, request: web.Request) -> StoredFile:
        if not request.content_type.startswith("multipart/"):
            raise Refusal(400, "Missing required parameter: file")
        fields: dict[str, str] = {}
        content: bytes | None = None
        name = mime = None
        async for part in await request.multipart():
            if not isinstance(part, BodyPartReader):
                continue
            if part.name == "file":
                content, name, mime = await _read_part(part), part.filename, part.headers.get("Content-Type")
            else:
                fields[part.name or ""] = (await _read_part(part)).decode(errors="replace")
        if content is None:
            raise Refusal(400, "Missing required parameter: file")
        name = fields.get("fileName") or name
        return self._store.keep(content, folder=_required(fields, "uploadPath"), name=name, mime=mime)

    async def _from_base64(self, request: web.Request) -> StoredFile:
        fields = _fields_of(await request.read())
        encoded, folder = _required(fields, "base64Data"), _required(fields, "uploadPath")
        head, comma, rest = encoded.partition(",")
        mime = head.removeprefix("data:").partition(";")[0] if comma and head.startswith("data:") else None
        content = _decoded(rest if mime is not None else encoded)
        return self._store.keep(content, folder=folder, name=fields.get("fileName"), mime=mime)

    async def _from_url(self, request: web.Request) -> StoredFile:
        fields = _fields_of(await request.read())
        url, folder = _required(fields, "fileUrl"), _required(fields, "uploadPath")
        if not url.startswith(("http://", "https://")):
            raise Refusal(400, "Invalid fileUrl: only http and https are supported")
        source = self._store.find(url)
        if source is None:  # the sandbox fetches from nobody but itself
            raise Refusal(500, "Internal server error")
        name = fields.get("fileName") or None
        return self._store.keep(source.content, folder=folder, name=name, mime=source.mime)

    @property
    def _store(self) -> FileStore:
        return self.world.files

    def _count_file(self, request: web.Request) -> None:
        self.world.counts["file"] += 1
        if "Authorization" in request.headers:
            self.world.counts["file.with_key"] += 1
        if request.headers.get("User-Agent", "").startswith("Python-urllib"):
            self.world.counts["file.403"] += 1
            raise web.HTTPForbidden(text="error code: 1010")  # as the service's own hosts answer

    async def _serve_upload(self, request: web.Request) -> web.Response:
        self._count_file(request)
        file = self._store.at(request.match_info["path"])
        if file is None:
            raise web.HTTPNotFound
        return web.Response(body=file.content, headers={"Content-Type": file.mime})

    async def _serve_result(self, request: web.Request) -> web.Response:
        self._count_file(request)
        task_id, _, suffix = request.match_info["name"].rpartition(".")
        task = self.world.tasks.get(task_id)
        if task is None or task.state != "success":
            raise web.HTTPNotFound
        if self.films is not None and suffix == "mp4":
            return web.Response(body=await self.films(task), content_type="video/mp4")
        content, mime = placeholder(suffix, task_id)
        return web.Response(body=content, content_type=mime)


def _upload_answer(code: int, msg: str, shown: dict[str, Any] | None = None) -> web.Response:
    body: dict[str, Any] = {"success": code == 200, "code": code, "msg": msg}
    if shown is not None:
        body["data"] = shown
    return web.Response(text=encode_json(body), content_type="application/json")


async def _read_part(part: BodyPartReader) -> bytes:
    content = bytearray()
    while chunk := await part.read_chunk(1 << 16):
        content += chunk
        if len(content) > _STREAM_LIMIT:
            raise Refusal(400, "File size exceeds the limit")
    return bytes(content)


def _fields_of(body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "Invalid JSON") from error
    return fields if isinstance(fields, dict) else {}


def _required(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value:
        raise Refusal(400, f"Missing required parameter: {name}")
    return value


def _decoded(text: str) -> bytes:
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refusal(400, _BAD_BASE64) from error
    if len(content) > _BASE64_LIMIT:
        raise Refusal(400, "File size exceeds the limit")
    return content
