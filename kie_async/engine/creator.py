"""Turns a request into a task: a slot, a turn at the rate limit, one body on the wire, a handle."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from weakref import WeakValueDictionary

import attrs

from ..callbacks.address import new_intent_id
from ..creating.create_call import CreateCall, CreateCalls
from ..errors import (
    SESSION_CLOSED,
    CreateOutcomeUnknown,
    InvalidRequest,
    KieError,
    RefConflict,
    SessionMisuse,
    TransportError,
    UploadRefused,
)
from ..files.uploads import Uploads
from ..handle import TaskHandle
from ..http.backoff import MAX_ATTEMPTS, delays
from ..inputs.fingerprint import changed_fields, fingerprint, is_same
from ..inputs.request import TaskRequest
from ..journal.base import RefTaken
from ..journal.intents import Intent
from ..limits.budget import BudgetLedger
from ..limits.prices import Charge
from ..wire.requests import WireRequest, encode_create, with_callback_url
from .charges import charge_of
from .create_notes import CreateNotes
from .create_queue import CreateQueue, QueuedCreate
from .create_runner import CreateRunner
from .pending_creates import PendingCreate, Phase
from .recovery import Recovery
from .settings import Settings
from .tracker import TaskTracker

_log = logging.getLogger("kie_async")

_DECIDED = "the create was decided meanwhile; nothing was sent; await its handle"


class _RefTurn(asyncio.Lock):
    """The turn of those who would create for a ref; it lives as long as one of them waits or creates."""

    def __init__(self) -> None:
        super().__init__()
        self.made: tuple[TaskHandle, bytes] | None = None
        """What the last one made: it may have settled, and be forgotten, before the next one's turn comes."""

    def remember(self, handle: TaskHandle, digest: bytes) -> None:
        """Keep what was made for whoever waits."""
        self.made = handle, digest


