"""Decodes a task's record, from every key set and every shape of result the service has sent. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime

from .._json import NotJson, salvage_json
from ..models import TaskRecord, TaskState
from .values import CONTROL, clean_text, read_number, read_time, read_url

_STATES = {state.value: state for state in TaskState}

_STATE_NAMES = ("state", "status", "taskStatus", "task_status", "successFlag")
"""The last one holds a word in some families, such as SUCCESS."""

_FLAG_NAMES = ("successFlag", "success_flag")

_FLAGS: Mapping[float, TaskState] = {1: TaskState.SUCCESS, 2: TaskState.FAIL, 3: TaskState.FAIL}
"""What ``successFlag`` means where the word beside it is not known; 0 is a task that runs."""

_WORDS_OF_SUCCESS = frozenset(
    {"complete", "completed", "succeed", "succeeded", "successful", "done", "finished", "ready", "ok"}
    | {"callback_exception"}
)
"""An end if there is a result beside them. The last one says that only its callback went wrong."""

_WORDS_OF_FAILURE = frozenset(
    {"failed", "failure", "error", "aborted", "rejected", "timeout", "timed_out", "expired"}
)
"""An end if there is a reason beside them, as is any word that ends like these two."""

_ENDINGS_OF_FAILURE = ("_failed", "_error")

_WORDS_OF_CANCELLING = frozenset({"cancelled", "canceled"})

_MAX_NESTING = 6

_BETWEEN_URLS = re.compile(r"[\s,;]+(?=https?://)", re.IGNORECASE)

_RESULT_NAMES = ("resultJson", "response", "result", "result_json")

_PLACES_OF_URLS = ("info", "resultInfo", "videoInfo", "output", "data")
"""Where older families keep their URLs, beside much that is no result."""

_URL_NAMES = (
    *(
        "resulturls",
        "resulturl",
        "fullresulturls",
        "resultvideourls",
        "resultvideourl",
        "resultaudiourls",
        "resultaudiourl",
    ),
    *("resultimageurls", "resultimageurl", "videourls", "videourl", "audiourls", "audiourl"),
    *("audiowavurl", "sourceaudiourl", "streamaudiourl", "midiurl"),
    *("imageurls", "imageurl", "outputurls", "outputurl", "mediaurls", "mediaurl"),
    *("downloadurls", "downloadurl", "fileurls", "fileurl", "urls", "url", "uri", "href", "src", "link"),
    *("originurls", "originurl"),
)
"""The first of these that holds a URL has the result: a video comes before the picture on its cover."""

_CONTAINERS = (
    *("data", "response", "results", "result", "outputs", "output", "info", "resultinfo", "videoinfo"),
    *("sunodata", "videos", "video", "audios", "audio", "images", "image", "files", "file"),
)

_AT_THE_TOP = frozenset(
    {
        *("resultUrls", "resultUrl", "result_urls", "result_url", "resultVideoUrl", "result_video_url"),
        *("resultImageUrl", "result_image_url", "resultAudioUrl", "result_audio_url"),
        *("videoUrls", "videoUrl", "video_urls", "video_url", "outputUrl", "output_url"),
        *("audioUrls", "audioUrl", "audio_urls", "audio_url"),
    }
)
"""A record may hold these itself; its other addresses may be those of its input."""

_NO_CONTENT = frozenset({"resultUrls", "code", "msg"})

_FAIL_CODES = ("failcode", "errorcode", "errcode")

_FAIL_WORDS = (
    *("failmsg", "failmessage", "failreason", "failuremessage", "failurereason", "failedreason"),
    *("errormessage", "errormsg", "errmsg", "errorreason", "error", "errors", "reason"),
    *("statusmessage", "message", "msg", "detail", "details"),
)

_CREDITS = ("creditsConsumed", "consumeCredits", "credits_consumed", "consume_credits")
"""What records of different ages call the price; the first that holds a value counts. So below."""

_REMAINING = ("remainedCredits", "remainingCredits")

_IDS = ("taskId", "task_id", "id", "recordId")


def decode_record(data: Mapping[str, object]) -> TaskRecord:
    """Return the record in an envelope's ``data``, whichever of the key sets it has.

    The data must be free of secrets already; see `redaction`.
    """
    get = data.get
    urls, rest = read_result(data)
    created_at, completed_at = read_time(get("createTime")), read_time(get("completeTime"))
    model, state = get("model"), _read_end(data, has_result=bool(urls or rest))
    has_failed = state is TaskState.FAIL
    return TaskRecord(
        task_id=clean_text(_first(data, _IDS)),
        model=clean_text(get("operationType") if model is None else model),
        state=state,
        urls=urls,
        result_object=rest,
        fail_code=_read_words(data, _FAIL_CODES) if has_failed else clean_text(get("failCode")),
        fail_message=_read_words(data, _FAIL_WORDS) if has_failed else clean_text(get("failMsg")),
        credits=read_number(_first(data, _CREDITS)),
        remaining_credits=read_number(_first(data, _REMAINING)),
        created_at=created_at,
        updated_at=read_time(get("updateTime")),
        completed_at=completed_at,
        duration_s=_duration_s(created_at, completed_at, get("costTime")),
        raw=dict(data),
    )


def failed_record(task_id: str, code: int, message: str) -> TaskRecord:
    """Return the record of a task whose failure the service told by the code of its answer alone."""
    return decode_record({"taskId": task_id, "state": "fail", "failCode": str(code), "failMsg": message})


def _first(data: Mapping[str, object], keys: tuple[str, ...]) -> object:
    """Return what stands under the first of *keys* that holds anything."""
    for key in keys:
        if (value := data.get(key)) is not None:
            return value
    return None


def _duration_s(
    created_at: datetime | None, completed_at: datetime | None, cost_time: object
) -> float | None:
    """Return the wall time; ``costTime`` only where the times are missing.

    It is documented in milliseconds and was seconds in every record seen.
    """
    if created_at and completed_at and completed_at >= created_at:
        return (completed_at - created_at).total_seconds()
    cost = read_number(cost_time)
    if cost is None or cost < 0:
        return None
    return cost / 1000 if cost >= 10_000 else cost


def read_result(data: Mapping[str, object]) -> tuple[tuple[str, ...], Mapping[str, object] | None]:
    """Return the URLs of a record and what else its result holds, from any of the shapes seen."""
    for key in _RESULT_NAMES:
        if found := data.get(key):
            urls, rest = _split_result(_unwrapped(found))
            if urls or rest:
                return urls, rest
    for key in _PLACES_OF_URLS:
        if key in data and (urls := _find_urls(data[key])):
            return urls, None
    if _AT_THE_TOP.isdisjoint(data):  # nearly always
        return (), None
    return _find_urls({key: value for key, value in data.items() if key in _AT_THE_TOP}), None


def _split_result(value: object) -> tuple[tuple[str, ...], Mapping[str, object] | None]:
    if not isinstance(value, dict):
        return _find_urls(value), None
    urls = _find_urls(value)
    if urls and len(value) == 1:
        return urls, None
    inner = value.get("resultObject")
    if isinstance(inner, dict) and inner:
        return urls, inner
    return urls, value if any(value[key] for key in value.keys() - _NO_CONTENT) else None


def _unwrapped(value: object) -> object:
    """Return what JSON text holds, however often it was encoded; text that is no JSON is a result itself."""
    for _ in range(_MAX_NESTING):
        if not isinstance(value, str) or not value:
            return value
        if value[0] not in "{[" and read_url(value):  # nearly all is JSON, and that is no URL
            return value
        text = value
        try:
            value = salvage_json(text)[0]
        except NotJson:
            return _as_text(text)
    return None


def _as_text(text: str) -> object:
    """Return plain words as an object; addresses line by line as a list; JSON that broke off as nothing."""
    lines: list[object] = [*text.split()]
    if lines and all(map(read_url, lines)):
        return lines
    is_broken = text.lstrip()[:1] in ("{", "[", '"') or not CONTROL.sub(" ", text).strip()
    return None if is_broken or _is_number(text) else {"text": text}


def _is_number(text: str) -> bool:
    """Tell whether text is a number, or one of the kind that JSON does not have."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _find_urls(value: object, depth: int = _MAX_NESTING) -> tuple[str, ...]:
    """Return the URLs of a result: below the first name that leads to any, or all of a list."""
    if isinstance(value, str):
        if urls := tuple(filter(None, map(read_url, _BETWEEN_URLS.split(value)))):
            return urls
        return _find_urls(_unwrapped(value), depth) if value.lstrip()[:1] in ("{", "[", '"') else ()
    if depth == 0:
        return ()
    if isinstance(value, list):
        return tuple([url for item in value for url in _find_urls(item, depth - 1)])
    if not isinstance(value, dict):
        return ()
    if urls := _find_urls(value.get("resultUrls"), depth - 1):
        return urls
    named = {_plain(key): inner for key, inner in value.items()}
    for name in (*_URL_NAMES, *_CONTAINERS):
        if name in named and (urls := _find_urls(named[name], depth - 1)):
            return urls
    return ()


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


