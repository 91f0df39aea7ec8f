"""Statements that read a source table: chunks in key order, rows by key, whole scans; the watermark and who blocks.

Law: rows and snapshot come from one transaction (rule one-snapshot); memory is bounded by bytes, not by rows.
Next: `stamping` judges what was read.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.generators import fetch, send
from psycopg.pq import ExecStatus
from psycopg.waiting import Wait

from cdc.catalog import fetch_all, fetch_one, oid_of, read_table
from cdc.copytext import parse_line
from cdc.rows import Line, RowShape
from cdc.session import Session
from walvec.contracts.errors import SourceUnavailable, TableChanged
from walvec.contracts.position import parse_lsn
from walvec.contracts.snapshots import XidSnapshot
from walvec.contracts.sources import SourceTable
from walvec.definitions.model import Generation, VectorTable

_READ = b"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
# an index on the key exists; a plan that sorts the whole table for each chunk would make a backfill quadratic
_CHUNK_PLANS = b"SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_sort = off"
_KEY_PLANS = b"SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off"
# between two batches whoever reads them compares them with a store
_TAKES_ITS_TIME = b"SET LOCAL idle_in_transaction_session_timeout = '10min'"


@dataclass(frozen=True, slots=True)
class Target:
    """A generation's rows at the source. `types`: of the key columns, as the catalog has them now."""

    oid: int
    schema: str
    name: str
    partitioned: bool
    types: tuple[str, ...]
    estimated_rows: int
    shape: RowShape

    @property
    def relation(self) -> sql.Composable:
        """Children of plain inheritance are tables of their own, in the stream as here."""
        name = sql.Identifier(self.schema, self.name)
        return name if self.partitioned else sql.SQL("ONLY {}").format(name)


@dataclass(frozen=True, slots=True)
class Chunk:
    """`whole`: nothing is left behind the last line. `size` in bytes of COPY text."""

    lines: list[Line]
    snapshot: XidSnapshot
    whole: bool
    size: int


async def target(session: Session, table: VectorTable, generation: Generation) -> Target:
    """Finds the table and its columns. Raises TableChanged when one that is used is gone."""
    oid = await oid_of(session, table.source_schema, table.source_table)
    name = f"{table.source_schema}.{table.source_table}"
    if oid is None:
        raise TableChanged(f"source table {name} is gone.", "Create it again, or delete the vector table.")
    found: SourceTable = (await read_table(session, oid)).table
    types = {c.name: c.type for c in found.columns}
    shape = RowShape(generation)
    missing = [c for c in shape.columns if c not in types]
    if missing:
        raise TableChanged(
            f"column {missing[0]!r} of {name} was dropped or renamed.",
            "Put it back, or name existing columns in the definition and apply it again.",
        )
    return Target(
        oid,
        table.source_schema,
        table.source_table,
        found.partitioned,
        tuple(types[k] for k in shape.keys),
        found.estimated_rows,
        shape,
    )


async def emit_mark(session: Session, content: str) -> int:
    """A logical message in a transaction of its own. Everything committed before the call lies below its LSN."""
    found = await fetch_one(session, "SELECT pg_logical_emit_message(true, 'walvec', %s)::text", (content,))
    return parse_lsn(found)


async def take_horizon(session: Session) -> XidSnapshot:
    return XidSnapshot.parse(await fetch_one(session, "SELECT pg_current_snapshot()::text"))


def chunk_query(target: Target, after: Sequence[str] | None, limit: int) -> sql.Composed:
    """Rows behind `after` (the key's texts) in key order, each key column compared as its own type and collation."""
    keys = [sql.Identifier(k) for k in target.shape.keys]
    where: sql.Composable = sql.SQL("")
    if after is not None:
        values = [
            sql.SQL("{}::{}").format(sql.Literal(text), sql.SQL(type_))
            for text, type_ in zip(after, target.types, strict=True)
        ]
        where = sql.SQL("WHERE ({}) > ({}) ").format(sql.SQL(", ").join(keys), sql.SQL(", ").join(values))
    return sql.SQL("COPY (SELECT {} FROM {} {}ORDER BY {} LIMIT {}) TO STDOUT").format(
        _columns(target), target.relation, where, sql.SQL(", ").join(keys), sql.Literal(limit)
    )


