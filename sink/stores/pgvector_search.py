"""A query vector and a filter -> one SELECT with bound parameters, and rows -> hits. Pure but for `search`.

Law: the column's type in the store decides how it is compared; a value that does not fit is a DefinitionError that
names the type. Next: `pgvector_compare.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np
import orjson
import psycopg

from sink.stores.pgvector_layout import FIRST_ITERATIVE_VERSION, Layout, StoredColumn
from sink.stores.pgvector_session import Session, is_data_error
from walvec.contracts.errors import DecodeError, DefinitionError
from walvec.contracts.stores import Condition, Filter, Hit

TEXT_TYPES = frozenset({"text", "character varying", "character", "citext", "name", '"char"', "bpchar"})
_INTEGERS = frozenset({"smallint", "integer", "bigint", "oid"})
_FLOATS = frozenset({"real", "double precision"})
_SQL_OP = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
_BIGINT = 2**63


def is_text(column: StoredColumn) -> bool:
    """Compared as text, letter by letter: also what is stored as text because the database lacks its type."""
    if column.type.endswith("[]"):
        return False
    return column.type == "text" or column.type.split("(")[0] in TEXT_TYPES or column.base_type in TEXT_TYPES


def vector_text(vector: np.ndarray) -> str:
    return "[" + ",".join(map(repr, np.asarray(vector, dtype=np.float32).tolist())) + "]"


class FilterSql:
    """Builds a WHERE clause; `parameters` in the order of their placeholders."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.parameters: list[Any] = []

    def build(self, where: Filter) -> str:
        parts = [self._condition(c) for c in where.conditions]
        parts += [
            "(" + " OR ".join(f"({self.build(option)})" for option in group) + ")" if group else "false"
            for group in where.any_of
        ]
        return " AND ".join(parts) if parts else "true"

    def _condition(self, condition: Condition) -> str:
        column, op, value = self._layout.column(condition.field), condition.op, condition.value
        name = f"t.{column.physical}"
        if op == "exists":
            if not isinstance(value, bool):
                raise _misfit(column, "`exists` takes true or false")
            return f"{name} IS NOT NULL" if value else f"{name} IS NULL"
        if op in ("in", "nin"):
            if not isinstance(value, list | tuple):
                raise _misfit(column, f"`{op}` takes a list")
            found = [self._equal(column, v) for v in value]
            inside = " OR ".join(found) if found else "false"
            return f"({inside})" if op == "in" else f"(({inside}) IS NOT TRUE)"
        if op == "eq":
            return self._equal(column, value)
        if op == "ne":
            return f"({self._equal(column, value)} IS NOT TRUE)"
        return self._range(column, _SQL_OP[op], value)

    def _equal(self, column: StoredColumn, value: Any) -> str:
        name = f"t.{column.physical}"
        if value is None:
            return f"({name} IS NULL)"
        if column.codec.name.startswith("array:") and column.type.endswith("[]"):
            element = column.type[:-2]
            text = value if isinstance(value, str) else _plain(value)
            self.parameters.append(text)
            return f"(CAST(%s AS {element}) = ANY ({name}))"
        if column.codec.name == "json" and not is_text(column):
            self.parameters.append(orjson.dumps(value).decode())
            return f"(CAST({name} AS jsonb) = CAST(%s AS jsonb))"
        if is_text(column):
            if isinstance(value, list | dict):
                raise _misfit(column, "it is compared with a string")
            self.parameters.append(value if isinstance(value, str) else _plain(value))
            return f"(CAST({name} AS text) = %s)"
        return f"({name} = {self._typed(column, value)})"

    def _range(self, column: StoredColumn, op: str, value: Any) -> str:
        name = f"t.{column.physical}"
        if is_text(column):
            if not isinstance(value, str):
                raise _misfit(column, "a text column is compared with a string")
            self.parameters.append(value)
            return f'(CAST({name} AS text) COLLATE "C" {op} %s)'
        if column.codec.name.startswith("array:") or column.codec.name in ("json", "bool") or value is None:
            raise _misfit(column, "it has no order; use eq, ne, in, nin or exists")
        return f"({name} {op} {self._typed(column, value)})"

    def _typed(self, column: StoredColumn, value: Any) -> str:
        """A placeholder cast so that the column's own index can serve the comparison."""
        base = column.base_type
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        if base == "boolean":
            if not isinstance(value, bool):
                raise _misfit(column, "it is compared with true or false")
            self.parameters.append(value)
            return "%s"
        if base in _INTEGERS or base in _FLOATS or base == "numeric":
            if not numeric:
                value = _number(column, value)
            if base == "real":
                cast = "real"
            elif base == "double precision":
                cast = "double precision"
            elif base in _INTEGERS and isinstance(value, int) and -_BIGINT <= value < _BIGINT:
                cast = "bigint"
            else:
                cast = "numeric"
            self.parameters.append(_plain(value))
            return f"CAST(%s AS {cast})"
        if not isinstance(value, str):
            raise _misfit(column, f"it is compared with a string in the form of {column.type}")
        try:
            self.parameters.append(column.codec.decode(value))
        except (DecodeError, ValueError) as e:
            raise _misfit(column, "the value has another form") from e
        return f"CAST(%s AS {column.type})"


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, float) else str(value)


