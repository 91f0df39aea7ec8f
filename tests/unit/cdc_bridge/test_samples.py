"""What the real connector wrote, through decoder, order and encoder, against the tables as they were."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

import pytest

from cdc.bridge_batch import Translator, judge
from tests.unit.cdc_bridge.samples import (
    TABLES,
    TYPES,
    UNREAD,
    Store,
    Topic,
    differences,
    held,
    records,
    vector_table,
)
from walvec.contracts.wire import decode_change
from walvec.definitions.model import TopicSource
from walvec.transport.records import StoredRecord

WORKLOADS = ("plain", "schema", "full", "redelivery", "snapshot_again", "incremental", "transactions",
             "long_transaction", "heartbeat", "no_tombstones", "schema_change", "own_key", "string_key",
             "string_key_extracted")  # fmt: skip
BEGINS = {"snapshot_again": ["r", "c"], "long_transaction": ["r", "u"]}
"""Records that show that the connector has lost its offsets. The `c` stands behind a snapshot of an empty table; the
`u` was written before the snapshot that it follows and is taken for the same: too often is harmless."""
TYPE_SAMPLES = ("types_precise", "types_precise_plain", "types_string", "types_double", "types_microseconds",
                "types_nanoseconds", "contrib", "contrib_map")  # fmt: skip
_ID = {("contrib", "id"): ("id", "text")}
ALWAYS_TOLD = {
    "types": {"small", "big", "flag", "single", "double", "vchars", "words", "u", "j", "jb", "d", "m", "ip"},
    "contrib": {"ci", "lt", "x"},
}
INEXACT = [("keys", "decimals"), ("keys_schema", "decimals"), ("keys", "bytes")]
KEYS = [(s, t) for s in ("keys", "keys_schema") for t in TABLES if t not in ("docs", "types") and (s, t) not in INEXACT]


@pytest.mark.parametrize("sample", WORKLOADS)
def test_the_topic_read_once_gives_the_table(sample: str) -> None:
    table = vector_table("docs")
    found = records(sample)
    topic, store = Topic(table, found), Store(table)
    for partition, log in found.items():
        store.apply(topic.feed(partition, log))
    assert store.rows()
    assert bool(topic.began_anew) is (sample in BEGINS)
    if sample == "snapshot_again":
        assert differences(store, held(sample)) != [], "the topic alone does not tell what was deleted meanwhile"
        topic.read_again(held(sample), table, store)
    assert differences(store, held(sample)) == []


@pytest.mark.parametrize("sample", WORKLOADS)
def test_a_connector_that_began_anew_is_noticed_where_it_begins(sample: str) -> None:
    found = records(sample)
    topic = Topic(vector_table("docs"), found)
    begun = []
    for partition, log in found.items():
        for record in log:
            if topic.translate(partition, [record]).begins:
                begun.append(json.loads(record.value)["op"])  # noqa: PERF401
    assert begun == BEGINS.get(sample, [])


def test_a_change_below_the_snapshot_that_did_not_see_it() -> None:
    """Written before the second initial snapshot, committed after it: its LSN is lower, and it is newer."""
    table = vector_table("docs")
    [log] = records("long_transaction").values()
    read, changed = log[11], log[14]
    told = [json.loads(r.value) for r in (read, changed)]
    assert [t["op"] for t in told] == ["r", "u"]
    assert told[0]["after"]["id"] == told[1]["after"]["id"]
    assert told[0]["source"]["lsn"] > told[1]["source"]["lsn"]
    whole = Topic(table)
    [row], [change] = (whole.feed(0, [record]) for record in (read, changed))
    later = Topic(table)  # a reader that begins behind the snapshot's records, with what was stored of them
    later.bases[0].found = list(whole.bases[0].found)
    assert later.feed(0, [changed]) == [change]
    for order in ([row, change], [change, row], [change, row, change]):
        store = Store(table)
        store.apply(order)
        assert [r["title"] for r in store.rows().values()] == ["before the second initial, committed after it"]


@pytest.mark.parametrize(
    ("sample", "keys", "spec"),
    [
        ("no_key", ("id",), (("id", "integer"), ("title", "text"))),
        ("partitioned", ("id", "region"), (("id", "integer"), ("region", "text"), ("title", "text"))),
    ],
)
def test_tables_of_other_shapes(sample: str, keys: Sequence[str], spec: Sequence[tuple[str, str]]) -> None:
    """`no_key`: records without a key, REPLICA IDENTITY FULL; `partitioned`: rows move between partitions."""
    table = vector_table("docs", keys=keys, spec=spec)
    topic, store = Topic(table), Store(table)
    store.apply(topic.feed(0, records(sample)[0]))
    assert store.rows()
    assert differences(store, held(sample)) == []


def test_a_partition_named_by_the_connector_is_the_tables() -> None:
    """Without publish.via.partition.root records name partitions; a TRUNCATE of one of them reads the table again."""
    table = vector_table("docs")
    [log] = records("plain").values()
    renamed = [r._replace(value=r.value.replace(b'"table":"docs"', b'"table":"docs_eu"')) for r in log]
    topic, store = Topic(table), Store(table)
    topic.translator = Translator(
        table, table.source or TopicSource(""), epoch=0, topic="t", partitions=1, headers=False,
        leaves=[("public", "docs_eu")],
    )  # fmt: skip
    out = topic.translate(0, renamed)
    assert not out.letters
    assert out.cleared
    assert b"t" not in [decode_change(r.key, r.value).op.encode() for r in out.records]
    store.apply(out.records)
    topic.read_again(held("plain"), table, store)  # the task that `cleared` opens
    assert differences(store, held("plain")) == []


@pytest.mark.parametrize(
    ("sample", "topic", "words"),
    [
        ("unwrapped", "docs", "without Debezium's envelope, flattened perhaps: its place in the log is not told."
         " Take the transform ExtractNewRecordState (unwrap) off this topic"),
        ("unwrapped_rewrite", "docs", "Take the transform ExtractNewRecordState (unwrap) off this topic"),
        ("incremental", "signals", "a change of table public.signals, not of public.docs."
         " Name the topic that has the changes of public.docs."),
        ("heartbeat", "heartbeat", "a heartbeat. Name the table's own topic, not the heartbeats'."),
        ("transactions", "transaction", "a record of transaction metadata. Name the table's own topic"),
    ],
)  # fmt: skip
def test_another_topic_is_refused_and_its_records_are_letters(sample: str, topic: str, words: str) -> None:
    table = vector_table("docs")
    found = records(sample, topic)
    assert found
    out = Topic(table).translate(0, found[0])
    assert not out.records
    assert words in out.letters[0].reason
    assert out.in_row == len({letter.reason for letter in out.letters}) > 0
    check = judge(table, found, leaves=(), enums=())
    assert not check.ok
    assert check.detail.startswith("docs: topic x.public.docs holds ")
    assert words in check.detail


def test_a_topic_with_nothing_to_refuse_is_taken() -> None:
    """An empty topic, one of tombstones or of logical messages alone: nothing speaks against it."""
    table = vector_table("docs")
    messages = records("heartbeat", "message")
    tombstones = {0: [r for r in records("plain")[0] if not r.value]}
    assert messages[0]
    assert tombstones[0]
    for found in ({0: []}, tombstones, messages):
        check = judge(table, found, leaves=(), enums=())
        assert check.ok
        assert check.detail.endswith("it has no records yet")
    assert judge(table, records("plain"), leaves=(), enums=()).ok


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b"\x00\x00\x00\x00\x07avro", "a record in Avro or Protobuf (it begins with the id of a schema registry). Let"
         " the connector write JSON: value.converter=org.apache.kafka.connect.json.JsonConverter."),
        (b"Struct{id=1}", "a record that is not JSON. Send the connector's own envelope"),
        (b"[1]", "a record that is not a JSON object."),
        (b'{"walvec":{},"after":{}}', "a record of walvec's own. Name the topic that Debezium writes."),
        (b'{"op":"c","source":{"connector":"mysql"},"after":{"id":1}}', "a record of Debezium's mysql connector."
         " Name the topic of a Postgres connector."),
        (b'{"op":"x","source":{},"after":{"id":1}}', "a record with the unknown op 'x'."),
        (b'{"op":"c","source":{"connector":"postgresql"},"after":{"id":1}}', "whose source block lacks what its place"),
    ],
)  # fmt: skip
def test_what_no_postgres_connector_wrote_is_refused(value: bytes, words: str) -> None:
    check = judge(vector_table("docs"), {0: [StoredRecord(0, 1, b'{"id":1}', value)]}, leaves=(), enums=())
    assert not check.ok
    assert words in check.detail


@pytest.mark.parametrize(("sample", "name"), KEYS)
def test_every_form_of_key_gives_the_canonical_key(sample: str, name: str) -> None:
    table = vector_table(name)
    topic, store = Topic(table), Store(table)
    store.apply(topic.feed(0, records(sample, name)[0]))
    assert differences(store, held(sample, name)) == []


@pytest.mark.parametrize(("sample", "name"), INEXACT)
def test_a_key_that_is_not_told_exactly_is_a_letter(sample: str, name: str) -> None:
    """A numeric without scale loses its trailing zeros; bytes without a schema may be base64 or hexadecimal digits."""
    table = vector_table(name)
    out = Topic(table).translate(0, records(sample, name)[0])
    assert not out.records
    assert "cannot be told exactly" in out.letters[0].reason


@pytest.mark.parametrize("sample", WORKLOADS)
@pytest.mark.parametrize("seed", range(30))
def test_partitions_in_any_order_with_suffixes_delivered_again(sample: str, seed: int) -> None:
    """Rows are spread over partitions as a connector spreads them, each partition is read at its own pace, and a reader
    that dies goes back to what it had committed, with what it had stored."""
    rng = random.Random(seed)
    table = vector_table("docs")
    split: dict[int, list] = {p: [] for p in range(3)}
    for log in records(sample).values():
        for record in log:
            partition = hash_of(record.key) % 3
            split[partition].append(record._replace(offset=len(split[partition])))
    topic, store = Topic(table, split), Store(table)
    at = dict.fromkeys(split, 0)
    late: list = []
    while any(at[p] < len(split[p]) for p in split):
        partition = rng.choice([p for p in split if at[p] < len(split[p])])
        take = rng.randint(1, 6)
        out = topic.feed(partition, split[partition][at[partition] : at[partition] + take])
        at[partition] += take
        if rng.random() < 0.3:
            late += out  # a zombie's append lands later
        store.apply(out)
        if rng.random() < 0.3:
            at[partition] = rng.randint(0, at[partition])
        if late and rng.random() < 0.3:
            store.apply(late)
            late = []
    if topic.began_anew:
        topic.read_again(held(sample), table, store)
    store.apply(late)
    assert differences(store, held(sample)) == []


def hash_of(key: bytes | None) -> int:
    return 0 if key is None else sum(key)


@pytest.mark.parametrize("sample", TYPE_SAMPLES)
def test_a_value_is_exact_or_read_again(sample: str) -> None:
    """Whatever the connector's modes are. What the connector itself gets wrong is below."""
    name = "types" if sample.startswith("types") else "contrib"
    present = held(sample, name)[0]
    table = vector_table(name, keys=("id",), spec=[_ID.get((name, c[0]), c) for c in TYPES if c[0] in present])
    topic, store = Topic(table), Store(table)
    store.apply(topic.feed(0, records(sample, name)[0]))
    assert differences(store, held(sample, name)) == []
    told = {column for row in store.rows().values() for column, value in row.items() if value not in (UNREAD, None)}
    assert ALWAYS_TOLD[name] <= told


