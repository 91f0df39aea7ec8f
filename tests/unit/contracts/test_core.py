"""Positions, keys, texts and snapshots."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walvec.contracts.keys import key_id, partition_of
from walvec.contracts.position import Position, format_lsn, parse_lsn, stamp
from walvec.contracts.snapshots import XidSnapshot
from walvec.contracts.text import TextSpec, hasher


def test_stamp_ordinal_keeps_a_stamp_below_the_transaction_that_commits_at_its_lsn() -> None:
    watermark = parse_lsn("0/1718638")
    assert stamp(0, watermark) < Position(0, watermark, 1)


def test_epoch_outranks_every_lsn() -> None:
    assert Position(0, 2**62, 9) < Position(1, 1, 0)


@given(st.integers(0, 2**64 - 1))
def test_lsn_text_round_trips(lsn: int) -> None:
    assert parse_lsn(format_lsn(lsn)) == lsn


def test_text_skips_null_and_empty_columns_with_their_prefix() -> None:
    spec = TextSpec((("name", "Name: "), ("note", "Note: "), ("tail", "")))
    assert spec.compose({"name": "Lamp", "note": None, "tail": "x "}) == "Name: Lamp\nx "
    assert spec.compose({"name": "", "note": None, "tail": ""}) is None
    assert TextSpec((("a", ""),)).compose({"a": " \t\u2003\n"}) is None
    assert TextSpec((("a", "p"), ("b", ""))).compose({"a": " ", "b": None}) == "p "


def test_hash_depends_on_provider_model_dimensions_and_text() -> None:
    base = hasher("openai", "m", 3)("text")
    assert len(base) == 32
    others = {hasher("static", "m", 3)("text"), hasher("openai", "m2", 3)("text"), hasher("openai", "m", 4)("text")}
    assert len(others | {base, hasher("openai", "m", 3)("text2")}) == 5
    assert hasher("openai", "m", 3)("text") == base


def test_a_key_always_goes_to_the_same_partition() -> None:
    assert [partition_of(b'{"id":%d}' % i, 4) for i in range(6)] == [0, 1, 2, 3, 0, 1]
    assert str(key_id(b'{"id":1}')) == str(key_id(b'{"id":1}'))
    assert key_id(b'{"id":1}') != key_id(b'{"id":2}')


def test_snapshot_xmax_a_waiting_transaction_is_unseen_though_not_listed() -> None:
    snapshot = XidSnapshot.parse("756:756:")
    assert not snapshot.sees(756)
    assert snapshot.sees(755)
    assert snapshot.sees(0)


def test_listed_transactions_are_unseen() -> None:
    snapshot = XidSnapshot.parse("10:20:10,15")
    assert [x for x in range(8, 22) if not snapshot.sees(x)] == [10, 15, 20, 21]


def test_stream_xids_are_32_bit_and_wrap() -> None:
    snapshot = XidSnapshot.parse(f"{2**32 + 5}:{2**32 + 8}:{2**32 + 6}")
    assert snapshot.widen(6) == 2**32 + 6
    assert not snapshot.sees(6)
    assert snapshot.sees(2**32 - 1)
    assert snapshot.sees(7)
    assert not snapshot.sees(8)


@pytest.mark.parametrize("bad", ["", "1:2", "a:b:", "1:2:x"])
def test_a_foreign_snapshot_is_refused(bad: str) -> None:
    with pytest.raises(ValueError):
        XidSnapshot.parse(bad)
