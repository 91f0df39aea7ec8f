"""A statement that a session prepares once and is asked often, with no more around it than libpq needs.

A cursor of psycopg converts, describes and watches the socket anew with each call; what every request asks must not pay
for that. The caller has the session for himself. Who is cancelled leaves it in mid-answer: it is of no more use then.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any

from psycopg import AsyncConnection, OperationalError, generators
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus, Format
from psycopg.pq.abc import PGresult

_GOOD = (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK)


class Asker:
    """Of one session, beside psycopg's own use of it. Lives on the event loop of its first question, which must wake a
    reader whose socket has failed, as asyncio's own does (uvloop tells its exception handler alone: who waits would
    wait for ever)."""

    def __init__(self, conn: AsyncConnection[Any]) -> None:
        self._conn = conn
        self._waiter: asyncio.Future[list[PGresult]] | None = None
        self._results: list[PGresult] = []
        # a number of its own for the socket: psycopg watches the other one, and would take our place there
        self._socket = os.dup(conn.pgconn.socket)
        self._loop = asyncio.get_running_loop()
        self._watched = False

    def __del__(self) -> None:
        # while it is watched, the loop holds us: the end of the session is what wakes it then
        os.close(self._socket)

    async def prepare(self, name: bytes, statement: bytes) -> None:
        """`statement`: its parameters are $1, $2, …"""
        self._conn.pgconn.send_prepare(name, statement)
        await self._answer()

    async def ask(self, name: bytes, parameters: Sequence[bytes] = (), *, binary: bool = False) -> PGresult:
        """The result's values are text. `binary`: the parameters' format. Raises what psycopg raises."""
        formats = [Format.BINARY] * len(parameters) if binary else None
        self._conn.pgconn.send_query_prepared(name, parameters or None, formats)
        return await self._answer()

    async def _answer(self) -> PGresult:
        if self._conn.pgconn.flush():  # the socket takes no more now
            results = await self._conn.wait(generators.execute(self._conn.pgconn))
        else:
            results = await self._read()
        if not results:
            raise OperationalError("the server did not answer")
        found: PGresult = results[-1]
        if found.status not in _GOOD:
            raise error_from_result(found)
        return found

    async def _read(self) -> list[PGresult]:
        self._waiter, self._results = self._loop.create_future(), []
        if not self._watched:
            self._loop.add_reader(self._socket, self._readable)
            self._watched = True
        try:
            return await self._waiter
        finally:
            self._waiter = None

    def _readable(self) -> None:
        waiter = self._waiter
        if waiter is None or waiter.done():
            # psycopg's own answer, or the session's end: watched again with the next question
            self._loop.remove_reader(self._socket)
            self._watched = False
            return
        pgconn = self._conn.pgconn
        try:
            pgconn.consume_input()
            while not pgconn.is_busy():
                result = pgconn.get_result()
                if result is None:
                    waiter.set_result(self._results)
                    return
                self._results.append(result)
        except Exception as e:  # noqa: BLE001 - who waits raises it
            waiter.set_exception(e)
