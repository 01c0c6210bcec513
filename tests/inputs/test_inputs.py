"""What a task is given: checked at the door, owned from then on, passed through untouched."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs
import pytest
from support.tables import together

from kie_async.errors import InvalidRequest
from kie_async.inputs.fingerprint import changed_fields, fingerprint, is_same
from kie_async.inputs.kling import AVATAR_MODELS, MAX_PROMPT, KlingAvatar
from kie_async.inputs.request import TaskRequest, TypedInput, as_request

FACE, VOICE = "https://files.example/face.png", "https://files.example/voice.mp3"


def avatar(**fields: Any) -> KlingAvatar:
    return KlingAvatar(**{"image_url": FACE, "audio_url": VOICE, **fields})


# --- the plain request ---------------------------------------------------------------------------


@together(
    "model",
    [
        *AVATAR_MODELS,
        "nano-banana-2",
        "infinitalk/from-audio",
        "wan/2-2-a14b-speech-to-video-turbo",
        "bytedance/seedance-1.5-pro",
        "omnihuman-1-5/subject-detection",
        "ai-music-api/generate",
        "Vendor_X/model.v2_1",
    ],
)
def test_a_model_name_of_the_service_passes(model: str) -> None:
    assert TaskRequest(model=model, input={}).model == model


@together(
    "model",
    ["", " ", "a/b/c", "/a", "a/", "a b", "a\n", "-a", "a?b", "a#b", "модель", "https://x/y", None, 7, b"a"],
)
def test_a_model_name_no_model_has_is_refused(model: object) -> None:
    with pytest.raises(InvalidRequest, match="model must look like"):
        TaskRequest(model=model, input={})  # type: ignore[arg-type]


@together("value", [None, "prompt", [], [("prompt", "hi")], 7, {"prompt"}])
def test_an_input_that_is_no_mapping_is_refused(value: object) -> None:
    with pytest.raises(InvalidRequest, match="input must be a mapping"):
        TaskRequest(model="a/b", input=value)  # type: ignore[arg-type]


@together("ref", ["row-7", "é", "x" * 512, " a "])
def test_a_ref_is_any_text_of_the_caller(ref: str) -> None:
    assert TaskRequest(model="a/b", input={}, ref=ref).ref == ref


@together("ref", ["", "  ", "\n", "x" * 513, 7, b"row"])
def test_a_ref_that_is_blank_or_endless_is_refused(ref: object) -> None:
    with pytest.raises(InvalidRequest, match="ref must be"):
        TaskRequest(model="a/b", input={}, ref=ref)  # type: ignore[arg-type]


def test_what_is_said_of_an_endless_ref_ends() -> None:
    with pytest.raises(InvalidRequest) as caught:
        TaskRequest(model="a/b", input={}, ref="x" * 10_000)
    assert len(str(caught.value)) < 700


def test_a_ref_with_half_a_character_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="ref must be valid unicode"):
        TaskRequest(model="a/b", input={}, ref="row \ud800")


@together("url", ["bot.example.org/kie", "ftp://a.example/", "https://u:p@a.example/", "", 7])
def test_a_callback_url_of_the_callers_own_must_be_a_url(url: object) -> None:
    with pytest.raises(InvalidRequest, match="callback_url"):
        TaskRequest(model="a/b", input={}, callback_url=url)  # type: ignore[arg-type]


def test_a_request_is_frozen() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        TaskRequest(model="a/b", input={}).model = "c/d"  # type: ignore[misc]


def test_what_the_caller_does_to_his_input_later_changes_nothing() -> None:
    given = {"prompt": "one", "scenes": [{"text": "one"}], "style": {"look": "one"}}
    request = TaskRequest(model="a/b", input=given)
    given["prompt"] = "two"
    given["scenes"][0]["text"] = "two"  # type: ignore[index]
    given["style"]["look"] = "two"  # type: ignore[index]
    assert request.input == {"prompt": "one", "scenes": [{"text": "one"}], "style": {"look": "one"}}


def test_an_input_keeps_its_values_and_their_order() -> None:
    given = {"z": "", "a": False, "m": 0, "n": None, "p": Path("face.png"), "t": (1, 2), "e": {}, "l": []}
    request = TaskRequest(model="a/b", input=given)
    assert list(request.input.items()) == list(given.items())


def test_any_mapping_will_do_as_input() -> None:
    inner = MappingProxyType({"look": "warm"})
    request = TaskRequest(model="a/b", input=MappingProxyType({"style": inner}))
    assert request.input == {"style": {"look": "warm"}}


def test_an_input_that_holds_itself_is_refused() -> None:
    loop: dict[str, object] = {}
    loop["self"] = loop
    with pytest.raises(InvalidRequest, match="nested too deeply"):
        TaskRequest(model="a/b", input=loop)


def test_a_repr_shows_neither_the_input_nor_the_callback_url() -> None:
    request = TaskRequest(model="a/b", input={"prompt": "s3cret"}, callback_url="https://a.example/s3cret")
    assert "s3cret" not in repr(request)


def test_a_request_can_stand_in_a_set() -> None:
    assert len({TaskRequest(model="a/b", input={"p": [1]}), TaskRequest(model="a/b", input={"p": [1]})}) == 1


PATHS = [
    "face.png",
    "./face.png",
    "/tmp/face.png",
    "dir with blank/face.png",
    "C:\\Users\\a\\face.png",
    "C:/Users/a/face.png",
    "c:face.png",
    "\\\\server\\share\\face.png",
    "ada:1.png",
    "12:30.mp3",
    "s3:copy.png",
    "~/face.png",
]
MEDIA_FIELDS: list[Callable[[str], dict[str, Any]]] = [
    lambda text: {"image_url": text},
    lambda text: {"image_urls": [FACE, text]},
    lambda text: {"image_input": (text,)},
    lambda text: {"input_urls": [text]},
    lambda text: {"elements": [{"deep": {"first_frame_url": text}}]},
]


@together("path", PATHS)
@together("fields", MEDIA_FIELDS)
def test_a_path_in_the_place_of_a_url_is_refused_with_what_to_do(
    path: str, fields: Callable[[str], dict[str, Any]]
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        TaskRequest(model="a/b", input=fields(path))
    assert f"pass Path({path!r}) to upload it" in str(caught.value)
    assert re.match(r"[\w.\[\]]+ is no URL: ", str(caught.value))


@together(
    "text",
    [
        "",
        " ",
        FACE,
        "HTTP://e.org/x",
        "asset://7",
        "s3://b/x",
        "data:image/png;base64,AA",
        " https://e.org/x",
    ],
)
@together("fields", MEDIA_FIELDS)
def test_other_text_passes_untouched(text: str, fields: Callable[[str], dict[str, Any]]) -> None:
    assert TaskRequest(model="a/b", input=fields(text)).input == fields(text)


@together("name", ["prompt", "url", "image", "style", "voice"])
def test_a_path_is_text_in_any_other_field(name: str) -> None:
    assert TaskRequest(model="a/b", input={name: "face.png"}).input == {name: "face.png"}


def test_media_are_owned_from_then_on() -> None:
    given = bytearray(b"one")
    request = TaskRequest(model="a/b", input={"a": [given], "b": (given, {"c": memoryview(given)})})
    given[:] = b"two"
    assert request.input == {"a": [b"one"], "b": (b"one", {"c": b"one"})}


@together(
    ("stream", "words"),
    [(io.StringIO("x"), "binary mode"), (asyncio.StreamReader.__new__(asyncio.StreamReader), "be awaited")],
)
def test_a_stream_that_gives_no_bytes_is_refused_by_its_place(stream: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"^a\.b\[0\]: .*{words}"):
        TaskRequest(model="a/b", input={"a": {"b": [stream]}})


# --- the avatar ----------------------------------------------------------------------------------


def test_an_avatar_becomes_the_request_of_the_service() -> None:
    assert avatar(prompt="warm smile").as_request(ref="row-7") == TaskRequest(
        model="kling/v1-avatar-standard",
        input={"image_url": FACE, "audio_url": VOICE, "prompt": "warm smile"},
        ref="row-7",
    )


def test_an_empty_prompt_is_sent_all_the_same() -> None:
    assert avatar().as_request().input["prompt"] == ""


@together("model", AVATAR_MODELS)
def test_every_avatar_model_can_be_asked(model: Any) -> None:
    assert avatar(model=model).as_request().model == model


@together("model", ["kling/v1-avatar-pro", "nano-banana-2", "", None])
def test_another_model_is_no_avatar(model: Any) -> None:
    with pytest.raises(InvalidRequest, match="model must be one of kling/v1-avatar-standard"):
        avatar(model=model)


def test_the_longest_prompt_passes() -> None:
    assert avatar(prompt="x" * MAX_PROMPT).prompt


@together(("prompt", "said"), [("x" * (MAX_PROMPT + 1), "5000"), (None, "'' for none"), (7, "text")])
def test_a_prompt_out_of_range_is_refused(prompt: Any, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        avatar(prompt=prompt)


@together("field", ["image_url", "audio_url"])
@together("path", PATHS)
def test_text_without_a_scheme_is_a_local_file(field: str, path: str) -> None:
    assert getattr(avatar(**{field: path}), field) == Path(path)


@together("field", ["image_url", "audio_url"])
def test_a_path_stays_a_path(field: str) -> None:
    assert avatar(**{field: Path("face.png")}).as_request().input[field] == Path("face.png")


@together("field", ["image_url", "audio_url"])
@together(
    "bad",
    ["", "  ", "ftp://a.example/x.png", "file:///etc/passwd", "data:image/png;base64,AA", None, 7, [FACE]],
)
def test_what_the_service_cannot_fetch_is_refused_by_name(field: str, bad: Any) -> None:
    with pytest.raises(InvalidRequest, match=field):
        avatar(**{field: bad})


def test_a_repr_of_an_avatar_keeps_the_prompt_to_itself() -> None:
    assert "s3cret" not in repr(avatar(prompt="s3cret"))


def test_an_avatar_refuses_a_blank_ref() -> None:
    with pytest.raises(InvalidRequest, match="ref"):
        avatar().as_request(ref=" ")


# --- the forms that create accepts ---------------------------------------------------------------


def test_a_model_name_and_fields_make_a_request() -> None:
    assert as_request("a/b", {"p": 1}, "row") == TaskRequest(model="a/b", input={"p": 1}, ref="row")


def test_a_request_is_taken_as_it_is() -> None:
    request = TaskRequest(model="a/b", input={"p": 1}, ref="row")
    assert as_request(request) is request


def test_a_ref_beside_a_request_takes_its_place() -> None:
    request = TaskRequest(model="a/b", input={"p": 1}, ref="row", callback_url="https://a.example/x")
    assert as_request(request, ref="other") == attrs.evolve(request, ref="other")


def test_a_typed_input_says_what_it_asks_for() -> None:
    assert as_request(avatar(), ref="row") == avatar().as_request(ref="row")
    assert isinstance(avatar(), TypedInput)


class _Echo:
    def as_request(self, *, ref: str | None = None) -> TaskRequest:
        return TaskRequest(model="sandbox/echo", input={}, ref=ref)


def test_anyone_may_write_a_typed_input() -> None:
    assert as_request(_Echo(), ref="row") == TaskRequest(model="sandbox/echo", input={}, ref="row")


def test_a_model_name_alone_is_refused_with_the_right_spelling() -> None:
    with pytest.raises(InvalidRequest, match=r"create\('a/b', \{\.\.\.\}\)"):
        as_request("a/b")


@together("request_", [TaskRequest(model="a/b", input={}), avatar()])
def test_an_input_beside_a_request_is_refused(request_: Any) -> None:
    with pytest.raises(InvalidRequest, match="carries its own"):
        as_request(request_, {"p": 1})


@together("request_", [None, {"model": "a/b"}, 7, b"a/b", ["a/b"]])
def test_anything_else_is_no_request(request_: Any) -> None:
    with pytest.raises(InvalidRequest, match="request must be"):
        as_request(request_)


# --- when two requests are the same --------------------------------------------------------------


def request_for(**fields: Any) -> TaskRequest:
    return TaskRequest(model="a/b", input=fields)


def test_a_fingerprint_begins_with_a_sha256_of_all_as_older_ones_were() -> None:
    text = '{"callback_url": null, "input": {"p": 1}, "model": "a/b"}'
    assert fingerprint(request_for(p=1)).startswith(hashlib.sha256(text.encode()).digest())


@together(
    ("before", "now", "changed"),
    [
        ({"p": 1, "q": 2}, {"p": 1, "q": 3}, ("q",)),
        ({"p": 1}, {"p": 1, "q": 3}, ("q",)),
        ({"p": 1, "q": 2, "r": {}}, {"p": 2, "q": 2}, ("p", "r")),
        ({"f": b"\x89PNG one"}, {"f": b"\x89PNG two"}, ("f",)),
        ({"ü\0": 1}, {"ü\0": 2}, ("ü?",)),
        ({"p": 1}, {"p": 1}, ()),
    ],
)
def test_two_fingerprints_name_the_fields_that_changed(
    before: dict[str, object], now: dict[str, object], changed: tuple[str, ...]
) -> None:
    noted, given = fingerprint(request_for(**before)), fingerprint(request_for(**now))
    assert changed_fields(noted, given) == changed
    assert is_same(noted, given) == (before == now)


def test_another_model_is_named_as_what_changed() -> None:
    other = fingerprint(TaskRequest(model="a/c", input={"p": 1}))
    assert changed_fields(fingerprint(request_for(p=1)), other) == ("model",)


def test_a_fingerprint_of_an_older_library_counts_and_names_nothing() -> None:
    given = fingerprint(request_for(p=1))
    assert is_same(given[:32], given)
    assert not is_same(given[:32], fingerprint(request_for(p=2)))
    assert changed_fields(given[:32], fingerprint(request_for(p=2))) == ()


def test_a_fingerprint_is_small_however_many_fields_there_are() -> None:
    many = {f"{number}-{'n' * 500}": number for number in range(1000)}
    assert len(fingerprint(request_for(**many))) < 3000


def test_equal_requests_have_one_fingerprint_in_any_order_and_under_any_ref() -> None:
    one = TaskRequest(model="a/b", input={"p": 1, "q": "ü"}, ref="one")
    two = TaskRequest(model="a/b", input={"q": "ü", "p": 1}, ref="two")
    assert fingerprint(one) == fingerprint(two)


@together(
    "other",
    [
        TaskRequest(model="a/c", input={"p": 1}),
        TaskRequest(model="a/b", input={"p": 2}),
        TaskRequest(model="a/b", input={"p": "1"}),
        TaskRequest(model="a/b", input={"p": 1, "q": None}),
        TaskRequest(model="a/b", input={"p": 1}, callback_url="https://a.example/x"),
    ],
)
def test_another_request_has_another_fingerprint(other: TaskRequest) -> None:
    assert fingerprint(other) != fingerprint(request_for(p=1))


def test_a_file_counts_by_what_is_in_it(tmp_path: Path) -> None:
    one, same, other = tmp_path / "one", tmp_path / "same", tmp_path / "other"
    one.write_bytes(b"face")
    same.write_bytes(b"face")
    other.write_bytes(b"voice")
    assert fingerprint(request_for(f=[one])) == fingerprint(request_for(f=[same]))
    assert fingerprint(request_for(f=[one])) != fingerprint(request_for(f=[other]))


def test_a_file_its_bytes_and_a_stream_of_them_are_the_same(tmp_path: Path) -> None:
    face = tmp_path / "face"
    face.write_bytes(b"face")
    forms = [face, b"face", bytearray(b"face"), io.BytesIO(b"face")]
    assert len({fingerprint(request_for(f=[form])) for form in forms}) == 1
    assert fingerprint(request_for(f=[io.BytesIO(b"voice")])) != fingerprint(request_for(f=[face]))


def test_a_stream_that_cannot_be_read_is_refused() -> None:
    stream = io.BytesIO(b"face")
    request = request_for(f=stream)
    stream.close()
    with pytest.raises(InvalidRequest, match=r"^cannot read a stream: .*closed file"):
        fingerprint(request)


def test_a_file_that_changes_counts_anew(tmp_path: Path) -> None:
    face = tmp_path / "face"
    face.write_bytes(b"one")
    before = fingerprint(request_for(f=face))
    assert fingerprint(request_for(f=face)) == before
    face.write_bytes(b"another")
    assert fingerprint(request_for(f=face)) != before


def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"missing\.png"):
        fingerprint(request_for(f=tmp_path / "missing.png"))


@together("value", [object(), {1, 2}, 1j])
def test_an_input_without_json_form_has_no_fingerprint(value: object) -> None:
    with pytest.raises(InvalidRequest, match="no JSON form"):
        fingerprint(request_for(p=value))


def test_keys_that_cannot_be_ordered_have_no_fingerprint() -> None:
    with pytest.raises(InvalidRequest, match="no JSON form"):
        fingerprint(TaskRequest(model="a/b", input={"p": {1: "a", "b": 2}}))


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="cannot read"):
        fingerprint(request_for(f=Path(os.fspath(tmp_path))))
