"""Records of a Debezium topic -> records of `<table>.changes`, for one vector table. Sans-I/O.

What has no place among them is a letter: a record that cannot be read, a row of another table. Next: `bridge` polls,
appends and commits.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from cdc.debezium import Decoder, Event
from cdc.debezium_order import Bases, Lives, highest_sequence, position_of
from cdc.encoder import Batch, RowEncoder, TablePlan, Transaction
from cdc.pgoutput import UNCHANGED, Attribute, Relation, Tuple
from walvec.contracts.errors import DecodeError
from walvec.contracts.letters import DeadLetter
from walvec.contracts.position import ZERO, Position
from walvec.contracts.sources import Check
from walvec.definitions.model import TopicSource, VectorTable
from walvec.transport.records import Fetch, Record, StoredRecord

_PAYLOAD = 64 * 1024


@dataclass(slots=True)
class Bridged:
    """One poll's outcome. `snapshots`: that began in it, by partition; `cleared`: a partition of the source table was
    truncated alone, which no position can express."""

    records: list[Record] = field(default_factory=list)
    letters: list[DeadLetter] = field(default_factory=list)
    snapshots: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    sequence: int = 0
    events: int = 0
    in_row: int = 0
    """Records at the end of the batch that are letters, all of them if `events` is 0."""
    cleared: bool = False
    begins: bool = False
    """A connector began anew in it."""
    strange: str = ""
    commit_ms: int = 0

    def took(self) -> None:
        self.events += 1
        self.in_row = 0


@dataclass(frozen=True, slots=True)
class Parsed:
    """A record as far as it can be read alone."""

    partition: int
    record: StoredRecord
    event: Event | None
    error: DecodeError | None


class Translator:
    """`leaves`: partitions of the source table, as (schema, name), whose rows are the table's; `enums`: types' oids."""

    def __init__(
        self,
        table: VectorTable,
        source: TopicSource,
        *,
        epoch: int,
        topic: str,
        partitions: int,
        headers: bool,
        leaves: Collection[tuple[str, str]] = (),
        enums: Collection[int] = (),
    ) -> None:
        plan = TablePlan.of(table)
        columns = {c.name: c for g in table.live_generations for c in (*g.key, *g.used_columns)}
        self._table = table
        self._epoch = epoch
        self._names = {(table.source_schema, table.source_table), *leaves}
        self._root = (table.source_schema, table.source_table)
        self._decoder = Decoder(
            tuple(columns.values()), [name for name, _ in plan.key], source.unavailable_value, enums, self._names
        )
        attributes = tuple(Attribute(c.name, c.type_oid, -1, identity=True) for c in columns.values())
        relation = Relation(0, table.source_schema, table.source_table, "f", attributes)
        self._batch = Batch(topic, partitions, headers=headers)
        self._encoder = RowEncoder(plan, relation, self._batch, "")
        self._generations = plan.generations

    def parse(self, fetches: Sequence[Fetch]) -> list[Parsed]:
        found: list[Parsed] = []
        for fetch in fetches:
            for record in fetch.records:
                try:
                    event = self._decoder.decode(record.key, record.value)
                except DecodeError as e:
                    found.append(Parsed(fetch.partition, record, None, e))
                else:
                    found.append(Parsed(fetch.partition, record, event, None))
        return found

    def strangers(self, parsed: Sequence[Parsed]) -> bool:
        """Whether rows of an unknown table are among them: it may be a partition that was added meanwhile, and they
        have to be parsed again then."""
        return any(p.event is not None and (p.event.schema, p.event.table) not in self._names for p in parsed)

    def translate(
        self,
        parsed: Sequence[Parsed],
        bases: Mapping[int, Bases],
        lives: Lives,
        sequence: int,
        snapshots: Sequence[int],
    ) -> Bridged:
        """`bases` are told of the snapshots that begin here; `sequence`, `snapshots`: what is known of the table."""
        out = Bridged(sequence=sequence)
        known = sorted(snapshots)
        for item in parsed:
            event = item.event
            if item.error is not None:
                self._bury(out, item, item.error, ZERO)
            elif event is None:
                continue
            elif (event.schema, event.table) not in self._names:
                name = f"{event.schema}.{event.table}"
                root = f"{self._root[0]}.{self._root[1]}"
                error = DecodeError(
                    f"a change of table {name}, not of {root}.", f"Name the topic that has the changes of {root}."
                )
                out.strange = out.strange or name
                self._bury(out, item, error, ZERO)
            else:
                out.begins = lives.begins(event, out.sequence, known) or out.begins
                base = bases[item.partition]
                if base.meet(event, item.record.offset):
                    out.snapshots.setdefault(item.partition, []).append((item.record.offset, event.lsn))
                    known = sorted({*known, event.lsn})
                position = position_of(event, epoch=self._epoch, base=base.at(item.record.offset), snapshots=known)
                out.sequence = max(out.sequence, highest_sequence([event]))
                self._encode(out, item, event, position)
        out.records, self._batch.records, self._batch.size = self._batch.records, [], 0
        return out

    def _encode(self, out: Bridged, item: Parsed, event: Event, position: Position) -> None:
        out.commit_ms = max(out.commit_ms, event.commit_ms)
        encoder, ordinal = self._encoder, position.ordinal
        xid = 0 if event.op == "r" else event.xid
        encoder.begin(Transaction(self._epoch, position.lsn, xid, event.commit_ms))
        try:
            if event.op == "t":
                if (event.schema, event.table) == self._root:
                    encoder.truncate(ordinal)
                else:
                    out.cleared = True
            elif event.op == "d":
                assert event.before is not None
                encoder.delete(False, event.before, ordinal)
            elif event.op == "r":
                assert event.after is not None
                encoder.read(event.after, ordinal)
            elif event.before is None or event.op == "c":
                assert event.after is not None
                self._put(event, event.after, ordinal)
            else:
                self._update(event.before, event.after, ordinal)
        except DecodeError as e:
            rejected = encoder.reject(event.after or event.before or [], ordinal, e)
            self._bury(out, item, e, rejected.position, rejected.key)
            return
        out.took()

    def _put(self, event: Event, new: Tuple, ordinal: int) -> None:
        if event.op == "c":
            self._encoder.insert(new, ordinal)
        else:
            self._encoder.update(False, None, new, ordinal)

    def _update(self, old: Tuple, new: Tuple | None, ordinal: int) -> None:
        """An old image that is not whole has made-up values (Debezium writes '' or 0 where a column cannot be NULL), so
        it never fills a value in; the claim that it may prove is checked by the store."""
        assert new is not None
        known: Tuple = [UNCHANGED if n is UNCHANGED else o for o, n in zip(old, new, strict=True)]
        self._encoder.update(True, known, new, ordinal)

    def _bury(self, out: Bridged, item: Parsed, error: DecodeError, position: Position, key: bytes = b"") -> None:
        record = item.record
        reason = f"{error} (partition {item.partition}, offset {record.offset})"
        out.in_row += 1
        out.letters += [
            DeadLetter(
                self._table.id,
                number,
                key,
                "decode",
                reason,
                position,
                created_ms=record.timestamp_ms or int(time.time() * 1000),
                payload=record.value[:_PAYLOAD],
            )
            for number in self._generations
        ]


def judge(
    table: VectorTable,
    records: Mapping[int, Sequence[StoredRecord]],
    *,
    leaves: Collection[tuple[str, str]],
    enums: Collection[int],
) -> Check:
    """Whether a topic's records are changes of the table: some of them must be, if there are any but tombstones."""
    assert table.source is not None
    translator = Translator(
        table, table.source, epoch=0, topic="", partitions=1, headers=False, leaves=leaves, enums=enums
    )
    fetches = [Fetch(partition, found) for partition, found in records.items() if found]
    bases = {partition: Bases() for partition in records}
    out = translator.translate(translator.parse(fetches), bases, Lives(), 0, ())
    topic = table.source.kafka_topic
    if out.letters and not out.events:
        return Check("source_topic", False, f"{table.name}: topic {topic} holds {out.letters[-1].reason}", "")
    read = f"{out.events} of its last records are changes of the table" if out.events else "it has no records yet"
    return Check("source_topic", True, f"{table.name}: topic {topic}: {read}")