def _columns(target: Target, alias: str | None = None) -> sql.Composable:
    return sql.SQL(", ").join(sql.Identifier(alias, c) if alias else sql.Identifier(c) for c in target.shape.columns)


async def read_chunk(
    session: Session, target: Target, after: Sequence[str] | None, *, limit: int, max_bytes: int
) -> Chunk:
    """One chunk. Where `max_bytes` is passed the rest is dropped: what was read is still a prefix in key order."""
    query = chunk_query(target, after, limit).as_bytes(session)
    lines: list[Line] = []
    size, width, read = 0, len(target.shape.columns), 0
    async with _snapshot(session, _CHUNK_PLANS) as snapshot:
        async for batch in _copy(session, query):
            read += len(batch)
            for line in batch:
                if size < max_bytes:
                    lines.append(parse_line(line, width))
                    size += len(line)
    return Chunk(lines, snapshot, read < limit and read == len(lines), size)


async def read_keys(
    session: Session, target: Target, keys: Sequence[tuple[str, ...]]
) -> tuple[list[Line], XidSnapshot]:
    """Rows by key (texts in index order), in one snapshot. Keys without a row are absent."""
    async with _snapshot(session, _KEY_PLANS) as snapshot:
        return await _by_key(session, target, keys), snapshot


async def _by_key(session: Session, target: Target, keys: Sequence[tuple[str, ...]]) -> list[Line]:
    if not keys:
        return []
    names = [sql.Identifier(f"k{i}") for i in range(len(target.types))]
    casts = [sql.SQL("{}::{}").format(n, sql.SQL(t)) for n, t in zip(names, target.types, strict=True)]
    joins = [sql.SQL("t.{} = k.{}").format(sql.Identifier(c), n) for c, n in zip(target.shape.keys, names, strict=True)]
    query = sql.SQL(
        "SELECT {columns} FROM (SELECT {casts} FROM unnest({arrays}) AS u({names})) AS k({names})"
        " JOIN {relation} AS t ON {joins}"
    ).format(
        columns=_columns(target, "t"),
        casts=sql.SQL(", ").join(casts),
        arrays=sql.SQL(", ").join(sql.SQL("${}::text[]").format(n) for n in range(1, len(names) + 1)),
        names=sql.SQL(", ").join(names),
        relation=target.relation,
        joins=sql.SQL(" AND ").join(joins),
    )
    cursor = psycopg.AsyncRawCursor(session)  # no other one takes a name with a percent sign for what it is
    await cursor.execute(query, [list(column) for column in zip(*keys, strict=True)], prepare=False)
    result = cursor.pgresult
    assert result is not None
    width = range(len(target.shape.columns))
    return [tuple([result.get_value(row, column) for column in width]) for row in range(result.ntuples)]


async def scan(session: Session, target: Target) -> AsyncIterator[list[Line]]:
    """Every row, in batches, from one snapshot."""
    width = len(target.shape.columns)
    query = sql.SQL("COPY (SELECT {} FROM {}) TO STDOUT").format(_columns(target), target.relation).as_bytes(session)
    async for batch in _copy(session, query):
        yield [parse_line(line, width) for line in batch]


async def scan_keys(
    session: Session, target: Target, keys: Sequence[tuple[str, ...]], size: int = 1000
) -> AsyncIterator[list[Line]]:
    """Rows of these keys, in batches, from one snapshot."""
    async with _snapshot(session, _KEY_PLANS + b"; " + _TAKES_ITS_TIME):
        for start in range(0, len(keys), size):
            yield await _by_key(session, target, keys[start : start + size])


@asynccontextmanager
async def _snapshot(session: Session, plans: bytes) -> AsyncIterator[XidSnapshot]:
    """A reading transaction whose first statement asks for its snapshot (rule one-snapshot).

    The SETs take no snapshot; pg_current_snapshot() takes the one that all later statements use.
    """
    await session.execute(_READ + b";" + plans)
    yield XidSnapshot.parse(await fetch_one(session, "SELECT pg_current_snapshot()::text"))
    await session.execute(b"COMMIT")


