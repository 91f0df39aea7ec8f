"""Postgres text output <-> JSON, one codec per kind of type.

Both readers (pgoutput and COPY) deliver a value as its type's text output; here it becomes the JSON that people and
tools read in a record, and goes back to the very same text, or at least to an equal value. Where the JSON form of a
value loses something, `Codec.exact` says so and the record carries the text beside it (`walvec.exact` on the wire).
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from walvec.contracts.errors import DecodeError

Fragment = Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class Codec:
    """`encode`: raw Postgres text -> a JSON fragment. `decode`: parsed JSON -> Postgres text.

    `same_value(raw)`: decoding the fragment gives a text that Postgres reads as the same value.
    `same_text`: it gives the very same text, for every value (booleans apart, which are spelled out).
    """

    name: str
    encode: Fragment
    decode: Callable[[Any], str]
    same_text: bool
    same_value: Callable[[bytes], bool] | None = None


def _text(raw: bytes) -> bytes:
    try:
        return orjson.dumps(raw.decode())
    except UnicodeDecodeError as e:
        raise DecodeError("the source sent text that is not UTF-8.", "The source connection must use UTF8.") from e


def _from_str(value: Any) -> str:
    if not isinstance(value, str):
        raise DecodeError(f"expected a JSON string, got {type(value).__name__}")
    return value


def _from_number(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def _bool(raw: bytes) -> bytes:
    return b"true" if raw in (b"t", b"true") else b"false"


def _from_bool(value: Any) -> str:
    return "true" if value else "false"


def _float(raw: bytes) -> bytes:
    # -0, NaN and the infinities have no JSON number that survives a parser
    return b'"%b"' % raw if raw[-1:] in b"yN" or raw == b"-0" else raw


def _quoted(raw: bytes) -> bytes:
    return b'"%b"' % raw


def _timestamp(raw: bytes) -> bytes:
    # 2024-01-31 10:00:00.5+00 -> 2024-01-31T10:00:00.5Z; infinity, BC and years beyond 9999 stay as they are
    if raw[10:11] == b" " and raw[-1:] != b"C":
        if raw.endswith(b"+00"):
            return b'"%bT%bZ"' % (raw[:10], raw[11:-3])
        zone = raw[-3:] if raw[-3:-2] in b"+-" else b""
        body = raw[:-3] if zone else raw
        return b'"%bT%b%b"' % (body[:10], body[11:], zone)
    return b'"%b"' % raw


def _bytea(raw: bytes) -> bytes:
    if raw[:2] != b"\\x":
        raise DecodeError("bytea did not arrive in hex format.", "walvec sets bytea_output = hex on its own sessions.")
    return b'"%b"' % base64.b64encode(bytes.fromhex(raw[2:].decode("ascii")))


def _from_bytea(value: Any) -> str:
    return "\\x" + base64.b64decode(_from_str(value)).hex()


_DEEPEST = 128
"""Of a json value within a record, so that a record can be read and written by every JSON library."""


def _too_deep(raw: bytes) -> bool:
    if raw.count(b"[") + raw.count(b"{") <= _DEEPEST:
        return False
    depth = deepest = 0
    for c in _STRINGS.sub(b"", raw):
        if c in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif c in b"]}":
            depth -= 1
    return deepest > _DEEPEST


_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)


def _json(raw: bytes) -> bytes:
    try:
        if _too_deep(raw):
            return _text(raw)
        orjson.loads(raw)
    except orjson.JSONDecodeError:
        return _text(raw)  # deeper or wider than the parser takes: the exact text stands beside it
    return raw


def _from_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _same_json(raw: bytes) -> bool:
    if raw == b"null" or _too_deep(raw):  # in a record null is SQL's NULL
        return False
    try:
        return json.dumps(orjson.loads(raw), ensure_ascii=False).encode("utf-8", "surrogatepass") == raw
    except orjson.JSONDecodeError:
        return False


TEXT = Codec("text", _text, _from_str, same_text=True)
CODECS: dict[str, Codec] = {
    c.name: c
    for c in (
        TEXT,
        Codec("int", lambda raw: raw, _from_number, same_text=True),
        Codec("bool", _bool, _from_bool, same_text=True),
        Codec("numeric", _quoted, _from_number, same_text=True),  # a JSON number would lose scale and digits
        Codec("float", _float, _from_number, same_text=False),
        Codec("timestamp", _timestamp, _from_str, same_text=False),
        Codec("bytea", _bytea, _from_bytea, same_text=True),
        Codec("json", _json, _from_json, same_text=False, same_value=_same_json),
    )
}

_BY_TYPE = {
    "smallint": "int", "integer": "int", "bigint": "int", "oid": "int",
    "boolean": "bool", "numeric": "numeric", "real": "float", "double precision": "float",
    "timestamp with time zone": "timestamp", "timestamp without time zone": "timestamp",
    "bytea": "bytea", "json": "json", "jsonb": "json",
}  # fmt: skip


def codec_name(base_type: str, *, array: bool = False) -> str:
    """The codec of a type: `base_type` is format_type() without modifiers, of a domain's base, of an array's element.

    Enums, domains over text, and every type not known here travel as their text.
    """
    name = _BY_TYPE.get(base_type, "text")
    return f"array:{name}" if array else name


def codec(name: str) -> Codec:
    """The codec of that name; array codecs are made on demand. Raises DecodeError for an unknown name."""
    found = CODECS.get(name)
    if found is None and name.startswith("array:") and name[6:] in CODECS:
        found = CODECS[name] = _array_codec(name, CODECS[name[6:]])
    if found is None:
        raise DecodeError(f"unknown codec {name!r}")
    return found


def _array_codec(name: str, element: Codec) -> Codec:
    def encode(raw: bytes) -> bytes:
        try:
            return _dump(parse_array(raw.decode()), element)
        except (ValueError, RecursionError):
            return _text(raw)

    def same_value(raw: bytes) -> bool:
        try:
            return format_array(orjson.loads(encode(raw)), element.decode) == raw.decode()
        except (DecodeError, ValueError, RecursionError):
            return False

    def decode(value: Any) -> str:
        return value if isinstance(value, str) else format_array(value, element.decode)

    return Codec(name, encode, decode, same_text=False, same_value=same_value)


def _dump(value: Any, element: Codec) -> bytes:
    if isinstance(value, list):
        return b"[" + b",".join(_dump(v, element) for v in value) + b"]"
    return b"null" if value is None else element.encode(value.encode())


def parse_array(text: str) -> list[Any]:
    """`{a,"b c",NULL,{…}}` -> nested lists of str | None. A bound prefix `[2:3]=` is dropped. ValueError on bad input.

    PostgreSQL manual, Arrays, section "Array Input and Output Syntax".
    """
    if text.startswith("["):
        text = text[text.index("=") + 1 :]
    stack: list[list[Any]] = [[]]
    i, n = 0, len(text)
    while i < n:
        c = text[i]
        if c == "{":
            stack.append([])
            i += 1
        elif c == "}":
            if len(stack) < 2:
                raise ValueError("unbalanced array")
            done = stack.pop()
            stack[-1].append(done)
            i += 1
        elif c == ",":
            i += 1
        elif c == '"':
            out = []
            i += 1
            while text[i] != '"':
                if text[i] == "\\":
                    i += 1
                out.append(text[i])
                i += 1
            stack[-1].append("".join(out))
            i += 1
        else:
            start = i
            while i < n and text[i] not in ",{}":
                i += 2 if text[i] == "\\" else 1
            word = text[start:i]
            stack[-1].append(None if word == "NULL" else word.replace("\\", ""))
    if len(stack) != 1 or len(stack[0]) != 1 or not isinstance(stack[0][0], list):
        raise ValueError("unbalanced array")
    return stack[0][0]


_MUST_QUOTE = set('{}," \t\n\r\v\f\\')


def format_array(value: Any, element: Callable[[Any], str]) -> str:
    """The inverse of `parse_array`, quoting as array_out does."""
    if isinstance(value, list):
        return "{" + ",".join(format_array(v, element) for v in value) + "}"
    if value is None:
        return "NULL"
    text = element(value)
    if element is _from_bool:
        text = text[0]
    if text == "" or text.upper() == "NULL" or not _MUST_QUOTE.isdisjoint(text):
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return text


def encode_key(columns: tuple[tuple[str, Codec], ...], raws: tuple[bytes, ...]) -> bytes:
    """The canonical key: columns in index order, values by a codec that gives the same text back, else as text."""
    return key_encoder(columns)(raws)


def key_codec(name: str) -> Codec:
    """The codec a key column of that kind uses: only codecs whose text survives; all else travels as text."""
    found = codec(name)
    return found if found.same_text else TEXT


def key_encoder(columns: tuple[tuple[str, Codec], ...]) -> Callable[[tuple[bytes, ...]], bytes]:
    """A function from the key columns' raw texts to the canonical key bytes."""
    heads = [(b"{" if i == 0 else b",") + orjson.dumps(name) + b":" for i, (name, _) in enumerate(columns)]
    encoders = [c.encode for _, c in columns]
    if len(columns) == 1:
        head, encode = heads[0], encoders[0]
        return lambda raws: head + encode(raws[0]) + b"}"
    return lambda raws: b"".join(h + e(r) for h, e, r in zip(heads, encoders, raws, strict=True)) + b"}"


def decode_key(key: bytes, columns: tuple[tuple[str, Codec], ...]) -> tuple[str, ...]:
    """The key columns' Postgres texts. Raises DecodeError when the key is not one of this table."""
    try:
        values = orjson.loads(key)
        return tuple(c.decode(values[name]) for name, c in columns)
    except (orjson.JSONDecodeError, KeyError, TypeError) as e:
        raise DecodeError("a key that does not have the table's key columns") from e


def key_check(columns: tuple[tuple[str, Codec], ...]) -> Callable[[bytes | None], bool]:
    """Whether bytes are a canonical key of these columns: anything else is another identity of a row, or none."""
    encode = key_encoder(columns)
    numbers = [name for name, c in columns if c.name == "int"]

    def is_key(key: bytes | None) -> bool:
        try:
            values = orjson.loads(key or b"")
            if not isinstance(values, dict) or any(type(values[name]) is not int for name in numbers):
                return False
            return encode(tuple([c.decode(values[name]).encode() for name, c in columns])) == key
        except (DecodeError, KeyError, TypeError, ValueError):
            return False

    return is_key
