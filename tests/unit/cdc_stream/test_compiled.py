"""The generated function writes what the general code writes, or leaves the row to it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdc.assembler import Assembler
from cdc.encoder import Batch, RowEncoder, TablePlan
from cdc.pgoutput import UNCHANGED, Binary, Relation, Value
from tests.integration.cdc_world import column, vector_table
from tests.unit.cdc_stream import wire_source as wire
from walvec.contracts.errors import DecodeError
from walvec.transport.records import Record

COLUMNS = (
    ("id%", 23), ("na\"me", 25), ("unused", 25), ("price", 1700), ("flag", 16), ("at", 1184), ("doc", 3802), ("no", 25),
)  # fmt: skip
RELATION = Relation(50, "pub%lic", "it%ems", "f", wire.attributes(*COLUMNS, key=[n for n, _ in COLUMNS]))
PLAIN = vector_table(
    "it%ems",
    schema="pub%lic",
    key=(column("id%", 23), column("no")),
    columns=(column('na"me'),),
    metadata=(column("price", 1700), column("flag", 16), column("at", 1184), column("id%", 23)),
)
EXACT = vector_table(
    "it%ems",
    schema="pub%lic",
    key=(column("id%", 23),),
    columns=(column("at", 1184), column('na"me')),
    metadata=(column("doc", 3802), column("at", 1184)),
)

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20).map(str.encode)
TIMES = st.sampled_from(
    [b"2026-01-31 10:00:00.5+00", b"infinity", b"0044-03-15 10:00:00+00 BC", b"2026-01-31 10:00:00"]
)
JSON = st.sampled_from([b'{"a": 1.10}', b"[1, 2]", b"{bad", b'"\\ud800"', b"null"])
ROWS = st.tuples(
    st.integers(-5, 2**40).map(lambda i: str(i).encode()),
    TEXTS | st.none() | st.just(UNCHANGED) | st.just(b"\xff\xfe"),
    TEXTS | st.none() | st.just(UNCHANGED) | st.just(Binary(b"\0\1")),
    st.sampled_from([b"1.50", b"NaN", None]),
    st.sampled_from([b"t", b"f", None]),
    TIMES | st.none(),
    JSON | st.none() | st.just(UNCHANGED),
    TEXTS | st.none(),
)


def written(table: Any, frames: list[bytes]) -> tuple[list[Record], list[Any], str]:
    assembler, batch = Assembler(3, "sh%op"), Batch("t", 2, True)
    assembler.route(TablePlan.of(table), batch)
    try:
        fed = assembler.feed(frames)
    except DecodeError as e:
        return batch.records, [], e.message
    return batch.records, [(r.key, r.position, r.reason) for r in fed.rejected] + [fed.rows, fed.reached], ""


@pytest.mark.parametrize("table", [PLAIN, EXACT], ids=["plain", "exact"])
@settings(max_examples=300, deadline=None)
@given(row=ROWS, old=ROWS, draw=st.data())
def test_same_as_the_general_code(table: Any, row: tuple[Value, ...], old: tuple[Value, ...], draw: Any) -> None:
    messages = [wire.insert(50, list(row)), wire.update(50, list(row)), wire.update(50, list(row), list(old), b"O")]
    frame = bytearray(wire.frame(draw.draw(st.sampled_from(messages))))
    if draw.draw(st.booleans()):
        frame[draw.draw(st.integers(25, len(frame) - 1))] = draw.draw(st.integers(0, 255))
        del frame[draw.draw(st.integers(30, len(frame))) :]
    frames = [wire.frame(p) for p in (wire.relation(RELATION), wire.begin(900))]
    frames += [bytes(frame), wire.frame(wire.commit(900, 950))]
    found = written(table, frames)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RowEncoder, "plain", lambda *_, **__: False)
        assert found == written(table, frames)


def test_plain_rows_take_the_short_way() -> None:
    """Otherwise the comparison above would compare the general code with itself."""
    row = [b"1", b'a "quoted" text', UNCHANGED, b"1.5", None, b"2026-01-31 10:00:00+00", b"{}", b"x"]
    frames = [wire.frame(p) for p in (wire.relation(RELATION), wire.begin(900), wire.insert(50, row))]
    for table in (PLAIN, EXACT):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RowEncoder, "insert", lambda *_: pytest.fail("not the short way"))
            records, rest, error = written(table, frames)
        assert (len(records), rest, error) == (1, [1, 0], "")
