"""Source rows as (key, hash) against the live rows, by anti-joins in the store's database: memory stays flat here.

Next: `pgvector_indexes.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from uuid import UUID

from sink.stores.pgvector_layout import Layout
from sink.stores.pgvector_session import Session
from walvec.contracts.keys import key_id
from walvec.contracts.stores import Differences

_SOURCE = "pg_temp.walvec_compare"
_ONLY = "pg_temp.walvec_compare_only"


async def compare(
    session: Session,
    layout: Layout,
    rows: AsyncIterator[Sequence[tuple[bytes, str | None]]],
    only: Sequence[bytes] | None,
) -> Differences:
    """The rows are read before the store is looked at, in a statement of its own: the source's reader is not held up
    by a transaction here, and no snapshot is kept over it."""
    conn = session.conn
    await conn.execute(f"DROP TABLE IF EXISTS {_SOURCE}, {_ONLY}".encode())
    await conn.execute(b"CREATE TEMP TABLE walvec_compare (key_id uuid, key bytea, hash text)")
    await conn.execute(b"CREATE TEMP TABLE walvec_compare_only (key_id uuid)")
    try:
        async for batch in rows:
            async with (
                conn.cursor() as cur,
                cur.copy(f"COPY {_SOURCE} (key_id, key, hash) FROM STDIN (FORMAT binary)".encode()) as copy,
            ):
                copy.set_types(["uuid", "bytea", "text"])
                for key, content_hash in batch:
                    await copy.write_row((key_id(key), key, content_hash))
        if only is not None:
            async with conn.cursor() as cur, cur.copy(f"COPY {_ONLY} FROM STDIN (FORMAT binary)".encode()) as copy:
                copy.set_types(["uuid"])
                for key in set(only):
                    await copy.write_row((key_id(key),))
        await conn.execute(f"ANALYZE {_SOURCE}".encode())
        head = f"(SELECT key_id, key, hash FROM {layout.table} WHERE live AND chunk = 0"
        head += f" AND key_id IN (SELECT key_id FROM {_ONLY})) t" if only is not None else ") t"
        source = f"(SELECT DISTINCT ON (key_id) key_id, key, hash FROM {_SOURCE} ORDER BY key_id) s"
        surplus = "" if only is None else f" AND c.key_id IN (SELECT key_id FROM {_ONLY})"
        return Differences(
            missing=await _keys(
                session, f"SELECT s.key FROM {source} LEFT JOIN {head} USING (key_id) "
                "WHERE s.hash IS NOT NULL AND t.key_id IS NULL"
            ),
            orphaned=await _keys(
                session, f"SELECT t.key FROM {head} LEFT JOIN {source} USING (key_id) WHERE s.hash IS NULL"
            ),
            stale=await _keys(
                session, f"SELECT t.key FROM {head} JOIN {source} USING (key_id) WHERE s.hash <> t.hash"
            ),
            duplicate=await _keys(
                session, f"SELECT DISTINCT c.key FROM {layout.table} c JOIN {layout.table} h ON h.key_id = c.key_id "
                f"AND h.chunk = 0 WHERE c.chunk > 0 AND (c.chunk >= h.chunks OR NOT h.live){surplus}"
            ),
        )  # fmt: skip
    finally:
        if not conn.closed:
            await conn.execute(f"DROP TABLE IF EXISTS {_SOURCE}, {_ONLY}".encode())


async def _keys(session: Session, statement: str) -> list[bytes]:
    async with session.conn.cursor() as cur:
        await cur.execute(f"{statement} ORDER BY 1".encode())
        return [bytes(row[0]) for row in await cur.fetchall()]


def key_ids(keys: Sequence[bytes]) -> list[UUID]:
    return [key_id(k) for k in keys]
