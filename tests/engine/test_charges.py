"""The price of a task before it exists: by the table, by what tasks took, by the length of local audio."""

from __future__ import annotations

import io
import wave
from pathlib import Path

import pytest
from conftest import OpenSession

from kie_async import Budget, InvalidRequest, KieSession, KlingAvatar, Price, Sandbox, TaskRequest

URL = "https://example.org/a"
MODEL = "sandbox/echo"


def voice(seconds: float) -> bytes:
    written = io.BytesIO()
    with wave.open(written, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(int(16000 * seconds)))
    return written.getvalue()


def avatar(audio: str | bytes | Path) -> KlingAvatar:
    return KlingAvatar(image_url=URL, audio_url=audio, prompt="")


def price_of(kie: KieSession, request: KlingAvatar | TaskRequest) -> Price:
    found = kie.price(request)
    assert found is not None
    return found


async def run_one(kie: KieSession, sandbox: Sandbox, request: KlingAvatar | TaskRequest) -> float:
    handle = await kie.create(request)
    sandbox.finish(handle.task_id)
    taken = (await handle).credits
    assert taken
    return taken


async def test_it_is_that_of_the_table_for_the_seconds_of_local_audio(
    kie: KieSession, tmp_path: Path
) -> None:
    (tmp_path / "voice.wav").write_bytes(voice(12.4))
    for audio in (tmp_path / "voice.wav", voice(12.4)):
        assert price_of(kie, avatar(audio)) == Price(
            credits=104.0,
            low=104.0,
            high=104.0,
            usd=0.52,
            basis="12.4 s of audio at 8 credits/s, table of 2026-10-07",
        )


async def test_of_audio_that_was_uploaded_here_it_is_known(kie: KieSession) -> None:
    uploaded = await kie.upload(voice(2.0))
    assert price_of(kie, avatar(uploaded.url)).credits == 16.0


async def test_of_audio_somewhere_else_and_of_strange_models_nobody_knows_it(kie: KieSession) -> None:
    assert kie.price(avatar("https://example.org/voice.mp3")) is None
    assert kie.price("nobody/knows", {}) is None


async def test_a_price_by_the_task(kie: KieSession) -> None:
    found = kie.price("nano-banana-2", {"prompt": "", "resolution": "4K"})
    assert found is not None
    assert (found.credits, found.basis) == (18.0, "table of 2026-10-07")


async def test_what_tasks_took_wins(kie: KieSession, sandbox: Sandbox) -> None:
    request = TaskRequest(model=MODEL, input={})
    assert kie.price(request) is None
    taken = [await run_one(kie, sandbox, request) for _ in range(2)]
    found = price_of(kie, request)
    assert found.credits == pytest.approx(sum(taken) / 2)
    assert found.basis == "mean of 2 tasks here"


async def test_what_avatars_took_is_reckoned_by_the_second(kie: KieSession, sandbox: Sandbox) -> None:
    taken = await run_one(kie, sandbox, avatar(voice(3.0)))
    found = price_of(kie, avatar(voice(6.0)))
    assert found.credits == pytest.approx(2 * taken)
    assert found.basis.endswith("one task here")


@pytest.mark.parametrize("budget", [None, Budget(credits=1e6)])
async def test_what_was_learned_outlives_the_session(
    sandbox: Sandbox, open_session: OpenSession, tmp_path: Path, budget: Budget | None
) -> None:
    request = TaskRequest(model=MODEL, input={})
    kie = await open_session(journal=tmp_path / "run.db", budget=budget)
    for _ in range(2):
        await run_one(kie, sandbox, request)
    before = price_of(kie, request)
    await kie.aclose()
    again = await open_session(journal=tmp_path / "run.db", budget=budget)
    assert price_of(again, request) == before


async def test_what_is_no_request_is_refused(kie: KieSession) -> None:
    with pytest.raises(InvalidRequest):
        kie.price("")
    with pytest.raises(InvalidRequest):
        kie.price(7)  # type: ignore[arg-type]
