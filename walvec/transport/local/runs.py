"""Appends to one topic, one after the other: packed into batches, then stored with consecutive offsets.

Law: in call order within each partition. An append that cannot be stored (no such topic or partition) fails alone.
Next: `writer` commits them.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from walvec.contracts.errors import NotFound, WalvecError
from walvec.contracts.keys import partition_of
from walvec.transport.local.batches import Packed, pack, split
from walvec.transport.local.schema import topic_id, unknown_topic
from walvec.transport.records import Record

Outcome = tuple[asyncio.Future[Any], Any]


@dataclass(slots=True)
class Transaction:
    """What a call works on. `touched`: topics whose readers are to be woken after the commit."""

    connection: sqlite3.Connection
    touched: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True, eq=False)
class Append:
    topic: str
    records: Sequence[Record]
    patient: bool
    future: asyncio.Future[Any]


@dataclass(slots=True)
class Run:
    topic: str
    appends: list[Append]
    number: int | None = None
    batches: list[tuple[int, Packed]] = field(default_factory=list)
    failed: list[Outcome] = field(default_factory=list)

    def prepare(self, connection: sqlite3.Connection) -> None:
        """Packs, if the topic is there already."""
        try:
            self.number, partitions = topic_id(connection, self.topic)
        except NotFound:
            return
        parted: dict[int, list[Record]] = {}
        kept: list[Append] = []
        for append in self.appends:
            try:
                mine = spread(append.records, partitions, self.topic)
            except WalvecError as error:
                self.failed.append((append.future, error))
                continue
            kept.append(append)
            for partition, records in mine.items():
                parted.setdefault(partition, []).extend(records)
        self.appends = kept
        self.batches = [
            (partition, pack(part)) for partition, records in sorted(parted.items()) for part in split(records)
        ]

    def store(self, transaction: Transaction) -> list[Outcome]:
        connection = transaction.connection
        if self.number is None:
            # It may have been created earlier in this very transaction.
            self.prepare(connection)
        if self.number is None or not _exists(connection, self.number):
            return [*self.failed, *((append.future, unknown_topic(self.topic)) for append in self.appends)]
        now = int(time.time() * 1000)
        for partition, packed in self.batches:
            size = len(packed.data)
            end = connection.execute(
                "UPDATE partitions SET next = next + ?, bytes = bytes + ? WHERE topic = ? AND partition = ? "
                "RETURNING next",
                (packed.count, size, self.number, partition),
            ).fetchall()[0][0]
            connection.execute(
                "INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    self.number,
                    partition,
                    end - packed.count,
                    packed.count,
                    now,
                    packed.codec,
                    packed.checksum,
                    packed.raw_size,
                    size,
                    packed.data,
                ),
            )
        transaction.touched.add(self.number)
        return [*self.failed, *((append.future, None) for append in self.appends)]


def spread(records: Sequence[Record], partitions: int, topic: str) -> dict[int, list[Record]]:
    """By partition: the given one, else by hash of the key."""
    parted: dict[int, list[Record]] = {}
    for record in records:
        partition = record.partition
        if partition is None:
            partition = partition_of(record.key or b"", partitions)
        elif not 0 <= partition < partitions:
            raise NotFound(f"Topic {topic} has no partition {partition}.", f"It has {partitions}, counted from 0.")
        parted.setdefault(partition, []).append(record)
    return parted


def _exists(connection: sqlite3.Connection, number: int) -> bool:
    return connection.execute("SELECT 1 FROM topics WHERE id = ?", (number,)).fetchone() is not None