WRONG = [
    # sample, row, column, what the record says, what stands in the table
    ("types_precise", 5, "any_numeric", None, "NaN"),
    ("types_precise", 15, "any_numeric", None, "NaN"),
    ("types_string", 15, "any_numeric", "NAN", "NaN"),
    ("types_precise", 1, "matrix", [None, None], "{{1,2},{3,4}}"),
    ("types_double", 11, "matrix", [None, None], "{{1,2},{3,4}}"),
    ("types_precise", 11, "name_", None, "name"),
    ("types_precise", 3, "d", -703383, "0044-03-15 BC"),
    ("types_string", 3, "d", "0044-03-15Z", "0044-03-15 BC"),
    ("types_precise", 4, "d", -622191234, "infinity"),
    ("types_precise", 14, "d", 2146033979, "infinity"),
    ("types_string", 14, "d", "+5877611-06-21Z", "infinity"),
    ("types_precise", 14, "ts", 9223372036854775807, "infinity"),
    ("types_double", 14, "ts", 9223372036825200000, "infinity"),
    ("types_string", 3, "t", "00:00:00Z", "24:00:00"),
    ("types_nanoseconds", 3, "ts", None, "0044-03-15 12:00:00 BC"),
    ("types_precise", 1, "ttz", "10:34:56.5Z", "12:34:56.5+02"),
    ("types_precise", 3, "iv", -2629800000001, "-1 mons -00:00:00.000001"),
]


