"""A statement that a session prepares once and is asked often, with no more around it than libpq needs.

A cursor of psycopg converts, describes and waits anew with each call; what every request asks must not pay for that.
The caller has the session for himself. One who is cancelled leaves it in mid-answer: it is of no more use then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from psycopg import AsyncConnection, OperationalError, generators
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus, Format
from psycopg.pq.abc import PGconn, PGresult

_GOOD = (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK)


async def prepare(conn: AsyncConnection[Any], name: bytes, statement: bytes) -> None:
    """`statement`: its parameters are $1, $2, …"""
    conn.pgconn.send_prepare(name, statement)
    await _answer(conn)


async def ask(
    conn: AsyncConnection[Any], name: bytes, parameters: Sequence[bytes] = (), *, binary: bool = False
) -> PGresult:
    """The result's values are text. `binary`: the parameters' format. Raises what psycopg raises."""
    formats = [Format.BINARY] * len(parameters) if binary else None
    conn.pgconn.send_query_prepared(name, parameters or None, formats)
    return await _answer(conn)


async def _answer(conn: AsyncConnection[Any]) -> PGresult:
    pgconn = conn.pgconn
    if pgconn.flush():  # the socket takes no more now
        results = await conn.wait(generators.execute(pgconn))
    else:
        results = await _read(pgconn)
    if not results:
        raise OperationalError("the server did not answer")
    found: PGresult = results[-1]
    if found.status not in _GOOD:
        raise error_from_result(found)
    return found


async def _read(pgconn: PGconn) -> list[PGresult]:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[list[PGresult]] = loop.create_future()
    results: list[PGresult] = []

    def readable() -> None:
        if done.done():
            return
        try:
            pgconn.consume_input()
            while not pgconn.is_busy():
                result = pgconn.get_result()
                if result is None:
                    done.set_result(results)
                    return
                results.append(result)
        except Exception as e:  # noqa: BLE001 - the one who waits raises it
            done.set_exception(e)

    socket = pgconn.socket
    loop.add_reader(socket, readable)
    try:
        return await done
    finally:
        loop.remove_reader(socket)
