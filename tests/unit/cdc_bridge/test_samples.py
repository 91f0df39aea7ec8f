"""What the real connector wrote, through decoder, order and encoder, against the tables as they were."""

from __future__ import annotations

import random

import pytest

from tests.unit.cdc_bridge.samples import (
    GOLDEN,
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

WORKLOADS = [s for s in ("plain", "schema", "full", "redelivery", "snapshot_again", "incremental", "transactions")
             if (GOLDEN / f"{s}.tables.json").exists()]  # fmt: skip
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
    assert bool(topic.began_anew) is (sample == "snapshot_again")
    if topic.began_anew:
        assert differences(store, held(sample)) != [], "the topic alone does not tell what was deleted meanwhile"
        topic.read_again(held(sample), table, store)
    assert differences(store, held(sample)) == []


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


@pytest.mark.parametrize("sample", [s for s in TYPE_SAMPLES if (GOLDEN / f"{s}.tables.json").exists()])
def test_a_value_is_exact_or_read_again(sample: str) -> None:
    """Whatever the connector's modes are. What Debezium itself made NULL of is listed in docs/debezium.md."""
    name = "types" if sample.startswith("types") else "contrib"
    present = held(sample, name)[0]
    table = vector_table(name, keys=("id",), spec=[_ID.get((name, c[0]), c) for c in TYPES if c[0] in present])
    topic, store = Topic(table), Store(table)
    store.apply(topic.feed(0, records(sample, name)[0]))
    assert differences(store, held(sample, name)) == []
    told = {column for row in store.rows().values() for column, value in row.items() if value not in (UNREAD, None)}
    assert ALWAYS_TOLD[name] <= told
