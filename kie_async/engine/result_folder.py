"""Saves the results of a batch: tries folder and host before money is spent, and waits out a full disk."""

from __future__ import annotations

import asyncio
import errno
import logging
from pathlib import Path
from urllib.parse import urlsplit

from .._validation import host_of, is_loopback
from ..errors import ApiError, DownloadFailed, InvalidRequest, TransportError
from ..files.downloads import RESULT_HOST, CannotWrite, Downloads
from ..files.names import fill
from ..files.part_file import try_to_write
from ..http.backoff import delays
from ..http.query_client import QueryClient
from ..journal.base import Journal
from ..journal.shared import SharedJournal
from ..limits.weather import Condition, WeatherSink, ago, show_duration, show_time
from ..models import TaskResult
from .result_turns import ResultTurns, Saved
from .settings import Settings

_KNOWN_RESULTS = 20

_LONGEST_SHOWN_S = 366 * 86_400.0

_log = logging.getLogger("kie_async.weather")


class ResultFolder:
    """The folder that a batch downloads into.

    While it cannot be written nothing more should be created; what is paid goes on, and its files wait, one
    of them trying. They wait for the network too, as long as the service itself cannot be reached.
    """

    def __init__(
        self,
        folder: Path,
        give_up_after_s: float,
        name: str | None = None,
        *,
        downloads: Downloads,
        queries: QueryClient,
        journal: Journal,
        settings: Settings,
        sink: WeatherSink,
    ) -> None:
        self._folder = folder
        self._give_up_after_s = give_up_after_s
        self._template = name
        self._downloads = downloads
        self._queries = queries
        self._journal = journal
        self._settings = settings
        self._turns = ResultTurns(journal, folder) if isinstance(journal, SharedJournal) else None
        self._now = asyncio.get_running_loop().time
        self._full = Condition("disk", sink)
        self._cut_off = Condition("downloads", sink)
        self._full_since = 0.0
        self._failure = CannotWrite("")
        self._answered_at = -1.0
        """When the service was first reached again after it could not be."""
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._trying = asyncio.Lock()
        self._asking = asyncio.Lock()
        self._stopped = asyncio.Event()
        self.reason_to_stop: DownloadFailed | None = None
        """Why nothing more should be created at all: the folder could not be written for too long."""

    # --- before anything is sent ---------------------------------------------------------------

    async def check(self) -> None:
        """Try the folder, and whether results may be fetched from where they are known to come from.

        Raises:
            InvalidRequest: No result could be saved.
        """
        try:
            await asyncio.to_thread(try_to_write, self._folder)
        except OSError as exc:
            reason = f"download_to: cannot write to {self._folder}: {exc.strerror or exc}"
            raise InvalidRequest(f"{reason}; nothing was sent") from None
        for host in await self._known_hosts():
            try:
                refusal = await self._downloads.find_refusal(host)
            except OSError as exc:
                words = "results come from %s, which cannot be resolved now (%s); downloads will try again"
                _log.warning(words, host, exc.strerror or exc)
                continue
            if refusal:
                raise InvalidRequest(
                    f"download_to: results come from {host}, but {refusal}; nothing was sent"
                )

    async def _known_hosts(self) -> list[str]:
        """Return where the last results came from, else where the service says that they come from."""
        results = await self._journal.list_last_results(_KNOWN_RESULTS)
        records = [record for intent in results if (record := intent.read_end()) is not None]
        hosts = dict.fromkeys(host for record in records for url in record.urls if (host := _host_in(url)))
        base_url = self._settings.base_url
        # A sandbox keeps its files itself.
        is_local = is_loopback(base_url) or self._settings.network.allows_http(host_of(base_url))
        return list(hosts) or ([] if is_local else [RESULT_HOST])

    # --- saving --------------------------------------------------------------------------------

    async def wait_for_room(self) -> None:
        """Wait as long as the folder cannot be written."""
        await self._has_room.wait()

    async def save(self, result: TaskResult, *, ref: str | None, index: int) -> Saved:
        """Download the files of a result, however long the folder or the network keeps them waiting.

        If another worker has done so they are not fetched again. *ref* and *index* are for their names.

        Raises:
            CannotWrite: The folder could not be written for too long, or the batch was stopped meanwhile.
            DownloadFailed: A file could not be fetched or written for another reason.
        """
        name = self._name_of(result, ref, index)
        while True:
            if not self._has_room.is_set():  # by turns, and nothing is fetched in vain meanwhile
                async with self._trying:
                    if not self._has_room.is_set():
                        return await self._save_when_there_is_room(result, name)
            begun_at = self._now()
            try:
                return await self._download(result, name)
            except CannotWrite as exc:
                if not await self._is_full(exc):
                    raise
            except DownloadFailed as exc:
                # `ResultExpired` is a verdict; of the others the network may be the cause.
                if type(exc) is not DownloadFailed or not await self._came_back(exc, begun_at):
                    raise

    def _name_of(self, result: TaskResult, ref: str | None, index: int) -> str | None:
        if self._template is None:
            return None
        model, task_id = result.record.model, result.task_id
        return fill(self._template, {"ref": ref or "", "index": index, "model": model, "task_id": task_id})

    async def _download(self, result: TaskResult, name: str | None) -> Saved:
        folder, task_id = self._folder, result.task_id

        async def fetch() -> tuple[Path, ...]:
            return tuple(await self._downloads.download(result.urls, folder, task_id=task_id, name=name))

        return Saved(await fetch()) if self._turns is None else await self._turns.fetch(task_id, fetch)

    def stop(self) -> None:
        """Wait for nothing any more."""
        self._stopped.set()
        self._has_room.set()

    # --- a full disk ---------------------------------------------------------------------------

    async def _is_full(self, error: CannotWrite) -> bool:
        """Tell whether no other file could be written either, and say so."""
        if self._stopped.is_set():
            return False
        if error.number not in {errno.ENOSPC, errno.EDQUOT}:
            try:
                await asyncio.to_thread(try_to_write, self._folder)
            except OSError:
                if self._stopped.is_set():  # meanwhile
                    return False
            else:
                return False
        self._failure = error
        if self._has_room.is_set():
            self._has_room.clear()
            self._full_since = self._now()
            if self._give_up_after_s > 0:
                self._say_full(error.why)
        return True

    def _say_full(self, why: str) -> None:
        wait_s = self._give_up_after_s
        until = ago(-wait_s) if wait_s <= _LONGEST_SHOWN_S else None
        limit = f" before {show_time(until)}, in {show_duration(wait_s)}" if until else ""
        self._full.say(
            f"cannot write to {self._folder}: {why}; nothing more is created, what is paid goes on; "
            f"make room{limit}",
            until=until,
        )

    async def _save_when_there_is_room(self, result: TaskResult, name: str | None) -> Saved:
        """Try a download again and again.

        Raises:
            CannotWrite: For too long, or the batch was stopped.
        """
        for wait_s in delays(self._settings.rng):
            left_s = self._full_since + self._give_up_after_s - self._now()
            if left_s <= 0:
                why = self._failure.why
                self.reason_to_stop = DownloadFailed(f"cannot write to {self._folder} any more: {why}")
                break
            if await self._sleep(min(wait_s, left_s)):
                break
            try:
                await asyncio.to_thread(try_to_write, self._folder)
                saved = await self._download(result, name)
            except OSError:
                continue
            except CannotWrite as exc:
                self._failure = exc
                continue
            except DownloadFailed:
                self._note_room()  # whatever it is, it is not the folder
                raise
            self._note_room()
            return saved
        raise self._failure

    def _note_room(self) -> None:
        lasted = show_duration(self._now() - self._full_since)
        self._full.end(f"{self._folder} can be written again, after {lasted}; creating goes on")
        self._has_room.set()

    async def _sleep(self, seconds: float) -> bool:
        """Sleep, unless the batch is stopped; tell whether it is."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopped.wait()
        except TimeoutError:
            return False
        return True

    # --- no network ----------------------------------------------------------------------------

    async def _came_back(self, error: DownloadFailed, failed_at: float) -> bool:
        """Tell whether the service, too, could not be reached when a download failed, and can be again."""
        async with self._asking:
            if self._answered_at >= failed_at:
                return True
            begun_at = self._now()
            if await self._answers():
                return False
            self._cut_off.say(f"results cannot be downloaded, nor can the service be asked: {error}; waiting")
            for wait_s in delays(self._settings.rng):
                if await self._sleep(wait_s):
                    return False
                if await self._answers():
                    break
            self._answered_at = self._now()
            lasted = show_duration(self._answered_at - begun_at)
            self._cut_off.end(f"the service answers again, after {lasted}; downloads go on")
            return True

    async def _answers(self) -> bool:
        try:
            await self._queries.credits()
        except TransportError:
            return False
        except ApiError:
            return True
        return True


def _host_in(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
