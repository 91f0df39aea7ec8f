"""What a deleted vector table leaves behind, kept until it is removed. Implements `ports.Removals` on Postgres.

Law: a removal is written in the transaction that deletes the definition, and goes in the one that knows its end.
Whoever works at it holds its row; a new vector table on the connection takes the removal of the slot back, and waits
for whoever works at it; so neither takes from the other. Whoever makes a new vector table's storage and topics enters
their removal first, holds it, and takes it back in the transaction that enters the definition: what is killed in
between is removed. Next: `api.removals` works at them.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from walvec.contracts.errors import ControlUnavailable, NotFound
from walvec.definitions.model import VectorTable
from walvec.definitions.pool import Connection as Session
from walvec.definitions.pool import Pool, patience
from walvec.definitions.rows import table_from, table_json
from walvec.definitions.secrets import Secrets
from walvec.definitions.values import as_json, instant, storable

What = Literal["storage", "topics", "publication", "slot"]
_TOGETHER = 3
"""In hand in one process: each holds a session of the control database, and some must be left to others."""
OF_SOURCE: tuple[What, ...] = ("publication", "slot")
"""What another vector table of the connection may want again."""
OF_MAKING: tuple[What, ...] = ("storage", "topics")
"""What is made before a vector table is entered."""
_CLAIMED_SECONDS = 600.0
"""A store or a source may take its time; the claim of a process that hangs for longer goes to another."""
MADE_SECONDS = 2.0
"""From when its maker is found to be gone: one that was killed may have sent something that is not done yet."""


@dataclass(frozen=True, slots=True)
class Removal:
    """One thing to be removed. `what`: a table's storage with all generations and its view, its topics with their
    groups, its place in the publication, or the connection's slot and publication.

    `target_id`, `name`: of the vector table, of the connection for a slot. `table`: as it was; None for a slot. `dsn`:
    of its connection.
    """

    id: str
    environment_id: str
    what: What
    target_id: str
    name: str
    connection_id: str
    dsn: str | None = field(default=None, repr=False)
    table: VectorTable | None = None
    attempts: int = 0
    last_error: str | None = None
    created_at: str = ""
    updated_at: str = ""


def parts(table: VectorTable, others: Iterable[VectorTable]) -> tuple[What, ...]:
    """What is to be removed with `table`; `others`: the vector tables of its connection that stay."""
    if table.source is not None:
        return ("storage", "topics")
    streamed = any(t.source is None and t.id != table.id for t in others)
    return ("storage", "topics", "publication" if streamed else "slot")


def new_removal_id() -> str:
    return f"task_{secrets.token_hex(8)}"


_COLUMNS = (
    "r.id, r.environment_id, r.what, r.target_id, r.name, r.connection_id, coalesce(c.credentials, r.credentials),"
    " r.definition, r.view_schema, r.attempts, r.last_error, r.created_at, r.updated_at"
)
_FROM = "walvec_control.removals r LEFT JOIN walvec_control.connections c ON c.id = r.connection_id"


async def enter(conn: Session, table: VectorTable, what: Sequence[What], *, making: bool = False) -> list[str]:
    """Writes the removals of a vector table, with its connection's credentials; their ids. `making`: nobody is shown
    them, and they are not due before somebody finds them free."""
    ids = [new_removal_id() for _ in what]
    for removal_id, one in zip(ids, what, strict=True):
        slot = one == "slot"
        await conn.execute(
            "INSERT INTO walvec_control.removals (id, environment_id, what, target_id, name, connection_id,"
            " credentials, definition, view_schema, making, next_at)"
            " SELECT %s, %s, %s, %s, coalesce(%s, c.name, ''), %s, c.credentials, %s, %s, %s,"
            " CASE WHEN %s THEN 'infinity' ELSE clock_timestamp() END"
            " FROM (SELECT) one LEFT JOIN walvec_control.connections c ON c.id = %s",
            [
                removal_id,
                table.environment_id,
                one,
                table.connection_id if slot else table.id,
                None if slot else table.name,
                table.connection_id,
                None if slot else as_json(table_json(table)),
                None if slot else table.view_schema,
                making,
                making,
                table.connection_id,
            ],
        )
    return ids


async def hold(conn: Session, ids: Sequence[str]) -> None:
    """Until the transaction's end nobody works at these. Raises ControlUnavailable when somebody has done so."""
    cursor = await conn.execute(
        "SELECT 1 FROM walvec_control.removals WHERE id = ANY(%s) ORDER BY sequence FOR UPDATE", [list(ids)]
    )
    if len(await cursor.fetchall()) != len(ids):
        raise ControlUnavailable("the control database took too long.", "Try again.")


