"""The recorded samples of tests/golden/debezium, their tables as definitions, and a store for what a bridge writes."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cdc.bridge_batch import Bridged, Translator
from cdc.debezium_order import Bases, Lives, Reached
from walvec.contracts.changes import Change
from walvec.contracts.position import ZERO, Position
from walvec.contracts.values import codec_name, key_encoder
from walvec.contracts.wire import decode_change
from walvec.definitions.model import Column, Generation, SourceColumn, TopicSource, VectorTable
from walvec.transport.records import Fetch, Record, StoredRecord

GOLDEN = Path(__file__).parents[2] / "golden" / "debezium"
BASES = {
    "char(6)": "character",
    "varchar(20)": "character varying",
    "short": "character varying",
    "mood": "public.mood",
}
UNREAD = object()
ENUM = 16_400

Spec = Sequence[tuple[str, str]]
DOCS: Spec = (("id", "integer"), ("title", "text"), ("body", "text"), ("price", "numeric"))
TYPES: Spec = (
    ("id", "integer"), ("small", "smallint"), ("big", "bigint"), ("flag", "boolean"),
    ("single", "real"), ("double", "double precision"),
    ("exact", "numeric(12,3)"), ("whole", "numeric(20,0)"), ("any_numeric", "numeric"), ("amount", "public.amount"),
    ("cash", "money"), ("chars", "character(6)"), ("vchars", "character varying(20)"), ("words", "text"),
    ("ci", "public.citext"), ("short", "public.short"), ("name_", "name"), ("one", '"char"'),
    ("raw", "bytea"), ("bits", "bit(3)"), ("varbits", "bit varying(10)"), ("onebit", "bit(1)"),
    ("u", "uuid"), ("j", "json"), ("jb", "jsonb"), ("x", "xml"),
    ("d", "date"), ("t", "time without time zone"), ("t0", "time(0) without time zone"),
    ("ttz", "time with time zone"), ("ts", "timestamp without time zone"),
    ("ts0", "timestamp(0) without time zone"), ("ts3", "timestamp(3) without time zone"),
    ("tstz", "timestamp with time zone"), ("iv", "interval"),
    ("m", "public.mood"), ("hs", "public.hstore"), ("lt", "public.ltree"),
    ("ip", "inet"), ("net", "cidr"), ("mac", "macaddr"),
    ("ints", "integer[]"), ("texts", "text[]"), ("nums", "numeric(6,2)[]"), ("moods", "public.mood[]"),
    ("uuids", "uuid[]"), ("matrix", "integer[]"), ("stamps", "timestamp with time zone[]"),
    ("r", "int4range"), ("tsr", "tstzrange"), ("p", "point"), ("oid_", "oid"), ("tsv", "tsvector"),
    ("v", "public.vector"), ("pr", "public.pair"),
)  # fmt: skip
BASES = {"public.amount": "numeric", "public.short": "character varying"}
TABLES: Mapping[str, tuple[Sequence[str], Spec]] = {
    "docs": (("id",), DOCS),
    "composite": (
        ("name", "tenant", "kind"),
        (("tenant", "bigint"), ("name", "text"), ("kind", "public.kind"), ("title", "text")),
    ),
    "strings": (("id",), (("id", "text"), ("title", "text"))),
    "uuids": (("id",), (("id", "uuid"), ("title", "text"))),
    "decimals": (("id",), (("id", "numeric"), ("title", "text"))),
    "instants": (("id", "day"), (("id", "timestamp with time zone"), ("day", "date"), ("title", "text"))),
    "bytes": (("id",), (("id", "bytea"), ("title", "text"))),
    "types": (("id",), TYPES),
    "unique_index": (("code",), (("id", "integer"), ("code", "text"), ("title", "text"))),
}


def column(name: str, type_: str) -> SourceColumn:
    """As the catalog would tell it."""
    element = type_.removesuffix("[]")
    base = BASES.get(element, re.sub(r"\(.*?\)", "", element))
    return SourceColumn(
        name,
        type_,
        ENUM if type_ in ("public.mood", "public.kind") else 0,
        base,
        codec_name(base, array=type_ != element),
        user_defined=element.startswith("public."),
    )


def vector_table(name: str, *, keys: Sequence[str] = (), spec: Spec = ()) -> VectorTable:
    """Every column in both roles, so that records carry typed JSON and the exact text."""
    keys, spec = (keys, spec) if spec else TABLES[name]
    columns = {n: column(n, base) for n, base in spec}
    both = [
        *(Column(n, "embedding") for n in columns),
        *(Column(n, "metadata") for n in columns),
    ]
    generation = Generation(1, "active", "m", 4, tuple(both), tuple(columns[k] for k in keys), tuple(columns.values()))
    return VectorTable(
        "vt_00000001",
        name,
        "conn_1",
        "prov_1",
        "static",
        "public",
        name,
        "pgvector",
        "managed",
        (generation,),
        source=TopicSource(f"x.public.{name}"),
    )


def records(sample: str, table: str = "docs") -> dict[int, list[StoredRecord]]:
    """By partition of the table's topic."""
    found: dict[int, list[StoredRecord]] = {}
    for line in (GOLDEN / f"{sample}.jsonl").read_text(encoding="utf-8").splitlines():
        told = json.loads(line)
        if told["topic"].rpartition(".")[2] != table:
            continue
        key, value = _bytes(told, "key"), _bytes(told, "value")
        found.setdefault(told["partition"], []).append(
            StoredRecord(told["offset"], told["timestamp"], key, value if value is not None else b"")
        )
    return found