class TaskCreator:
    """Turns requests into handles, so many unsettled at once, lane by lane."""

    def __init__(
        self,
        tracker: TaskTracker,
        recovery: Recovery,
        notes: CreateNotes,
        calls: CreateCalls,
        uploads: Uploads,
        queue: CreateQueue,
        ledger: BudgetLedger | None,
        settings: Settings,
    ) -> None:
        self._tracker = tracker
        self._recovery = recovery
        self._notes = notes
        self._calls = calls
        self._uploads = uploads
        self._queue = queue
        self._admission = queue.admission
        self._callbacks = settings.callbacks
        self._task_timeout_s = settings.task_timeout_s
        self._ledger = ledger
        self._refs: WeakValueDictionary[str, _RefTurn] = WeakValueDictionary()
        self.runner = CreateRunner()

    async def create(
        self,
        request: TaskRequest,
        timeout_s: float,
        *,
        wait_if_sent: bool = False,
        known_fingerprint: bytes | None = None,
        attempted: set[str] | None = None,
        entry: QueuedCreate | None = None,
    ) -> TaskHandle:
        """Return the handle of a new task, or the one a ref stands for; see `KieSession.create`.

        *entry* says whose turn it takes; that of a handle that was given out at once is in the queue. With
        *wait_if_sent* a first cancel stops only what has not left; what has left is waited for. Such a create
        keeps trying, however long the service is out of reach: whoever wants its end stops it. With
        *attempted*, what failed or was refused gets a new attempt under its ref, unless that is in it; the
        refs of all creates are put into it.
        """
        entry = entry or QueuedCreate()
        if request.ref is None:
            return await self._create(request, b"", timeout_s, entry, wait_if_sent)
        digest = known_fingerprint
        if digest is None:
            digest = await asyncio.to_thread(fingerprint, request)
        turn = self._turn_of(request.ref)
        # Two creates of one ref at once would both find it free, and both would be paid.
        async with turn:
            while True:
                found = await self._find(request, request.ref, digest, timeout_s, attempted)
                if isinstance(found, TaskHandle):
                    return found
                if found is None and turn.made is not None:
                    _check_same(request.ref, turn.made[1], digest)
                    return turn.made[0]
                if attempted is not None:
                    attempted.add(request.ref)
                try:
                    handle = await self._create(
                        request, digest, timeout_s, entry, wait_if_sent, replaced=found
                    )
                except RefTaken:
                    continue
                except InvalidRequest:
                    now = await self._calls.journal.find_by_ref(request.ref) if found is not None else None
                    if now is None or now.may_be_retried:
                        raise
                    # It was no failure after all: a callback has shown its task.
                    return self._revive(now, request, digest, timeout_s)
                turn.remember(handle, digest)
                return handle

    def _turn_of(self, ref: str) -> _RefTurn:
        """Return the turn of who would create for a ref: one at a time."""
        return self._refs.setdefault(ref, _RefTurn())

    async def _find(
        self, request: TaskRequest, ref: str, digest: bytes, timeout_s: float, attempted: set[str] | None
    ) -> TaskHandle | Intent | None:
        """Return the handle a ref stands for, the intent to be tried anew, or None if the ref is free.

        Raises:
            RefConflict: It stands for another request.
            CreateOutcomeUnknown: Nobody knows what became of it; its handle can `resubmit` this request.
        """
        # Who is still on the wire comes first: the journal would call it unknown before its answer is here.
        found = await self.runner.end_of_orphan(ref) or self._tracker.registry.by_ref(ref)
        if found is None and (intent := await self._recovery.find_by_ref(ref)) is not None:
            if attempted is not None and ref not in attempted and self._may_be_retried(intent):
                return intent
            return self._revive(intent, request, digest, timeout_s)
        if found is None:
            return None
        handle, noted = found
        _check_same(ref, noted, digest)
        return handle

    async def find_known(self, request: TaskRequest, ref: str, timeout_s: float) -> TaskHandle | None:
        """Return the handle that a ref stands for; None if it seems free, which `create` makes sure of.

        Raises:
            KieError: What `create` raises of a ref that is known.
        """
        in_flight = self._tracker.registry.by_ref(ref)
        if in_flight is None and await self._calls.journal.find_by_ref(ref) is None:
            return None  # most are free, and their files need not be read twice
        digest = await asyncio.to_thread(fingerprint, request)
        found = await self._find(request, ref, digest, timeout_s, None)
        return found if isinstance(found, TaskHandle) else None

    def _revive(self, intent: Intent, request: TaskRequest, digest: bytes, timeout_s: float) -> TaskHandle:
        _check_same(intent.ref or "", intent.fingerprint, digest)
        try:
            return self._recovery.revive(intent, asyncio.get_running_loop().time() + timeout_s)
        except CreateOutcomeUnknown as exc:
            if exc.handle is not None and exc.handle.request is None:  # of a former run
                exc.handle.hold_request(request)
            raise

    def _may_be_retried(self, intent: Intent) -> bool:
        pending = self._tracker.pending.get(intent.intent_id)
        return intent.may_be_retried and (pending is None or self._is_open(pending, Phase.REJECTED))

    async def _create(
        self,
        request: TaskRequest,
        digest: bytes,
        timeout_s: float,
        entry: QueuedCreate,
        wait_if_sent: bool = False,
        *,
        replaced: Intent | None = None,
    ) -> TaskHandle:
        """Make a create ready and send it when it is its turn; have no place in the queue when it is over."""
        try:
            return await self._make(request, digest, timeout_s, entry, wait_if_sent, replaced=replaced)
        finally:
            self._queue.remove(entry)
            self._queue.leave_line(entry)

    async def _make(
        self,
        request: TaskRequest,
        digest: bytes,
        timeout_s: float,
        entry: QueuedCreate,
        wait_if_sent: bool,
        *,
        replaced: Intent | None,
    ) -> TaskHandle:
        # One that was given out has its room; a batch brings few at a time, and none of them may fail.
        if entry.handle is None and not wait_if_sent:
            self._queue.check_room()
        # One that failed has its task, and is not pending.
        former = None if replaced is None else self._tracker.pending.get(replaced.intent_id)
        phase = None if former is None else former.phase
        intent_id, begun_at = new_intent_id(), asyncio.get_running_loop().time()
        charge = await self._charge_of(request)
        request = await self._with_uploads(request, keeps_trying=wait_if_sent)
        wire_request = encode_create(request, None)  # says what is wrong with it while no address is in sight
        if request.callback_url is None:
            wire_request = self._addressed(wire_request, intent_id)
        # After the uploads: they take long and cost nothing, and a slot is for what may be paid.
        await self._queue.wait_for_turn(entry)
        describe = partial(
            Intent,
            intent_id=intent_id,
            model=request.model,
            ref=request.ref,
            fingerprint=digest,
            # A URL of the user's own takes its callbacks elsewhere: then there are only the polls.
            expects_callback=request.callback_url is None and self._callbacks.is_received,
            replaces="" if replaced is None else replaced.intent_id,
        )
        pending = self._tracker.begin(describe(), request, former, entry.handle)
        self._admission.hold(pending.handle)
        try:
            # With the slot in hand: while it waited, the session may have closed and others spent the
            # budget.
            self._admission.check_open()
        except BaseException:
            self._tracker.cancel(pending)
            raise
        # From here, and once more when it is a task: neither waits nor retries are taken off its time.
        pending.handle.move_deadline(asyncio.get_running_loop().time() + timeout_s)
        intent = describe(body=(wire_request.body or b"").decode())
        guard = partial(self._let_leave, charge, former, phase)
        leave_line = partial(self._queue.leave_line, entry)
        call = entry.call = self._calls.new(
            intent,
            wire_request,
            pending.handle.deadline,
            guard,
            begun_at=begun_at,
            keeps_trying=wait_if_sent,
            on_permit=leave_line,
        )
        return await self.runner.run(
            self._run_in_turn(
                pending, call, charge, timeout_s, waits_for_refunds=wait_if_sent, on_wait=leave_line
            ),
            call,
            ref=request.ref,
            wait_if_sent=wait_if_sent,
            on_cancelled=partial(self._tracker.cancel, pending),
        )

    async def _with_uploads(self, request: TaskRequest, *, keeps_trying: bool) -> TaskRequest:
        """Return *request* with URLs in the place of its media; one that keeps trying waits for the host."""
        uploads, weather, waits = self._uploads, self._calls.weather.uploads, delays(self._calls.rng)
        while True:
            begun_at, sent_before = asyncio.get_running_loop().time(), uploads.sent_count
            try:
                return await uploads.replace_media(request)
            except (TransportError, UploadRefused) as exc:
                is_of_file = isinstance(exc, UploadRefused) and not exc.may_pass
                # Where others come through meanwhile it is this file that does not.
                if is_of_file or uploads.sent_count > sent_before:
                    raise
                weather.record_failure(str(exc), begun_at=begun_at, count=MAX_ATTEMPTS)
                if not keeps_trying:
                    raise
            finally:
                if uploads.sent_count > sent_before:
                    weather.record_success()
            await asyncio.sleep(next(waits))

    async def _charge_of(self, request: TaskRequest) -> Charge:
        """Return what is known of the price of a request; files are read for it only under a budget."""
        if self._ledger is None:
            return Charge(request.model)
        return charge_of(request.model, request.input, await self._uploads.measure_audio(request.input))

    def _let_leave(
        self, charge: Charge, former: PendingCreate | None, phase: Phase | None, intent: Intent
    ) -> Intent:
        """Do what belongs into the step in which a body leaves, or keep it back; return what is to be noted.

        Raises:
            InvalidRequest: The create that this one replaces became a task meanwhile.
            BudgetExceeded: The budget does not allow it.
        """
        if former is not None and not self._is_open(former, phase):
            raise InvalidRequest(_DECIDED)
        if self._ledger is None:
            return intent
        expected = self._ledger.reserve(intent.intent_id, charge)
        return attrs.evolve(intent, audio_s=charge.audio_s, expected_credits=expected or None)

    def _is_open(self, former: PendingCreate, phase: Phase | None) -> bool:
        """Tell whether nobody has found out, or is finding out, that a create in this phase became a task."""
        is_open = former in self._tracker.pending and not former.is_taken and former.phase is phase
        # Of an unknown one somebody accepted to pay twice; of a refused one a callback may say that it runs.
        return is_open and (phase is Phase.UNKNOWN or not former.claims)

    def _addressed(self, request: WireRequest, intent_id: str) -> WireRequest:
        """Return *request* with the intent's address in it, which no frame that can raise later holds."""
        url = self._callbacks.address_of(intent_id)
        return request if url is None else with_callback_url(request, url)

    async def _run_in_turn(
        self,
        pending: PendingCreate,
        call: CreateCall,
        charge: Charge,
        timeout_s: float,
        *,
        waits_for_refunds: bool,
        on_wait: Callable[[], None],
    ) -> TaskHandle | KieError:
        """Run when no other create must show its price first; a turn ends when the outcome is known."""
        if self._ledger is None:
            return await self._run(pending, call, timeout_s)
        await self._ledger.wait_for_turn(charge, waits_for_refunds=waits_for_refunds, on_wait=on_wait)
        try:
            return await self._run(pending, call, timeout_s)
        finally:
            self._ledger.leave(charge)

    async def _run(self, pending: PendingCreate, call: CreateCall, timeout_s: float) -> TaskHandle | KieError:
        """Return what became of a create: there may be nobody left to take an error that is raised."""
        try:
            task_id = await call.run()
        except asyncio.CancelledError:
            await self._notes.note_nothing_created(pending)
            if self._admission.is_closing:  # what was cancelled is the create, and not its caller
                return SessionMisuse(SESSION_CLOSED)
            raise
        except KieError as exc:
            await self._notes.note_failure(pending, exc, call.claimed_task_id)
            return exc
        try:
            await self._notes.note_created(pending, task_id)
        except KieError as exc:
            return exc
        pending.handle.move_deadline(asyncio.get_running_loop().time() + timeout_s)
        self._tracker.write_off_former(pending)
        handle = self._tracker.mark_created(pending, task_id)
        if self.runner.is_orphan(call):
            ref = "" if handle.ref is None else f" (ref {handle.ref!r})"
            words = "task %s%s was created after its caller was cancelled; it goes on; attach its id to wait"
            _log.warning(words, task_id, ref)
        return handle

    # --- again, and the end --------------------------------------------------------------------

    async def resubmit(self, handle: TaskHandle) -> TaskHandle:
        """Send the request of an unknown create as a new task; see `TaskHandle.resubmit`."""
        if handle.request is None:
            raise InvalidRequest(
                "this handle does not hold its request; create() the same request with its ref again, and "
                "resubmit by the handle of the error; or create a new task with a new ref"
            )
        async with self._turn_of(handle.ref or handle.intent_id):
            former = self._tracker.pending.get(handle.intent_id)
            request = handle.request
            if former is None or request is None:
                raise InvalidRequest(f"the create became task {handle.task_id} meanwhile; await its handle")
            if not self._is_open(former, Phase.UNKNOWN):
                raise InvalidRequest(_DECIDED)
            # The first create is written off in the step in which the second leaves.
            first = former.intent
            entry = QueuedCreate()
            return await self._create(request, first.fingerprint, self._task_timeout_s, entry, replaced=first)

    async def drain(self) -> None:
        """Keep back what has not left, and give what has left some time to learn its id."""
        self._queue.close()
        await self.runner.drain()


def _check_same(ref: str, noted: bytes, given: bytes) -> None:
    if not is_same(noted, given):
        raise RefConflict(ref, changed_fields(noted, given))
