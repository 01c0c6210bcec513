"""Flask and Django under WSGI: views in threads feed the receiver, the session runs on a loop elsewhere."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import pytest
from conftest import HMAC_KEY, OpenSession

from kie_async import CallbackReceiver, KieSession, PollSchedule, Sandbox

NEVER = PollSchedule.fixed(3600)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = False


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def wsgi_on(app: Any) -> Iterator[str]:
    """Serve a WSGI application, each request in a thread of its own; return the URL of its callbacks."""
    with make_server("127.0.0.1", 0, app, server_class=_Server, handler_class=_Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/kie"
        finally:
            server.shutdown()
            thread.join()


def flask_app(receiver: CallbackReceiver) -> Any:
    """Return the application as one would write it."""
    flask = pytest.importorskip("flask")
    app = flask.Flask(__name__)

    @app.post("/kie/<path:path_tail>")
    def callback(path_tail: str) -> Any:
        verdict = asyncio.run(receiver.feed(path_tail, flask.request.headers, flask.request.get_data()))
        return verdict.body, verdict.status

    return app


def django_app(receiver: CallbackReceiver) -> Any:
    """Return the application as one would write it, in one file."""
    django = pytest.importorskip("django")
    from django.conf import settings
    from django.core.wsgi import get_wsgi_application
    from django.http import HttpResponse
    from django.urls import path
    from django.views.decorators.csrf import csrf_exempt

    @csrf_exempt
    def callback(request: Any, path_tail: str) -> Any:
        verdict = asyncio.run(receiver.feed(path_tail, request.headers, request.body))
        return HttpResponse(verdict.body, status=verdict.status)

    class Urls:
        urlpatterns = [path("kie/<path:path_tail>", callback)]  # noqa: RUF012

    if not settings.configured:
        settings.configure(ALLOWED_HOSTS=["*"], SECRET_KEY="x", ROOT_URLCONF=Urls)
        django.setup()
    settings.ROOT_URLCONF = Urls
    from django.urls import clear_url_caches

    clear_url_caches()
    return get_wsgi_application()


APPS: dict[str, Callable[[CallbackReceiver], Any]] = {"flask": flask_app, "django": django_app}


@pytest.mark.parametrize("framework", APPS)
@pytest.mark.parametrize("keeps_journal", [True, False], ids=["journal", "memory"])
async def test_callbacks_that_come_to_threads_settle_the_handles(
    framework: str, sandbox: Sandbox, open_session: OpenSession, tmp_path: Path, keeps_journal: bool
) -> None:
    hooked: set[int] = set()
    receiver = CallbackReceiver([HMAC_KEY])
    with wsgi_on(APPS[framework](receiver)) as url:
        kie = await open_session(
            receiver=receiver,
            callback_url=url,
            poll=NEVER,
            journal=tmp_path / "run.db" if keeps_journal else None,
            on_event=lambda _: hooked.add(threading.get_ident()),
        )
        handles = [await kie.create("sandbox/echo", {}) for _ in range(12)]
        for handle in handles:
            sandbox.finish(handle.task_id)
        async with asyncio.timeout(10):
            await asyncio.gather(*handles)

        assert kie.stats().settled_by_callback == 12
        assert {delivery.status for delivery in sandbox.deliveries} == {200}
        assert hooked == {threading.get_ident()}
        await kie.aclose()
        assert await sandbox.send_callback(handles[0].task_id) == 503


@pytest.mark.parametrize("framework", APPS)
async def test_a_session_on_a_loop_in_a_thread_serves_an_application_of_threads(
    framework: str, sandbox: Sandbox, tmp_path: Path
) -> None:
    receiver = CallbackReceiver([HMAC_KEY])
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        with wsgi_on(APPS[framework](receiver)) as url:

            async def run() -> int:
                async with KieSession(
                    "sandbox-key",
                    base_url=sandbox.url,
                    callback_url=url,
                    receiver=receiver,
                    journal=tmp_path / "run.db",
                    poll=NEVER,
                ) as kie:
                    await asyncio.gather(*[kie.run("sandbox/echo", {"n": n}) for n in range(3)])
                    return kie.stats().settled_by_callback

            running = asyncio.run_coroutine_threadsafe(run(), loop)
            async with asyncio.timeout(20):
                while not running.done():
                    for task in list(sandbox.tasks.values()):
                        if task.end_state is None:
                            sandbox.finish(task.task_id)
                    await asyncio.sleep(0.05)
            assert running.result() == 3
    finally:
        loop.call_soon_threadsafe(loop.stop)
        await asyncio.to_thread(thread.join)
        loop.close()
