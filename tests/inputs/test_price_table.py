"""The price table: by the task or by the second of audio that has begun, as its input says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kie_async.inputs.kling import AVATAR_MODELS
from kie_async.inputs.prices import MODEL_PRICES, ListedPrice, find_audio, list_price

URL = "https://files.example/voice.mp3"


@pytest.mark.parametrize(
    ("model", "input", "audio_s", "listed"),
    [
        ("kling/v1-avatar-standard", {}, 11.52, ListedPrice(96.0, 120.0, is_per_s=True)),
        ("kling/ai-avatar-pro", {}, 2.0, ListedPrice(32.0, 4800.0, is_per_s=True)),
        ("kling/ai-avatar-standard", {}, None, ListedPrice(None, 2400.0, is_per_s=True)),
        ("infinitalk/from-audio", {}, 2.0, ListedPrice(6.0, 45.0, is_per_s=True, variant="unknown")),
        (
            "infinitalk/from-audio",
            {"resolution": "720p"},
            2.0,
            ListedPrice(24.0, 180.0, is_per_s=True, variant="720p"),
        ),
        ("veed/fabric-1", {}, None, ListedPrice(None, None, is_per_s=True)),
        ("nano-banana-2", {}, None, ListedPrice(8.0, 8.0, variant="unknown")),
        ("nano-banana-2", {"prompt": ""}, None, ListedPrice(8.0, 8.0)),
        ("nano-banana-2", {"resolution": "4K"}, None, ListedPrice(18.0, 18.0, variant="4K")),
        ("nano-banana-2", {"resolution": ["4K"]}, None, ListedPrice(8.0, 8.0)),
        ("some/other", {}, 2.0, ListedPrice(None, None)),
    ],
)
def test_the_price_of_a_task(
    model: str, input: dict[str, Any], audio_s: float | None, listed: object
) -> None:
    assert list_price(model, input, audio_s) == listed


def test_every_avatar_model_has_a_price() -> None:
    assert set(AVATAR_MODELS) <= set(MODEL_PRICES)


@pytest.mark.parametrize(
    ("input", "audio"),
    [
        ({"image_url": URL, "audio_url": URL, "prompt": ""}, [URL]),
        ({"audio_url": Path("voice.wav")}, [Path("voice.wav")]),
        ({"shots": [{"reference_audio_urls": [b"RIFF", URL]}]}, [b"RIFF", URL]),
        ({"audio_format": "mp3", "generate_audio": True}, []),
    ],
)
def test_the_audio_of_an_input(input: dict[str, Any], audio: list[object]) -> None:
    assert find_audio(input) == audio
