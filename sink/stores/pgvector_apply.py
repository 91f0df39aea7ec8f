"""A plan -> one guarded transaction: binary COPY into the session's staging table, one merge, one check of claims.

Rules held here: guard, strict-guard, tombstones, tombstone-absent, floor, sweep-floor, claim-check, claim-atomic,
claim-advance, purge-horizon. Next: `pgvector_search.py`.

The generation's row in the state table is locked FOR SHARE by every apply, FOR UPDATE by a truncate and a purge: a
late writer sees either the floor and horizon before them and what they then delete, or those after them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from uuid import UUID

import psycopg

from sink.coalescer import Step, coalesce
from sink.stores.pgvector_copy import CLAIM, HEAD, TAIL, columns, encode
from sink.stores.pgvector_layout import Layout
from sink.stores.pgvector_session import Session, is_data_error
from walvec.contracts.errors import StoreRejected
from walvec.contracts.position import Position, format_lsn
from walvec.contracts.stores import Applied
from walvec.contracts.vectors import VectorRecord

_DEADLOCK_TRIES = 5


def position_sql(position: Position) -> tuple[int, str, int]:
    return position.epoch, format_lsn(position.lsn), position.ordinal


@lru_cache(maxsize=256)
def _merge(layout: Layout) -> bytes:
    """Takes floor and horizon. Rule guard, rule strict-guard: only what is newer than the row, a tie is not. Rule
    tombstones, rule tombstone-absent: a delete is a row too, also where there was none. It has no hash, text or
    metadata: the tombstone keeps hash and vector, so that a re-insert of the same text pays nothing. An equal hash
    keeps the old datum: no index work, no new TOAST."""
    own = (*layout.keys, *layout.metadata)
    names = "".join(f", {c.physical}" for c in own)
    values = "".join(f", CAST(s.{c.physical} AS {c.type})" for c in own)
    sets = "".join(f", {c.physical} = coalesce(excluded.{c.physical}, t.{c.physical})" for c in layout.keys)
    sets += "".join(f", {c.physical} = excluded.{c.physical}" for c in layout.metadata)
    return f"""
INSERT INTO {layout.table} AS t
  (key_id, chunk, chunks, epoch, lsn, ordinal, live, key, hash, embedded_text, embedding{names})
SELECT s.key_id, 0, s.chunks, s.epoch, s.lsn, s.ordinal, s.kind = 0, s.key, s.hash, s.embedded_text, s.embedding{values}
FROM {layout.staging} s
WHERE s.kind < {CLAIM} AND s.chunk = 0
  AND (s.epoch, s.lsn, s.ordinal) >= (%s::integer, %s::pg_lsn, %s::bigint)
  AND ((s.epoch, s.lsn, s.ordinal) >= (%s::integer, %s::pg_lsn, %s::bigint)
       OR EXISTS (SELECT FROM {layout.table} x WHERE x.key_id = s.key_id AND x.chunk = 0))
ORDER BY s.key_id
ON CONFLICT (key_id, chunk) DO UPDATE SET
  chunks = excluded.chunks, epoch = excluded.epoch, lsn = excluded.lsn, ordinal = excluded.ordinal,
  live = excluded.live, hash = coalesce(excluded.hash, t.hash), embedded_text = excluded.embedded_text,
  embedding = CASE WHEN t.embedding IS NOT NULL AND coalesce(excluded.hash = t.hash, true)
                   THEN t.embedding ELSE excluded.embedding END{sets}
WHERE (t.epoch, t.lsn, t.ordinal) < (excluded.epoch, excluded.lsn, excluded.ordinal)
""".encode()


@lru_cache(maxsize=256)
def _claims(layout: Layout) -> bytes:
    """Rule claim-check: of the same hashes. Check, guard and write in one statement (rule claim-atomic); the position
    moves in any case (rule claim-advance)."""
    sets = "".join(f", {c.physical} = CAST(s.{c.physical} AS {c.type})" for c in layout.metadata)
    return f"""
UPDATE {layout.table} t SET epoch = s.epoch, lsn = s.lsn, ordinal = s.ordinal{sets}
FROM {layout.staging} s
WHERE s.kind = {CLAIM} AND s.chunk = 0 AND t.key_id = s.key_id AND t.chunk = 0
  AND t.live AND t.hash = s.hash AND t.chunks = s.chunks
  AND (t.epoch, t.lsn, t.ordinal) < (s.epoch, s.lsn, s.ordinal)
  AND (s.epoch, s.lsn, s.ordinal) >= (%s::integer, %s::pg_lsn, %s::bigint)
  AND (s.chunks = 1 OR NOT EXISTS (
    SELECT FROM {layout.staging} s2 LEFT JOIN {layout.table} t2 ON t2.key_id = s2.key_id AND t2.chunk = s2.chunk
    WHERE s2.n = s.n AND t2.hash IS DISTINCT FROM s2.hash))
