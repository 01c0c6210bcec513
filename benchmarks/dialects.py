"""Serves the same tasks in the protocols of others: Replicate, fal's queue, Runway and OpenAI's videos.

Answers have the size and the fields of real ones, so that a client decodes what it would have to.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

from .emulated import Request, Task, World, dumps, loads, route

_HOST = re.compile(rb"(?i)\r\nhost: *([^\r\n]+)")
_CREATED, _NO_TASK = 201, (404, dumps({"error": "not found"}))
_COST = {"credits": 88}
_PROMPT = "A calm presenter in a bright studio looks into the camera and speaks with small gestures."


def _origin(request: Request) -> str:
    found = _HOST.search(request.head)
    return f"http://{found[1].decode() if found else 'localhost'}"


def _stamp(world: World, at: float) -> str:
    """Return an instant of the monotonic clock as the date it was."""
    return datetime.fromtimestamp(at + world.wall_clock_ahead_s, UTC).isoformat().replace("+00:00", "Z")


def _url(task: Task) -> str:
    return f"https://files.example.org/outputs/{task.task_id}/video.mp4"


# --- Replicate -----------------------------------------------------------------------------------

_REPLICATE_STATES = {
    "waiting": "starting",
    "generating": "processing",
    "success": "succeeded",
    "fail": "failed",
}


@route("POST", "/v1/predictions")
def replicate_create(world: World, request: Request) -> tuple[int, bytes]:
    """Begin a prediction."""
    asked = loads(request.body)
    task = world.create(model=asked["version"], param=dumps(asked["input"]).decode())
    return _CREATED, _prediction(world, request, task)


@route("GET", "/v1/predictions/*")
def replicate_get(world: World, request: Request) -> tuple[int, bytes]:
    """Return a prediction."""
    task = world.tasks.get(request.path.rsplit("/", 1)[1])
    return _NO_TASK if task is None else (200, _prediction(world, request, task))


def _prediction(world: World, request: Request, task: Task) -> bytes:
    state, url = task.state, f"{_origin(request)}/v1/predictions/{task.task_id}"
    is_over = state in ("success", "fail")
    return dumps(
        {
            "id": task.task_id,
            "model": "kling/avatar",
            "version": task.model,
            "status": _REPLICATE_STATES[state],
            "input": loads(task.param),
            "output": _url(task) if state == "success" else None,
            "logs": "",
            "error": "failed" if state == "fail" else None,
            "metrics": {"predict_time": task.ends_at - task.starts_at} if is_over else {},
            "created_at": _stamp(world, task.created_at),
            "started_at": _stamp(world, task.starts_at) if state != "waiting" else None,
            "completed_at": _stamp(world, task.ends_at) if is_over else None,
            "urls": {"get": url, "cancel": f"{url}/cancel"},
        }
    )


# --- fal's queue ---------------------------------------------------------------------------------

_FAL_STATES = {
    "waiting": "IN_QUEUE",
    "generating": "IN_PROGRESS",
    "success": "COMPLETED",
    "fail": "COMPLETED",
}


@route("POST", "/fal-ai/*")
def fal_submit(world: World, request: Request) -> tuple[int, bytes]:
    """Put a request into the queue."""
    task = world.create(model=request.path[1:], param=request.body.decode())
    return 200, _fal_status(request, task)


@route("GET", "/fal-ai/*")
def fal_get(world: World, request: Request) -> tuple[int, bytes]:
    """Return the status of a request, or what came of it."""
    path = request.path.removesuffix("/status")
    task = world.tasks.get(path.rsplit("/", 1)[1])
    if task is None:
        return _NO_TASK
    if path != request.path:
        return 200, _fal_status(request, task)
    video = {"url": _url(task), "content_type": "video/mp4", "file_name": "video.mp4", "file_size": 8_388_608}
    return 200, dumps({"video": video, "duration": 8.0})


def _fal_status(request: Request, task: Task) -> bytes:
    url, state = f"{_origin(request)}/fal-ai/kling-avatar/requests/{task.task_id}", task.state
    return dumps(
        {
            "status": _FAL_STATES[state],
            "request_id": task.task_id,
            "response_url": url,
            "status_url": f"{url}/status",
            "cancel_url": f"{url}/cancel",
            "logs": None,
            "queue_position": 0,
            "metrics": {"inference_time": 8.0} if state == "success" else {},
        }
    )


# --- Runway --------------------------------------------------------------------------------------

_RUNWAY_STATES = {"waiting": "PENDING", "generating": "RUNNING", "success": "SUCCEEDED", "fail": "FAILED"}


@route("POST", "/v1/text_to_video")
def runway_create(world: World, request: Request) -> tuple[int, bytes]:
    """Begin a task."""
    task = world.create(model=loads(request.body)["model"])
    return 200, dumps({"id": task.task_id, "estimatedCost": _COST})


@route("GET", "/v1/tasks/*")
def runway_get(world: World, request: Request) -> tuple[int, bytes]:
    """Return a task."""
    task = world.tasks.get(request.path.rsplit("/", 1)[1])
    if task is None:
        return _NO_TASK
    state = task.state
    answer = {
        "id": task.task_id,
        "createdAt": _stamp(world, task.created_at),
        "status": _RUNWAY_STATES[state],
        "estimatedCost": _COST,
    }
    if state == "generating":
        answer["progress"] = 0.5
    elif state == "success":
        answer |= {"output": [_url(task)], "cost": _COST}
    elif state == "fail":
        answer |= {"failure": "An unexpected error occurred.", "failureCode": "INTERNAL", "cost": _COST}
    return 200, dumps(answer)


# --- OpenAI's videos -----------------------------------------------------------------------------

_OPENAI_STATES = {"waiting": "queued", "generating": "in_progress", "success": "completed", "fail": "failed"}


@route("POST", "/v1/videos")
def openai_create(world: World, _: Request) -> tuple[int, bytes]:
    """Begin a video; what is asked for comes as a form that is not read."""
    return 200, _video(world, world.create(model="sora-2"))


@route("GET", "/v1/videos/*")
def openai_get(world: World, request: Request) -> tuple[int, bytes]:
    """Return a video."""
    task = world.tasks.get(request.path.rsplit("/", 1)[1])
    return _NO_TASK if task is None else (200, _video(world, task))


def _video(world: World, task: Task) -> bytes:
    state = task.state
    is_over = state in ("success", "fail")
    return dumps(
        {
            "id": task.task_id,
            "object": "video",
            "created_at": int(task.created_at + world.wall_clock_ahead_s),
            "completed_at": int(task.ends_at + world.wall_clock_ahead_s) if is_over else None,
            "expires_at": None,
            "status": _OPENAI_STATES[state],
            "model": task.model,
            "progress": 100 if state == "success" else 0,
            "prompt": _PROMPT,
            "seconds": "8",
            "size": "1280x720",
            "remixed_from_video_id": None,
            "error": {"code": "internal", "message": "failed"} if state == "fail" else None,
        }
    )
