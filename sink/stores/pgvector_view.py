"""The view that users read: pointed at a generation in one transaction, and nobody waits long behind it.

Replacing a view needs it for oneself. Whoever waits for that lets everybody else queue up behind him, so a long SELECT
on the view would stop all queries: the lock is asked for only for a moment, and asked for again later. What applies
hold (the generation's row in the state table) is waited for before, not with the view in hand. Next: `pgvector.py`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from sink.stores.pgvector_layout import Layout, ident
from walvec.contracts.errors import StoreRejected
from walvec.definitions.model import Generation, VectorTable

LOCK_MILLISECONDS = 50
_PATIENCE_SECONDS = 10.0
_LONGEST_PAUSE = 1.0
_GRANTS = b"""
SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END, a.privilege_type,
       a.is_grantable
FROM pg_class c, aclexplode(c.relacl) a WHERE c.oid = to_regclass(%s) AND a.grantee <> c.relowner
"""


async def show(
    conn: AsyncConnection[TupleRow],
    table: VectorTable,
    generation: Generation,
    layout: Layout,
    begin: Callable[[], Awaitable[None]],
) -> None:
    """`begin`: what every try does first, in its transaction. Raises StoreRejected, and LockNotAvailable when somebody
    reads the view for long."""
    until, pause = time.monotonic() + _PATIENCE_SECONDS, 0.05
    while True:
        try:
            async with conn.transaction():
                await begin()
                await _point(conn, table, generation, layout)
            return
        except psycopg.errors.LockNotAvailable:
            if time.monotonic() > until:
                raise
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(pause * 2, _LONGEST_PAUSE)


@asynccontextmanager
async def remade(conn: AsyncConnection[TupleRow], views: Sequence[tuple[str, str]]) -> AsyncIterator[None]:
    """Without these views, in the caller's transaction; then they are as they were, rights included."""
    grants = {name: await (await conn.execute(_GRANTS, (name,))).fetchall() for name, _ in views}
    for name, _ in views:
        await _drop(conn, name)
    yield
    for name, select in views:
        await conn.execute(f"CREATE VIEW {name} AS {select}".encode())
        await _grant(conn, name, grants[name])


async def _drop(conn: AsyncConnection[TupleRow], name: str) -> None:
    try:
        await conn.execute(f"DROP VIEW IF EXISTS {name}".encode())
    except psycopg.errors.DependentObjectsStillExist as e:
        detail = (e.diag.message_detail or "").partition("\n")[0]
        raise StoreRejected(
            f"The columns of view {name} change, but other objects depend on it.",
            f"Drop what depends on it ({detail}), then try again.",
        ) from e


async def _grant(conn: AsyncConnection[TupleRow], name: str, grants: Sequence[TupleRow]) -> None:
    for grantee, privilege, grantable in grants:
        option = " WITH GRANT OPTION" if grantable else ""
        await conn.execute(f"GRANT {privilege} ON {name} TO {grantee}{option}".encode())


async def _absent(conn: AsyncConnection[TupleRow], name: str) -> bool:
    row = await (await conn.execute(b"SELECT to_regclass(%s) IS NULL", (name,))).fetchone()
    return row is not None and bool(row[0])


async def _point(conn: AsyncConnection[TupleRow], table: VectorTable, generation: Generation, layout: Layout) -> None:
    name, select = layout.view(table.view_name, generation)
    cur = await conn.execute(
        f"SELECT view_name, shown = %s AND to_regclass(%s) IS NOT NULL AND generation = %s FROM {layout.state} "
        "WHERE table_id = %s".encode(),
        (select, name, generation.number, table.id),
    )
    found = await cur.fetchall()
    former = sorted({view for view, _ in found} - {table.view_name})
    if not former and any(shown for _, shown in found):
        return
    await conn.execute(
        f"UPDATE {layout.state} SET view_name = %s, shown = CASE WHEN generation = %s THEN %s END "
        "WHERE table_id = %s".encode(),
        (table.view_name, generation.number, select, table.id),
    )
    await conn.execute(f"SET LOCAL lock_timeout = {LOCK_MILLISECONDS}".encode())
    grants: list[TupleRow] = []
    for view in former:
        old = f"{ident(layout.schema)}.{ident(view)}"
        if await _absent(conn, name) and not await _absent(conn, old):
            # whoever may read it, and what depends on it, stays with it
            await conn.execute(f"ALTER VIEW {old} RENAME TO {ident(table.view_name)}".encode())
            continue
        grants += await (await conn.execute(_GRANTS, (old,))).fetchall()
        await conn.execute(f"DROP VIEW IF EXISTS {old}".encode())
    try:
        async with conn.transaction():
            await conn.execute(f"CREATE OR REPLACE VIEW {name} AS {select}".encode())
    except psycopg.errors.InvalidTableDefinition:  # other columns: it must be made anew, and whoever read it still may
        grants += await (await conn.execute(_GRANTS, (name,))).fetchall()
        await _drop(conn, name)
        await conn.execute(f"CREATE VIEW {name} AS {select}".encode())
    await _grant(conn, name, grants)
