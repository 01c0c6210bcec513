"""One client process on the model of the service: a session, its receiver, its journal; it can be killed."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from kie_async import CallbackReceiver, CallbackVerdict, KieSession, TaskHandle, TaskRequest
from kie_async.callbacks.address import callback_mac
from kie_async.inputs.fingerprint import fingerprint
from kie_async.journal.base import Journal
from kie_async.sandbox.bodies import signature_headers

from .model_service import MODEL, ModelService, ServiceTask, Wire
from .slow_journals import CommitGate

HMAC_KEY = "hmac-key-of-the-model"
SECRET = "secret-of-the-model"
MOUNT = "http://127.0.0.1:8080/kie"


def now() -> float:
    """Return a wall time that goes with the loop's clock."""
    return 1_800_000_000 + asyncio.get_running_loop().time()


def tail_of(intent_id: str) -> str:
    """Return the part of an intent's callback address below the mount."""
    return f"{intent_id}/{callback_mac(intent_id, secret=SECRET.encode())}"


def headers_of(task_id: str) -> dict[str, str]:
    """Return the headers of a signed callback."""
    return dict(signature_headers(task_id, int(now()), hmac_key=HMAC_KEY))


class ModelClient:
    """A session that talks to a `ModelService`, and the receiver its callbacks come to."""

    def __init__(
        self,
        service: ModelService,
        journal: Journal | None = None,
        gate: CommitGate | None = None,
        *,
        is_signed: bool = True,
        **options: Any,
    ) -> None:
        self._service = service
        self._gate = gate
        self.journal = journal
        self.wire = Wire(service)
        self.receiver = CallbackReceiver([HMAC_KEY] if is_signed else (), now=now)
        self.is_dead = False
        given = {"rng": random.Random(0), "task_timeout_s": 900.0} | options
        with self.wire.installed():
            self.kie = KieSession(
                "key-of-the-model",
                base_url="http://127.0.0.1:9",
                receiver=self.receiver,
                callback_url=MOUNT,
                callback_secrets=[SECRET],
                journal=journal,
                **given,
            )

    async def open(self) -> ModelClient:
        """Open the session."""
        with self.wire.installed():
            await self.kie.open()
        return self

    @property
    def engine(self) -> Any:
        """Return the parts of the session."""
        return self.kie._engine

    async def create(
        self,
        prompt: str,
        *,
        ref: str | None = None,
        timeout_s: float = 900.0,
        attempted: set[str] | None = None,
    ) -> TaskHandle:
        """Create a task as the session does, without the thread that fingerprints: it has another clock.

        With *attempted*, what failed or was refused gets a new attempt, as in a batch that retries.
        """
        request = TaskRequest(model=MODEL, input={"prompt": prompt}, ref=ref)
        digest = fingerprint(request)
        handle: TaskHandle = await self.engine.creator.create(
            request, timeout_s, known_fingerprint=digest, attempted=attempted
        )
        return handle

    async def call_back(self, task: ServiceTask) -> CallbackVerdict:
        """Deliver what the service says of a task now, at the address of its intent."""
        body = self._service.callback(task.task_id)
        return await self.receiver.feed(tail_of(task.intent_id), headers_of(task.task_id), body)

    def die(self) -> None:
        """Send and note nothing from now on, as after a SIGKILL; what is left is `aclose`."""
        self.is_dead = True
        if self._gate is not None:
            self._gate.is_dead = True
        self.wire.cut()
