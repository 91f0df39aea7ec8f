"""Codecs: Postgres text -> JSON -> the same text or an equal value, or `exact` says that it is not."""

from __future__ import annotations

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from walvec.contracts.errors import DecodeError
from walvec.contracts.values import (
    codec,
    codec_name,
    decode_key,
    encode_key,
    format_array,
    key_check,
    key_codec,
    key_encoder,
    parse_array,
)


@pytest.mark.parametrize(
    ("name", "raw", "fragment"),
    [
        ("int", b"-9223372036854775808", b"-9223372036854775808"),
        ("bool", b"t", b"true"),
        ("bool", b"f", b"false"),
        ("numeric", b"12.50", b'"12.50"'),
        ("numeric", b"NaN", b'"NaN"'),
        ("float", b"1e+20", b"1e+20"),
        ("float", b"-0", b'"-0"'),
        ("float", b"-Infinity", b'"-Infinity"'),
        ("timestamp", b"2024-01-31 10:00:00.5+00", b'"2024-01-31T10:00:00.5Z"'),
        ("timestamp", b"2024-01-31 10:00:00", b'"2024-01-31T10:00:00"'),
        ("timestamp", b"infinity", b'"infinity"'),
        ("timestamp", b"0044-03-15 00:00:00+00 BC", b'"0044-03-15 00:00:00+00 BC"'),
        ("bytea", b"\\x00ff", b'"AP8="'),
        ("json", b'{"a": [1, null]}', b'{"a": [1, null]}'),
        ("array:text", b'{a,"b \\"c\\\\",NULL,"NULL",""}', b'["a","b \\"c\\\\",null,"NULL",""]'),
        ("array:int", b"{{1,2},{3,4}}", b"[[1,2],[3,4]]"),
        ("array:bool", b"{t,NULL,f}", b"[true,null,false]"),
        ("text", '日本\u2028\t"\\'.encode(), orjson.dumps('日本\u2028\t"\\')),
    ],
)
def test_a_value_becomes_the_json_people_expect(name: str, raw: bytes, fragment: bytes) -> None:
    assert codec(name).encode(raw) == fragment


@pytest.mark.parametrize(
    ("name", "raw", "same"),
    [
        ("json", b'{"a": 1.10}', False),
        ("json", b'{"a": 12345678901234567890123}', False),
        ("json", b'{"a":1}', False),
        ("json", '{"a": "ü\\n"}'.encode(), True),
        ("json", b"null", False),
        ("array:int", b"[2:3]={1,2}", False),
        ("array:text", b"{a,b}", True),
        ("array:timestamp", b'{"2024-01-31 10:00:00+00"}', False),
    ],
)
def test_what_json_cannot_give_back_is_reported(name: str, raw: bytes, same: bool) -> None:
    check = codec(name).same_value
    assert check is not None
    assert check(raw) is same


@given(st.text())
def test_text_survives(value: str) -> None:
    raw = value.encode("utf-8", "ignore")
    c = codec("text")
    assert c.decode(orjson.loads(c.encode(raw))) == raw.decode()


@given(st.integers(-(2**63), 2**63 - 1))
def test_every_bigint_survives(value: int) -> None:
    c = codec("int")
    assert c.decode(orjson.loads(c.encode(str(value).encode()))) == str(value)


@given(st.floats(allow_nan=False))
def test_every_double_is_the_same_value(value: float) -> None:
    c = codec("float")
    raw = {float("inf"): "Infinity", float("-inf"): "-Infinity"}.get(value) or repr(value)
    assert float(c.decode(orjson.loads(c.encode(raw.encode())))) == value


@given(st.binary())
def test_bytea_survives(value: bytes) -> None:
    c = codec("bytea")
    raw = b"\\x" + value.hex().encode()
    assert c.decode(orjson.loads(c.encode(raw))) == raw.decode()


