"""Polled records become changes, once for all generations: what cannot be read is a letter before anything else.

Next: `lanes` hands them to each generation's `batch`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain

from embedder.context import Context
from embedder.outbox import Outbox, letter_of
from walvec.contracts import wire
from walvec.contracts.changes import Change
from walvec.contracts.errors import ControlUnavailable, DecodeError
from walvec.contracts.headers import check_schema
from walvec.contracts.letters import DeadLetter
from walvec.contracts.position import ZERO
from walvec.contracts.values import key_check
from walvec.runtime.retry import persistently
from walvec.transport.records import Fetch, StoredRecord

_log = logging.getLogger(__name__)
_FEED_SECONDS = 2.0

_Placed = tuple[Change, tuple[int, StoredRecord]]
"""A change, and the partition and record that it came from."""


@dataclass(slots=True, eq=False)
class Polled:
    """Changes of all generations, in log order; `truncates` with their partitions."""

    fetches: Sequence[Fetch]
    changes: list[Change] = field(default_factory=list)
    truncates: list[tuple[int, Change]] = field(default_factory=list)
    commit_ms: int = 0

    def concerns(self, generation: int) -> bool:
        """Whether there may be anything to do for it."""
        every = chain(self.changes, (c for _, c in self.truncates))
        return any(c.concerns(generation) for c in every)


async def take_in(context: Context, fetches: Sequence[Fetch]) -> Polled:
    """All generations that the records name are known on return, and letters of what cannot be read are durable."""
    found, placed, damaged = _decode(context, fetches)
    every = (*(c for c, _ in placed), *(c for _, c in found.truncates))
    await _know(context, max((max(c.generation, c.newest) for c in every), default=0))
    damaged += _foreign_keys(context, placed)  # only now: a newer generation may have another key
    if damaged:
        await Outbox(context, context.table.active.number).bury(damaged)
    found.changes = [c for c, _ in placed]
    return found


def read_again(context: Context, fetches: Sequence[Fetch]) -> Polled:
    """Records that were taken in before: what is wrong with them was told then."""
    found, placed, _ = _decode(context, fetches)
    _foreign_keys(context, placed)
    found.changes = [c for c, _ in placed]
    return found


def _decode(context: Context, fetches: Sequence[Fetch]) -> tuple[Polled, list[_Placed], list[DeadLetter]]:
    found = Polled(fetches)
    placed: list[_Placed] = []
    damaged: list[DeadLetter] = []
    latest = 0
    decode = wire.decode_change
    for fetch in fetches:
        for record in fetch.records:
            try:
                check_schema(record.headers)
                change = decode(record.key, record.value)
                if change.op == "t":
                    found.truncates.append((fetch.partition, change))
                else:
                    _check(change)
                    placed.append((change, (fetch.partition, record)))
            except DecodeError as e:
                damaged.append(_unreadable(context, str(e), fetch.partition, record))
                continue
            if change.commit_ms > latest:
                latest = change.commit_ms
    found.commit_ms = latest
    return found, placed, damaged


def _check(change: Change) -> None:
    if not change.key:
        raise DecodeError("a change record without a key.")
    if change.op != "d" and not isinstance(change.after, dict):
        raise DecodeError(f'a change record of op "{change.op}" without a row.')


async def _know(context: Context, generation: int) -> None:
    """Rule known-generation: a generation that is newer than our definitions is on its way in the feed; its records,
    and those of all generations, must not be taken for done without it. Only what the control database itself does
    not know is passed over."""
    loop = asyncio.get_running_loop()
    ask_at = loop.time()
    while context.table.next_generation <= generation:
        if loop.time() >= ask_at:
            found = await persistently(
                context.control.definitions.snapshot, ControlUnavailable, action="get_definitions"
            )
            table = found.vector_tables.get(context.table.id)
            if table is None or table.next_generation <= generation:
                _log.warning("unknown generation", extra={"action": "generation", "generation": generation})
                return
            ask_at = loop.time() + _FEED_SECONDS
        await asyncio.sleep(0.05)


def _foreign_keys(context: Context, changes: list[_Placed]) -> list[DeadLetter]:
    """Takes changes out of the list whose key is not one of this table: written as they are, they would be rows that
    the source does not have."""
    of_table = _key_check(context)
    strange: list[_Placed] = []
    kept: list[_Placed] = []
    for placed in changes:
        (kept if of_table(placed[0].key) else strange).append(placed)
    changes[:] = kept
    return [_unreadable(context, "a change whose key is not this table's.", *place) for _, place in strange]


def _key_check(context: Context) -> Callable[[bytes | None], bool]:
    checks = [key_check(k) for k in dict.fromkeys(g.key_codecs for g in context.table.generations)]
    return checks[0] if len(checks) == 1 else lambda key: any(check(key) for check in checks)


def _unreadable(context: Context, reason: str, partition: int, record: StoredRecord) -> DeadLetter:
    """Without a position: nothing is known to be older. A key of another shape could not be read again."""
    table = context.table
    key = record.key if _key_check(context)(record.key) else None
    where = f"{reason} (partition {partition}, offset {record.offset})"
    return letter_of(table, table.active.number, key or b"", "decode", where, ZERO, record.timestamp_ms, record.value)


def spans(fetches: Iterable[Fetch]) -> dict[int, int]:
    """Partition -> the offset after its last record."""
    return {f.partition: f.next_offset for f in fetches}
