"""The live snapshot of one process: woken by NOTIFY, and by a slow poll where a notification was lost.

An outage keeps the last snapshot: roles go on with what they know, and the feed comes back by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable

import psycopg
from psycopg import sql

from walvec.contracts.errors import ConfigError, ControlUnavailable
from walvec.definitions.model import Snapshot
from walvec.definitions.pool import CHANNEL, Connection, connect, translated

_log = logging.getLogger(__name__)
_POLL_SECONDS = 2.0
_MAX_DELAY = 5.0


class ControlFeed:
    """Implements `ports.Feed` on a connection of its own. `load` reads the definitions."""

    def __init__(self, dsn: str, first: Snapshot, load: Callable[[], Awaitable[Snapshot]]) -> None:
        self._dsn = dsn
        self._load = load
        self._current = first
        self._moved = asyncio.Event()
        self._following: asyncio.Task[None] | None = None

    @property
    def current(self) -> Snapshot:
        return self._current

    async def changed(self, since: int) -> Snapshot:
        while self._current.version <= since:
            await self._moved.wait()
        return self._current

    def start(self) -> None:
        self._following = asyncio.create_task(self._follow(), name="control-feed")

    async def close(self) -> None:
        if self._following is not None:
            self._following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._following

    async def _follow(self) -> None:
        delay = 0.1
        while True:
            try:
                async with await connect(self._dsn) as conn:
                    with translated():
                        await conn.execute(sql.SQL("LISTEN {}").format(sql.Identifier(CHANNEL)))
                    while True:  # what happened before LISTEN is found by the first look at the version
                        await self._look(conn)
                        delay = 0.1
                        await self._wait(conn)
            except (ControlUnavailable, ConfigError) as e:
                _log.warning(
                    "definitions cannot be followed",
                    extra={"action": "follow", "kind": e.kind, "reason": e.message, "retry_seconds": delay},
                )
            except psycopg.Error as e:  # leaving a broken connection
                _log.warning("definitions cannot be followed", extra={"action": "follow", "kind": type(e).__name__})
            await asyncio.sleep(delay * (0.5 + random.random()))
            delay = min(delay * 2, _MAX_DELAY)

    async def _wait(self, conn: Connection) -> None:
        with translated():
            async for _ in conn.notifies(timeout=_POLL_SECONDS, stop_after=1):
                return

    async def _look(self, conn: Connection) -> None:
        with translated():
            cursor = await conn.execute("SELECT version FROM walvec_control.installation")
            row = await cursor.fetchone()
        if row is None or row[0] == self._current.version:
            return
        self._current = await self._load()
        self._moved.set()
        self._moved = asyncio.Event()
