"""Raw column values -> records of `.changes`, for one vector table. The reader's hot path.

The format is `walvec.contracts.wire`'s; here it is written column by column from fragments that are prepared once per
relation and once per transaction, without building a Change. A test holds that both write the same. Next: `publisher`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import orjson

from cdc.compiled import compile_row
from cdc.pgoutput import UNCHANGED, Relation, Tuple, Value
from walvec.contracts.changes import ALL_GENERATIONS
from walvec.contracts.errors import DecodeError, TableChanged
from walvec.contracts.headers import CONTENT_TYPE_HEADER, SCHEMA_HEADER, TRACE, Headers, span, trace
from walvec.contracts.position import Position
from walvec.contracts.values import TEXT, Codec, codec, key_encoder
from walvec.contracts.wire import VERSION
from walvec.definitions.model import Generation, VectorTable
from walvec.transport.records import Record

_dumps = orjson.dumps
_new_tuple = tuple.__new__  # a NamedTuple's own constructor costs twice as much
_Step = tuple[bytes, int, Callable[[bytes], bytes]]
_AGAIN = "Apply the definition again; the table is read anew then."


@dataclass(frozen=True, slots=True)
class Transaction:
    """What all rows of one transaction share."""

    epoch: int
    commit_lsn: int
    xid: int
    commit_ms: int


_NO_TRANSACTION = Transaction(0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row whose values cannot be written as a record: a dead letter of kind `decode`. `key` b"" = not even that."""

    table_id: str
    generations: tuple[int, ...]
    key: bytes
    position: Position
    reason: str


@dataclass(slots=True, eq=False)
class Batch:
    """Records in hand for one topic, in the order of the stream. `headers`: the log keeps them.

    `oldest_ms`, `newest_ms`: commit time of the first record's and of the last transaction.
    """

    topic: str
    partitions: int
    headers: bool = False
    records: list[Record] = field(default_factory=list)
    size: int = 0
    oldest_ms: int = 0
    newest_ms: int = 0

    def begin(self, commit_ms: int) -> None:
        """A transaction's records follow."""
        self.newest_ms = commit_ms
        if not self.records:
            self.oldest_ms = commit_ms

    def take(self) -> tuple[list[Record], int, int]:
        """All records, their size, the oldest's commit time. What follows may be of the last one's transaction."""
        taken = self.records, self.size, self.oldest_ms
        self.records, self.size, self.oldest_ms = [], 0, self.newest_ms
        return taken


@dataclass(frozen=True, slots=True)
class ColumnPlan:
    """How one used column travels. `exact`: its text always travels beside it."""

    name: str
    codec: Codec
    exact: bool
    embedded: bool


@dataclass(frozen=True, slots=True)
class TablePlan:
    """What a vector table needs of its source rows, over all generations that changes are applied to."""

    table_id: str
    name: str
    generations: tuple[int, ...]
    newest: int
    """The highest number that was given: who does not know it must not take a record for done."""
    schema: str
    source_table: str
    key: tuple[tuple[str, Codec], ...]
    columns: tuple[ColumnPlan, ...]
    types: tuple[tuple[str, int, str], ...]

    @classmethod
    def of(cls, table: VectorTable) -> TablePlan:
        live = table.live_generations
        names = dict.fromkeys(s.name for g in live for s in g.used_columns)
        # each generation's own record of them, the active one's first: it is to blame before what is built is
        serving = sorted(live, key=lambda g: g.state != "active")
        types = dict.fromkeys((c.name, c.type_oid, c.type) for g in serving for c in (*g.key, *g.used_columns))
        newest = max(live, key=lambda g: g.number)
        return cls(
            table.id,
            table.name,
            tuple(g.number for g in live),
            table.next_generation - 1,
            table.source_schema,
            table.source_table,
            newest.key_codecs,
            tuple(_column_plan(name, live) for name in names),
            tuple(types),
        )


def _column_plan(name: str, generations: tuple[Generation, ...]) -> ColumnPlan:
    using = [g for g in generations if any(c.name == name for c in g.columns)]
    typed = any(c.name == name for g in using for c in g.metadata_columns)
    recorded = using[-1].source_column(name).codec
    embedded = any(name in g.embedding_columns for g in using)
    chosen = codec(recorded if typed or recorded == "bool" else "text")
    return ColumnPlan(name, chosen, embedded and (chosen.name == "bytea" or not chosen.same_text), embedded)


