"""A query vector and a filter -> the nearest rows, best first, ties by key and chunk.

The index answers where it keeps its recall: without a filter, or with one that leaves many rows. A filter that leaves
few is answered exactly, and so is a search that the index gives too little for: it stops after a number of rows that
do not pass (rows that died, a filter whose rows lie far away). Next: `pgvector_filters.py`, `pgvector_compare.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from struct import Struct
from typing import Any
from uuid import UUID

import numpy as np
import orjson
import psycopg

from sink.stores.pgvector_filters import FilterSql
from sink.stores.pgvector_layout import FIRST_ITERATIVE_VERSION, Layout, StoredColumn
from sink.stores.pgvector_session import QueryVector, Session, is_data_error
from walvec.contracts.errors import DefinitionError
from walvec.contracts.stores import Filter, Hit, Place

_HEAD = Struct(">hh").pack
_EF_LEAST, _EF_MOST = 100, 1000
_EXACT_FLOATS = 20_000 * 256
"""So many numbers are compared in some ten milliseconds: up to here a filtered search is exact."""
_SCAN_TUPLES = 40_000
_GONE = ("42P01", "42703", "3F000")


def vector_bytes(layout: Layout, vector: np.ndarray) -> QueryVector:
    numbers = np.asarray(vector, dtype=np.float32)
    if len(numbers) != layout.dimensions:
        raise DefinitionError(
            f"The query vector has {len(numbers)} dimensions, the vector table {layout.dimensions}.",
            "Embed the query with the vector table's model.",
        )
    if layout.half:  # only the direction counts, and a half cannot hold large numbers
        numbers = numbers / max(float(np.abs(numbers).max()), 1e-30)
    return QueryVector(_HEAD(layout.dimensions, 0) + numbers.astype(">f2" if layout.half else ">f4").tobytes())


def json_value(column: StoredColumn, raw: bytes | None) -> Any:
    """A value's JSON form; numeric as a number where one holds it exactly."""
    if raw is None:
        return None
    value = orjson.loads(column.codec.encode(raw))
    if column.codec.name == "numeric" and isinstance(value, str):
        try:
            exact = Decimal(value)
        except InvalidOperation:
            return value
        if not exact.is_finite():
            return value
        if exact == exact.to_integral_value() and "." not in value:
            return int(exact) if abs(exact) < 2**53 else value
        number = float(exact)
        return number if math.isfinite(number) and Decimal(repr(number)) == exact else value
    return value


async def search(
    session: Session,
    layout: Layout,
    vector: np.ndarray,
    *,
    limit: int,
    where: Filter | None = None,
    min_score: float | None = None,
    after: Place | None = None,
    vectors: bool = False,
) -> list[Hit]:
    query = vector_bytes(layout, vector)
    if limit < 1:
        return []
    work = _Search(session, layout, query, where, after, vectors, limit)
    try:
        rows = await work.by_index() if await work.index_serves() else None
        if rows is None or rows.ntuples < limit:
            rows = await work.exactly()
    except psycopg.Error as e:
        misfit = is_data_error(e) or (e.sqlstate or "").startswith("42")
        if where is not None and misfit and e.sqlstate not in _GONE:
            raise DefinitionError(
                f"A filter value does not fit its column: {(e.diag.message_primary or str(e)).strip()}.",
                "Change the filter.",
            ) from e
        raise
    return _hits(layout, rows, min_score, after, vectors)


