"""Plain sessions with a source database, all set alike, and psycopg's errors as ours.

Law: a value read here has the same text as the stream's; a foreign exception does not leave this module's callers.
Next: `catalog`, `reading`, `source`.
"""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from time import monotonic

import psycopg
from psycopg import AsyncConnection, conninfo

from walvec.contracts.errors import (
    DefinitionError,
    SlotInUse,
    SourceRejected,
    SourceUnavailable,
    TableChanged,
    WalvecError,
)
from walvec.definitions.model import Connection
from walvec.runtime import addresses

log = logging.getLogger(__name__)

# The stream's session is set with the same values (DESIGN "Text"). `row_security = off` turns rows that a policy would
# hide into an error: the stream carries them all.
TEXT_SETTINGS = {
    "TimeZone": "UTC",
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "client_encoding": "UTF8",
    "synchronous_commit": "local",
}
_PLAIN_SETTINGS = {
    "row_security": "off",
    "jit": "off",
    "statement_timeout": "0",
    "lock_timeout": "0",
    # a process that hangs while it reads holds a snapshot, and with it whoever builds an index at the source
    "idle_in_transaction_session_timeout": "15s",
    "default_transaction_read_only": "off",
}
_SET = ";".join(f"SET {name} = '{value}'" for name, value in {**TEXT_SETTINGS, **_PLAIN_SETTINGS}.items())
CONNECT_DEFAULTS = {
    "application_name": "walvec",
    "connect_timeout": "10",
    "keepalives_idle": "15",
    "keepalives_interval": "5",
    "tcp_user_timeout": "30000",
}

Session = AsyncConnection[tuple[object, ...]]


async def open_session(dsn: str) -> Session:
    """A session in autocommit. Raises SourceUnavailable or SourceRejected."""
    try:
        given = conninfo.conninfo_to_dict(dsn)
    except psycopg.Error:
        # the message would quote the string, password and all
        raise SourceRejected(
            "the connection string of the source cannot be read.",
            "Write it as postgresql://user:password@host:5432/database.",
        ) from None
    complete = conninfo.make_conninfo(dsn, **{k: v for k, v in CONNECT_DEFAULTS.items() if k not in given})
    try:
        session: Session = await AsyncConnection.connect(await addresses.pinned(complete), autocommit=True)
    except addresses.AddressRefused as e:
        raise SourceRejected(e.message, e.cure) from e
    except (psycopg.Error, OSError) as e:
        raise connect_error(e) from e
    try:
        await session.execute(_SET)
    except BaseException as e:  # cancelled as well: nobody else would close it
        await session.close()
        if isinstance(e, psycopg.Error):
            raise query_error(e) from e
        raise
    return session


_REFUSALS = (
    ("password authentication failed", "Put the right user and password into the connection."),
    ("no password supplied", "Put the password into the connection."),
    (
        "no pg_hba.conf entry",
        "Add a line for this host, user and database to pg_hba.conf; SELECT pg_reload_conf();",
    ),
    ("pg_hba.conf rejects", "Change the reject line in pg_hba.conf, then SELECT pg_reload_conf();"),
    ("is not permitted to log in", "Run as a superuser: ALTER ROLE … LOGIN;"),
    ("role", "Create the role, or put an existing user into the connection."),
    ("database", "Put the name of an existing database into the connection."),
    ("permission denied for database", "Run as its owner: GRANT CONNECT ON DATABASE … TO …;"),
    ("server does not support ssl", "Set ssl_mode to prefer or disable, or switch SSL on at the server."),
    ("certificate", "Check ssl_mode, the root certificate and the host name of the connection."),
    ("authentication failed", "Put the right user and password into the connection."),
)


_SOCKET = re.compile(r".*connection to server on socket (.*) failed: (.*)")
# why not is not told: it would say which directories there are
_NO_SOCKET = {
    os.strerror(code)
    for code in (
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EACCES,
        errno.EPERM,
        errno.ECONNREFUSED,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.EPROTOTYPE,
        errno.ENOTSOCK,
    )
}


def connect_error(e: Exception) -> WalvecError:
    """A failed connection attempt: refused for good, or to be tried again.

    libpq gives no SQLSTATE here, so the server's message is read; what is not recognised is tried again.
    """
    text = [line.strip() for line in str(e).splitlines() if line.strip()]
    told = [line for line in text if not line.startswith("Is the server running")]  # libpq's hint, not the reason
    said = told[-1] if told else type(e).__name__
    found = _SOCKET.fullmatch(said)
    if found and found[2] in _NO_SOCKET:
        said = f"nobody answers at {found[1]}"
    low = str(e).lower()
    state = getattr(e, "sqlstate", None) or ""
    for mark, cure in _REFUSALS:
        if mark in ("role", "database") and not (f'{mark} "' in low and "does not exist" in low):
            continue
        if mark in low:
            return SourceRejected(f"the source refused the connection: {said}", cure)
    if state.startswith("28"):
        return SourceRejected(f"the source refused the connection: {said}", "Check user, password and pg_hba.conf.")
    return SourceUnavailable(
        f"the source cannot be reached: {said}", "Check host, port and that the server is running; walvec keeps trying."
    )


