"""A DSN -> connections that are set up alike, and psycopg's exceptions -> walvec's.

No pool of background tasks: connections are made when needed, kept while healthy, and a failure is told at once.
Next: `pgvector.py`.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import count

import psycopg
from psycopg import AsyncConnection
from psycopg.abc import Buffer
from psycopg.adapt import Dumper
from psycopg.pq import Format
from psycopg.pq.abc import PGresult
from psycopg.rows import TupleRow

from walvec.contracts.errors import StoreRejected, StoreUnavailable, WalvecError
from walvec.runtime import addresses
from walvec.runtime.prepared import Asker

_SETUP = b"""
SET TimeZone = 'UTC'; SET DateStyle = 'ISO'; SET IntervalStyle = 'postgres'; SET extra_float_digits = 1;
SET bytea_output = 'hex'; SET client_min_messages = 'warning'; SET lock_timeout = 0; SET statement_timeout = 0;
SET jit = off; SET default_transaction_isolation = 'read committed';
SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3;
SELECT set_config('synchronous_commit', 'local', false) WHERE current_setting('synchronous_commit') = 'off';
"""
# the extension may live in a schema of its own: its types and operators must be found without a prefix
_PATH = b"""
SELECT set_config('search_path', current_setting('search_path') || ', ' || quote_ident(n.nspname), false)
FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
WHERE e.extname = 'vector' AND n.nspname <> ALL (current_schemas(true))
"""
# Who hangs or vanishes in a transaction must not keep its rows from whoever has its partitions now.
_HUNG_SECONDS = 15.0
DATA_ERRORS = ("22", "23", "54", "42804", "42846")
_PREPARED_AT_MOST = 64
_TRY_AGAIN = ("08", "40", "53", "55", "57", "58", "25", "XX")


class QueryVector(bytes):
    """A vector as `vector_recv` or `halfvec_recv` reads it."""


class QueryVectorDumper(Dumper):
    """Without a type of its own: the cast in the statement says which it is."""

    format = Format.BINARY
    oid = 0

    def dump(self, obj: QueryVector) -> Buffer:
        return obj


def is_data_error(error: psycopg.Error) -> bool:
    """One of the values is to blame, not the statement or the server."""
    return (error.sqlstate or "").startswith(DATA_ERRORS)


def translate(error: psycopg.Error) -> WalvecError:
    """psycopg's exception as a kind of ours; the server's own words stay in the message."""
    state = error.sqlstate
    words = (error.diag.message_primary or str(error)).strip().rstrip(".")
    if state is None:
        if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
            return StoreUnavailable(f"The vector store's database cannot be reached: {words}.", "walvec tries again.")
        return StoreRejected(f"The vector store's database driver refused: {words}.")
    if state.startswith("28"):
        return StoreUnavailable(
            f"The vector store's database refuses the login: {words}.",
            "Check user, password and pg_hba.conf of its connection string; walvec tries again.",
        )
    if state == "3D000":
        return StoreUnavailable(f"The vector store's database is missing: {words}.", "Create it; walvec tries again.")
    if state.startswith(_TRY_AGAIN):
        return StoreUnavailable(f"The vector store's database cannot do this now: {words}.", "walvec tries again.")
    if state == "42501":
        return StoreRejected(
            f"The vector store's database denies it: {words}.",
            "Grant walvec's user CREATE on the database, or ownership of walvec's schema and its tables.",
        )
    if state in ("42P01", "3F000", "42703"):
        return StoreRejected(
            f"The vector store's storage is missing or was changed: {words}.",
            "Run `walvec backfill` on the table; walvec makes its storage anew.",
        )
    return StoreRejected(f"The vector store's database refuses: {words} (SQLSTATE {state}).")


@contextmanager
def translated() -> Iterator[None]:
    """Foreign exceptions stop here."""
    try:
        yield
    except psycopg.Error as e:
        raise translate(e) from e
    except OSError as e:
        raise StoreUnavailable(f"The vector store's database cannot be reached: {e}.", "walvec tries again.") from e


@dataclass(slots=True, eq=False)
class Session:
    """One connection in autocommit mode, and the staging tables that it has. `hung_seconds`: whoever holds something
    that others wait for, and is not heard of for so long, is given up."""

    conn: AsyncConnection[TupleRow]
    hung_seconds: float
    staging: set[str] = field(default_factory=set)
    _search: tuple[int, int, bool] | None = None
    _asker: Asker | None = None
    _prepared: OrderedDict[str, bytes] = field(default_factory=OrderedDict)
    _names: Iterator[int] = field(default_factory=count)

    async def ask(self, statement: str, parameters: Sequence[bytes]) -> PGresult:
        """By a prepared statement, with binary parameters $1, $2, …: for what is asked often and planned alike."""
        asker = self._asker
        if asker is None:
            asker = self._asker = Asker(self.conn)
        name = self._prepared.get(statement)
        if name is None:
            if len(self._prepared) >= _PREPARED_AT_MOST:
                await self._forget(next(iter(self._prepared)))
            name = f"walvec_{next(self._names)}".encode()
            await asker.prepare(name, statement.encode())
            self._prepared[statement] = name
        self._prepared.move_to_end(statement)
        try:
            return await asker.ask(name, parameters, binary=True)
        except (psycopg.errors.FeatureNotSupported, psycopg.errors.InvalidSqlStatementName):
            # a column has another type now, or somebody discarded it
            self._prepared.pop(statement, None)
            await asker.prepare(b"", statement.encode())
            return await asker.ask(b"", parameters, binary=True)

    async def _forget(self, statement: str) -> None:
        await self.conn.execute(b"DEALLOCATE " + self._prepared.pop(statement))

    async def find_extension(self) -> None:
        await self.conn.execute(_PATH)

    async def search_settings(self, beam: int, scan_tuples: int, iterative: bool) -> None:
        """For the session, and asked for only when they change: searches take one trip to the server."""
        wanted = (beam, scan_tuples, iterative)
        if wanted == self._search:
            return
        values = {"hnsw.ef_search": beam}
        if iterative:  # an older server refuses names that it does not know
            values |= {"hnsw.max_scan_tuples": scan_tuples, "hnsw.scan_mem_multiplier": 4}
        parts = [f"set_config('{name}', '{value}', false)" for name, value in values.items()]
        if iterative:
            parts.append("set_config('hnsw.iterative_scan', 'strict_order', false)")
        await self.conn.execute(f"SELECT {', '.join(parts)}".encode())
        self._search = wanted


class Sessions:
    """At most `limit` connections to one database, reused last in, first out. `guarded`: a user named the address.
    `hung_seconds`: a transaction of which nothing is heard for so long is ended by the server."""

    def __init__(self, dsn: str, limit: int = 8, *, guarded: bool = False, hung_seconds: float = _HUNG_SECONDS) -> None:
        self._dsn = dsn
        self._guarded = guarded
        self._hung_seconds = hung_seconds
        self._free: list[Session] = []
        self._slots = asyncio.Semaphore(limit)
        self._closed = False

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """A session for the caller alone. Raises StoreUnavailable; psycopg errors of the body come out translated."""
        async with self._slots:
            with translated():
                session = await self._take()
                try:
                    yield session
                finally:
                    await self._give_back(session)

    async def _take(self) -> Session:
        while self._free:
            session = self._free.pop()
            try:
                # notices, without waiting, that the server ended the session: its last words, then the end
                session.conn.pgconn.consume_input()
                session.conn.pgconn.consume_input()
            except psycopg.OperationalError:
                await session.conn.close()
            if not session.conn.closed:
                return session
        try:
            dsn = await addresses.pinned(self._dsn) if self._guarded else self._dsn
        except addresses.AddressRefused as e:
            raise StoreRejected(e.message, e.cure) from e
        conn = await AsyncConnection.connect(
            dsn, autocommit=True, application_name="walvec sink", client_encoding="utf8", connect_timeout=10,
            keepalives=1, keepalives_idle=10, keepalives_interval=5, keepalives_count=3, tcp_user_timeout=30_000,
        )  # fmt: skip
        try:
            conn.adapters.register_dumper(QueryVector, QueryVectorDumper)
            hung = f"SET idle_in_transaction_session_timeout = {round(self._hung_seconds * 1000)}"
            await conn.execute(_SETUP + hung.encode())
            session = Session(conn, self._hung_seconds)
            await session.find_extension()
        except BaseException:
            await conn.close()
            raise
        return session

    async def _give_back(self, session: Session) -> None:
        idle = session.conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        if self._closed or session.conn.closed or not idle:
            await session.conn.close()
        else:
            self._free.append(session)

    async def close(self) -> None:
        self._closed = True
        while self._free:
            await self._free.pop().conn.close()
