"""Records of Debezium's Postgres connector -> row events. Sans-I/O.

Takes JSON with and without the schema envelope, every shape of the record's key, tombstones. Law: what is not a change
of the expected shape is a DecodeError that says what it is and what mends it; never a guess.
Next: `debezium_order` gives an event its position, `bridge` writes it to `<table>.changes`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import orjson

from cdc.debezium_values import FieldSchema, Values
from cdc.pgoutput import UNCHANGED, Tuple
from walvec.contracts.errors import DecodeError
from walvec.definitions.model import SourceColumn

EventOp = Literal["c", "u", "d", "r", "t"]
_OPS = frozenset(get_args(EventOp))
_NOT_SNAPSHOT = frozenset({"", "false", "incremental"})
_ENVELOPE = "Send the connector's own envelope to this topic, written by the JsonConverter."


@dataclass(frozen=True, slots=True)
class Event:
    """One change of one row, or a truncate.

    `lsn`: of the change's own record in the write-ahead log; `sequence`: the end of the commit that the connector had
    finished before, None while it has not seen one. `snapshot`: read by an initial or blocking snapshot (an incremental
    one is part of the stream). `before`, `after`: one value per column of the decoder, in its order.
    """

    op: EventOp
    lsn: int
    sequence: int | None
    xid: int
    commit_ms: int
    database: str
    schema: str
    table: str
    snapshot: bool
    before: Tuple | None
    after: Tuple | None


class Decoder:
    """For one vector table. `columns`: key columns and used columns, each once; `tables`: (schema, name) of those whose
    rows are its own. A row of another table is an event without values."""

    def __init__(
        self,
        columns: Sequence[SourceColumn],
        keys: Sequence[str],
        unavailable: str,
        enums: Collection[int],
        tables: Collection[tuple[str, str]],
    ) -> None:
        self._tables = frozenset(tables)
        self._columns = tuple(columns)
        self._keys = frozenset(keys)
        self._values = Values(unavailable, enums)

    def decode(self, key: bytes | None, value: bytes) -> Event | None:
        """None for a tombstone and for a logical message, which change no row. Raises DecodeError."""
        if not value:
            return None
        payload, schema = _unwrapped(_parsed(value))
        if payload is None or payload.get("op") == "m":
            return None
        op, source = payload.get("op"), payload.get("source")
        if op is None or not isinstance(source, Mapping):
            raise DecodeError(*_what_else(payload))
        if op not in _OPS:
            raise DecodeError(f"a record with the unknown op {op!r}.", _ENVELOPE)
        if source.get("connector", "postgresql") != "postgresql":
            raise DecodeError(
                f"a record of Debezium's {source['connector']} connector.", "Name the topic of a Postgres connector."
            )
        before, after = payload.get("before"), payload.get("after")
        snapshot = str(source.get("snapshot") or "").lower()
        try:
            before_it, at = _sequence(source.get("sequence"))
            own = (str(source["schema"]), str(source["table"])) in self._tables
            lsn: Any = at if source["lsn"] is None else source["lsn"]  # an incremental snapshot names it there alone
            return Event(
                op=op,
                lsn=int(lsn),
                sequence=before_it,
                xid=int(source.get("txId") or 0) & 0xFFFFFFFF,
                commit_ms=int(source.get("ts_ms") or payload.get("ts_ms") or 0),
                database=str(source.get("db", "")),
                schema=str(source["schema"]),
                table=str(source["table"]),
                snapshot=op == "r" and snapshot not in _NOT_SNAPSHOT,
                before=self._old(op, before, schema, key) if own else None,
                after=self._new(op, after, schema, key) if own else None,
            )
        except (KeyError, TypeError, ValueError) as e:
            raise DecodeError(
                f"a record whose source block lacks what its place in the log is told by ({e}).", _ENVELOPE
            ) from e

    def key_of(self, key: bytes | None) -> Tuple | None:
        """A row with the key's columns alone, where the record's own key gives them all."""
        fields, schema = _key_fields(key, self._keys)
        if not self._keys <= fields.keys():
            return None
        return self._row({k: fields[k] for k in self._keys}, schema)

    def _new(self, op: EventOp, row: Any, schema: FieldSchema | None, key: bytes | None) -> Tuple | None:
        if op in ("d", "t"):
            return None
        if not isinstance(row, Mapping):
            raise DecodeError(f"a record of op {op!r} without the row's values in `after`.", _ENVELOPE)
        return self._with_key(row, _part(schema, "after"), key)

    def _old(self, op: EventOp, row: Any, schema: FieldSchema | None, key: bytes | None) -> Tuple | None:
        if op == "d":
            return self._with_key(row if isinstance(row, Mapping) else {}, _part(schema, "before"), key)
        return self._row(row, _part(schema, "before")) if op == "u" and isinstance(row, Mapping) else None

    def _with_key(self, row: Mapping[str, Any], schema: FieldSchema | None, key: bytes | None) -> Tuple:
        """The row; key columns that it does not tell come from the record's key."""
        found = self._row(row, schema)
        lacking = [i for i, c in enumerate(self._columns) if c.name in self._keys and not isinstance(found[i], bytes)]
        if not lacking:
            return found
        told = self.key_of(key) if key else None
        for i in lacking:
            column = self._columns[i]
            if told is None or not isinstance(told[i], bytes):
                raise DecodeError(
                    f'a record that does not tell the key column "{column.name}".'
                    if column.name not in row
                    else f'a record whose key column "{column.name}" ({column.type}) cannot be told exactly.',
                    "Keep the column in the connector's records, keyed by it, and let its converter write schemas.",
                )
            found[i] = told[i]
        return found

    def _row(self, row: Mapping[str, Any], schema: FieldSchema | None) -> Tuple:
        """A column that the record lacks is read from the source, as an unchanged TOAST value is."""
        return [
            self._values.text(row[c.name], c, None if schema is None else schema.get(c.name, {}))
            if c.name in row
            else UNCHANGED
            for c in self._columns
        ]