async def made(conn: Session, ids: Sequence[str]) -> None:
    """With the definition's entry, by who holds them."""
    await conn.execute("DELETE FROM walvec_control.removals WHERE id = ANY(%s)", [list(ids)])


async def take_back(conn: Session, connection_id: str) -> bool:
    """The connection's slot and publication are wanted again: waits for whoever removes something of them. True = the
    slot was to be removed, and may be gone: then nothing that is stored of it may be believed (`forget_slot`)."""
    cursor = await conn.execute(
        "DELETE FROM walvec_control.removals WHERE connection_id = %s AND what = ANY(%s) RETURNING what",
        [connection_id, list(OF_SOURCE)],
    )
    return ("slot",) in await cursor.fetchall()


async def forget_slot(conn: Session, connection_id: str) -> None:
    """What was stored of a stream that no vector table reads any more."""
    for name in ("progress", "published"):
        await conn.execute(f"DELETE FROM walvec_control.{name} WHERE connection_id = %s", [connection_id])


async def keep_credentials(conn: Session, connection_id: str) -> None:
    """The connection's newest stay with what is left. Waits for whoever has that in hand."""
    await conn.execute(
        "UPDATE walvec_control.removals r SET credentials = c.credentials FROM walvec_control.connections c"
        " WHERE c.id = r.connection_id AND c.id = %s AND r.credentials IS DISTINCT FROM c.credentials",
        [connection_id],
    )


async def of_deleted_connection(conn: Session, connection_id: str) -> list[str]:
    """Before the connection's row goes. Its slot was to be removed with its last vector table; where a stream is still
    stored, an earlier version left it."""
    await keep_credentials(conn, connection_id)
    cursor = await conn.execute(
        "INSERT INTO walvec_control.removals (id, environment_id, what, target_id, name, connection_id, credentials)"
        " SELECT %s, c.environment_id, 'slot', c.id, c.name, c.id, c.credentials FROM walvec_control.connections c"
        " JOIN walvec_control.progress p ON p.connection_id = c.id WHERE c.id = %s AND p.slot_created_lsn > 0"
        " AND NOT EXISTS (SELECT FROM walvec_control.removals r WHERE r.connection_id = c.id AND r.what = 'slot')"
        " RETURNING id",
        [new_removal_id(), connection_id],
    )
    await cursor.fetchall()
    cursor = await conn.execute("SELECT id FROM walvec_control.removals WHERE connection_id = %s", [connection_id])
    return [row[0] for row in await cursor.fetchall()]


class Claim:
    """A removal in hand: nobody else works at it, and nobody takes it back. What is said of it is durable once the
    claim is left; left without a word, it stays as it was."""

    def __init__(self, conn: Session, removal: Removal) -> None:
        self._conn = conn
        self.removal = removal

    async def done(self) -> None:
        await self._conn.execute("DELETE FROM walvec_control.removals WHERE id = %s", [self.removal.id])
        if self.removal.what == "slot":
            await forget_slot(self._conn, self.removal.connection_id)

    async def failed(self, reason: str, again_in: float) -> None:
        await self._conn.execute(
            "UPDATE walvec_control.removals SET attempts = attempts + 1, last_error = %s, making = false,"
            " updated_at = now(),"
            " next_at = clock_timestamp() + make_interval(secs => %s) WHERE id = %s",
            [storable(reason), again_in, self.removal.id],
        )


