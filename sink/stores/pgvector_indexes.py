"""Indexes that are built after the first load: ANN, key and filter columns; without blocking writes.

A killed CREATE INDEX CONCURRENTLY leaves an invalid index: it is dropped and built again. Next: `registry.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import psycopg

from sink.stores.pgvector_filters import is_text
from sink.stores.pgvector_layout import Layout, StoredColumn, ident, literal
from sink.stores.pgvector_session import Session
from walvec.contracts.errors import DefinitionError

logger = logging.getLogger(__name__)

_MIN_MEMORY_MB = 64
_MAX_MEMORY_MB = 1024
_WAIT_SECONDS = 0.5
_OPTIONS = ("m", "ef_construction")
_UNORDERED = frozenset({"json", "jsonb", "xml", "point", "line", "polygon"})


def wanted_indexes(layout: Layout, index: Mapping[str, Any]) -> dict[str, str]:
    """Index name -> what follows CREATE INDEX … ON table."""
    found: dict[str, str] = {}
    kind = index.get("kind", "hnsw")
    if kind not in ("hnsw", "none"):
        raise DefinitionError(f"Index kind {kind!r} is not known.", "Use hnsw or none.")
    if kind == "hnsw" and layout.ann_possible:
        options = ", ".join(f"{k} = {int(index[k])}" for k in _OPTIONS if k in index)
        found[f"{layout.index_head}_ann"] = (
            f"USING hnsw (embedding {layout.operator_class}){f' WITH ({options})' if options else ''} WHERE live"
        )
    for column in layout.metadata:
        definition = _filter_index(column) if column.filtered else None
        if definition:
            found[f"{layout.index_head}_{column.physical}"] = definition
    for column in layout.keys:
        definition = _key_index(column)
        if definition:
            found[f"{layout.index_head}_{column.physical}"] = definition
    return found


def _key_index(column: StoredColumn) -> str | None:
    """For the user's joins: a hash, since a key of any length must be storable."""
    base = column.type.split("(")[0]
    if base in _UNORDERED or column.type.endswith("[]"):
        return None
    return f"USING hash ({column.physical})"


def _filter_index(column: StoredColumn) -> str | None:
    if is_text(column):
        return f"USING hash (CAST({column.physical} AS text)) WHERE live"
    if column.codec.name.startswith("array:") or column.codec.name in ("json", "bytea"):
        return None
    if column.base_type in ("boolean", "smallint", "integer", "bigint", "oid", "numeric", "real", "double precision",
                            "date", "uuid", "timestamp with time zone", "timestamp without time zone",
                            "time without time zone", "time with time zone", "interval"):  # fmt: skip
        return f"({column.physical}) WHERE live"
    return None


async def build_indexes(session: Session, layout: Layout, index: Mapping[str, Any]) -> None:
    """Idempotent. One builder at a time; waiting for it must not be a statement, whose snapshot it would wait for. One
    that hangs between two statements loses its session, and the lock with it."""
    conn = session.conn
    lock = literal(f"{layout.schema}.{layout.relation}")
    while True:
        cur = await conn.execute(f"SELECT pg_try_advisory_lock(hashtextextended({lock}, 77))".encode())
        row = await cur.fetchone()
        if row is not None and row[0]:
            break
        await asyncio.sleep(_WAIT_SECONDS)
    try:
        # servers before 14 do not know it
        hung = f"SELECT set_config(name, '{round(session.hung_seconds * 1000)}', false) FROM pg_settings"
        await conn.execute(f"{hung} WHERE name = 'idle_session_timeout'".encode())
        await conn.execute(f"ANALYZE {layout.table}".encode())
        await _raise_memory(session, layout)
        wanted = wanted_indexes(layout, index)
        await _drop_other(session, layout, f"{layout.index_head}_ann", index, wanted)
        for name, definition in wanted.items():
            await _build(session, layout, name, definition)
    finally:
        await conn.close()  # with the lock, and with what was set


async def _raise_memory(session: Session, layout: Layout) -> None:
    """Enough for the whole graph, within reason: a graph that does not fit is built many times slower."""
    cur = await session.conn.execute(
        b"SELECT reltuples::bigint, (SELECT setting::bigint / 1024 FROM pg_settings "
        b"WHERE name = 'maintenance_work_mem') "
        b"FROM pg_class WHERE oid = %s::regclass",
        (layout.table,),
    )
    row = await cur.fetchone()
    if row is None:
        return
    width = layout.dimensions * (2 if layout.half else 4) + 400
    need = max(_MIN_MEMORY_MB, min(_MAX_MEMORY_MB, int(max(row[0], 0) * width * 1.2) >> 20))
    if need > row[1]:
        await session.conn.execute(f"SET maintenance_work_mem = '{need}MB'".encode())


async def _drop_other(
    session: Session, layout: Layout, ann: str, index: Mapping[str, Any], wanted: Mapping[str, str]
) -> None:
    """An ANN index of another definition than the one that is wanted now; until it is built anew, searches scan."""
    cur = await session.conn.execute(
        b"SELECT c.reloptions FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
        b"WHERE i.indrelid = %s::regclass AND c.relname = %s",
        (layout.table, ann),
    )
    row = await cur.fetchone()
    options = {f"{k}={int(index[k])}" for k in _OPTIONS if k in index}
    if row is not None and (ann not in wanted or set(row[0] or ()) != options):
        logger.info("dropping an index of another definition", extra={"action": "drop_index", "index": ann})
        await session.conn.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {ident(layout.schema)}.{ident(ann)}".encode())


async def _build(session: Session, layout: Layout, name: str, definition: str) -> None:
    conn = session.conn
    cur = await conn.execute(
        b"SELECT i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
        b"WHERE i.indrelid = %s::regclass AND c.relname = %s",
        (layout.table, name),
    )
    row = await cur.fetchone()
    if row is not None and row[0]:
        return
    if row is not None:
        await conn.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {ident(layout.schema)}.{ident(name)}".encode())
    create = f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {ident(name)} ON {layout.table} {definition}".encode()
    logger.info("building an index", extra={"action": "build_index", "index": name})
    try:
        await conn.execute(create)
    except (psycopg.errors.DiskFull, psycopg.errors.OutOfMemory):
        # parallel builders share memory through /dev/shm, which containers keep small: build alone
        await conn.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {ident(layout.schema)}.{ident(name)}".encode())
        await conn.execute(b"SET max_parallel_maintenance_workers = 0")
        await conn.execute(create)
    except (psycopg.errors.UndefinedObject, psycopg.errors.InvalidObjectDefinition) as e:
        # an exotic type without such an index: its filters scan
        extra = {"action": "build_index", "index": name, "sqlstate": e.sqlstate}
        logger.warning("a column's type cannot be indexed", extra=extra)
