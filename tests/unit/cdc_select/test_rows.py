"""Records of rows that were read: the same as the wire format's own encoder makes."""

import orjson
import pytest

from cdc.rows import RowShape, record_encoder
from cdc.work import ChunkWriter
from walvec.contracts.changes import Change
from walvec.contracts.errors import DecodeError
from walvec.contracts.position import Position
from walvec.contracts.values import encode_key
from walvec.contracts.wire import decode_change, encode_change
from walvec.definitions.model import Column, Generation, SourceColumn, VectorTable


def column(name: str, codec: str) -> SourceColumn:
    return SourceColumn(name, codec, 0, codec, codec)


def generation(columns: list[tuple[str, str, str]], key: list[tuple[str, str]]) -> Generation:
    source = {n: column(n, c) for n, c in key}
    source.update({n: column(n, c) for n, c, _ in columns})
    used = tuple(Column(n, r) for n, _, roles in columns for r in roles.split("+"))  # type: ignore[arg-type]
    return Generation(1, "active", "m", 2, used, tuple(column(n, c) for n, c in key), tuple(source.values()))


G = generation(
    [
        ("title", "text", "embedding"),
        ("on", "bool", "embedding+metadata"),
        ("price", "float", "embedding+metadata"),
        ("doc", "json", "metadata"),
        ("n", "int", "embedding"),
    ],
    [("b", "text"), ("a", "int")],
)
LINE = (None, b"t", b"1e+16", b'{"a":1}', b"7", b"k", b"5")


def shape_line(**values: bytes | None) -> tuple[bytes | None, ...]:
    shape = RowShape(G)
    given = {"title": b"x", "on": b"t", "price": b"1.5", "doc": b"{}", "n": b"7", "a": b"5", "b": b"k", **values}
    return tuple(given[c] for c in shape.columns)


def test_key_is_canonical_in_index_order() -> None:
    assert RowShape(G).key(shape_line()) == encode_key(G.key_codecs, (b"k", b"5")) == b'{"b":"k","a":5}'


def test_null_in_a_key_is_an_error() -> None:
    with pytest.raises(DecodeError):
        RowShape(G).key(shape_line(a=None))


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("newest", [0, 3])
@pytest.mark.parametrize(
    "values", [{}, {"price": b"1e+16"}, {"price": b"1.50"}, {"title": None, "doc": None}, {"doc": b'{"b": 1,  "a":2}'}]
)
def test_record_is_what_the_wire_encoder_makes(values: dict[str, bytes | None], newest: int, force: bool) -> None:
    shape = RowShape(G)
    line = shape_line(**values)
    position = Position(1, 2, 0)
    source = {"schema": "public", "lsn": 2, "ts_ms": 99, "snapshot": "true"}
    encode = record_encoder(
        shape, position=position, generation=1, newest=newest, force=force, read_ms=99, source=source
    )
    row = shape.read_row(line)
    change = Change(
        "r", position, shape.key(line), row.after, exact=row.exact, generation=1, newest=newest, force=force,
        commit_ms=99,
    )  # fmt: skip
    mine = encode(line)
    assert orjson.loads(mine) == orjson.loads(encode_change(change, source=source))
    read = decode_change(shape.key(line), mine)
    assert read == change
    for name in G.embedding_columns:
        raw = line[shape.columns.index(name)]
        spelled = {b"t": "true", b"f": "false"}.get(raw or b"", (raw or b"").decode()) if name == "on" else None
        assert read.text_of(name) == (spelled or (None if raw is None else raw.decode()))


@pytest.mark.parametrize(("last", "newest"), [(0, 0), (3, 3)])
def test_known_generation_what_is_read_names_the_highest_number_that_was_given(last: int, newest: int) -> None:
    table = VectorTable(
        "vt_1", "t", "conn_1", "emb_1", "fake", "public", "t", "pgvector", "managed", (G,), last_generation=last
    )
    records, letters = ChunkWriter(table, G, RowShape(G), force=False).records([shape_line()], Position(1, 2, 0))
    assert [decode_change(r.key, r.value).newest for r in records] == [newest]
    assert letters == []


def test_text_is_what_the_embedder_composes_from_the_record() -> None:
    shape = RowShape(G)
    for line in (shape_line(), shape_line(price=b"1e+16", title=None, on=b"f"), shape_line(n=None, price=b"-0")):
        row = shape.read_row(line)
        change = Change("r", Position(0, 1, 0), b"", row.after, exact=row.exact)
        spec = G.text_spec
        assert shape.text(line) == spec.compose({n: change.text_of(n) for n, _ in spec.columns})


def test_text_that_is_not_utf8_is_an_error() -> None:
    with pytest.raises(DecodeError):
        RowShape(G).text(shape_line(title=b"\xff"))