def _bytes(told: Mapping[str, Any], name: str) -> bytes | None:
    if f"{name}_base64" in told:
        return base64.b64decode(told[f"{name}_base64"])
    return None if told[name] is None else told[name].encode()


def held(sample: str, table: str = "docs") -> list[dict[str, str | None]]:
    """The table as it was at the end, every value as Postgres prints it."""
    found: dict[str, list[dict[str, str | None]]] = json.loads((GOLDEN / f"{sample}.tables.json").read_text("utf-8"))
    return found[f"public.{table}"]


@dataclass(slots=True)
class Store:
    """The guard, tombstones and the floor, as every store has them."""

    table: VectorTable
    versions: dict[bytes, tuple[Position, Mapping[str, Any] | None]] = field(default_factory=dict)
    floor: Position = ZERO

    def apply(self, records: Iterable[Record]) -> None:
        for record in records:
            self.take(decode_change(record.key, record.value))

    def take(self, change: Change) -> None:
        if change.op == "t":
            self.floor = max(self.floor, change.position)
            self.versions = {k: v for k, v in self.versions.items() if v[0] >= self.floor}
            return
        known = self.versions.get(change.key)
        if change.position < self.floor or (known is not None and change.position <= known[0]):
            return
        row = (
            None
            if change.after is None
            else {n: self._text(change, n) for n in self._columns() if n in change.after or n in change.unchanged}
        )
        self.versions[change.key] = change.position, row

    def _columns(self) -> list[str]:
        return [c.name for c in self.table.active.source]

    def _text(self, change: Change, name: str) -> Any:
        """As it would be embedded; UNREAD for what is read from the source by key."""
        if name in change.unchanged:
            return UNREAD
        return change.text_of(name)

    def rows(self) -> dict[bytes, Mapping[str, Any]]:
        return {key: row for key, (_, row) in self.versions.items() if row is not None}


class Topic:
    """A bridge's own memory of one topic: translates what it is fed, in the order in which it is fed."""

    def __init__(self, table: VectorTable, partitions: Iterable[int] = (0,)) -> None:
        assert table.source is not None
        self.translator = Translator(
            table, table.source, epoch=0, topic="t", partitions=1, headers=False, enums=(ENUM,)
        )
        self.bases = {p: Bases() for p in partitions}
        self.lives = Lives()
        self.sequence = 0
        self.began_anew = 0

    @property
    def snapshots(self) -> list[int]:
        return sorted({lsn for b in self.bases.values() for _, lsn in b.found})

    def translate(self, partition: int, records: Sequence[StoredRecord]) -> Bridged:
        parsed = self.translator.parse([Fetch(partition, records)])
        out = self.translator.translate(parsed, self.bases, self.lives, self.sequence, self.snapshots)
        self.sequence = max(self.sequence, out.sequence)
        self.began_anew += out.begins
        return out

    def read_again(self, rows: Iterable[Mapping[str, str | None]], table: VectorTable, store: Store) -> None:
        """What the task does that a bridge opens: every row at a stamp, then a sweep up to it."""
        stamp = Reached(self.sequence, tuple(self.snapshots)).stamp_above(0)
        for key, row in expected(rows, table).items():
            store.take(Change("r", stamp, key, after=row))
        store.take(Change("t", stamp, b""))

    def feed(self, partition: int, records: Sequence[StoredRecord]) -> list[Record]:
        out = self.translate(partition, records)
        assert not out.letters, out.letters[0].reason
        return out.records


def expected(rows: Iterable[Mapping[str, str | None]], table: VectorTable) -> dict[bytes, Mapping[str, str | None]]:
    """Rows of a table by canonical key."""
    encode = key_encoder(table.active.key_codecs)
    names = [k.name for k in table.active.key]
    return {encode(tuple((row[n] or "").encode() for n in names)): row for row in rows}


def differences(
    store: Store, rows: Iterable[Mapping[str, str | None]], ignore: Iterable[str] = ()
) -> list[tuple[bytes, str, Any, Any]]:
    """(key, column, stored, wanted); a value that is read by key is right."""
    wanted, found = expected(rows, store.table), store.rows()
    out: list[tuple[bytes, str, Any, Any]] = [(k, "", "missing", "") for k in wanted.keys() - found.keys()]
    out += [(k, "", "orphaned", "") for k in found.keys() - wanted.keys()]
    for key in wanted.keys() & found.keys():
        for name in (c.name for c in store.table.active.source if c.name not in ignore):
            have, want = found[key][name], wanted[key][name]
            if store.table.active.source_column(name).base_type == "character" and isinstance(have, str):
                have = have.rstrip()  # the cast to text takes the padding, the type's own output keeps it
            if have is not UNREAD and have != want:
                out.append((key, name, have, want))
    return out
