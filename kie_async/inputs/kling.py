"""Typed inputs of the Kling models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import attrs

from .._field_help import ShowsFields
from .._validation import check_url
from ..errors import InvalidRequest
from .media import LOCAL_MEDIA, LocalMedia, Media, has_scheme, own_media
from .request import TaskRequest

AvatarModel = Literal[
    "kling/v1-avatar-standard", "kling/ai-avatar-v1-pro", "kling/ai-avatar-standard", "kling/ai-avatar-pro"
]

AVATAR_MODELS: tuple[AvatarModel, ...] = (
    "kling/v1-avatar-standard",
    "kling/ai-avatar-v1-pro",
    "kling/ai-avatar-standard",
    "kling/ai-avatar-pro",
)

MAX_PROMPT = 5000

AVATAR_MEDIA: Mapping[str, Literal["image", "audio"]] = {"image_url": "image", "audio_url": "audio"}
"""What the avatar models take in which field; both kinds are checked before anything is sent."""


def _own_image(value: Media) -> str | LocalMedia:
    return _url_or_file("image_url", value)


def _own_audio(value: Media) -> str | LocalMedia:
    return _url_or_file("audio_url", value)


def _url_or_file(field: str, value: Media) -> str | LocalMedia:
    """Return a URL as text, and what is uploaded as a request keeps it."""
    if isinstance(value, str) and value.strip() and not has_scheme(value):
        return Path(value)
    return cast("str | LocalMedia", own_media(value, field))


def _check_media(_: object, attribute: attrs.Attribute[Any], value: str | LocalMedia) -> None:
    if not isinstance(value, LOCAL_MEDIA):
        check_url(attribute.name, value)


def _shown(value: str | LocalMedia) -> str:
    return f"<{len(value)} bytes>" if isinstance(value, bytes) else repr(value)


def _check_prompt(_: object, __: attrs.Attribute[Any], prompt: str) -> None:
    if not isinstance(prompt, str):
        raise InvalidRequest(f"prompt must be text, got {type(prompt).__name__}; use '' for none")
    if len(prompt) > MAX_PROMPT:
        raise InvalidRequest(f"prompt must have at most {MAX_PROMPT} characters, got {len(prompt)}")


def _check_avatar_model(_: object, __: attrs.Attribute[Any], model: str) -> None:
    if model not in AVATAR_MODELS:
        raise InvalidRequest(f"model must be one of {', '.join(AVATAR_MODELS)}, got {model!r}")


@attrs.frozen(kw_only=True)
class KlingAvatar(metaclass=ShowsFields):
    """A portrait and a voice that become a talking-head video.

    Source: https://docs.kie.ai/market/kling/v1-avatar-standard

    Raises:
        InvalidRequest: A field is out of its range; the message names it.
    """

    image_url: str | LocalMedia = attrs.field(
        converter=_own_image,
        validator=_check_media,
        repr=_shown,
    )
    """An http(s) URL the service can fetch, or a JPEG, PNG, WebP up to 10 MB: a path, bytes, a stream."""
    audio_url: str | LocalMedia = attrs.field(
        converter=_own_audio,
        validator=_check_media,
        repr=_shown,
    )
    """An http(s) URL the service can fetch, or an MP3, WAV, AAC, M4A or OGG: a path, bytes, a stream."""
    prompt: str = attrs.field(default="", repr=False, validator=_check_prompt)
    """What the face should express; at most 5000 characters. Sent even when empty, as the model wants."""
    model: AvatarModel = attrs.field(default="kling/v1-avatar-standard", validator=_check_avatar_model)
    """One of the four; they differ in resolution and price."""

    def as_request(self, *, ref: str | None = None) -> TaskRequest:
        """Return the request for this input; see `TaskRequest.ref`.

        Raises:
            InvalidRequest: The ref is blank.
        """
        fields = {"image_url": self.image_url, "audio_url": self.audio_url, "prompt": self.prompt}
        return TaskRequest(model=self.model, input=fields, ref=ref)
