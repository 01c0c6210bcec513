"""Typed usage of the public surface: checked by mypy, never run."""

from __future__ import annotations

from pathlib import Path
from typing import assert_type

from aiohttp import web

from kie_async import (
    Batch,
    Budget,
    CallbackReceiver,
    CallbackVerdict,
    CreateOutcomeUnknown,
    Estimate,
    KieSession,
    KlingAvatar,
    Limits,
    Media,
    Network,
    Outcome,
    PollSchedule,
    Price,
    Rate,
    Sandbox,
    SessionEvent,
    SessionStats,
    TaskFailed,
    TaskHandle,
    TaskPhase,
    TaskRecord,
    TaskRequest,
    TaskResult,
    TaskState,
    UploadedFile,
)


def follow(event: SessionEvent) -> None:
    assert_type(event.record, TaskRecord | None)


async def use(face: Path, voice: str) -> None:
    receiver = CallbackReceiver(hmac_keys=["key", b"old"], tolerance_s=60)
    app = web.Application()
    app.router.add_routes(receiver.routes("/kie"))
    async with KieSession(
        "key",
        callback_url="https://bot.example.org/kie",
        receiver=receiver,
        journal=Path("run.db"),
        max_in_flight=10,
        max_queued=500,
        limits=Limits(create=Rate(20, per_s=10)),
        poll=PollSchedule.fixed(3),
        budget=Budget(credits=100),
        confirm_callbacks=None,
        callback_secrets=[b"secret"],
        network=Network(
            proxy="http://p:1", allow=["198.18.0.0/15"], allow_http_to=["sandbox"], resolver=None
        ),
        on_event=follow,
    ) as kie:
        avatar = KlingAvatar(image_url=face, audio_url=voice, prompt="smile")
        assert_type(avatar.as_request(ref="a"), TaskRequest)
        handle = await kie.create(avatar, ref="a", timeout_s=60)
        assert_type(handle, TaskHandle)
        assert_type(await handle, TaskResult)
        assert_type(await handle.result(timeout_s=5), TaskResult)
        assert_type(handle.state, TaskState)
        assert_type(handle.estimate(), Estimate | None)
        assert_type(kie.price(avatar), Price | None)
        assert_type(kie.price("any/model", {"prompt": ""}), Price | None)
        assert_type(kie.expected_s("any/model"), float | None)
        submitted = kie.submit("any/model", {"n": 1}, ref="b", lane=81, timeout_s=60)
        assert_type(submitted, TaskHandle)
        assert_type(kie.submit(avatar, lane="chat"), TaskHandle)
        assert_type(submitted.phase, TaskPhase)
        assert_type(submitted.queue_position, int | None)
        assert_type(await submitted.created(), TaskHandle)
        assert_type(submitted.withdraw(), bool)
        assert_type(handle.record, TaskRecord | None)
        async for record in handle.updates():
            assert_type(record, TaskRecord)
        assert_type(await kie.create("any/model", {"prompt": "", "n": 0, "deep": {"a": [None]}}), TaskHandle)
        result = await kie.run(TaskRequest(model="m", input={}))
        assert_type(result.urls, tuple[str, ...])
        assert_type(result.url, str)
        assert_type(await kie.read(result, max_bytes=1000), bytes)
        async for block in kie.stream(result.url):
            assert_type(block, bytes)
        assert_type(result.credits, float | None)
        assert_type(kie.attach("id"), TaskHandle)
        assert_type(await kie.resume(), list[TaskHandle])
        assert_type(kie.unknown_creates(), list[TaskHandle])
        assert_type(await kie.query("id"), TaskRecord)
        assert_type(await kie.credits(), float)
        assert_type(await kie.upload(face), UploadedFile)
        with face.open("rb") as stream:
            media: list[Media] = [voice, face, b"", bytearray(), stream, await kie.upload(stream)]
        KlingAvatar(image_url=media[0], audio_url=media[2])
        assert_type(await kie.download(result, "out"), list[Path])
        assert_type(kie.stats(), SessionStats)
        async with kie.batch([avatar], download_to="out") as batch:
            assert_type(batch, Batch)
            async for outcome in batch:
                assert_type(outcome, Outcome)
                assert_type(outcome.unwrap(), TaskResult)
        try:
            await handle
        except TaskFailed as failed:
            assert_type(failed.record, TaskRecord | None)
        except CreateOutcomeUnknown as unknown:
            assert_type(unknown.handle, TaskHandle | None)
    assert_type(await receiver.feed("intent/mac", {"X-Webhook-Timestamp": "1"}, b"{}"), CallbackVerdict)
    async with Sandbox(seed=1) as sandbox:
        assert_type(sandbox.url, str)
