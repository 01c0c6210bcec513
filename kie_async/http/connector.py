"""Makes connections of a class that is told, for whoever must see what comes over them."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler


class TypedConnector(aiohttp.TCPConnector):
    """Makes connections of *connection_type*; an aiohttp that does not heed it makes its own."""

    def __init__(
        self, *args: Any, connection_type: type[ResponseHandler] = ResponseHandler, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self._factory = partial(connection_type, loop=asyncio.get_running_loop())
