"""Media in and out: what a session asks of `Uploads` and `Downloads`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from .._secrets import Secret
from ..files.downloads import Downloads
from ..files.uploads import Uploads
from ..inputs.request import TaskRequest
from ..models import UploadedFile


class Files:
    """Local files to the service, results to disk; the key goes to the upload host only."""

    def __init__(self, upload_url: str, key: Secret, *, allow_private: bool, rng: random.Random) -> None:
        self._uploads = Uploads(upload_url, key, rng=rng)
        self._downloads = Downloads(allow_loopback=allow_private, rng=rng)

    async def aclose(self) -> None:
        """Close all connections; what is under way is given up."""
        await self._uploads.aclose()
        await self._downloads.aclose()

    def close_nowait(self) -> None:
        """Close without an event loop."""
        self._uploads.close_nowait()
        self._downloads.close_nowait()

    async def with_uploads(self, wish: TaskRequest) -> TaskRequest:
        """Return *wish* with URLs in place of paths; see `Uploads.replace_paths`."""
        return await self._uploads.replace_paths(wish)

    async def upload(self, file: str | Path | bytes) -> UploadedFile:
        """Upload a file, bytes, or let the service fetch a URL; see `KieSession.upload`."""
        return await self._uploads.upload(file)

    async def download(self, urls: Sequence[str], folder: str | Path, *, task_id: str) -> list[Path]:
        """Fetch all *urls* into *folder*; see `KieSession.download`."""
        return await self._downloads.download(urls, folder, task_id=task_id)