@pytest.mark.parametrize(("sample", "number", "name", "told", "real"), WRONG)
def test_a_value_that_the_connector_gets_wrong_is_read_by_key(
    sample: str, number: int, name: str, told: object, real: str
) -> None:
    [row] = [r for r in held(sample, "types") if r["id"] == str(number)]
    assert row[name] == real
    table = vector_table("types", keys=("id",), spec=[c for c in TYPES if c[0] in row])
    topic, found = Topic(table), 0
    for record in records(sample, "types")[0]:
        after = (json.loads(record.value)["payload"] or {}).get("after") if record.value else None
        if after is not None and after["id"] == number:
            found += 1
            assert after[name] == told
            [change] = (decode_change(r.key, r.value) for r in topic.feed(0, [record]))
            assert name in change.unchanged
            assert name not in (change.after or {})
    assert found


def test_dates_before_christ_are_right_in_the_stream() -> None:
    """The snapshot's -703383 is a year after Christ; the stream's number is not to be taken for such a one."""
    table = vector_table("types", keys=("id",), spec=(("id", "integer"), ("d", "date")))
    streamed = next(r for r in records("types_precise", "types")[0] if b'"id":13' in r.value and b'"op":"c"' in r.value)
    [record] = Topic(table).feed(0, [streamed])
    assert decode_change(record.key, record.value).text_of("d") == "0044-03-15 BC"