class ControlRemovals:
    """Implements `ports.Removals`."""

    def __init__(self, pool: Pool, secrets: Secrets) -> None:
        self._pool = pool
        self._secrets = secrets
        self._hands = asyncio.Semaphore(_TOGETHER)

    async def open(self, environment_id: str | None = None) -> list[Removal]:
        async with self._pool.transaction() as conn:
            cursor = await conn.execute(
                f"SELECT {_COLUMNS} FROM {_FROM} WHERE NOT r.making AND (%s::text IS NULL OR r.environment_id = %s)"
                " ORDER BY r.sequence",
                [environment_id, environment_id],
            )
            return [self._removal(row) for row in await cursor.fetchall()]

    @asynccontextmanager
    async def claim(self, removal_id: str | None = None, *, but: Collection[str] = ()) -> AsyncIterator[Claim | None]:
        if removal_id is None:
            await self._free()
        async with self._hands, self._pool.transaction() as conn:
            await patience(conn, _CLAIMED_SECONDS)
            cursor = await conn.execute(
                f"SELECT {_COLUMNS} FROM {_FROM} WHERE r.id = %s FOR UPDATE OF r SKIP LOCKED"
                if removal_id is not None
                else f"SELECT {_COLUMNS} FROM {_FROM} WHERE r.next_at <= now() AND r.id <> ALL(%s)"
                " ORDER BY r.next_at, r.sequence LIMIT 1 FOR UPDATE OF r SKIP LOCKED",
                [removal_id if removal_id is not None else list(but)],
            )
            row = await cursor.fetchone()
            yield Claim(conn, self._removal(row)) if row is not None else None

    async def _free(self) -> None:
        """What a maker has left without a word is due soon."""
        async with self._pool.transaction() as conn:
            await conn.execute(
                "UPDATE walvec_control.removals SET next_at = clock_timestamp() + make_interval(secs => %s)"
                " WHERE id IN (SELECT id FROM walvec_control.removals WHERE next_at = 'infinity'"
                " FOR UPDATE SKIP LOCKED)",
                [MADE_SECONDS],
            )

    async def adopt(self) -> None:
        async with self._pool.ordered() as conn:
            await conn.execute(
                "INSERT INTO walvec_control.removals (id, environment_id, what, target_id, name, connection_id,"
                " credentials) SELECT 'task_' || substr(replace(gen_random_uuid()::text, '-', ''), 1, 16),"
                " c.environment_id, 'slot', c.id, c.name, c.id, c.credentials FROM walvec_control.connections c"
                " JOIN walvec_control.progress p ON p.connection_id = c.id WHERE p.slot_created_lsn > 0"
                " AND NOT EXISTS (SELECT FROM walvec_control.vector_tables t WHERE t.connection_id = c.id"
                "   AND t.definition->>'source' IS NULL)"
                " AND NOT EXISTS (SELECT FROM walvec_control.removals r WHERE r.connection_id = c.id"
                "   AND r.what = 'slot')"
            )

    async def put(self, table: VectorTable, what: Sequence[What]) -> list[str]:
        async with self._pool.ordered() as conn:
            # what its making has left knows the connection's credentials, though it may be deleted by now
            cursor = await conn.execute(
                "UPDATE walvec_control.removals SET making = false, next_at = now() WHERE id IN ("
                " SELECT id FROM walvec_control.removals WHERE target_id = %s AND what = ANY(%s)"
                " ORDER BY sequence FOR UPDATE SKIP LOCKED) RETURNING what, id",
                [table.id, list(what)],
            )
            ids: dict[What, str] = dict(await cursor.fetchall())
            missing = [one for one in what if one not in ids]
            ids |= dict(zip(missing, await enter(conn, table, missing), strict=True))
            return [ids[one] for one in what]

    async def give_up(self, removal_id: str) -> None:
        async with self._pool.transaction() as conn:
            cursor = await conn.execute(
                "DELETE FROM walvec_control.removals WHERE id = %s RETURNING what, connection_id", [removal_id]
            )
            row = await cursor.fetchone()
            if row is None:
                raise NotFound(f"there is no task {removal_id!r}.")
            if row[0] == "slot":
                await forget_slot(conn, row[1])

    def _removal(self, row: tuple[Any, ...]) -> Removal:
        return Removal(
            id=row[0],
            environment_id=row[1],
            what=row[2],
            target_id=row[3],
            name=row[4],
            connection_id=row[5],
            dsn=None if row[6] is None else self._secrets.decrypt(row[6], f"connection/{row[5]}"),
            table=None if row[7] is None else table_from(row[7], 0, row[1], row[8]),
            attempts=row[9],
            last_error=row[10],
            created_at=instant(row[11]),
            updated_at=instant(row[12]),
        )
