"""A batch per key: newest position, never last in the log."""

from __future__ import annotations

from typing import Any

from sink.coalescer import coalesce
from walvec.contracts.position import Position
from walvec.contracts.vectors import VectorRecord


def record(op: Any, lsn: int, key: bytes = b"k") -> VectorRecord:
    return VectorRecord(op, Position(0, lsn, 1), key, 1)


def test_collapse_position_the_highest_wins_whatever_the_order() -> None:
    newest = record("upsert", 9)
    for batch in ([newest, record("delete", 7)], [record("delete", 7), newest]):
        (step,) = coalesce(batch).steps
        assert step.write is newest
        assert step.claim is None


def test_a_claim_above_a_write_is_kept_beside_it_and_below_it_dropped() -> None:
    write, above, below = record("upsert", 5), record("metadata", 7), record("metadata", 4)
    (step,) = coalesce([above, below, write]).steps
    assert step.records == (write, above)
    (step,) = coalesce([below, write]).steps
    assert step.records == (write,)


def test_of_several_claims_the_newest_counts() -> None:
    (step,) = coalesce([record("metadata", 5), record("metadata", 7), record("metadata", 6)]).steps
    assert [r.position.lsn for r in step.records] == [7]


def test_the_highest_truncate_counts_and_is_nobodys_key() -> None:
    plan = coalesce([record("truncate", 5, b""), record("truncate", 9, b""), record("truncate", 7, b"")])
    assert plan.truncate == Position(0, 9, 1)
    assert plan.steps == []


def test_keys_do_not_touch_each_other() -> None:
    plan = coalesce([record("upsert", 5, b"a"), record("metadata", 6, b"b"), record("delete", 4, b"c")])
    assert sorted(r.key for s in plan.steps for r in s.records) == [b"a", b"b", b"c"]
