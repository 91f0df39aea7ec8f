"""The control database's connections; psycopg's exceptions stop here.

`Pool.transaction()` gives a connection in a transaction; `Pool.change()` one that also moves the version and tells the
feeds of all processes, in the same transaction; `Pool.version()` asks for it, in one round trip.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Literal

import psycopg
from psycopg import AsyncConnection, errors
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout

from walvec.contracts.errors import ConfigError, Conflict, ControlUnavailable, NotFound
from walvec.runtime.prepared import Asker

Connection = AsyncConnection[tuple[Any, ...]]

# a server that vanished without a word is given up within 20 seconds
_SESSION: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
    "client_encoding": "UTF8",
    "application_name": "walvec control",
}
HUNG_SECONDS = 15.0
"""A process that hangs within a transaction keeps its rows locked, the installation's with them, which every writer
takes: the server ends its session after that long, and takes back what it had not committed."""
_TAKEN = {
    "connections_name": ("there is already a connection of that name.", "Choose another name."),
    "providers_name": ("there is already an embedding provider of that name.", "Choose another name."),
    "vector_tables_name": ("there is already a vector table of that name.", "Choose another name."),
    "organizations_name": ("there is already an organization of that name.", "Choose another name."),
    "environments_name": ("there is already an environment of that name.", "Choose another name."),
    "environments_view_schema": ("there is already an environment of that view schema.", "Choose another name."),
    "tasks_one_open_backfill": (
        "a backfill of that vector table is already open.",
        "Wait for it, or cancel its task.",
    ),
}
_MISSING = {
    "connections_environment": "there is no such environment.",
    "providers_environment": "there is no such environment.",
    "vector_tables_environment": "there is no such environment.",
    "environments_org_id_fkey": "there is no such organization.",
    "api_keys_org_id_fkey": "there is no such organization.",
    "vector_tables_connection": "there is no such connection.",
    "vector_tables_provider": "there is no such embedding provider.",
    "tasks_target": "there is no such vector table.",
    "dead_letters_table": "there is no such vector table.",
    "progress_connection": "there is no such connection.",
    "published_connection": "there is no such connection.",
}

_HELD = "it holds connections or vector tables."


@contextmanager
def translated() -> Iterator[None]:
    """psycopg's exceptions become walvec's. What the server said stays in `__cause__`, without values of ours."""
    try:
        yield
    except errors.UniqueViolation as e:
        message, cure = _TAKEN.get(e.diag.constraint_name or "", ("it exists already.", ""))
        raise Conflict(message, cure) from e
    except errors.ForeignKeyViolation as e:
        message = _MISSING.get(e.diag.constraint_name or "", "what it refers to does not exist.")
        if e.diag.message_primary and e.diag.message_primary.startswith("update or delete"):
            held = _HELD if (e.diag.constraint_name or "").endswith("_environment") else "it is used by vector tables."
            raise Conflict(held, "Delete them first.") from e
        raise NotFound(message) from e
    except (errors.InvalidPassword, errors.InvalidAuthorizationSpecification, errors.InvalidCatalogName) as e:
        raise _refused(e) from e
    except errors.InsufficientPrivilege as e:
        raise ConfigError(
            f"the control database refuses: {e.diag.message_primary}.",
            "Give its user the right to create and own schema walvec_control: GRANT CREATE ON DATABASE … TO …;",
        ) from e
    except (PoolTimeout, PoolClosed) as e:
        raise ControlUnavailable(
            "the control database gives no connection.", "It is tried again; see that it runs and takes connections."
        ) from e
    except (psycopg.OperationalError, psycopg.InterfaceError, errors.ReadOnlySqlTransaction) as e:
        raise unavailable(e) from e
    except psycopg.Error as e:
        raise ControlUnavailable(
            f"the control database failed ({type(e).__name__}, SQLSTATE {e.sqlstate}).",
            "It is tried again; if it stays so, look into the database's own log.",
        ) from e


def _refused(e: psycopg.Error) -> ConfigError:
    return ConfigError(
        f"the control database refuses the connection ({type(e).__name__}).",
        "Check WALVEC_CONTROL_DATABASE__URL: user, password and database.",
    )


def unavailable(e: Exception) -> ControlUnavailable:
    """The first line of what psycopg said; libpq never puts the password there."""
    said = str(e).strip().splitlines()
    return ControlUnavailable(
        f"the control database cannot be reached: {said[0] if said else type(e).__name__}.",
        "It is tried again; check WALVEC_CONTROL_DATABASE__URL if it stays so.",
    )


CHANNEL = "walvec_definitions"
_VERSION = b"walvec_version"


async def connect(dsn: str) -> Connection:
    """A connection outside of the pool, in autocommit. Raises ControlUnavailable or ConfigError."""
    try:
        return await AsyncConnection.connect(dsn, autocommit=True, **_SESSION)
    except psycopg.ProgrammingError as e:
        raise ConfigError(
            "the control database's address is not a connection string.", "Write postgresql://user:password@host/db."
        ) from e
    except psycopg.OperationalError as e:
        # libpq gives no SQLSTATE for a refused connection: tell by what a person must mend
        said = str(e)
        if "password authentication failed" in said or "no password supplied" in said or "does not exist" in said:
            raise _refused(e) from e
        raise unavailable(e) from e


class Pool:
    """The process's connections to the control database. `environment_id`: where definitions belong that name none."""

    def __init__(self, dsn: str, environment_id: str, *, size: int = 6, hung_seconds: float = HUNG_SECONDS) -> None:
        self.dsn = dsn
        self.environment_id = environment_id
        self._hung_seconds = hung_seconds
        self._asking = asyncio.Lock()
        self._asked: tuple[Connection, Asker] | None = None
        self._question: asyncio.Task[int] | None = None
        self._closed = False
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            dsn,
            min_size=1,
            max_size=size,
            open=False,
            timeout=5,
            reconnect_timeout=3,
            name="walvec-control",
            configure=self._configure,
            check=AsyncConnectionPool.check_connection,
            kwargs=_SESSION,
        )

    async def open(self) -> None:
        with translated():
            await self._pool.open(wait=False)

    async def close(self) -> None:
        async with self._asking:
            self._closed = True
            if self._asked is not None:
                await self._asked[0].close()
        await self._pool.close()

    async def _configure(self, conn: Connection) -> None:
        async with conn.transaction():
            await patience(conn, self._hung_seconds, "SESSION")

    def version(self) -> asyncio.Future[int]:
        """The version now, on a session kept for it: a query must not pay for a transaction. Exact: whatever was
        committed before the call is in it. Who calls while one is asked for shares the next one with all who do: it
        is sent after they called. It is asked for from the call on; who does not await it leaves nothing behind."""
        question = self._question
        if question is None:
            question = self._question = asyncio.create_task(self._ask())
        told = asyncio.shield(question)  # one who is cancelled takes it from nobody else
        told.add_done_callback(_heard)
        return told

    async def _ask(self) -> int:
        async with self._asking:
            self._question = None  # who calls from now on is too late for this one
            if self._closed:
                raise ControlUnavailable("the control database's connections were closed.")
            kept, self._asked = self._asked, None  # given back only when it answered: never one in mid-answer
            if kept is not None and not kept[0].closed:
                try:
                    found = await _version(kept[1])
                except psycopg.Error:
                    await kept[0].close()  # it went with the server's last restart: a new one tells
                except BaseException:
                    await kept[0].close()
                    raise
                else:
                    self._asked = kept
                    return found
            session = await connect(self.dsn)
            try:
                with translated():
                    asker = Asker(session)
                    await asker.prepare(_VERSION, b"SELECT version FROM walvec_control.installation")
                    found = await _version(asker)
            except BaseException:
                await session.close()
                raise
            self._asked = session, asker
            return found

    @asynccontextmanager
    async def transaction(self, *, snapshot: bool = False) -> AsyncIterator[Connection]:
        """Committed on leaving; durable then. `snapshot`: all statements see the same state."""
        with translated():
            async with self._pool.connection() as conn, conn.transaction():
                if snapshot:
                    await conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
                yield conn

    async def move(self, conn: Connection) -> None:
        """As `move` below."""
        await move(conn)

    @asynccontextmanager
    async def ordered(self) -> AsyncIterator[Connection]:
        """A transaction that may move the feed. All of them lock the installation first: no deadlock among them."""
        async with self.transaction() as conn:
            await self.order(conn)
            yield conn

    async def order(self, conn: Connection) -> None:
        """Takes that lock, until the transaction's end."""
        await conn.execute("SELECT 1 FROM walvec_control.installation FOR NO KEY UPDATE")

    @asynccontextmanager
    async def change(self) -> AsyncIterator[Connection]:
        """A transaction that always moves the feed."""
        async with self.transaction() as conn:
            await self.move(conn)
            yield conn


async def patience(conn: Connection, seconds: float, scope: Literal["SESSION", "LOCAL"] = "LOCAL") -> None:
    """How long the server waits for this process within a transaction; LOCAL: within the one that is open."""
    await conn.execute(f"SET {scope} idle_in_transaction_session_timeout = {round(seconds * 1000)}".encode())


async def move(conn: Connection) -> None:
    """Moves the version and tells every feed on commit. The row lock puts writers in order, so a version that is seen
    is never followed by a smaller one."""
    await conn.execute("UPDATE walvec_control.installation SET version = version + 1")
    await conn.execute("SELECT pg_notify(%s, '')", [CHANNEL])


async def _version(asker: Asker) -> int:
    found = (await asker.ask(_VERSION)).get_value(0, 0)
    assert found is not None
    return int(found)


def _heard(question: asyncio.Future[int]) -> None:
    """Also where nobody waits any more."""
    if not question.cancelled():
        question.exception()