def _number(column: StoredColumn, value: Any) -> Any:
    try:
        return Decimal(value) if isinstance(value, str) else _refuse(column)
    except InvalidOperation as e:
        raise _misfit(column, "it is compared with a number") from e


def _refuse(column: StoredColumn) -> Any:
    raise _misfit(column, "it is compared with a number")


def _misfit(column: StoredColumn, why: str) -> DefinitionError:
    return DefinitionError(f"The filter on {column.name!r} ({column.type}) does not fit: {why}.", "Change the filter.")


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
    where: Filter | None,
    min_score: float | None,
) -> list[Hit]:
    if len(vector) != layout.dimensions:
        raise DefinitionError(
            f"The query vector has {len(vector)} dimensions, the vector table {layout.dimensions}.",
            "Embed the query with the vector table's model.",
        )
    if limit < 1:
        return []
    filters = FilterSql(layout)
    clause = filters.build(where) if where is not None else "true"
    text = vector_text(vector)
    own = "".join(f", t.{c.physical}" for c in layout.metadata)
    statement = (
        f"SELECT t.key, t.chunk, t.embedded_text, t.embedding <=> %s::{layout.vector_type}{own} FROM {layout.table} t "
        f"WHERE t.live AND {clause} ORDER BY t.embedding <=> %s::{layout.vector_type} LIMIT %s"
    )
    settings = f"SELECT set_config('hnsw.ef_search', '{min(1000, max(40, limit))}', true)"
    if layout.version >= FIRST_ITERATIVE_VERSION:
        settings += ", set_config('hnsw.iterative_scan', 'strict_order', true)"
    try:
        async with session.conn.transaction(), session.conn.cursor() as cur:
            # plans differ with the filter's values and the index that may come: never a stored generic plan
            await cur.execute(settings.encode())
            await cur.execute(statement.encode(), (text, *filters.parameters, text, limit), prepare=False)
            result = cur.pgresult
            assert result is not None
            return _hits(layout, result, min_score)
    except psycopg.Error as e:
        if where is not None and (is_data_error(e) or (e.sqlstate or "").startswith("42")):
            raise DefinitionError(
                f"A filter value does not fit its column: {(e.diag.message_primary or str(e)).strip()}.",
                "Change the filter.",
            ) from e
        raise


def _hits(layout: Layout, result: Any, min_score: float | None) -> list[Hit]:
    hits = []
    for row in range(result.ntuples):
        distance = float(result.get_value(row, 3))
        score = 1.0 - distance
        if math.isnan(distance) or (min_score is not None and score < min_score):
            continue  # a vector of zeros has no direction
        key = orjson.loads(bytes.fromhex(result.get_value(row, 0)[2:].decode()))
        metadata = {c.name: json_value(c, result.get_value(row, 4 + i)) for i, c in enumerate(layout.metadata)}
        text = result.get_value(row, 2)
        hits.append(Hit(key, int(result.get_value(row, 1)), score, (text or b"").decode(), metadata))
    return hits


def parse_vectors(rows: Sequence[tuple[str, str]]) -> dict[str, np.ndarray]:
    """(hash, vector text) -> arrays."""
    return {h: np.array(orjson.loads(text), dtype=np.float32) for h, text in rows}