_elements = st.recursive(
    st.lists(st.one_of(st.none(), st.text()), min_size=1, max_size=4),
    lambda inner: st.lists(inner, min_size=1, max_size=3),
    max_leaves=8,
)


@given(_elements)
def test_arrays_round_trip(value: list[object]) -> None:
    assert parse_array(format_array(value, str)) == value


@pytest.mark.parametrize("bad", ["{", "}", "{a", '{"a', "", "a", "{a}}", "{{a}", '{"a\\'])
def test_a_damaged_array_is_refused(bad: str) -> None:
    with pytest.raises((ValueError, IndexError)):
        parse_array(bad)


def test_an_array_that_cannot_be_parsed_travels_as_text() -> None:
    assert codec("array:text").encode(b"{") == b'"{"'
    assert codec("array:text").decode("{") == "{"


def test_json_too_deep_to_be_written_again_travels_as_text() -> None:
    deep = b"[" * 300 + b'"[[\\"{"' + b"]" * 300
    c = codec("json")
    value = orjson.loads(c.encode(deep))
    assert orjson.loads(orjson.dumps({"metadata": value})) == {"metadata": deep.decode()}
    assert c.same_value is not None
    assert not c.same_value(deep)
    assert codec("json").encode(b'["' + b"[{" * 300 + b'"]') == b'["' + b"[{" * 300 + b'"]'


def test_json_wider_than_the_parser_travels_as_text() -> None:
    deep = b"[" * 2000 + b"]" * 2000
    c = codec("json")
    assert orjson.loads(c.encode(deep)) == deep.decode()
    assert c.same_value is not None
    assert not c.same_value(deep)


def test_keys_are_canonical_and_come_back() -> None:
    columns = (("b", key_codec("int")), ('A "q"', key_codec("text")), ("t", key_codec("timestamp")))
    key = key_encoder(columns)((b"-5", "x\u00fc'".encode(), b"2024-01-31 10:00:00+00"))
    assert list(json.loads(key)) == ["b", 'A "q"', "t"]
    assert decode_key(key, columns) == ("-5", "xü'", "2024-01-31 10:00:00+00")


@pytest.mark.parametrize("bad", [b"", b"[]", b"{}", b'{"id":1', b'{"id":{}}', b"5"])
def test_a_foreign_key_is_refused(bad: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_key(bad, (("id", codec("text")),))


def test_types_find_their_codec() -> None:
    assert codec_name("bigint") == "int"
    assert codec_name("timestamp with time zone", array=True) == "array:timestamp"
    assert codec_name("public.mood") == "text"
    with pytest.raises(DecodeError, match="unknown codec"):
        codec("array:nonsense")


KEY = (
    ("id", codec("int")),
    ("name", codec("text")),
    ("n", codec("numeric")),
    ("on", codec("bool")),
    ("b", codec("bytea")),
)


@given(
    st.integers(-(2**63), 2**63 - 1),
    st.text(st.characters(codec="utf-8")),
    st.decimals(allow_nan=False),
    st.booleans(),
    st.binary(max_size=9),
)
def test_a_canonical_key_is_known_as_one(number: int, text: str, amount: object, on: bool, raw: bytes) -> None:
    values = (str(number), text, str(amount), "t" if on else "f", "\\x" + raw.hex())
    assert key_check(KEY)(encode_key(KEY, tuple(v.encode() for v in values)))


@pytest.mark.parametrize(
    "key",
    [None, b"", b"1", b"{}", b"null", b"[1]", b'"x"', b"\xff", b'{"id": 1}', b'{"id":1} ', b'{"id":"1"}', b'{"id":1.0}',
     b'{"id":true}', b'{"id":[1]}', b'{"id":null}', b'{"id":1,"x":2}', b'{"no":1}', b'{"id":01}'],
)  # fmt: skip
def test_any_other_key_is_not(key: bytes | None) -> None:
    assert not key_check((("id", codec("int")),))(key)