def check_relation(plan: TablePlan, relation: Relation) -> None:
    """Raises TableChanged when a used column is gone, or has another type, or the key would not be sent."""
    present = {c.name: c for c in relation.columns}
    for name, type_oid, type_name in plan.types:
        found = present.get(name)
        if found is None:
            raise TableChanged(
                f'column "{name}" of {plan.schema}.{plan.source_table} was dropped or renamed.',
                f"Name an existing column in the definition of {plan.name}. {_AGAIN}",
                column=name,
            )
        if found.type_oid != type_oid:
            raise TableChanged(
                f'column "{name}" of {plan.schema}.{plan.source_table} is not of type {type_name} any more.',
                _AGAIN,
                column=name,
                recorded=type_oid,
            )
    hidden = [name for name, _ in plan.key if not present[name].identity]
    if hidden:
        raise TableChanged(
            f"the replica identity of {plan.schema}.{plan.source_table} does not hold its key column "
            f'"{hidden[0]}": changed and deleted rows could not be told.',
            f'ALTER TABLE "{plan.schema}"."{plan.source_table}" REPLICA IDENTITY FULL; then resume {plan.name}.',
        )


class RowEncoder:
    """Writes the changes of one relation for one vector table into a batch."""

    def __init__(self, plan: TablePlan, relation: Relation, batch: Batch, database: str) -> None:
        check_relation(plan, relation)
        at = {c.name: i for i, c in enumerate(relation.columns)}
        self.batch = batch
        self.plan = plan
        self.transaction = _NO_TRANSACTION
        self._key_at = tuple(at[name] for name, _ in plan.key)
        self._first_key = self._key_at[0]
        self._one_key = len(self._key_at) == 1
        self._write_key = key_encoder(plan.key)
        heads = [(c, at[c.name], _dumps(c.name) + b":") for c in plan.columns]
        self._texts = [(h, i) for c, i, h in heads if c.codec is TEXT]
        self._numbers = [(h, i) for c, i, h in heads if c.codec.name == "int"]
        self._coded: list[_Step] = [(h, i, c.codec.encode) for c, i, h in heads if c.codec.name not in ("int", "text")]
        self._exact = [
            (h, i, None if c.exact else c.codec.same_value)
            for c, i, h in heads
            if c.exact or c.codec.same_value is not None
        ]
        self._old: list[_Step] = [
            (h, i, c.codec.encode if c.codec.name == "bool" else TEXT.encode) for c, i, h in heads if c.embedded
        ]
        self._used = [(c.name, i) for c, i, _ in heads]
        names = {"db": database, "schema": plan.schema, "table": plan.source_table, "snapshot": "false"}
        self._source = _dumps(names)[:-1]
        # the first generation is known to whoever knows the table
        self._newest = b'"newest":%d,' % plan.newest if plan.newest > 1 else b""
        self._tail = b""
        self._trace = b""
        places = [i for _, i in (*self._texts, *self._numbers)] + [i for _, i, _ in self._coded]
        self._fields = b",".join(_template(_dumps(relation.columns[i].name)) + b":%b" for i in places)
        self._created = self._updated = b""
        self._read = compile_row(
            len(relation.columns),
            {at[c.name]: c.codec for c in plan.columns},
            places,
            [(name, at[name], codec) for name, codec in plan.key],
            [i for _, i, _ in self._exact],
            self._exact_of,
        )

    def begin(self, transaction: Transaction) -> None:
        """Prepares what all records of this transaction end with."""
        self.transaction = t = transaction
        self.batch.begin(t.commit_ms)
        xid = (b'"xid":%d,' % t.xid if t.xid else b"") + self._newest
        self._tail = b'},"source":%b,"lsn":%d,"txId":%d,"ts_ms":%d},"ts_ms":%d,"walvec":{"v":%d,"generation":%d,%b' % (
            (self._source, t.commit_lsn, t.xid, t.commit_ms, t.commit_ms, VERSION, ALL_GENERATIONS, xid)
        ) + b'"position":[%d,%d,' % (t.epoch, t.commit_lsn)
        self._trace = trace(t.epoch, t.commit_lsn)
        rest = self._fields + _template(self._tail) + (b"%d]%b}}" if self._exact else b"%d]}}")
        self._created = _template(_CREATED) + rest
        self._updated = _template(_UPDATED) + rest

    # ------------------------------------------------------------------ one method per kind of change

    def plain(self, data: bytes, at: int, ordinal: int, *, created: bool) -> bool:
        """Writes an INSERT, or an UPDATE without an old tuple, whose new tuple's marker stands at `at`. False = nothing
        was written: it is not plain, and the methods below say what it is."""
        try:
            found = self._read(data, at, self._created if created else self._updated, ordinal)
        except (DecodeError, IndexError, TypeError, ValueError, struct.error):
            return False
        if found is None:
            return False
        key, value = found
        batch = self.batch
        batch.records.append(_new_tuple(Record, (key, value, None, self._headers(ordinal) if batch.headers else ())))
        batch.size += len(value)
        return True

    def insert(self, new: Tuple, ordinal: int) -> None:
        self._put(self._key(new), _CREATED, new, ordinal)

    def read(self, row: Tuple, ordinal: int) -> None:
        """A row that somebody else's snapshot has read."""
        self._put(self._key(row), _SNAPSHOT, row, ordinal)

    def update(self, whole: bool, old: Tuple | None, new: Tuple, ordinal: int) -> None:
        """`ordinal` is the last one of this UPDATE; with an old tuple it has the one before as well."""
        if old is None:
            self._put(self._key(new), _UPDATED, new, ordinal)
            return
        for i in self._key_at:
            if new[i] is UNCHANGED:
                new[i] = old[i]
        if whole and UNCHANGED in new:
            new = [o if n is UNCHANGED else n for o, n in zip(old, new, strict=True)]
        key = self._key(new)
        old_key = self._key(old)
        if old_key != key:
            self._remove(old_key, old if whole else None, ordinal - 1)
            self._put(key, _CREATED, new, ordinal)
            return
        before = self._before(old) if whole else b"null"
        self._put(key, b'{"op":"u","before":%b,"after":{' % before, new, ordinal)

    def delete(self, whole: bool, old: Tuple, ordinal: int) -> None:
        self._remove(self._key(old), old if whole else None, ordinal)

    def truncate(self, ordinal: int) -> None:
        """One marker in every partition: whoever reads one sees the order of it and its rows."""
        value = b'{"op":"t","before":null,"after":null%b%d]}}' % (self._tail[1:], ordinal)
        headers = self._headers(ordinal)
        for partition in range(self.batch.partitions):
            self.batch.records.append(Record(None, value, partition, headers))
        self.batch.size += len(value) * self.batch.partitions

    def reject(self, tuple_with_key: Tuple, ordinal: int, error: Exception) -> Rejected:
        """The letter of a row that raised; where its key can be written, a delete takes the older text away."""
        position = Position(self.transaction.epoch, self.transaction.commit_lsn, ordinal)
        try:
            key = self._key(tuple_with_key)
        except DecodeError:
            key = b""
        else:
            self._remove(key, None, ordinal)
        return Rejected(self.plan.table_id, self.plan.generations, key, position, str(error))

    # ------------------------------------------------------------------ fragments

    def _headers(self, ordinal: int) -> Headers:
        """As `headers_of` its position; none where the log drops them."""
        if not self.batch.headers:
            return ()
        return (CONTENT_TYPE_HEADER, SCHEMA_HEADER, (TRACE, self._trace + span(ordinal)))

    def _key(self, values: Tuple) -> bytes:
        if self._one_key:
            raw = values[self._first_key]
            if raw.__class__ is bytes:
                return self._write_key((raw,))
        raws = tuple(values[i] for i in self._key_at)
        for raw in raws:
            if raw.__class__ is not bytes:
                raise DecodeError(
                    f"a key column of {self.plan.schema}.{self.plan.source_table} came without its value.",
                    f'ALTER TABLE "{self.plan.schema}"."{self.plan.source_table}" REPLICA IDENTITY FULL.',
                )
        return self._write_key(raws)  # type: ignore[arg-type]

    def _put(self, key: bytes, head: bytes, values: Tuple, ordinal: int) -> None:
        if UNCHANGED in values:
            self._put_partial(key, head, values, ordinal)
            return
        try:
            parts = [
                h + (_dumps(str(raw, "utf-8")) if (raw := values[i]) is not None else b"null")  # type: ignore[arg-type]
                for h, i in self._texts
            ]
        except (UnicodeDecodeError, orjson.JSONEncodeError) as e:
            raise DecodeError(_NOT_UTF8) from e
        if self._numbers:
            parts += [h + (values[i] or b"null") for h, i in self._numbers]  # type: ignore[operator]
        if self._coded:
            parts += [h + (encode(raw) if (raw := values[i]) is not None else b"null") for h, i, encode in self._coded]  # type: ignore[arg-type]
        exact = self._exact_block(values) if self._exact else b""
        value = b"%b%b%b%d]%b}}" % (head, b",".join(parts), self._tail, ordinal, exact)
        batch = self.batch
        headers = self._headers(ordinal) if batch.headers else ()
        batch.records.append(_new_tuple(Record, (key, value, None, headers)))
        batch.size += len(value)

    def _put_partial(self, key: bytes, head: bytes, values: Tuple, ordinal: int) -> None:
        """As `_put`, for a row with unchanged TOAST columns: they are listed, not guessed."""
        parts = [h + _fragment(values[i], TEXT.encode) for h, i in self._texts if _known(values[i])]
        parts += [h + (values[i] or b"null") for h, i in self._numbers if _known(values[i])]  # type: ignore[operator]
        parts += [h + _fragment(values[i], encode) for h, i, encode in self._coded if _known(values[i])]
        missing = [name for name, i in self._used if values[i] is UNCHANGED]
        listed = b',"unchanged":' + _dumps(missing) if missing else b""
        value = b"%b%b%b%d]%b%b}}" % (
            head, b",".join(parts), self._tail, ordinal, self._exact_block(values), listed,
        )  # fmt: skip
        self.batch.records.append(Record(key, value, None, self._headers(ordinal)))
        self.batch.size += len(value)

    def _remove(self, key: bytes, old: Tuple | None, ordinal: int) -> None:
        before = b"null" if old is None else self._before(old)
        value = b'{"op":"d","before":%b,"after":null%b%d]}}' % (before, self._tail[1:], ordinal)
        self.batch.records.append(Record(key, value, None, self._headers(ordinal)))
        self.batch.size += len(value)

    def _before(self, old: Tuple) -> bytes:
        if any(old[i] is UNCHANGED for _, i, _ in self._old):
            return b"null"
        return b"{" + b",".join([h + _fragment(old[i], encode) for h, i, encode in self._old]) + b"}"

    def _exact_block(self, values: Tuple) -> bytes:
        return self._exact_of([values[i] for _, i, _ in self._exact])

    def _exact_of(self, raws: Sequence[Value]) -> bytes:
        found = []
        for (head, _, same_value), raw in zip(self._exact, raws, strict=True):
            if isinstance(raw, bytes) and (same_value is None or not same_value(raw)):
                found.append(head + TEXT.encode(raw))
        return b',"exact":{' + b",".join(found) + b"}" if found else b""


