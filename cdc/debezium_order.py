"""The place of a Debezium event in the order of changes. Pure; ADR 0005 has the argument.

Law: positions depend on what stands before a record in its partition, never on when it is read, so that a replay gives
the same ones; a row that was read never stands above a change that its snapshot did not see.
Next: `bridge` keeps the bases, `bridge_reads` stamps SELECTs on this scale.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from cdc.debezium import Event
from walvec.contracts.position import Position

ABOVE_CHANGES = 1 << 59
"""Ordinals from here on stand above all changes that share their first LSN."""
_LOWEST_LSN = 1 << 20
"""No record of a write-ahead log lies below it: the ordinals between 0 and here are free for stamps."""


@dataclass(slots=True)
class Bases:
    """Snapshots that a partition holds: (offset of the first row of it, LSN of the snapshot), in offset order."""

    found: list[tuple[int, int]] = field(default_factory=list)

    def at(self, offset: int) -> int:
        """The LSN of the snapshot that the partition met last before or at this offset, else 0."""
        return next((lsn for start, lsn in reversed(self.found) if start <= offset), 0)

    def meet(self, event: Event, offset: int) -> bool:
        """True when a new snapshot begins here: to be stored before the record counts as read."""
        if not event.snapshot or event.sequence is not None or self.at(offset) == event.lsn:
            return False
        self.found = [(o, lsn) for o, lsn in self.found if o < offset] + [(offset, event.lsn)]
        return True


def position_of(event: Event, *, epoch: int, base: int, snapshots: Iterable[int]) -> Position:
    """`(epoch, last commit before it, its own LSN)`; ordinal 0 for rows that were read.

    A change is lifted above the rows of snapshots that it follows: of those in its partition (`base`, see Bases.at) and
    of those that it was written behind (`snapshots`: LSNs of all that are known of the table). The first transaction of
    a connector names no commit before it: its own LSN stands in, which is above all that the connector's predecessor
    has seen.
    """
    if event.op == "r":
        return Position(epoch, event.lsn if event.sequence is None else max(event.sequence, base), 0)
    before = event.lsn if event.sequence is None else event.sequence
    return Position(epoch, max(before, base, *(s for s in snapshots if s <= event.lsn)), event.lsn)


@dataclass(frozen=True, slots=True)
class Reached:
    """How far the topic has been read. `sequence`: the highest last commit that a streamed change named; `snapshots`:
    LSNs of those it holds."""

    sequence: int = 0
    snapshots: tuple[int, ...] = ()

    def stamp_above(self, epoch: int, letters: Sequence[Position] = ()) -> Position:
        """Of rows whose snapshot sees every transaction that had committed when this was reached.

        It stands above all changes of the transaction that follows `sequence`, and above the rows of all snapshots but
        the newest: whatever is not seen yet was written behind those. Only keys with a letter at the newest snapshot
        (`letters`, when all are such) have no change below it, and so may be stamped there. Where a letter stands at
        the stamp's very place, the stamp is one higher (rule replay-above).
        """
        known = [0, 0, *sorted(set(self.snapshots))]
        older, newest = known[-2], known[-1]
        streamed = Position(epoch, self.sequence, ABOVE_CHANGES if self.sequence else 1)
        found = max(streamed, Position(epoch, older, 1))
        if newest > found.lsn and letters and all(letter.lsn == newest for letter in letters):
            found = Position(epoch, newest, 1)
        room = found.ordinal + _LOWEST_LSN // 2
        for letter in letters:
            if letter[:2] == found[:2] and found.ordinal <= letter.ordinal < room:
                found = Position(epoch, found.lsn, letter.ordinal + 1)
        return found


def highest_sequence(events: Iterable[Event]) -> int:
    """Of streamed changes; where one names no commit before it, its own LSN stands in."""
    return max((e.lsn if e.sequence is None else e.sequence for e in events if e.op != "r"), default=0)


@dataclass(slots=True)
class Lives:
    """Notices that a connector began anew, without its offsets: what happened before may not be in the topic.

    A new life shows in a further snapshot; where that has no row, in a transaction that names no commit before it and
    is not the first one behind a snapshot. A reader that has just begun may notice one too often, never too rarely.
    """

    _first: tuple[int, int] | None = None

    def begins(self, event: Event, sequence: int, snapshots: Iterable[int]) -> bool:
        """`sequence`, `snapshots`: what was known of the table before this event."""
        if event.sequence is not None:
            return False
        known = set(snapshots)
        if event.op == "r":
            return event.snapshot and event.lsn not in known and bool(known or sequence)
        if event.lsn <= sequence and self._first is None:
            return False  # delivered again
        newest = max((lsn for lsn in known if lsn <= event.lsn), default=0)
        this = (newest, event.xid)
        if self._first == this or event.lsn <= sequence:
            return False
        begins = sequence > newest or (self._first is not None and self._first[0] == newest)
        self._first = this
        return begins
