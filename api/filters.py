"""A query's `filters` object into the filter that stores understand. Pure.

Field -> `{op: value, …}`, several operators and fields are ANDed; a bare value means eq; `$or: [filter, …]` matches if
any does. Operators: eq ne neq gt gte lt lte in nin exists, each also with a leading `$`. Values have the column's type;
what does not fit is refused with the field's name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from walvec.contracts.errors import WalvecError
from walvec.contracts.stores import Condition, Filter, FilterOp
from walvec.definitions.model import FilterType, Generation

OPS: Mapping[str, FilterOp] = {
    "eq": "eq",
    "ne": "ne",
    "neq": "ne",
    "gt": "gt",
    "gte": "gte",
    "lt": "lt",
    "lte": "lte",
    "in": "in",
    "nin": "nin",
    "exists": "exists",
}
_RANGES = ("gt", "gte", "lt", "lte")
_ORDERED = ("integer", "float", "datetime")
_TYPES: Mapping[str, FilterType] = {
    "int": "integer",
    "float": "float",
    "numeric": "float",
    "bool": "boolean",
    "timestamp": "datetime",
}
_DEEPEST = 16
_LONGEST_LIST = 10_000
_MOST = 1000
_INT8 = range(-(2**63), 2**63)


class BadFilter(WalvecError):
    """A filter that cannot be meant."""

    kind = "definition"


def filter_types(generation: Generation) -> dict[str, FilterType]:
    """Type of each column that can be filtered on, as named or as derived from the source column."""
    found: dict[str, FilterType] = {}
    for column in generation.metadata_columns:
        if column.role != "metadata":
            continue
        name = generation.source_column(column.name).codec.removeprefix("array:")
        found[column.name] = column.filter_type or _TYPES.get(name, "keyword")
    return found


def parse(filters: Mapping[str, Any] | None, types: Mapping[str, FilterType]) -> Filter | None:
    """None for no filter at all. Raises BadFilter."""
    if not filters:
        return None
    found = _group(filters, types, 0)
    conditions, values = _size(found)
    if conditions > _MOST:
        raise BadFilter(f"filters have more than {_MOST} conditions.", "Use `in` for many values of one column.")
    if values > _LONGEST_LIST:
        raise BadFilter(f"filters have more than {_LONGEST_LIST} values in lists.", "Ask in parts.")
    return found


def _size(found: Filter) -> tuple[int, int]:
    """Conditions with groups, and values in lists: a store's statement has room for so many alone."""
    conditions, values = len(found.conditions), sum(len(c.value) for c in found.conditions if isinstance(c.value, list))
    for group in (group for any_of in found.any_of for group in any_of):
        more = _size(group)
        conditions, values = conditions + 1 + more[0], values + more[1]
    return conditions, values


def _group(filters: Any, types: Mapping[str, FilterType], depth: int) -> Filter:
    if not isinstance(filters, Mapping):
        raise BadFilter("a filter must be an object of fields.", 'For example {"price": {"lte": 150}}.')
    if depth > _DEEPEST:
        raise BadFilter(f"filters are nested deeper than {_DEEPEST}.", "Write the filter flatter.")
    conditions: list[Condition] = []
    any_of: list[tuple[Filter, ...]] = []
    for field, wanted in filters.items():
        if field in ("$or", "$and"):
            if not isinstance(wanted, list) or not wanted:
                raise BadFilter(f"{field} takes a list of filters.", f'For example {{"{field}": [{{…}}, {{…}}]}}.')
            groups = tuple(_group(f, types, depth + 1) for f in wanted)
            if field == "$or":
                any_of.append(groups)
            else:
                for g in groups:
                    conditions += g.conditions
                    any_of += g.any_of
            continue
        if field not in types:
            known = ", ".join(types) or "none; give a column the role metadata"
            raise BadFilter(f"there is no metadata column {field!r} to filter on.", f"Columns: {known}.")
        if isinstance(wanted, Mapping) and not wanted:
            raise BadFilter(f"the filter on {field!r} has no operator.", f"Operators: {', '.join(OPS)}.")
        operators = wanted.items() if isinstance(wanted, Mapping) else [("eq", wanted)]
        for op, value in operators:
            condition = _condition(field, op, value, types[field])
            if condition is not None:
                conditions.append(condition)
    return Filter(tuple(conditions), tuple(any_of))


def _condition(field: str, name: str, value: Any, kind: FilterType) -> Condition | None:
    op = OPS.get(name.removeprefix("$"))
    if op is None:
        raise BadFilter(f"there is no operator {name!r} (on {field!r}).", f"Operators: {', '.join(OPS)}.")
    if op == "exists":
        if not isinstance(value, bool):
            raise BadFilter(f"exists on {field!r} takes true or false.")
        return Condition(field, "exists", value)
    if op in ("in", "nin"):
        if not isinstance(value, list):
            raise BadFilter(f"{name} on {field!r} takes a list.")
        if len(value) > _LONGEST_LIST:
            raise BadFilter(f"{name} on {field!r} takes at most {_LONGEST_LIST} values.")
        return Condition(field, op, [_scalar(field, v, kind) for v in value]) if value or op == "in" else None
    if value is None:  # nothing is equal to NULL, so that null asks for presence
        if op in _RANGES:
            raise BadFilter(f"{name} on {field!r} takes no null.")
        return Condition(field, "exists", op == "ne")
    if op in _RANGES:
        if kind not in _ORDERED:
            raise BadFilter(
                f"{name} cannot be used on {field!r}, a {kind} column.", "Ranges need integer, float or datetime."
            )
        if kind == "integer" and isinstance(value, float) and math.isfinite(value) and not value.is_integer():
            up = op in ("gt", "gte")  # the nearest integers inside the range
            return Condition(
                field, "gte" if up else "lte", _scalar(field, (math.ceil if up else math.floor)(value), kind)
            )
    return Condition(field, op, _scalar(field, value, kind))


def _scalar(field: str, value: Any, kind: FilterType) -> Any:
    if kind == "boolean":
        if isinstance(value, bool):
            return value
    elif kind == "integer":
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and value in _INT8:
            return value
    elif kind == "float":
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e308:
            return value
    elif isinstance(value, str):
        if kind == "datetime":
            return _moment(field, value)
        if "\x00" not in value and _whole(value):
            return value
    raise BadFilter(f"a value for {field!r} must be of type {kind}.", "The column's filter_type decides.")


def _moment(field: str, value: str) -> str:
    try:
        datetime.fromisoformat(value)
    except ValueError as e:
        raise BadFilter(
            f"a value for {field!r} must be a time in ISO 8601.", "For example 2026-01-31T10:00:00Z."
        ) from e
    return value


def _whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
