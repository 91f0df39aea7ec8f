"""What is packed comes back; what is damaged is an error."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walvec.contracts.errors import DecodeError
from walvec.transport.local.batches import BATCH_BYTES, BATCH_RECORDS, LZ4, PLAIN, pack, split, unpack
from walvec.transport.records import Record

RECORDS = st.lists(st.builds(Record, st.none() | st.binary(max_size=20), st.binary(max_size=200)), min_size=1)


@given(RECORDS, st.integers(0, 2**40), st.data())
def test_records_come_back(records: list[Record], base: int, data: st.DataObject) -> None:
    first = base + data.draw(st.integers(0, len(records)))
    unpacked = unpack(pack(records), base, 5, first)
    assert [(r.offset, r.timestamp_ms) for r in unpacked] == [(o, 5) for o in range(first, base + len(records))]
    assert [(r.key, r.value) for r in unpacked] == [(r.key, r.value) for r in records[first - base :]]


@given(RECORDS, st.data())
def test_a_changed_byte_is_an_error(records: list[Record], data: st.DataObject) -> None:
    packed = pack(records)
    at = data.draw(st.integers(0, len(packed.data) - 1))
    broken = packed.data[:at] + bytes([packed.data[at] ^ 1]) + packed.data[at + 1 :]
    with pytest.raises(DecodeError):
        unpack(replace(packed, data=broken), 0, 0, 0)


def test_compression_is_used_when_it_helps() -> None:
    assert pack([Record(b"k", b"the same again " * 50)]).codec == LZ4
    assert pack([Record(b"k", b"x")]).codec == PLAIN


@given(st.lists(st.sampled_from([0, 10, 400_000, BATCH_BYTES + 1]), max_size=20))
def test_runs_are_bounded_and_complete(sizes: list[int]) -> None:
    records = [Record(None, bytes(size)) for size in sizes]
    runs = list(split(records))
    assert [record for run in runs for record in run] == records
    assert all(len(run) == 1 or sum(len(record.value) for record in run) <= BATCH_BYTES for run in runs)


def test_runs_have_a_greatest_count() -> None:
    assert [len(run) for run in split([Record(None, b"")] * (BATCH_RECORDS + 1))] == [BATCH_RECORDS, 1]
