"""Encodes requests to the service. Pure."""

from __future__ import annotations

import attrs

from .._json import NotJson, name_what_has_no_json, write_json
from ..errors import InvalidRequest
from ..inputs.request import TaskRequest


@attrs.frozen(kw_only=True)
class WireRequest:
    """One HTTP request, host left out."""

    method: str
    path: str
    query: str = ""
    body: bytes | None = attrs.field(default=None, repr=False)


def encode_create(request: TaskRequest, callback_url: str | None) -> WireRequest:
    """Return the createTask request; *callback_url* None sends the caller's own, or none at all.

    Source: https://docs.kie.ai/market/kling/v1-avatar-standard

    Raises:
        InvalidRequest: The input has no JSON form.
    """
    body: dict[str, object] = {"model": request.model, "input": request.input}
    if callback_url is None and request.callback_url is not None:
        body["callBackUrl"] = request.callback_url
    try:
        encoded = write_json(body)
    except NotJson as exc:
        named = name_what_has_no_json("input", request.input)
        raise InvalidRequest(named or f"input has no JSON form: {exc}") from None
    made = WireRequest(method="POST", path="/api/v1/jobs/createTask", body=encoded)
    return made if callback_url is None else with_callback_url(made, callback_url)


def with_callback_url(request: WireRequest, callback_url: str) -> WireRequest:
    """Return a createTask request that has no callback URL yet with this one, its input not encoded again."""
    body = b'%s,"callBackUrl":%s}' % ((request.body or b"")[:-1], write_json(callback_url))
    return WireRequest(method=request.method, path=request.path, body=body)


def encode_query(task_id: str) -> WireRequest:
    """Return the recordInfo request for a well-formed id."""
    return WireRequest(method="GET", path="/api/v1/jobs/recordInfo", query=f"taskId={task_id}")


def encode_credits() -> WireRequest:
    """Return the request for the account's balance."""
    return WireRequest(method="GET", path="/api/v1/chat/credit")


def encode_fresh_link(url: str) -> WireRequest:
    """Return the request for a fresh link to a file of the service, good for twenty minutes.

    Source: https://docs.kie.ai/common-api/download-url
    """
    return WireRequest(method="POST", path="/api/v1/common/download-url", body=write_json({"url": url}))