_BATCH_BYTES = 1 << 20


async def _copy(session: Session, query: bytes) -> AsyncIterator[list[bytes]]:
    """Lines of a COPY … TO STDOUT in batches of about a megabyte: one wake-up per batch, not per row."""
    pgconn = session.pgconn

    def begin() -> Generator[Any, Any, Any]:
        pgconn.send_query(query)
        yield from send(pgconn)
        return (yield from fetch(pgconn))

    def drain() -> Generator[Any, Any, Any]:
        lines: list[bytes] = []
        size = 0
        while True:
            count, data = pgconn.get_copy_data(1)
            if count > 0:
                lines.append(bytes(data))
                size += count
                if size >= _BATCH_BYTES:
                    return lines, None
            elif count == 0:
                yield Wait.R
                pgconn.consume_input()
            else:
                return lines, (yield from finish())

    def finish() -> Generator[Any, Any, Any]:
        last = None
        while (result := (yield from fetch(pgconn))) is not None:
            last = result
            if result.status == ExecStatus.FATAL_ERROR:
                break
        while (yield from fetch(pgconn)) is not None:
            pass
        return last

    wait: Any = session.wait
    result = await wait(begin())
    if result is None or result.status != ExecStatus.COPY_OUT:
        if result is not None and result.status == ExecStatus.FATAL_ERROR:
            await wait(finish())
            raise psycopg.errors.error_from_result(result)
        raise SourceUnavailable("the source did not start a COPY.", "walvec tries again by itself.")
    while True:
        lines, end = await wait(drain())
        if lines:
            yield lines
        if end is not None:
            if end.status == ExecStatus.FATAL_ERROR:
                raise psycopg.errors.error_from_result(end)
            return


@dataclass(frozen=True, slots=True)
class Blocker:
    """A transaction that a task waits for. `who` never holds a statement: those hold row values."""

    id: str
    who: str


_WHO = (
    "coalesce('pid ' || a.pid || ' (' || coalesce(a.application_name, '') || ', ' || coalesce(a.state, '') ||"
    " ', since ' || to_char(a.xact_start, 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') || ')'"
)

_WRITERS = f"""
SELECT DISTINCT l.virtualtransaction || coalesce('/' || l.pid, ''),
       {_WHO}, 'prepared transaction ' || p.gid, 'transaction ' || l.virtualtransaction)
  FROM pg_locks l
  LEFT JOIN pg_stat_activity a ON a.pid = l.pid
  LEFT JOIN pg_locks x ON l.pid IS NULL AND x.pid IS NULL AND x.locktype = 'transactionid'
                      AND x.virtualtransaction = l.virtualtransaction
  LEFT JOIN pg_prepared_xacts p ON p.transaction = x.transactionid
 WHERE l.locktype = 'relation' AND l.granted
   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND l.mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
   AND (l.relation = %(oid)s OR l.relation IN (SELECT relid FROM pg_partition_tree(%(oid)s)))
"""

_OLDER = f"""
SELECT a.pid::text, {_WHO}, '')
  FROM pg_stat_activity a WHERE a.backend_xid::text = ANY(%(xids)s)
UNION ALL
SELECT p.gid, 'prepared transaction ' || p.gid FROM pg_prepared_xacts p WHERE p.transaction::text = ANY(%(xids)s)
"""


async def writers(session: Session, oid: int) -> list[Blocker]:
    """Transactions that hold a lock with which rows can have been written, on the table or a partition.

    SHARE UPDATE EXCLUSIVE is left out: VACUUM and CREATE INDEX CONCURRENTLY hold it for hours, and no row is written
    with it alone.
    """
    return [Blocker(i, who) for i, who in await fetch_all(session, _WRITERS, {"oid": oid})]


async def older_transactions(session: Session, snapshot: XidSnapshot, horizon: int) -> list[Blocker]:
    """Who keeps `snapshot.xmin` below the horizon."""
    xids = [str(x & 0xFFFFFFFF) for x in snapshot.running if x < horizon]
    return [Blocker(i, who) for i, who in await fetch_all(session, _OLDER, {"xids": xids})]