class Unfit:
    """Stands where a RowEncoder would, for a relation that no longer fits its table: the first row raises."""

    def __init__(self, plan: TablePlan, reason: TableChanged) -> None:
        self.plan = plan
        self.reason = reason
        self.transaction = _NO_TRANSACTION

    def begin(self, transaction: Transaction) -> None:
        self.transaction = transaction

    def plain(self, data: bytes, at: int, ordinal: int, *, created: bool) -> bool:
        return False

    def insert(self, new: Tuple, ordinal: int) -> None:
        raise self.reason

    def update(self, whole: bool, old: Tuple | None, new: Tuple, ordinal: int) -> None:
        raise self.reason

    def delete(self, whole: bool, old: Tuple, ordinal: int) -> None:
        raise self.reason

    def truncate(self, ordinal: int) -> None:
        raise self.reason


_CREATED = b'{"op":"c","before":null,"after":{'
_SNAPSHOT = b'{"op":"r","before":null,"after":{'
_UPDATED = b'{"op":"u","before":null,"after":{'
_NOT_UTF8 = "the source sent text that is not UTF-8."


def _template(fragment: bytes) -> bytes:
    return fragment.replace(b"%", b"%%")


def _known(value: Value) -> bool:
    return value is not UNCHANGED


def _fragment(value: Value, encode: Callable[[bytes], bytes]) -> bytes:
    return encode(value) if isinstance(value, bytes) else b"null"
