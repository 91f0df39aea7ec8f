"""The wire format, held to golden files: a change here is a change of every stored record."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from walvec.contracts.changes import Change
from walvec.contracts.errors import DecodeError
from walvec.contracts.letters import DeadLetter
from walvec.contracts.position import Position
from walvec.contracts.vectors import Chunk, VectorRecord
from walvec.contracts.wire import (
    decode_change,
    decode_floats,
    decode_vector,
    encode_change,
    encode_floats,
    encode_letter,
    encode_vector,
)

GOLDEN = Path(__file__).parents[2] / "golden"
AT = Position(1, 0x16B3748, 3)

CHANGES = {
    "change_created": Change(
        "c", AT, b'{"id":1}', {"id": 1, "name": "Lamp", "price": "12.50"}, xid=7, commit_ms=1700000000123
    ),
    "change_updated": Change(
        "u", AT, b'{"id":1}', {"id": 1, "doc": {"a": 1.1}}, before={"name": "Lamp"}, exact={"doc": '{"a": 1.10}'},
        unchanged=("name",), generation=2, xid=7, commit_ms=1700000000123,
    ),
    "change_deleted": Change("d", AT, b'{"id":1}', before={"name": None}, xid=7, commit_ms=1700000000123),
    "change_sent_back": Change("r", AT, b'{"id":1}', {"price": "1"}, force=True, text="Lamp\nred", commit_ms=5),
    "change_truncated": Change("t", AT, b"", commit_ms=1700000000123),
}  # fmt: skip
VECTOR = np.array([0.5, -1.0, 0.25], dtype=np.float32)
VECTORS = {
    "vector_upsert": VectorRecord(
        "upsert", AT, b'{"id":1}', 1, {"price": "12.50"}, {}, (Chunk(0, "Lamp", "ab" * 16, VECTOR),), 5
    ),
    "vector_claim": VectorRecord(
        "metadata", AT, b'{"id":1}', 1, {"doc": 1}, {"doc": "1.0"}, (Chunk(0, "Lamp", "ab" * 16),), 5
    ),
    "vector_delete": VectorRecord("delete", AT, b'{"id":1}', 1),
    "vector_truncate": VectorRecord("truncate", AT, b"", 1),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_are_written_as_ever(name: str) -> None:
    value = (GOLDEN / f"{name}.json").read_bytes()
    assert encode_change(CHANGES[name]) == value
    assert decode_change(CHANGES[name].key, value) == CHANGES[name]


@pytest.mark.parametrize("name", VECTORS)
def test_vector_records_are_written_as_ever(name: str) -> None:
    value = (GOLDEN / f"{name}.json").read_bytes()
    assert encode_vector(VECTORS[name]) == value
    read = decode_vector(VECTORS[name].key, value)
    assert encode_vector(read) == value
    assert (read.op, read.position, read.key, read.metadata, read.exact) == (
        VECTORS[name].op, VECTORS[name].position, VECTORS[name].key, VECTORS[name].metadata, VECTORS[name].exact,
    )  # fmt: skip


def test_letters_are_written_as_ever() -> None:
    letter = DeadLetter("vt_1", 1, b'{"id":1}', "provider", "too long", AT, attempts=2, created_ms=9)
    assert encode_letter(letter) == (GOLDEN / "letter.json").read_bytes()


def test_floats_are_little_endian_float32() -> None:
    assert encode_floats(VECTOR) == "AAAAPwAAgL8AAIA+"
    assert np.array_equal(decode_floats("AAAAPwAAgL8AAIA+"), VECTOR)


def test_texts_of_columns() -> None:
    change = Change(
        "u", AT, b"k", {"a": None, "b": True, "c": 5, "d": "x", "e": 1.5}, exact={"e": "1.50"}, before={"d": "y"}
    )
    assert [change.text_of(c) for c in "abcde"] == [None, "true", "5", "x", "1.50"]
    assert change.old_text_of("d") == "y"
    with pytest.raises(KeyError):
        change.text_of("absent")


@pytest.mark.parametrize("decode", [decode_change, decode_vector])
@pytest.mark.parametrize(
    "value",
    [b"", b"{}", b"[]", b"null", b"5", b'"x"', b'{"op":"c","walvec":{}}', b'{"v":1,"op":"upsert","position":[1]}'],
)
def test_foreign_records_are_refused(decode: object, value: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(b"k", value)  # type: ignore[operator]


def test_an_unknown_version_is_refused_with_the_cure() -> None:
    value = orjson.loads(encode_change(CHANGES["change_created"]))
    value["walvec"]["v"] = 2
    with pytest.raises(DecodeError, match="upgrade"):
        decode_change(b"k", orjson.dumps(value))


@given(st.binary(max_size=60), st.integers(0, 400), st.sampled_from(list(CHANGES)))
def test_damaged_records_never_do_more_than_raise_decode_error(junk: bytes, at: int, name: str) -> None:
    value = encode_change(CHANGES[name])
    damaged = value[: at % len(value)] + junk
    try:
        change = decode_change(b"k", damaged)
    except DecodeError:
        return
    assert isinstance(change.position, Position)
