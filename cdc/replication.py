"""The wire of logical replication: CopyData frames in, status messages out. psycopg's `pq` level, one socket reader.

Law: knows no message and no position beyond those it is told to report; psycopg's errors become ours here. `read` is
synchronous and takes what has arrived; `wait` sleeps until more may have. Next: `cdc.assembler` reads the frames.
"""

from __future__ import annotations

import asyncio
import struct
import time
from typing import Any

import psycopg
from psycopg import AsyncConnection, conninfo, sql
from psycopg.pq import ExecStatus

from cdc.session import CONNECT_DEFAULTS, TEXT_SETTINGS, connect_error, query_error
from walvec.contracts.errors import SlotLost, SourceRejected, SourceUnavailable, WalvecError
from walvec.contracts.position import format_lsn
from walvec.runtime import addresses

_STATUS = struct.Struct(">cQQQqB").pack
_EPOCH_2000_US = 946_684_800_000_000


class Replication:
    """A walsender session. Commands first, then `start`; from then on only `read`, `wait` and `report`."""

    def __init__(self, connection: AsyncConnection[Any]) -> None:
        self._connection = connection
        self._pg = connection.pgconn
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._watched = -1
        self._ended = False

    @classmethod
    async def connect(cls, dsn: str) -> Replication:
        """Raises SourceUnavailable or SourceRejected."""
        given = conninfo.conninfo_to_dict(dsn)
        settings = " ".join(
            f"-c {name}={_escaped(value)}" for name, value in TEXT_SETTINGS.items() if name != _ENCODING
        )
        options = f"{given.get('options') or ''} {settings}".strip()
        merged: dict[str, Any] = {**CONNECT_DEFAULTS, **given, "options": options, "client_encoding": "UTF8"}
        try:
            place = await addresses.pinned(conninfo.make_conninfo(**{**merged, "replication": "database"}))
            connection = await AsyncConnection.connect(place, autocommit=True)
        except addresses.AddressRefused as e:
            raise SourceRejected(e.message, e.cure) from e
        except (psycopg.Error, OSError) as e:
            low = str(e).lower()
            if "wal sender" in low or "role to start walsender" in low:
                raise SourceRejected(
                    "the user of the connection may not read the write-ahead log.",
                    "Run as a superuser: ALTER ROLE … REPLICATION; (on managed servers: GRANT rds_replication TO …;)",
                ) from e
            raise connect_error(e) from e
        return cls(connection)

    async def command(self, command: str) -> list[tuple[Any, ...]]:
        """A replication command or plain SQL without parameters; its rows."""
        try:
            cursor = await self._connection.execute(sql.SQL(command))
            return await cursor.fetchall() if cursor.description else []
        except (psycopg.Error, OSError) as e:
            raise query_error(e) from e

    async def start(self, slot: str, publication: str, lsn: int) -> None:
        """Raises SlotInUse; SlotLost when the server has no such slot, or not any more."""
        statement = sql.SQL(
            "START_REPLICATION SLOT {} LOGICAL {} (proto_version '1', publication_names {}, messages 'true')"
        ).format(sql.Identifier(slot), sql.SQL(format_lsn(lsn)), sql.Literal(quote_name(publication)))
        try:
            cursor = await self._connection.execute(statement)
        except (psycopg.Error, OSError) as e:
            raise stream_error(e) from e
        if cursor.pgresult is None or cursor.pgresult.status != ExecStatus.COPY_BOTH:
            raise SourceUnavailable("the source did not begin to stream.", "walvec tries again by itself.")
        self._watched = self._pg.socket
        self._loop.add_reader(self._watched, self._ready.set)

    # ------------------------------------------------------------------ streaming

    def read(self, max_frames: int, max_bytes: int) -> list[bytes]:
        """Frames that have arrived, at most so many; [] = none now. Raises when the stream has ended."""
        frames: list[bytes] = []
        if self._ended:
            self._raise_end()
        append, get = frames.append, self._pg.get_copy_data
        size = 0
        try:
            while len(frames) < max_frames and size < max_bytes:
                n, view = get(1)
                if n == 0:
                    self._ready.clear()
                    self._pg.consume_input()
                    n, view = get(1)
                    if n == 0:
                        break
                if n < 0:
                    self._ended = True
                    break
                append(bytes(view))  # the view is libpq's own buffer, gone with the next call
                size += n
        except psycopg.Error as e:
            raise stream_error(e) from e
        if self._ended and not frames:
            self._raise_end()
        return frames

    async def wait(self, timeout: float) -> None:
        """Until more may have arrived, or `wake`, or the time is over."""
        try:
            async with asyncio.timeout(timeout):
                await self._ready.wait()
        except TimeoutError:
            return

    def wake(self) -> None:
        """Ends a `wait` early."""
        self._ready.set()

    def report(self, flushed: int, *, received: int, ping: bool = False) -> None:
        """Confirms `flushed`, which frees WAL at the server. `ping` asks for a sign of life.

        The server believes any value, and would skip what lies below it: never above what was received.
        """
        if flushed > received:
            raise AssertionError(f"confirming {format_lsn(flushed)} above what was received, {format_lsn(received)}")
        clock = time.time_ns() // 1000 - _EPOCH_2000_US
        try:
            self._pg.put_copy_data(_STATUS(b"r", received, flushed, flushed, clock, ping))
            self._flush()
        except psycopg.Error as e:
            raise stream_error(e) from e

    def _flush(self) -> None:
        if self._watched < 0:
            return
        if self._pg.flush():
            self._loop.add_writer(self._watched, self._flush_later)
        else:
            self._loop.remove_writer(self._watched)

    def _flush_later(self) -> None:
        try:
            self._flush()
        except psycopg.Error:
            # the reader meets the same broken socket and says so with the server's own words
            self._loop.remove_writer(self._watched)
            self._ready.set()

    def _raise_end(self) -> None:
        result = self._pg.get_result()
        message = self._pg.get_error_message() or "the server ended the stream"
        state = None
        if result is not None:
            state = result.error_field(psycopg.pq.DiagnosticField.SQLSTATE)
            message = result.get_error_message() or message
        raise classify((state or b"").decode(), message.strip().splitlines()[0])

    async def close(self) -> None:
        """Abrupt for the server unless `finish` came first."""
        if self._watched >= 0:
            self._loop.remove_reader(self._watched)
            self._loop.remove_writer(self._watched)
            self._watched = -1
        await self._connection.close()

    async def finish(self, timeout: float) -> None:
        """Ends the stream in good order, so that the slot is free when this returns. Best effort within `timeout`."""
        deadline = self._loop.time() + timeout
        try:
            self._pg.put_copy_end()
            self._flush()
            while self._loop.time() < deadline:
                n, _ = self._pg.get_copy_data(1)
                if n < 0:
                    while self._pg.get_result() is not None:
                        pass
                    return
                if n == 0:
                    self._ready.clear()
                    await self.wait(max(deadline - self._loop.time(), 0))
                    self._pg.consume_input()
        except psycopg.Error:
            return  # it has ended already, which is what was wanted


_ENCODING = "client_encoding"


def quote_name(name: str) -> str:
    """An identifier inside a replication option's list."""
    return '"' + name.replace('"', '""') + '"'


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace(" ", "\\ ")


def stream_error(e: Exception) -> WalvecError:
    """A failure of START_REPLICATION or of the stream."""
    state = getattr(e, "sqlstate", None) or ""
    said = (e.diag.message_primary if isinstance(e, psycopg.Error) else None) or str(e).strip() or type(e).__name__
    return classify(state, said) if state in ("42704", "55000") else query_error(e)


def classify(state: str, said: str) -> WalvecError:
    """What a stream's end means. 42704 and 55000 say that the slot, or what it needs, is gone; the reader looks."""
    if state in ("42704", "55000"):
        return SlotLost(f"the replication slot cannot be read: {said}")
    error = psycopg.errors.lookup(state)(said) if _known(state) else psycopg.OperationalError(said)
    return query_error(error)


def _known(state: str) -> bool:
    try:
        psycopg.errors.lookup(state)
    except KeyError:
        return False
    return True
