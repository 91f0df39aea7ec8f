"""The decoder: every message, unsigned ids, and nothing but DecodeError on bad bytes."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdc.pgoutput import (
    UNCHANGED,
    Attribute,
    Begin,
    Binary,
    Commit,
    Delete,
    Insert,
    Keepalive,
    LogicalMessage,
    Origin,
    Relation,
    Truncate,
    Type,
    Update,
    decode,
    decode_keepalive,
)
from tests.unit.cdc_stream import wire_source as wire
from walvec.contracts.errors import DecodeError

BIG = 4_000_000_000
RELATION = Relation(BIG, "public", "Ünï", "d", (Attribute("id", 23, -1, True), Attribute("na me", BIG + 1, 14, False)))

SAMPLES = [
    (wire.begin(2**63 + 1, BIG, wire.EPOCH + 12), Begin(2**63 + 1, wire.EPOCH + 12, BIG)),
    (wire.commit(5, 9), Commit(5, 9, wire.EPOCH)),
    (b"O" + struct.pack(">Q", 7) + b"node\0", Origin(7, "node")),
    (b"Y" + struct.pack(">I", BIG) + b"public\0mood\0", Type(BIG, "public", "mood")),
    (wire.relation(RELATION), RELATION),
    (wire.insert(BIG, [b"1", None, Binary(b"\0\1")]), Insert(BIG, [b"1", None, Binary(b"\0\1")])),
    (wire.update(9, [b"1", UNCHANGED]), Update(9, None, None, [b"1", UNCHANGED])),
    (wire.update(9, [b"2", b""], [b"1", None]), Update(9, "K", [b"1", None], [b"2", b""])),
    (wire.update(9, [b"2"], [b"1"], b"O"), Update(9, "O", [b"1"], [b"2"])),
    (wire.delete(9, [b"1", None]), Delete(9, "K", [b"1", None])),
    (wire.delete(9, [b"1", b"x"], b"O"), Delete(9, "O", [b"1", b"x"])),
    (wire.truncate(1, BIG, flags=3), Truncate((1, BIG), True, True)),
    (wire.message(77, b"{}", transactional=True), LogicalMessage(True, 77, "walvec", b"{}")),
]


@pytest.mark.parametrize(("data", "expected"), SAMPLES, ids=[type(e).__name__ for _, e in SAMPLES])
def test_every_message(data: bytes, expected: object) -> None:
    assert decode(data) == expected
    assert decode(b"....." + data, 5) == expected


def test_schema_pg_catalog_is_spelled_out() -> None:
    found = decode(wire.relation(Relation(1, "", "t", "f", ())))
    assert isinstance(found, Relation)
    assert found.schema == "pg_catalog"


def test_keepalive() -> None:
    assert decode_keepalive(wire.keepalive(88, reply=True)) == Keepalive(88, True)
    with pytest.raises(DecodeError):
        decode_keepalive(wire.keepalive(88) + b"x")


@pytest.mark.parametrize(("data", "_expected"), SAMPLES)
def test_cut_short_or_too_long_is_an_error(data: bytes, _expected: object) -> None:
    for end in range(len(data)):
        with pytest.raises(DecodeError):
            decode(data[:end])
    with pytest.raises(DecodeError):
        decode(data + b"\0")


@pytest.mark.parametrize("data", [b"S\0\0\0\1\1", b"c", b"?", b"b" * 40])
def test_unknown_messages_are_errors(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(data)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from([d for d, _ in SAMPLES]), st.data())
def test_mutated_frames_give_only_decode_errors(data: bytes, draw: st.DataObject) -> None:
    mutated = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 4))):
        mutated[draw.draw(st.integers(0, len(mutated) - 1))] = draw.draw(st.integers(0, 255))
    with suppress(DecodeError):
        decode(bytes(mutated[: draw.draw(st.integers(0, len(mutated)))]))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes_give_only_decode_errors(data: bytes) -> None:
    with suppress(DecodeError):
        decode(data)
