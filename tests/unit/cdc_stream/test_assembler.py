"""Frames in, records out: positions, key changes, TOAST, TRUNCATE, changed schemas; what `wire` would write."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdc.assembler import Assembler, Fed
from cdc.encoder import Batch, TablePlan
from cdc.pgoutput import UNCHANGED, Binary, Relation, Value
from tests.integration.cdc_world import column, key, vector_table
from tests.unit.cdc_stream import wire_source as wire
from walvec.contracts.changes import Change
from walvec.contracts.errors import DecodeError
from walvec.contracts.headers import headers_of
from walvec.contracts.position import Position
from walvec.contracts.wire import decode_change, encode_change
from walvec.definitions.model import SourceColumn, VectorTable

COLUMNS = (("id", 23), ("name", 25), ("doc", 3802), ("price", 701), ("on", 16))
RELATION = Relation(50, "public", "items", "d", wire.attributes(*COLUMNS))


def items(**more: object) -> VectorTable:
    return vector_table(
        "items",
        columns=(column("name"), column("on", 16)),
        metadata=(column("doc", 3802), column("price", 701)),
        **more,  # type: ignore[arg-type]
    )


class Stream:
    """Feeds one transaction at a time."""

    def __init__(self, *tables: VectorTable, relation: Relation = RELATION, partitions: int = 2) -> None:
        self.assembler = Assembler(3, "shop")
        self.batches = {t.id: Batch(t.id, partitions) for t in tables}
        for t in tables:
            self.assembler.route(TablePlan.of(t), self.batches[t.id])
        self.assembler.feed([wire.frame(wire.relation(relation))])
        self.lsn = 100

    def transaction(self, *payloads: bytes) -> Fed:
        self.lsn += 100
        frames = [wire.begin(self.lsn), *payloads, wire.commit(self.lsn, self.lsn + 8)]
        return self.assembler.feed([wire.frame(p) for p in frames])

    def changes(self, table: VectorTable) -> list[Change]:
        batch = self.batches[table.id]
        records, batch.records = batch.records, []
        return [decode_change(r.key, r.value) for r in records]


def row(*values: object) -> list[Value]:
    return [v if v is None or v is UNCHANGED or isinstance(v, bytes | Binary) else str(v).encode() for v in values]  # type: ignore[misc]


@pytest.fixture
def table() -> VectorTable:
    return items()


def test_ordinals_depend_on_messages_alone(table: VectorTable) -> None:
    s = Stream(table)
    other = 99
    s.transaction(
        wire.insert(other, row(1)),  # 1
        wire.insert(50, row(1, "a", None, None, "t")),  # 2
        wire.update(other, row(2), row(1)),  # 3 4
        wire.update(50, row(1, "b", None, None, "t")),  # 5
        wire.update(50, row(1, "c", None, None, "t"), row(1, "b", None, None, "t"), b"O"),  # 6 7
        wire.truncate(other, 50),  # 8 9
        wire.delete(50, row(1, None, None, None, None)),  # 10
    )
    found = s.changes(table)
    assert [(c.op, c.position.ordinal) for c in found] == [("c", 2), ("u", 5), ("u", 7), ("t", 9), ("t", 9), ("d", 10)]
    assert {c.position.lsn for c in found} == {200}
    assert {c.position.epoch for c in found} == {3}


def test_stamp_ordinal_changes_count_from_one(table: VectorTable) -> None:
    s = Stream(table)
    for _ in range(2):
        s.transaction(wire.insert(50, row(1, "a", None, None, "t")))
    assert [c.position for c in s.changes(table)] == [Position(3, 200, 1), Position(3, 300, 1)]


@pytest.mark.parametrize("kind", [b"K", b"O"])
def test_key_change_is_delete_and_create(table: VectorTable, kind: bytes) -> None:
    s = Stream(table)
    old = row(1, "a", "{}", "1", "t") if kind == b"O" else row(1, None, None, None, None)
    s.transaction(wire.update(50, row(2, "a", "{}", "1", "t"), old, kind))
    gone, made = s.changes(table)
    assert (gone.op, gone.key, gone.position.ordinal) == ("d", key(id=1), 1)
    assert (made.op, made.key, made.position.ordinal) == ("c", key(id=2), 2)
    assert gone.before == ({"name": "a", "on": True} if kind == b"O" else None)
    assert made.after == {"name": "a", "on": True, "doc": {}, "price": 1}


def test_unchanged_toast_is_listed_and_filled_from_the_old_image(table: VectorTable) -> None:
    s = Stream(table)
    new = row(1, UNCHANGED, UNCHANGED, "2", "f")
    s.transaction(wire.update(50, new), wire.update(50, new, row(1, "long", '{"a":1}', "1", "t"), b"O"))
    partial, whole = s.changes(table)
    assert partial.unchanged == ("name", "doc")
    assert partial.after == {"price": 2, "on": False}
    assert whole.unchanged == ()
    assert whole.after == {"name": "long", "doc": {"a": 1}, "price": 2, "on": False}
    assert whole.before == {"name": "long", "on": True}
    assert whole.old_text_of("on") == "true"


def test_unchanged_toast_key_is_filled_from_the_old_key() -> None:
    t = vector_table("items", key=(column("id"),), columns=(column("name"),))
    s = Stream(t, relation=Relation(50, "public", "items", "d", wire.attributes(("id", 25), ("name", 25))))
    s.transaction(wire.update(50, row(UNCHANGED, "b"), row("long key", None)))
    assert [(c.op, c.key) for c in s.changes(t)] == [("u", key(id="long key"))]


def test_null_in_an_old_key_tuple_means_not_sent(table: VectorTable) -> None:
    s = Stream(table)
    s.transaction(wire.update(50, row(1, UNCHANGED, None, None, "t"), row(1, None, None, None, None)))
    (change,) = s.changes(table)
    assert change.op == "u"
    assert change.unchanged == ("name",)
    assert change.before is None


def test_truncate_reaches_every_partition_of_every_table() -> None:
    one, two = items(), items(table_id="vt_00000002")
    s = Stream(one, two, partitions=3)
    s.transaction(wire.truncate(50))
    for t in (one, two):
        assert [r.partition for r in s.batches[t.id].records] == [0, 1, 2]
        assert {(c.op, c.position.ordinal, c.key) for c in s.changes(t)} == {("t", 1, b"")}


def test_composite_key_in_index_order() -> None:
    t = vector_table("items", key=(column("b"), column("id", 23)), columns=(column("name"),))
    s = Stream(
        t, relation=Relation(50, "public", "items", "d", wire.attributes(*COLUMNS[:2], ("b", 25), key=("id", "b")))
    )
    s.transaction(wire.insert(50, row(7, "n", "x")))
    assert s.changes(t)[0].key == b'{"b":"x","id":7}'


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ((("id", 23), ("title", 25), *COLUMNS[2:]), 'column "name"'),
        ((("id", 23), ("name", 1043), *COLUMNS[2:]), "type"),
        ((("key", 23), *COLUMNS[1:]), 'column "id"'),
    ],
)
def test_a_changed_column_stops_that_table_only(changed: tuple[tuple[str, int], ...], words: str) -> None:
    hit, free = items(), vector_table("other", columns=(column("on", 16),), table_id="vt_00000002")
    s = Stream(hit, free)
    s.transaction(wire.insert(50, row(1, "a", None, None, "t")))
    other = wire.relation(Relation(60, "public", "other", "d", wire.attributes(("id", 23), ("on", 16))))
    fed = s.transaction(
        wire.relation(Relation(50, "public", "items", "d", wire.attributes(*changed))),
        wire.insert(50, row(2, "b", None, None, "t")),
        other,
        wire.insert(60, row(1, "t")),
    )
    ((table_id, error),) = fed.changed
    assert table_id == hit.id
    assert words in error.message
    assert error.cure
    assert len(s.changes(hit)) == 1
    assert len(s.changes(free)) == 1


def test_an_added_column_changes_nothing(table: VectorTable) -> None:
    s = Stream(table)
    grown = Relation(50, "public", "items", "d", wire.attributes(("new", 23), *COLUMNS))
    fed = s.transaction(wire.relation(grown), wire.insert(50, row(5, 1, "a", None, None, "t")))
    assert not fed.changed
    assert [c.key for c in s.changes(table)] == [key(id=1)]


def test_a_renamed_table_stops(table: VectorTable) -> None:
    s = Stream(table)
    fed = s.transaction(wire.relation(Relation(50, "public", "items_old", "d", RELATION.columns)))
    assert [t for t, _ in fed.changed] == [table.id]


def test_a_table_made_anew_under_its_name_goes_on(table: VectorTable) -> None:
    s = Stream(table)
    s.transaction(
        wire.relation(Relation(51, "public", "items", "d", RELATION.columns)),
        wire.insert(51, row(1, "a", None, None, "t")),
    )
    assert len(s.changes(table)) == 1


def test_an_identity_without_the_key_stops_the_table(table: VectorTable) -> None:
    s = Stream()
    s.assembler.route(TablePlan.of(table), Batch("t", 1))
    fed = s.transaction(wire.relation(Relation(50, "public", "items", "i", wire.attributes(*COLUMNS, key=("name",)))))
    assert "REPLICA IDENTITY FULL" in fed.changed[0][1].cure


def test_routes_follow_in_mid_transaction(table: VectorTable) -> None:
    s = Stream(table)
    s.assembler.feed([wire.frame(p) for p in (wire.begin(900), wire.insert(50, row(1, "a", None, None, "t")))])
    s.assembler.drop(table.id)
    s.assembler.feed([wire.frame(wire.insert(50, row(2, "a", None, None, "t")))])
    s.assembler.route(TablePlan.of(table), s.batches[table.id])
    s.assembler.feed([wire.frame(wire.insert(50, row(3, "a", None, None, "t")))])
    assert [(c.key, c.position.ordinal) for c in s.changes(table)] == [(key(id=1), 1), (key(id=3), 3)]


def test_a_row_that_cannot_be_written_is_rejected_with_a_delete(table: VectorTable) -> None:
    s = Stream(table)
    fed = s.transaction(
        wire.insert(50, [b"1", b"\xff", None, None, b"t"]),
        wire.insert(50, [b"2", Binary(b"x"), None, None, b"t"]),
        wire.insert(50, row(3, "ok", None, None, "t")),
    )
    assert [(r.key, r.position.ordinal, r.table_id) for r in fed.rejected] == [
        (key(id=1), 1, table.id),
        (key(id=2), 2, table.id),
    ]
    assert [(c.op, c.key) for c in s.changes(table)] == [("d", key(id=1)), ("d", key(id=2)), ("c", key(id=3))]


def test_keepalives_move_it_between_transactions_only(table: VectorTable) -> None:
    s = Stream(table)
    fed = s.assembler.feed([wire.keepalive(500, reply=True)])
    assert (fed.reached, fed.reply_wanted) == (500, True)
    fed = s.assembler.feed([wire.frame(wire.begin(600)), wire.keepalive(600)])
    assert fed.reached == 0
    fed = s.assembler.feed([wire.frame(wire.commit(600, 640)), wire.frame(wire.message(700, b"{}"))])
    assert fed.commits == [(700, 600)]
    assert fed.reached == 700
    assert fed.messages[0].content == b"{}"


def test_a_row_outside_a_transaction_is_an_error(table: VectorTable) -> None:
    s = Stream(table)
    with pytest.raises(DecodeError):
        s.assembler.feed([wire.frame(wire.insert(50, row(1, "a", None, None, "t")))])


values = st.one_of(
    st.none(), st.just(UNCHANGED), st.text(max_size=8).filter(lambda s: "\0" not in s and s.isprintable())
)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["c", "u", "o", "d"]), values, st.sampled_from([None, '{"a": 1.10}', "[]", UNCHANGED]), st.floats()
)
def test_the_encoder_writes_what_wire_writes(op: str, name: object, doc: object, price: float) -> None:
    table = items()
    s = Stream(table)
    if op in ("c", "d"):
        name, doc = (None if v is UNCHANGED else v for v in (name, doc))
    raw_price = {"inf": "Infinity", "-inf": "-Infinity", "nan": "NaN"}.get(str(price), repr(price))
    new = row(4, name, doc, raw_price, "t")
    old = row(4, "before", None, "1", "f")
    payload = {
        "c": wire.insert(50, new),
        "u": wire.update(50, new),
        "o": wire.update(50, new, old, b"O"),
        "d": wire.delete(50, old, b"O"),
    }[op]
    s.transaction(payload)
    (record,) = s.batches[table.id].records
    change = decode_change(record.key, record.value)
    again = encode_change(change, source=orjson.loads(record.value)["source"])
    assert decode_change(record.key, again) == change
    assert orjson.loads(again) == orjson.loads(record.value)
    assert change.key == key(id=4)
    assert orjson.loads(record.value)["source"] == {
        "db": "shop", "schema": "public", "table": "items", "snapshot": "false",
        "lsn": 200, "txId": 700, "ts_ms": wire.EPOCH + 5,
    }  # fmt: skip
    if op != "d":
        known: list[tuple[str, object]] = [("name", name), ("doc", doc)]
        for column_name, value in known:
            if value is UNCHANGED:
                assert column_name in change.unchanged if op != "o" else column_name in (change.after or {})
            else:
                assert change.text_of(column_name) == value or column_name == "doc"
        if doc is not UNCHANGED and doc is not None:
            assert change.exact.get("doc", doc) == doc


def test_columns_in_both_roles_keep_their_text() -> None:
    both: Sequence[SourceColumn] = (column("price", 701),)
    table = vector_table("items", columns=both, metadata=both)
    s = Stream(table)
    s.transaction(wire.insert(50, row(1, "a", None, "1.50", "t")))
    (change,) = s.changes(table)
    assert change.after == {"price": 1.5}
    assert change.text_of("price") == "1.50"


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutated_streams_give_only_decode_errors(draw: st.DataObject) -> None:
    s = Stream(items())
    frames = [
        wire.frame(p)
        for p in (
            wire.begin(900), wire.relation(RELATION), wire.insert(50, row(1, "a", "{}", "1", "t")),
            wire.update(50, row(2, "a", "{}", "1", "t"), row(1, "a", "{}", "1", "t"), b"O"),
            wire.delete(50, row(2, None, None, None, None)), wire.truncate(50), wire.commit(900, 950),
        )
    ]  # fmt: skip
    i = draw.draw(st.integers(0, len(frames) - 1))
    mutated = bytearray(frames[i])
    for _ in range(draw.draw(st.integers(0, 3))):
        mutated[draw.draw(st.integers(0, len(mutated) - 1))] = draw.draw(st.integers(0, 255))
    frames[i] = bytes(mutated[: draw.draw(st.integers(0, len(mutated)))])
    with suppress(DecodeError):
        s.assembler.feed(frames)


def test_a_mended_table_waits_for_the_relation_before_it_is_judged(table: VectorTable) -> None:
    broken = Relation(50, "public", "items", "d", wire.attributes(("id", 23), ("title", 25), *COLUMNS[2:]))
    for mended in (True, False):
        s = Stream()
        s.transaction(wire.relation(broken))
        batch = s.batches[table.id] = Batch("t", 1)
        s.assembler.route(TablePlan.of(table), batch)
        assert s.assembler.wants(table.id)
        announced = [wire.relation(RELATION)] if mended else []
        fed = s.transaction(*announced, wire.insert(50, row(1, "a", None, None, "t")))
        assert [t for t, _ in fed.changed] == ([] if mended else [table.id])
        assert len(s.changes(table)) == (1 if mended else 0)


def test_known_generation_is_told_in_records_of_all_generations() -> None:
    one = items()
    building = replace(one.generations[0], number=3, state="building")
    for table, newest in ((one, 0), (replace(one, generations=(*one.generations, building)), 3)):
        s = Stream(table, partitions=1)
        s.transaction(wire.insert(50, row(1, "a", None, None, "t")), wire.delete(50, row(1)), wire.truncate(50))
        assert [(c.op, c.generation, c.newest) for c in s.changes(table)] == [(op, 0, newest) for op in "cdt"]


@pytest.mark.parametrize("kept", [True, False])
def test_every_record_has_the_headers_of_its_position_where_the_log_keeps_them(table: VectorTable, kept: bool) -> None:
    s = Stream(table)
    s.batches[table.id].headers = kept
    s.transaction(
        wire.insert(50, row(1, "a", "{}", "1.50", "t")),
        wire.update(50, row(1, "b", UNCHANGED, None, "t")),
        wire.update(50, row(2, "b", None, None, "t"), row(1, "a", None, None, "t"), b"O"),
        wire.delete(50, row(2, None, None, None, None)),
        wire.truncate(50),
    )
    found = s.batches[table.id].records
    assert len(found) == 7
    positions = [decode_change(r.key, r.value).position for r in found]
    assert [r.headers for r in found] == [headers_of(p) if kept else () for p in positions]
