"""rule confirm-durable: what may be confirmed."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from cdc.progress import Progress


def test_confirm_durable_waits_for_every_earlier_append() -> None:
    p = Progress()
    p.reached(10, held=True)
    first = p.sent(2)
    p.reached(20, held=True)
    second = p.sent(1)
    p.done(second)
    assert p.durable == 0
    p.done(first)
    assert p.durable == 0
    p.done(first)
    assert p.durable == 20


def test_rows_of_an_open_transaction_do_not_move_it() -> None:
    p = Progress(durable=5)
    batch = p.sent(1)  # rows of a transaction whose COMMIT has not come
    p.done(batch)
    assert p.durable == 5
    p.reached(9, held=True)
    assert p.durable == 5
    p.done(p.sent(1))
    assert p.durable == 9


def test_idle_stream_moves_at_once() -> None:
    p = Progress()
    p.reached(30, held=False)
    assert p.durable == 30


@dataclass
class Row:
    """A record, the end of its transaction once known, and the append that took it."""

    end: int | None = None
    batch: object = None
    durable: bool = False


@given(st.lists(st.sampled_from(["row", "commit", "send", "done"]), max_size=60), st.randoms())
def test_never_above_what_is_durable(steps: list[str], random: Random) -> None:
    p = Progress()
    lsn = 0
    rows: list[Row] = []
    tickets = []
    for step in steps:
        if step == "row":
            rows.append(Row())
        elif step == "commit":
            lsn += 10
            for row in rows:
                row.end = row.end or lsn
            p.reached(lsn, held=any(r.batch is None for r in rows))
        elif step == "send" and any(r.batch is None for r in rows):
            tickets.append(p.sent(1))
            for row in rows:
                row.batch = row.batch or tickets[-1]
        elif step == "done" and tickets:
            ticket = tickets.pop(random.randrange(len(tickets)))
            p.done(ticket)
            for row in rows:
                row.durable |= row.batch is ticket
        waiting = [r.end for r in rows if r.end and not r.durable]
        assert p.durable <= lsn
        assert not waiting or p.durable < min(waiting)
        assert waiting or tickets or any(r.batch is None for r in rows) or p.durable == lsn


def test_confirm_durable_a_batch_counts_as_far_as_the_stream_was_when_it_went_out() -> None:
    p = Progress(durable=5)
    p.reached(10, held=True)
    first = p.sent(1)
    p.reached(20, held=True)
    p.done(first)
    assert p.durable == 10
