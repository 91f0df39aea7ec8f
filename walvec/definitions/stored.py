"""A vector table's row in the control database: read under lock, written. Next: `postgres`, `rebuilds`, `tasks`."""

from __future__ import annotations

from collections.abc import Callable

from walvec.contracts.errors import NotFound
from walvec.definitions import transitions
from walvec.definitions.model import VectorTable
from walvec.definitions.pool import Connection, Pool
from walvec.definitions.rows import table_from, table_json
from walvec.definitions.values import as_json, now

TABLES = (
    "SELECT t.definition, t.dead_in_row, t.environment_id, e.view_schema FROM walvec_control.vector_tables t"
    " JOIN walvec_control.environments e ON e.id = t.environment_id"
)


async def find(conn: Connection, table_id: str) -> VectorTable | None:
    """Locked until the transaction's end."""
    cursor = await conn.execute(f"{TABLES} WHERE t.id = %s FOR NO KEY UPDATE OF t", [table_id])
    row = await cursor.fetchone()
    return table_from(*row) if row else None


async def locked(conn: Connection, table_id: str) -> VectorTable:
    """As `find`. Raises NotFound."""
    found = await find(conn, table_id)
    if found is None:
        raise NotFound(f"there is no vector table {table_id!r}.")
    return found


async def write(conn: Connection, table: VectorTable) -> None:
    await conn.execute(
        "UPDATE walvec_control.vector_tables SET name = %s, connection_id = %s, embedding_provider_id = %s,"
        " definition = %s, dead_in_row = %s WHERE id = %s",
        [
            table.name,
            table.connection_id,
            table.embedding_provider_id,
            as_json(table_json(table)),
            table.dead_in_row,
            table.id,
        ],
    )


async def transform(pool: Pool, table_id: str, transition: Callable[[VectorTable], VectorTable]) -> VectorTable:
    """Returns what it is now; the feed moves only if something changed."""
    async with pool.ordered() as conn:
        old = await locked(conn, table_id)
        new = changed(old, transition(old))
        if new != old:
            await write(conn, new)
            await pool.move(conn)
    return new


def changed(old: VectorTable, new: VectorTable) -> VectorTable:
    """What is to be written; see `transitions.stamped`."""
    return transitions.stamped(old, new, now())