_GONE = {"42P01": "the table", "42703": "a column", "3F000": "the schema", "42704": "a type or object"}
# 25006 and "recovery is in progress" come from a standby: after a fail-over the same address may be a primary again
_AGAIN = {"57014", "55P03", "25006", "25P03", "0A000", "55000", "72000"}


def query_error(e: Exception) -> WalvecError:
    """A failed statement as one of our errors. The server's DETAIL is left out: it can hold row values."""
    if isinstance(e, WalvecError):
        return e
    state = getattr(e, "sqlstate", None) or ""
    said = (e.diag.message_primary if isinstance(e, psycopg.Error) else None) or str(e).strip() or type(e).__name__
    if state == "55006":
        return SlotInUse(f"the slot is in use: {said}")
    if state in _GONE:
        return TableChanged(
            f"the source lacks {_GONE[state]} that the vector table uses: {said}",
            "Put it back, or change the vector table's definition and apply it again.",
        )
    if state == "42501":
        if "row-level security" in said:
            return SourceRejected(
                f"the source hides rows from this user: {said}",
                "Run as a superuser: ALTER ROLE CURRENT_USER BYPASSRLS;",
            )
        return SourceRejected(
            f"a right is missing at the source: {said}", "Run `walvec doctor`: it says what to grant."
        )
    if state.startswith("22"):
        return DefinitionError(
            f"the source cannot read a key: {said}", "The key's type has changed: rebackfill the table."
        )
    if not state or state[:2] in ("08", "53", "57", "58", "40", "XX") or state in _AGAIN:
        return SourceUnavailable(f"the source did not answer: {said}", "walvec tries again by itself.")
    if state.startswith("28"):
        return SourceRejected(f"the source refused the connection: {said}", "Check user, password and pg_hba.conf.")
    return SourceRejected(f"the source refused a statement ({state}): {said}", "Run `walvec doctor`.")


@contextmanager
def source_errors() -> Iterator[None]:
    """Foreign exceptions stop here."""
    try:
        yield
    except (psycopg.Error, OSError) as e:
        raise query_error(e) from e


class Sessions:
    """Reused sessions, a few per connection. One event loop; a session that failed is closed, never given out again.

    What rests for long is closed when another one comes to rest: nobody tells of connections that were deleted.
    `keep_all`: of all connections together, however many somebody makes and deletes."""

    def __init__(
        self,
        *,
        keep: int = 4,
        keep_all: int = 32,
        rest_seconds: float = 60.0,
        check_after_seconds: float = 5.0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._keep = keep
        self._keep_all = keep_all
        self._rest = rest_seconds
        self._check_after = check_after_seconds
        self._clock = clock
        self._idle: dict[tuple[str, str], list[tuple[Session, float]]] = {}

    @asynccontextmanager
    async def borrow(self, connection: Connection) -> AsyncIterator[Session]:
        """A session outside a transaction. Any exception inside closes it; psycopg's become ours."""
        session = await self._take(connection)
        whole = False
        try:
            with source_errors():
                yield session
            whole = True
        finally:
            if whole and not session.closed and session.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
                await self._give(connection, session)
            else:
                await session.close()

    async def _take(self, connection: Connection) -> Session:
        idle = self._idle.get((connection.id, connection.dsn), [])
        while idle:
            session, since = idle.pop()
            if session.closed:
                continue
            if self._clock() - since < self._check_after:
                return session
            try:
                await session.execute("SELECT 1")
                return session
            except psycopg.Error:
                log.info(
                    "idle source session is gone", extra={"action": "session_reopened", "connection": connection.id}
                )
                await session.close()
        return await open_session(connection.dsn)

    async def _give(self, connection: Connection, session: Session) -> None:
        place = (connection.id, connection.dsn)
        for stale in [p for p in self._idle if p[0] == connection.id and p != place]:
            for old, _ in self._idle.pop(stale):
                await old.close()
        idle = self._idle.setdefault(place, [])
        if len(idle) < self._keep:
            idle.append((session, self._clock()))
        else:
            await session.close()
        for old in self._rested():
            await old.close()

    def _rested(self) -> list[Session]:
        """Takes out what has rested for too long, and beyond the most that are kept the longest ones."""
        resting = sorted((pair for idle in self._idle.values() for pair in idle), key=lambda pair: pair[1])
        tired = self._clock() - self._rest
        over = len(resting) - self._keep_all
        gone = {id(session) for n, (session, since) in enumerate(resting) if n < over or since < tired}
        for place, idle in list(self._idle.items()):
            idle[:] = [pair for pair in idle if id(pair[0]) not in gone]  # in place: `_take` may be amidst it
            if not idle:
                del self._idle[place]
        return [session for session, _ in resting if id(session) in gone]

    async def close(self) -> None:
        idle, self._idle = self._idle, {}
        for sessions in idle.values():
            for session, _ in sessions:
                await session.close()
