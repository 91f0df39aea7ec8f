"""What the log carries: bytes with a key, an offset and a place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from walvec.contracts.headers import headers_of
from walvec.contracts.letters import DeadLetter
from walvec.contracts.wire import encode_letter

Headers = tuple[tuple[str, bytes], ...]


class Record(NamedTuple):
    """To be appended. `partition` None = by hash of the key (`contracts.keys.partition_of`).

    `headers` are for other tools: a log that only walvec reads (the local one) may drop them.
    """

    key: bytes | None
    value: bytes
    partition: int | None = None
    headers: Headers = ()


class StoredRecord(NamedTuple):
    """Read from the log. `timestamp_ms`: when it was appended, milliseconds since 1970."""

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes
    headers: Headers = ()


@dataclass(frozen=True, slots=True)
class Fetch:
    """Consecutive records of one partition, in offset order, never empty."""

    partition: int
    records: Sequence[StoredRecord]

    @property
    def next_offset(self) -> int:
        """The offset to commit once all of these are dealt with."""
        return self.records[-1].offset + 1


@dataclass(frozen=True, slots=True)
class TopicStats:
    """One topic at a glance; `bytes` on disk, `oldest_ms` of the oldest record kept or None.

    `differences`: settings of an existing topic that are not what walvec is configured to make, one sentence each.
    """

    topic: str
    partitions: int
    start_offsets: dict[int, int]
    end_offsets: dict[int, int]
    bytes: int
    oldest_ms: int | None
    differences: tuple[str, ...] = ()


def letter_record(letter: DeadLetter) -> Record:
    """What `.dead` gets."""
    return Record(letter.key or None, encode_letter(letter), None, headers_of(letter.position))


def changes_topic(storage_name: str) -> str:
    return f"walvec.{storage_name}.changes"


def vectors_topic(storage_name: str) -> str:
    return f"walvec.{storage_name}.vectors"


def dead_topic(storage_name: str) -> str:
    return f"walvec.{storage_name}.dead"


def embedder_group(storage_name: str) -> str:
    """Consumer group that reads `.changes`; one per vector table, so lag and rebalances are the table's own."""
    return f"walvec.{storage_name}.embedder"


def bridge_group(storage_name: str) -> str:
    """Consumer group that reads a vector table's `source` topic, which another program writes."""
    return f"walvec.{storage_name}.bridge"


def sink_group(storage_name: str) -> str:
    """Consumer group that reads `.vectors`."""
    return f"walvec.{storage_name}.sink"