""".encode()


@lru_cache(maxsize=256)
def _refused(layout: Layout) -> bytes:
    """Claims that are newer than the store's version: a granted one has become equal, an older one is dropped."""
    return f"""
SELECT s.n FROM {layout.staging} s LEFT JOIN {layout.table} t ON t.key_id = s.key_id AND t.chunk = 0
WHERE s.kind = {CLAIM} AND s.chunk = 0
  AND (s.epoch, s.lsn, s.ordinal) >= (%s::integer, %s::pg_lsn, %s::bigint)
  AND CASE WHEN t.key_id IS NULL THEN (s.epoch, s.lsn, s.ordinal) >= (%s::integer, %s::pg_lsn, %s::bigint)
           ELSE (t.epoch, t.lsn, t.ordinal) < (s.epoch, s.lsn, s.ordinal) END
""".encode()


@lru_cache(maxsize=256)
def _chunks(layout: Layout) -> tuple[bytes, bytes, bytes]:
    """Chunks above 0 follow their head, which this transaction holds the lock of."""
    own = (*layout.keys, *layout.metadata)
    names = "".join(f", {c.physical}" for c in own)
    values = "".join(f", CAST(s.{c.physical} AS {c.type})" for c in own)
    sets = "".join(f", {c.physical} = CAST(s.{c.physical} AS {c.type})" for c in layout.metadata)
    won = (
        f"EXISTS (SELECT FROM {layout.table} h WHERE h.key_id = s.key_id AND h.chunk = 0 "
        "AND (h.epoch, h.lsn, h.ordinal) = (s.epoch, s.lsn, s.ordinal))"
    )
    delete = f"""
DELETE FROM {layout.table} t USING {layout.staging} s
WHERE s.kind < {CLAIM} AND s.chunk = 0 AND t.key_id = s.key_id AND t.chunk > 0
  AND (t.epoch, t.lsn, t.ordinal) < (s.epoch, s.lsn, s.ordinal) AND {won}"""
    insert = f"""
INSERT INTO {layout.table}
  (key_id, chunk, chunks, epoch, lsn, ordinal, live, key, hash, embedded_text, embedding{names})
SELECT s.key_id, s.chunk, s.chunks, s.epoch, s.lsn, s.ordinal, true, s.key, s.hash, s.embedded_text, s.embedding{values}
FROM {layout.staging} s WHERE s.kind = 0 AND s.chunk > 0 AND {won}
ON CONFLICT (key_id, chunk) DO NOTHING"""
    claim = f"""
UPDATE {layout.table} t SET epoch = s.epoch, lsn = s.lsn, ordinal = s.ordinal{sets}
FROM {layout.staging} s
WHERE s.kind = {CLAIM} AND s.chunk > 0 AND t.key_id = s.key_id AND t.chunk = s.chunk
  AND (t.epoch, t.lsn, t.ordinal) < (s.epoch, s.lsn, s.ordinal) AND {won}"""
    return delete.encode(), insert.encode(), claim.encode()


async def apply_records(
    session: Session, layout: Layout, table_id: str, generation: int, records: Sequence[VectorRecord]
) -> Applied:
    """Raises psycopg errors that are nobody's value's fault; the caller translates."""
    plan = coalesce(records)
    if plan.truncate is not None:
        await _truncate(session, layout, table_id, generation, plan.truncate)
    if not plan.steps:
        return Applied(applied=1 if plan.truncate is not None else 0)
    writer = _Writer(session, layout, table_id, generation)
    await writer.write(plan.steps)
    return Applied(writer.applied, writer.refused, writer.rejected)


