"""Raw column texts of a generation's rows -> keys, records and texts to embed. Pure.

Law: a row read here and the same row streamed give the same key bytes, the same `after` and the same text.
Next: `reading` gets the raw texts, `backfill` writes the records.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import orjson

from cdc.copytext import Raw
from walvec.contracts.errors import DecodeError
from walvec.contracts.position import Position
from walvec.contracts.sources import ReadRow
from walvec.contracts.values import Codec, key_encoder
from walvec.contracts.wire import VERSION
from walvec.definitions.model import Generation

Line = Sequence[Raw]


class RowShape:
    """One generation's SELECT list and what becomes of its rows. `columns`: used columns, then keys not among them."""

    def __init__(self, generation: Generation) -> None:
        used = [c.name for c in generation.used_columns]
        self.keys = tuple(k.name for k in generation.key)
        self.columns: tuple[str, ...] = (*used, *(k for k in self.keys if k not in used))
        self.key_codecs = generation.key_codecs
        self._at = [self.columns.index(k) for k in self.keys]
        self._encode_key = key_encoder(self.key_codecs)
        self._values = [
            (b"{" if i == 0 else b",", orjson.dumps(name) + b":", i, codec.encode, _exact(name, codec, generation))
            for i, name in enumerate(used)
            for codec in (generation.wire_codec(name),)
        ]
        self._names = [orjson.dumps(name) for name in used]
        self._spec = generation.text_spec
        self._texts = [
            (name, self.columns.index(name), generation.wire_codec(name).name == "bool")
            for name in generation.embedding_columns
        ]

    def key_texts(self, line: Line) -> tuple[bytes, ...]:
        """The key's raw texts in index order. Raises DecodeError on NULL, which no key column may hold."""
        found = tuple([raw for i in self._at if (raw := line[i]) is not None])
        if len(found) != len(self._at):
            raise DecodeError("a key column is NULL.", "ALTER TABLE … ALTER COLUMN … SET NOT NULL;")
        return found

    def key(self, line: Line) -> bytes:
        return self._encode_key(self.key_texts(line))

    def after(self, line: Line) -> tuple[bytes, bytes]:
        """`after` and `exact` as JSON bytes; `exact` is b"" where there is none."""
        parts: list[bytes] = []
        exact: list[bytes] = []
        for comma, head, i, encode, needs_exact in self._values:
            raw = line[i]
            parts.append(comma)
            parts.append(head)
            if raw is None:
                parts.append(b"null")
                continue
            parts.append(encode(raw))
            if needs_exact is not None and needs_exact(raw):
                exact.append(head + orjson.dumps(raw.decode()))
        after = b"".join(parts) + b"}" if parts else b"{}"
        return after, b"{" + b",".join(exact) + b"}" if exact else b""

    def read_row(self, line: Line) -> ReadRow:
        after, exact = self.after(line)
        return ReadRow(orjson.loads(after), orjson.loads(exact) if exact else {})

    def text(self, line: Line) -> str | None:
        """The composed text, None where there is nothing to embed."""
        values: dict[str, str | None] = {}
        for name, i, is_bool in self._texts:
            raw = line[i]
            if raw is None:
                values[name] = None
            elif is_bool:
                values[name] = "true" if raw == b"t" else "false"
            else:
                values[name] = _decode(raw)
        return self._spec.compose(values)


def _decode(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as e:
        raise DecodeError("the source sent text that is not UTF-8.", "The source database must use UTF8.") from e


def _exact(name: str, codec: Codec, generation: Generation) -> Callable[[bytes], bool] | None:
    """Whether a value's text must travel beside its JSON; None = never."""
    if generation.needs_exact_text(name):
        return lambda raw: not _gives_back(codec, raw)
    if codec.same_value is None:
        return None
    same = codec.same_value
    return lambda raw: not same(raw)


def _gives_back(codec: Codec, raw: bytes) -> bool:
    value: Any = orjson.loads(codec.encode(raw))
    if isinstance(value, bool):
        return True
    text = value if isinstance(value, str) else str(value)  # as contracts.changes gives it
    return text.encode() == raw


def record_encoder(
    shape: RowShape,
    *,
    position: Position,
    generation: int,
    newest: int,
    force: bool,
    read_ms: int,
    source: dict[str, Any],
) -> Callable[[Line], bytes]:
    """`r` records of one chunk, the bytes that `wire.encode_change` makes of the same Change."""
    time = b"%d" % read_ms
    tail = b',"source":' + orjson.dumps(source) + b',"ts_ms":' + time
    block = b',"walvec":{"v":%d,"position":[%d,%d,%d],"generation":%d' % (VERSION, *position, generation)
    end = b',"force":true' if force else b""
    end += b',"newest":%d}}' % newest if newest > generation else b"}}"
    plain, after_of = tail + block + end, shape.after
    head = b'{"op":"r","before":null,"after":'

    def encode(line: Line) -> bytes:
        after, exact = after_of(line)
        if exact:
            return b"".join((head, after, tail, block, b',"exact":', exact, end))
        return b"".join((head, after, plain))

    return encode