def read_state(word: object) -> TaskState:
    """Return the state a wire word names; an unknown word counts as running."""
    if not isinstance(word, str):
        return TaskState.UNKNOWN
    return _STATES.get(word) or _STATES.get(word.strip().lower(), TaskState.UNKNOWN)


def read_state_word(data: Mapping[str, object]) -> str:
    """Return the word for its state that a record holds, under any of its names; nothing if there is none."""
    for key in _STATE_NAMES:
        if isinstance(word := data.get(key), str) and word and not (key in _FLAG_NAMES and _is_number(word)):
            return word
    return ""


def _read_end(data: Mapping[str, object], *, has_result: bool) -> TaskState:
    """Return the state of a record; a word that is not known is an end only with what belongs to one."""
    word = read_state_word(data)
    if (state := read_state(word)) is not TaskState.UNKNOWN:
        return state
    if (end := _FLAGS.get(read_number(_first(data, _FLAG_NAMES)) or 0)) is not None:
        return end
    said = word.strip().lower().replace("-", "_").replace(" ", "_")
    if said in _WORDS_OF_SUCCESS and has_result:
        return TaskState.SUCCESS
    is_failure = said in _WORDS_OF_FAILURE or said.endswith(_ENDINGS_OF_FAILURE)
    if said in _WORDS_OF_CANCELLING or (is_failure and _has_reason(data)):
        return TaskState.FAIL
    return TaskState.UNKNOWN


def _has_reason(data: Mapping[str, object]) -> bool:
    return bool(_read_words(data, _FAIL_CODES) or _read_words(data, _FAIL_WORDS))


def _read_words(data: Mapping[str, object], names: tuple[str, ...]) -> str:
    """Return the first words or number under *names*, also from an object or a list that holds words."""
    given = [(_plain(key), value) for key, value in data.items()]
    for name in names:
        for words in (_words_of(value) for key, value in given if key == name):
            if words:
                return words
    return ""


def _words_of(value: object) -> str:
    while isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, dict):
        value = _first(value, ("message", "msg", "detail", "reason", "code"))
    return clean_text(value)