class _Writer:
    """One batch; split in halves where a value in it cannot be stored, until the culprits stand alone."""

    def __init__(self, session: Session, layout: Layout, table_id: str, generation: int) -> None:
        self._session, self._layout = session, layout
        self._id = (table_id, generation)
        self.applied = 0
        self.refused: list[VectorRecord] = []
        self.rejected: list[tuple[VectorRecord, str]] = []

    async def write(self, steps: Sequence[Step]) -> None:
        try:
            await self._retrying(steps)
        except psycopg.Error as e:
            if not is_data_error(e):
                raise
            if len(steps) > 1:
                middle = len(steps) // 2
                await self.write(steps[:middle])
                await self.write(steps[middle:])
            elif len(steps[0].records) > 1:
                write, claim = steps[0].records
                await self.write([Step(write=write)])
                await self.write([Step(claim=claim)])
            else:
                reason = (e.diag.message_primary or str(e)).strip()
                self.rejected.append((steps[0].records[0], f"the store refuses a value: {reason}"))

    async def _retrying(self, steps: Sequence[Step]) -> None:
        for tries in range(_DEADLOCK_TRIES):
            try:
                return await self._transaction(steps)
            except (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure):
                if tries + 1 == _DEADLOCK_TRIES:
                    raise
        return None

    async def _transaction(self, steps: Sequence[Step]) -> None:
        layout, conn = self._layout, self._session.conn
        records = [r for step in steps for r in step.records]
        body, bad = encode(layout, steps)
        applied = 0
        refused: list[VectorRecord] = []
        if len(body) > len(HEAD) + len(TAIL):
            if layout.staging not in self._session.staging:
                await conn.execute(layout.create_staging().encode())
                self._session.staging.add(layout.staging)
            claims = any(step.claim is not None for step in steps)
            many = any(len(r.chunks) > 1 for r in records)
            async with conn.transaction(), conn.cursor() as cur:
                # before the first lock: the server ends who hangs between statements, not who hangs in this one
                async with cur.copy(
                    f"COPY {layout.staging} ({columns(layout)}) FROM STDIN (FORMAT binary)".encode()
                ) as copy:
                    await copy.write(body)
                await cur.execute(_limits(layout, for_update=False), self._id)
                row = await cur.fetchone()
                if row is None:
                    raise _gone(layout)
                floor, horizon, chunked = row[0:3], row[3:6], bool(row[6])
                await cur.execute(_merge(layout), (*floor, *horizon))
                applied = cur.rowcount
                if many or chunked:
                    if not chunked:
                        await cur.execute(
                            f"UPDATE {layout.state} SET chunked = true "
                            "WHERE table_id = %s AND generation = %s".encode(),
                            self._id,
                        )
                    delete, insert, move = _chunks(layout)
                    await cur.execute(delete)
                    await cur.execute(insert)
                if claims:
                    if many or chunked:
                        # a claim on several chunks looks at rows beside its own: hold the heads while it does
                        await cur.execute(
                            f"SELECT FROM {layout.table} t WHERE t.chunk = 0 AND t.key_id IN (SELECT s.key_id FROM "
                            f"{layout.staging} s WHERE s.kind = {CLAIM}) ORDER BY t.key_id FOR UPDATE".encode()
                        )
                    await cur.execute(_claims(layout), floor)
                    applied += cur.rowcount
                    if many or chunked:
                        await cur.execute(move)
                    await cur.execute(_refused(layout), (*floor, *horizon))
                    refused = [records[n] for (n,) in await cur.fetchall()]
        self.applied += applied
        self.refused += refused
        self.rejected += bad


@lru_cache(maxsize=256)
def _limits(layout: Layout, *, for_update: bool) -> bytes:
    return (
        "SELECT floor_epoch, floor_lsn::text, floor_ordinal, "
        "horizon_epoch, horizon_lsn::text, horizon_ordinal, chunked "
        f"FROM {layout.state} WHERE table_id = %s AND generation = %s FOR {'UPDATE' if for_update else 'SHARE'}"
    ).encode()


def _gone(layout: Layout) -> StoreRejected:
    return StoreRejected(
        f"The storage {layout.relation} is gone from the vector store.",
        "Run `walvec backfill` on the table; walvec makes its storage anew.",
    )


async def _truncate(session: Session, layout: Layout, table_id: str, generation: int, at: Position) -> None:
    """Floor and deletion in one transaction (rule floor, rule sweep-floor); a record at the floor stays."""
    position = position_sql(at)
    async with session.conn.transaction(), session.conn.cursor() as cur:
        await cur.execute(_limits(layout, for_update=True), (table_id, generation))
        if await cur.fetchone() is None:
            raise _gone(layout)
        await cur.execute(
            f"UPDATE {layout.state} SET floor_epoch = %s, floor_lsn = %s::pg_lsn, floor_ordinal = %s "
            "WHERE table_id = %s AND generation = %s AND (floor_epoch, floor_lsn, floor_ordinal) < "
            "(%s::integer, %s::pg_lsn, %s::bigint)".encode(),
            (*position, table_id, generation, *position),
        )
        await cur.execute(
            f"DELETE FROM {layout.table} WHERE (epoch, lsn, ordinal) < (%s::integer, %s::pg_lsn, %s::bigint)".encode(),
            position,
        )


async def purge_tombstones(
    session: Session, layout: Layout, table_id: str, generation: int, horizon: Position, keep: Sequence[UUID]
) -> int:
    """Deletion and horizon in one transaction (rule purge-horizon)."""
    position = position_sql(horizon)
    async with session.conn.transaction(), session.conn.cursor() as cur:
        await cur.execute(_limits(layout, for_update=True), (table_id, generation))
        if await cur.fetchone() is None:
            raise _gone(layout)
        await cur.execute(
            f"DELETE FROM {layout.table} WHERE NOT live AND (epoch, lsn, ordinal) < "
            "(%s::integer, %s::pg_lsn, %s::bigint) AND key_id <> ALL (%s::uuid[])".encode(),
            (*position, list(keep)),
        )
        purged = cur.rowcount
        await cur.execute(
            f"UPDATE {layout.state} SET horizon_epoch = %s, horizon_lsn = %s::pg_lsn, horizon_ordinal = %s "
            "WHERE table_id = %s AND generation = %s AND (horizon_epoch, horizon_lsn, horizon_ordinal) < "
            "(%s::integer, %s::pg_lsn, %s::bigint)".encode(),
            (*position, table_id, generation, *position),
        )
    return purged
