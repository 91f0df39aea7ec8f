"""What a source database tells of itself, as values: for preflight, apply, verify and re-reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from walvec.contracts.snapshots import XidSnapshot


@dataclass(frozen=True, slots=True)
class TableColumn:
    """`type` as format_type() writes it (user types schema-qualified), see definitions.model.SourceColumn, also for
    the others. `codec`: a name for `values.codec`. `generated`: computed by the source."""

    name: str
    type: str
    type_oid: int
    base_type: str
    codec: str
    nullable: bool
    user_defined: bool
    generated: bool = False


@dataclass(frozen=True, slots=True)
class SourceTable:
    """A table as the catalog has it. `key`: primary key columns in index order, () without one.
    `unique_keys`: other unique, NOT NULL, non-partial, immediate indexes by name. `identity`: replica identity, as
    pg_class has it (d default, n nothing, f full, i an index). `estimated_rows`: the planner's, 0 = not known."""

    schema: str
    name: str
    oid: int
    columns: tuple[TableColumn, ...]
    key: tuple[str, ...]
    unique_keys: Mapping[str, tuple[str, ...]]
    identity: str
    identity_columns: tuple[str, ...]
    partitioned: bool
    estimated_rows: int
    above: tuple[tuple[str, str], ...] = ()
    """Partitioned tables that it is a partition of, as (schema, name), from its parent to the root."""
    below: tuple[tuple[str, str], ...] = ()
    """Its partitions, with theirs."""
    readable: bool = True
    """Whether the connection's user may read any column of it."""


@dataclass(frozen=True, slots=True)
class RowCount:
    """Rows that have a text to embed; not `exact`: all rows, as the planner estimates them."""

    rows: int
    exact: bool


@dataclass(frozen=True, slots=True)
class Check:
    """One preflight check. `cure`: the exact statement or setting that mends a failed one."""

    name: str
    ok: bool
    detail: str
    cure: str = ""


@dataclass(frozen=True, slots=True)
class ReadRow:
    """A row read by SELECT, in the shape of a change's `after`."""

    after: Mapping[str, Any]
    exact: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RowsRead:
    """Rows by canonical key (absent keys had no row) and the snapshot they were read with (rule one-snapshot)."""

    rows: Mapping[bytes, ReadRow]
    snapshot: XidSnapshot


@dataclass(frozen=True, slots=True)
class SourceIdentity:
    """Which database of which server. `system_identifier` is empty where the user may not know it."""

    system_identifier: str
    database: str


@dataclass(frozen=True, slots=True)
class SlotView:
    """A replication slot as the source sees it. `status`: its wal_status, or "missing"; sizes in bytes."""

    status: str = "missing"
    active: bool = False
    retained: float = 0.0
    unconfirmed: float = 0.0
