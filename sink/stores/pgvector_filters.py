"""A filter -> a WHERE clause with bound parameters. Pure.

Law: the column's type in the store decides how it is compared; a value that does not fit is a DefinitionError that
names the type. Next: `pgvector_search.py`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

import orjson

from sink.stores.pgvector_layout import Layout, StoredColumn
from walvec.contracts.errors import DecodeError, DefinitionError
from walvec.contracts.stores import Condition, Filter

TEXT_TYPES = frozenset({"text", "character varying", "character", "citext", "name", '"char"', "bpchar"})
_PADDED = frozenset({"character", "bpchar"})
"""Their blanks at the end mean nothing, and a cast drops them."""
_INTEGERS = frozenset({"smallint", "integer", "bigint", "oid"})
_ZONELESS = frozenset({"date", "timestamp without time zone"})
_FLOATS = frozenset({"real", "double precision"})
_SQL_OP = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
_BIGINT = 2**63


def is_text(column: StoredColumn) -> bool:
    """Compared as text, letter by letter: also what is stored as text because the database lacks its type."""
    if column.type.endswith("[]"):
        return False
    return column.type == "text" or column.type.split("(")[0] in TEXT_TYPES or column.base_type in TEXT_TYPES


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
            text = value if isinstance(value, str) else _plain(value)
            self.parameters.append(text.rstrip(" ") if column.base_type in _PADDED else text)
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
        if base in _ZONELESS and (moment := _in_utc(value)) is not None:
            self.parameters.append(moment)
            return "CAST(%s AS timestamp)"
        try:
            self.parameters.append(column.codec.decode(value))
        except (DecodeError, ValueError) as e:
            raise _misfit(column, "the value has another form") from e
        return f"CAST(%s AS {column.type})"


def _in_utc(value: str) -> str | None:
    """For a column without a zone: a cast would drop the offset, and for a date the time of day. None: no ISO 8601."""
    try:
        moment = datetime.fromisoformat(value)
        return (moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment).isoformat()
    except (ValueError, OverflowError):
        return None


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