class _Search:
    def __init__(
        self,
        session: Session,
        layout: Layout,
        query: QueryVector,
        where: Filter | None,
        after: Place | None,
        vectors: bool,
        limit: int,
    ) -> None:
        self._session, self._layout, self._query = session, layout, query
        self._filtered = where is not None
        self._depth = limit + (after.rank if after is not None else 0)
        filters = FilterSql(layout)
        self._clause = f"t.live AND {filters.build(where)}" if where is not None else "t.live"
        self._filter_values = tuple(filters.parameters)
        self._distance = f"t.embedding <=> %s::{'halfvec' if layout.half else 'vector'}"
        self._place = (after.distance, UUID(bytes=after.identity), after.chunk) if after is not None else ()
        self._columns = ", t.embedding::text" if vectors else ""
        self._columns += "".join(f", t.{c.physical}" for c in layout.metadata)
        self._limit = limit
        self._share = 1.0

    async def index_serves(self) -> bool:
        layout = self._layout
        if not layout.ann_possible or 2 * self._depth > _EF_MOST:
            return False
        if not self._filtered:
            return True
        if layout.version < FIRST_ITERATIVE_VERSION:
            return False
        passing = await self._estimate(self._clause, self._filter_values)
        if passing * layout.dimensions <= _EXACT_FLOATS:
            return False
        # where passing rows lie far from the query, the nearest hold too few of them: the search is exact then
        self._share = min(1.0, passing / max(1.0, await self._estimate("t.live", ())))
        return self._nearest <= _EF_MOST

    @property
    def _nearest(self) -> int:
        """So many of the nearest rows hold `depth` passing ones, unless these lie elsewhere."""
        return int((self._depth + 4 * math.sqrt(self._depth) + 10) / self._share)

    async def _estimate(self, clause: str, values: tuple[Any, ...]) -> float:
        """How many rows the planner expects."""
        statement = f"EXPLAIN (FORMAT JSON) SELECT FROM {self._layout.table} t WHERE {clause}"
        cur = await self._session.conn.execute(statement.encode(), values, prepare=False)
        row = await cur.fetchone()
        assert row is not None
        return float(row[0][0]["Plan"]["Plan Rows"])

    async def by_index(self) -> Any:
        wanted = self._nearest if self._filtered else 2 * self._depth
        beam = min(_EF_MOST, max(_EF_LEAST, wanted))
        await self._session.search_settings(beam, _SCAN_TUPLES, self._layout.version >= FIRST_ITERATIVE_VERSION)
        if not self._filtered:
            return await self._run(self._statement(self._distance))
        # the index alone would not say that it gave up, and would fill up with what it happens to know
        nearest = (
            f"(SELECT t.*, {self._distance} AS distance FROM {self._layout.table} t WHERE t.live "
            f"ORDER BY distance, t.key_id, t.chunk LIMIT {self._nearest})"
        )
        behind = " AND (t.distance, t.key_id, t.chunk) > (%s::float8, %s::uuid, %s::integer)" if self._place else ""
        statement = (
            f"SELECT {self._shown('t.distance')} FROM {nearest} t WHERE {self._clause}{behind} LIMIT {self._limit}"
        )
        return await self._run(statement, (self._query, *self._filter_values, *self._place))

    async def exactly(self) -> Any:
        """By an expression that no index orders by; the number stays the same, so that pages fit together."""
        return await self._run(self._statement(f"({self._distance}) + 0"))

    def _shown(self, distance: str) -> str:
        return f"t.key, t.key_id, t.chunk, {distance} AS distance, t.embedded_text{self._columns}"

    def _statement(self, distance: str) -> str:
        behind = f" AND ({self._distance}, t.key_id, t.chunk) > (%s::float8, %s::uuid, %s::integer)"
        return (
            f"SELECT {self._shown(distance)} FROM {self._layout.table} t "
            f"WHERE {self._clause}{behind if self._place else ''} "
            f"ORDER BY distance, t.key_id, t.chunk LIMIT {self._limit}"
        )

    async def _run(self, statement: str, parameters: tuple[Any, ...] | None = None) -> Any:
        if parameters is None and not self._filtered and not self._place:
            return await self._session.ask(statement.replace("%s", "$1"), (self._query,))
        if parameters is None:
            parameters = (self._query, *self._filter_values, *((self._query, *self._place) if self._place else ()))
        # plans differ with the filter's values: never a stored generic plan
        cur = await self._session.conn.execute(statement.encode(), parameters, prepare=False)
        return cur.pgresult


def _hits(layout: Layout, result: Any, min_score: float | None, after: Place | None, vectors: bool) -> list[Hit]:
    hits = []
    rank = after.rank if after is not None else 0
    first = 6 if vectors else 5
    value = result.get_value
    for row in range(result.ntuples):
        distance = float(value(row, 3))
        score = 1.0 - distance
        if math.isnan(distance) or (min_score is not None and score < min_score):
            continue  # a vector of zeros has no direction
        key = orjson.loads(bytes.fromhex(value(row, 0)[2:].decode()))
        chunk = int(value(row, 2))
        rank += 1
        hits.append(
            Hit(
                key,
                chunk,
                score,
                (value(row, 4) or b"").decode(),
                {c.name: json_value(c, value(row, first + i)) for i, c in enumerate(layout.metadata)},
                Place(distance, bytes.fromhex(value(row, 1).replace(b"-", b"").decode()), chunk, rank),
                orjson.loads(value(row, 5)) if vectors else None,
            )
        )
    return hits


def parse_vectors(rows: Sequence[tuple[str, str]]) -> dict[str, np.ndarray]:
    """(hash, vector text) -> arrays."""
    return {h: np.array(orjson.loads(text), dtype=np.float32) for h, text in rows}
