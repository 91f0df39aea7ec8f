"""Dead letters in the control database, at most one open per table, generation and key. Implements `ports.Letters`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from walvec.contracts.keys import key_id
from walvec.contracts.letters import DeadLetter
from walvec.contracts.position import Position
from walvec.definitions import transitions
from walvec.definitions.pool import Pool
from walvec.definitions.values import storable

_COLUMNS = "vector_table_id, generation, key, kind, reason, epoch, lsn, ordinal, attempts, id, created_at, payload"

# transitions.letter, in SQL: the higher position tells what is wrong now, attempts add up
_PUT = """
INSERT INTO walvec_control.dead_letters AS d
    (vector_table_id, generation, key_id, key, kind, reason, epoch, lsn, ordinal, attempts, payload)
SELECT * FROM unnest(%s::text[], %s::int[], %s::uuid[], %s::bytea[], %s::text[], %s::text[], %s::int[],
                         %s::bigint[], %s::bigint[], %s::int[], %s::bytea[])
ON CONFLICT (vector_table_id, generation, key_id) DO UPDATE SET
    attempts = d.attempts + excluded.attempts,
    (kind, reason, epoch, lsn, ordinal, payload, created_at) = (
        SELECT n.* FROM (VALUES
            (1, excluded.kind, excluded.reason, excluded.epoch, excluded.lsn, excluded.ordinal, excluded.payload,
             excluded.created_at),
            (0, d.kind, d.reason, d.epoch, d.lsn, d.ordinal, d.payload, d.created_at)
        ) AS v (new, kind, reason, epoch, lsn, ordinal, payload, created_at),
        LATERAL (SELECT v.kind, v.reason, v.epoch, v.lsn, v.ordinal, v.payload, v.created_at) AS n
        ORDER BY v.epoch DESC, v.lsn DESC, v.ordinal DESC, v.new DESC LIMIT 1)
"""


def _letter(row: tuple[Any, ...]) -> DeadLetter:
    created: datetime = row[10]
    return DeadLetter(
        vector_table_id=row[0],
        generation=row[1],
        key=row[2],
        kind=row[3],
        reason=row[4],
        position=Position(row[5], row[6], row[7]),
        attempts=row[8],
        id=row[9],
        created_ms=int(created.timestamp() * 1000),
        payload=row[11],
    )


class ControlLetters:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def put(self, letters: Sequence[DeadLetter]) -> None:
        places: dict[tuple[str, int, UUID], DeadLetter] = {}
        for new in letters:
            place = (new.vector_table_id, new.generation, key_id(new.key))
            places[place] = transitions.letter(places.get(place), new)
        if not places:
            return
        rows = sorted(places.items())  # one order in every process: no deadlock between two writers
        columns = zip(
            *(
                (
                    *place,
                    one.key,
                    one.kind,
                    storable(one.reason),
                    one.position.epoch,
                    one.position.lsn,
                    one.position.ordinal,
                    one.attempts,
                    one.payload,
                )
                for place, one in rows
            ),
            strict=True,
        )
        async with self._pool.transaction() as conn:
            await conn.execute(_PUT, [list(c) for c in columns])

    async def _select(self, where: str, parameters: Sequence[Any]) -> list[DeadLetter]:
        async with self._pool.transaction() as conn:
            cursor = await conn.execute(
                f"SELECT {_COLUMNS} FROM walvec_control.dead_letters WHERE {where}",
                parameters,
            )
            return [_letter(row) for row in await cursor.fetchall()]

    async def page(self, table_id: str, *, limit: int = 1000, after_id: int = 0) -> list[DeadLetter]:
        return await self._select("vector_table_id = %s AND id > %s ORDER BY id LIMIT %s", [table_id, after_id, limit])

    async def get(self, table_id: str, ids: Sequence[int]) -> list[DeadLetter]:
        return await self._select("vector_table_id = %s AND id = ANY(%s::bigint[]) ORDER BY id", [table_id, list(ids)])

    async def count(self, table_id: str) -> int:
        async with self._pool.transaction() as conn:
            cursor = await conn.execute(
                "SELECT count(*) FROM walvec_control.dead_letters WHERE vector_table_id = %s",
                [table_id],
            )
            ((number,),) = await cursor.fetchall()
        return int(number)

    async def keys(self, table_id: str, generation: int) -> set[bytes]:
        async with self._pool.transaction() as conn:
            cursor = await conn.execute(
                "SELECT key FROM walvec_control.dead_letters WHERE vector_table_id = %s AND generation = %s",
                [table_id, generation],
            )
            return {key for (key,) in await cursor.fetchall()}

    async def settle(self, table_id: str, generation: int, settled: Mapping[bytes, Position]) -> int:
        if not settled:
            return 0
        async with self._pool.transaction() as conn:
            cursor = await conn.execute(
                "DELETE FROM walvec_control.dead_letters AS d"
                " USING unnest(%s::uuid[], %s::int[], %s::bigint[], %s::bigint[]) AS s (key_id, epoch, lsn, ordinal)"
                " WHERE d.vector_table_id = %s AND d.generation = %s AND d.key_id = s.key_id"
                " AND (d.epoch, d.lsn, d.ordinal) < (s.epoch, s.lsn, s.ordinal)",
                [
                    [key_id(k) for k in settled],
                    [p.epoch for p in settled.values()],
                    [p.lsn for p in settled.values()],
                    [p.ordinal for p in settled.values()],
                    table_id,
                    generation,
                ],
            )
            return cursor.rowcount

    async def remove(self, table_id: str, ids: Sequence[int]) -> int:
        async with self._pool.transaction() as conn:
            cursor = await conn.execute(
                "DELETE FROM walvec_control.dead_letters WHERE vector_table_id = %s AND id = ANY(%s::bigint[])",
                [table_id, list(ids)],
            )
            return cursor.rowcount
