"""Rows of batches to records, within limits; on the reader's thread, in one short read transaction.

Law: reads never change anything and never hold a transaction across calls (the write-ahead file could not shrink).
Next: `consumer` decides by the View what is given up, taken and returned.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from walvec.contracts.errors import DecodeError, LogDamaged
from walvec.transport.local import groups, schema
from walvec.transport.local.batches import Packed, unpack
from walvec.transport.local.file import LogFile
from walvec.transport.records import StoredRecord

T = TypeVar("T")


class Reader:
    """One thread with one connection; each job is one read transaction."""

    def __init__(self, file: LogFile, damaged: Callable[[LogDamaged], None]) -> None:
        """`damaged(error)` is called on the event loop."""
        self._file = file
        self._damaged = damaged
        self._connection: sqlite3.Connection | None = None
        self._threads = ThreadPoolExecutor(1, "walvec-log-reader")

    async def run(self, job: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._run, job)
        except LogDamaged as error:
            self._damaged(error)
            raise

    def _run(self, job: Callable[[sqlite3.Connection], T]) -> T:
        with schema.translated(self._file.path):
            self._file.check()
            if self._connection is None:
                self._connection = schema.connect(self._file.path)
            self._connection.execute("BEGIN")
            try:
                return job(self._connection)
            except DecodeError as error:
                raise schema.damaged(self._file.path, error.message) from error
            finally:
                # Some errors end the transaction by themselves.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    async def close(self) -> None:
        def end() -> None:
            if self._connection is not None:
                self._connection.close()

        await asyncio.get_running_loop().run_in_executor(self._threads, end)
        self._threads.shutdown(wait=False)


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a partition is read next; `ahead`: records from there on that were unpacked before."""

    offset: int
    ahead: Sequence[StoredRecord] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """Read from one partition: `records` to hand out, `cursor` after them, `origin` the one it was read for."""

    partition: int
    origin: Cursor
    records: Sequence[StoredRecord]
    cursor: Cursor


@dataclass(frozen=True, slots=True)
class View:
    """The group and the records at one moment. `topic` None = there is no such topic."""

    topic: int | None
    members: Sequence[int]
    owners: Mapping[int, tuple[int | None, int]]
    pieces: Sequence[Piece]


def look(
    connection: sqlite3.Connection,
    topic: str,
    group: str,
    cursors: Sequence[tuple[int, Cursor]],
    max_records: int,
    max_bytes: int,
) -> View:
    """`cursors` in the order in which partitions are served: what the first leave over is for the others."""
    row = connection.execute("SELECT id FROM topics WHERE name = ?", (topic,)).fetchone()
    if row is None:
        return View(None, (), {}, ())
    number = int(row[0])
    ends = dict(connection.execute("SELECT partition, next FROM partitions WHERE topic = ?", (number,)))
    waiting = [(partition, cursor) for partition, cursor in cursors if ends.get(partition, 0) > cursor.offset]
    pieces: list[Piece] = []
    for index, (partition, cursor) in enumerate(waiting):
        if max_records <= 0:
            break
        part = -(-max_records // (len(waiting) - index))
        size = -(-max_bytes // (len(waiting) - index))
        piece, taken = fetch(connection, number, partition, cursor, part, size, at_least_one=not pieces)
        if piece.records:
            pieces.append(piece)
            max_records -= len(piece.records)
            max_bytes -= taken
    members, owners = groups.members(connection, number, group), groups.owners(connection, number, group)
    return View(number, members, owners, pieces)


def fetch(
    connection: sqlite3.Connection,
    topic: int,
    partition: int,
    cursor: Cursor,
    max_records: int,
    max_bytes: int,
    *,
    at_least_one: bool,
) -> tuple[Piece, int]:
    """The piece and its bytes."""
    records: list[StoredRecord] = []
    taken = 0
    source: Sequence[StoredRecord] = cursor.ahead
    offset = cursor.offset
    rows = _batches(connection, topic, partition, offset + len(source))
    while True:
        for used, record in enumerate(source):
            size = len(record.value) + (len(record.key) if record.key else 0)
            full = len(records) >= max_records or taken + size > max_bytes
            if full and (records or not at_least_one):
                return _piece(partition, cursor, records, list(islice(source, used, None)), offset), taken
            records.append(record)
            taken += size
            offset = record.offset + 1
        row = None if len(records) >= max_records or (records and taken >= max_bytes) else rows.fetchone()
        if row is None:
            return _piece(partition, cursor, records, (), offset), taken
        base, timestamp_ms, *packed = row
        source = unpack(Packed(*packed), base, timestamp_ms, max(offset, base))


def _piece(
    partition: int, origin: Cursor, records: Sequence[StoredRecord], ahead: Sequence[StoredRecord], offset: int
) -> Piece:
    return Piece(partition, origin, records, Cursor(offset, ahead))


def _batches(connection: sqlite3.Connection, topic: int, partition: int, offset: int) -> sqlite3.Cursor:
    """From the batch that holds `offset`, or the first kept one after it."""
    return connection.execute(
        "SELECT base, timestamp_ms, count, codec, checksum, raw_size, data FROM batches "
        "WHERE topic = ?1 AND partition = ?2 AND base >= coalesce((SELECT max(base) FROM batches "
        "WHERE topic = ?1 AND partition = ?2 AND base <= ?3), 0) AND base + count > ?3 ORDER BY base",
        (topic, partition, offset),
    )