def _parsed(value: bytes) -> Mapping[str, Any]:
    if value[:1] == b"\x00":
        raise DecodeError(
            "a record in Avro or Protobuf (it begins with the id of a schema registry).",
            "Let the connector write JSON: value.converter=org.apache.kafka.connect.json.JsonConverter.",
        )
    try:
        found = orjson.loads(value)
    except orjson.JSONDecodeError as e:
        raise DecodeError("a record that is not JSON.", _ENVELOPE) from e
    if found is None:
        return {"schema": None, "payload": None}
    if not isinstance(found, Mapping):
        raise DecodeError("a record that is not a JSON object.", _ENVELOPE)
    return found


def _unwrapped(record: Mapping[str, Any]) -> tuple[Mapping[str, Any] | None, FieldSchema | None]:
    """(payload or None, the fields' schemas by name or None)."""
    if record.keys() != {"schema", "payload"}:
        return record, None
    payload = record["payload"]
    if payload is not None and not isinstance(payload, Mapping):
        raise DecodeError("a record whose payload is not an object.", _ENVELOPE)
    return payload, _fields(record["schema"])


def _fields(schema: Any) -> FieldSchema | None:
    if not isinstance(schema, Mapping) or not isinstance(schema.get("fields"), list):
        return None
    return {f["field"]: f for f in schema["fields"] if isinstance(f, Mapping) and "field" in f}


def _part(schema: FieldSchema | None, name: str) -> FieldSchema | None:
    return None if schema is None else _fields(schema.get(name))


def _key_fields(key: bytes | None, names: frozenset[str]) -> tuple[Mapping[str, Any], FieldSchema | None]:
    """The key's values by name; a bare value is that of a single key column."""
    if not key:
        return {}, None
    try:
        found = orjson.loads(key)
    except orjson.JSONDecodeError:
        found = key.decode(errors="replace")
    schema: FieldSchema | None = None
    if isinstance(found, Mapping) and found.keys() == {"schema", "payload"}:
        schema, found = _fields(found["schema"]), found["payload"]
    if isinstance(found, Mapping):
        return found, schema
    return ({next(iter(names)): found}, None) if len(names) == 1 and found is not None else ({}, None)


def _sequence(told: Any) -> tuple[int | None, int | None]:
    """(end of the last finished commit, LSN of the change)."""
    parts = orjson.loads(told) if isinstance(told, str) else told
    last, at = parts or (None, None)
    return None if last is None else int(last), None if at is None else int(at)


def _what_else(payload: Mapping[str, Any]) -> tuple[str, str]:
    """A record without op or source: what it is, and what mends it."""
    if "walvec" in payload:
        return "a record of walvec's own.", "Name the topic that Debezium writes."
    if "status" in payload and "event_count" in payload:
        return "a record of transaction metadata.", "Name the table's own topic, not the transactions'."
    if "databaseName" in payload or "tableChanges" in payload:
        return "a record of a schema change.", "Name the table's own topic."
    if set(payload) <= {"ts_ms"}:
        return "a heartbeat.", "Name the table's own topic, not the heartbeats'."
    return (
        "a record without Debezium's envelope, flattened perhaps: its place in the log is not told.",
        "Take the transform ExtractNewRecordState (unwrap) off this topic, or write a second topic without it.",
    )
