"""A vector table's definition -> the columns of the view that users read. Pure; `check_view` refuses collisions, at
apply and again in the store.

Next: `sink/stores/pgvector_layout.py` (where the values lie), `sink/stores/pgvector.py` (which creates the view).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from walvec.contracts.errors import DefinitionError
from walvec.definitions.model import Generation, VectorTable

RESERVED = ("chunk", "embedded_text", "embedding", "source_lsn")
STATE_TABLE = "_walvec_stores"
_MAX_BYTES = 63


@dataclass(frozen=True, slots=True)
class ViewColumn:
    """`physical`: k0…, m0… of the storage; `source`: the source column's name; `name`: its name in the view."""

    physical: str
    source: str
    name: str


def view_columns(generation: Generation) -> tuple[tuple[ViewColumn, ...], tuple[ViewColumn, ...]]:
    """Key columns and metadata columns; one that stands in both roles is shown once, as a key column."""
    alias = {c.name: c.alias for c in generation.columns if c.alias}
    keys = tuple(ViewColumn(f"k{i}", k.name, alias.get(k.name, k.name)) for i, k in enumerate(generation.key))
    shown = {k.name for k in generation.key}
    metadata = tuple(
        ViewColumn(f"m{i}", c.name, c.alias or c.name)
        for i, c in enumerate(generation.metadata_columns)
        if c.role == "metadata" and c.name not in shown
    )
    return keys, metadata


def check_view(table: VectorTable, generation: Generation, others: Iterable[VectorTable] = ()) -> None:
    """Raises DefinitionError, with the cure, where the view could not be made. `others`: the environment's vector
    tables, whose views it must not meet (the store itself finds what else has the name)."""
    if not table.view_name or table.view_name == STATE_TABLE:
        raise DefinitionError(f"Vector table name {table.name!r} cannot be a view's name.", "Choose another name.")
    for other in others:
        if other.id != table.id and other.view_name == table.view_name:
            raise DefinitionError(
                f"{table.name!r} and {other.name!r} would both have the view {table.view_name!r}.",
                "Give the vector table another name: letters, digits and _ tell views apart.",
            )
    taken: dict[str, str] = {}
    keys, metadata = view_columns(generation)
    for column in (*keys, *metadata):
        if column.name in RESERVED:
            raise DefinitionError(
                f"Column {column.name!r} of vector table {table.name!r} collides with the view's own column of that "
                f"name (its own columns are {', '.join(RESERVED)}).",
                _cure(column),
            )
        if len(column.name.encode()) > _MAX_BYTES:
            raise DefinitionError(
                f"The name {column.name!r} is longer than the {_MAX_BYTES} bytes that Postgres allows.",
                "Give the column a shorter `alias:`.",
            )
        if column.name == "" or "\x00" in column.name:
            raise DefinitionError(f"Column {column.source!r} has an empty or invalid name.", _cure(column))
        if column.name in taken:
            raise DefinitionError(
                f"Columns {taken[column.name]!r} and {column.source!r} of vector table {table.name!r} would both be "
                f"called {column.name!r} in the view.",
                _cure(column),
            )
        taken[column.name] = column.source


def _cure(column: ViewColumn) -> str:
    if column.physical.startswith("k"):
        return (
            f"List the key column under `columns` with an alias: "
            f"{{name: {column.source}, role: metadata, alias: source_{column.source}}}."
        )
    return (
        f"Give it another name in the view: {{name: {column.source}, role: metadata, alias: source_{column.source}}}."
    )
