"""The models the sandbox knows, what each requires, and the refusals the service gives otherwise.

Model pages: https://docs.kie.ai/market/kling/v1-avatar-standard and its neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import attrs

Kind = Literal["avatar", "video", "image", "audio", "echo"]


class Refusal(Exception):
    """The service says no: a body code and its message."""

    def __init__(self, code: int, msg: str) -> None:
        super().__init__(code, msg)
        self.code, self.msg = code, msg


@attrs.frozen(kw_only=True)
class ModelRule:
    """What one model requires and how its result looks."""

    kind: Kind
    required: tuple[str, ...] = ("prompt",)
    may_be_empty: frozenset[str] = frozenset()
    """Required keys whose value may be an empty string."""
    prompt_limit: int = 5000
    """Characters."""
    credits: float = 40.0
    """Price of a task whose length is not known."""


def _avatar(*required: str) -> ModelRule:
    return ModelRule(kind="avatar", required=required, may_be_empty=frozenset({"prompt"}))


_AVATAR = _avatar("image_url", "audio_url", "prompt")

MODELS: Mapping[str, ModelRule] = {
    # The documented curl of the first leaves the prompt out, so it may be absent there.
    "kling/v1-avatar-standard": _avatar("image_url", "audio_url"),
    "kling/ai-avatar-v1-pro": _AVATAR,
    "kling/ai-avatar-standard": _AVATAR,
    "kling/ai-avatar-pro": _AVATAR,
    "infinitalk/from-audio": _AVATAR,
    "sandbox/echo": ModelRule(kind="echo", required=(), credits=1.0),
    "nano-banana-2": ModelRule(kind="image", prompt_limit=20_000, credits=8.0),
    "google/nano-banana": ModelRule(kind="image", credits=4.0),
    "gpt-image-2-text-to-image": ModelRule(kind="image", prompt_limit=20_000, credits=6.0),
    "z-image": ModelRule(kind="image", required=("prompt", "aspect_ratio"), prompt_limit=1000, credits=0.8),
    "seedream/4.5-text-to-image": ModelRule(
        kind="image", required=("prompt", "aspect_ratio", "quality"), prompt_limit=3000, credits=6.5
    ),
    "grok-imagine/text-to-video": ModelRule(kind="video", credits=20.0),
    "wan/2-6-text-to-video": ModelRule(kind="video", credits=70.0),
    "elevenlabs/text-to-speech-turbo-2-5": ModelRule(kind="audio", required=("text",), credits=6.0),
}

_UNKNOWN_MODEL = (
    "The model name you specified is not supported. "
    "Please verify your input and use one of the supported models provided by KIE."
)
_UNUSABLE_MEDIA = "Server exception, please try again later"


def rule_for(model: object) -> ModelRule:
    """Return the rule of *model*.

    Raises:
        Refusal: 422, the model is unknown or its id malformed.
    """
    if isinstance(model, str) and model.count("/") > 1:
        raise Refusal(422, "model format is incorrect")
    if not isinstance(model, str) or model not in MODELS:
        raise Refusal(422, _UNKNOWN_MODEL)
    return MODELS[model]


def check_input(rule: ModelRule, input: object) -> dict[str, Any]:
    """Return *input* if the model would take it.

    Raises:
        Refusal: 500 for a missing field, as the live service answers; 422 for a prompt that is too long.
    """
    if not isinstance(input, dict):
        raise Refusal(500, "This field is required")
    for name in rule.required:
        value = input.get(name)
        if value is None or (value == "" and name not in rule.may_be_empty):
            raise Refusal(500, f"{name} is required")
    prompt = input.get("prompt")
    if isinstance(prompt, str) and len(prompt) > rule.prompt_limit and rule.kind != "echo":
        raise Refusal(422, f"prompt must not exceed {rule.prompt_limit} characters")
    if rule.kind == "avatar":
        _check_media(input)
    return input


def _check_media(input: Mapping[str, Any]) -> None:
    for name in ("image_url", "audio_url"):
        if not str(input[name]).startswith(("http://", "https://")):
            raise Refusal(500, _UNUSABLE_MEDIA)


def unusable_media() -> Refusal:
    """Return the answer to a media URL that cannot be fetched."""
    return Refusal(500, _UNUSABLE_MEDIA)
