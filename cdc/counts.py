"""What one connection's reader and jobs have done, as plain data that outlives their sessions. Pure.

Times are the monotonic clock's, in seconds. Next: `cdc.service` shows them to Prometheus.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import get_args

from walvec.contracts.histograms import NUMBERS, Histogram
from walvec.contracts.letters import LetterKind
from walvec.runtime import measures
from walvec.runtime.measures import Sample


@dataclass(slots=True)
class TableCounts:
    """`written`: records of the stream; `backfilled`: rows, one record each; `buried`: dead letters by kind."""

    written: int = 0
    backfilled: int = 0
    buried: Counter[str] = field(default_factory=Counter)
    batches: Histogram = field(default_factory=lambda: Histogram(NUMBERS))
    append_seconds: Histogram = field(default_factory=Histogram)
    commit_to_log: Histogram = field(default_factory=Histogram)

    def appended(self, records: int, seconds: float, since_commit: float) -> None:
        self.written += records
        self.batches.add(records)
        self.append_seconds.add(seconds)
        self.commit_to_log.add(max(0.0, since_commit))


@dataclass(slots=True)
class Counts:
    """`…_at`: when that last happened, or when the session began. LSNs are 0 until the first one has begun."""

    streaming: bool = False
    rows: int = 0
    received: int = 0
    durable: int = 0
    confirmed: int = 0
    feedback_at: float = 0.0
    heartbeat_at: float = 0.0
    heartbeat_seconds: float = 0.0
    in_flight_bytes: int = 0
    waited_seconds: float = 0.0
    gaps: int = 0
    reconnects: Counter[str] = field(default_factory=Counter)
    tables: dict[str, TableCounts] = field(default_factory=dict)
    """By topic of their changes."""

    def table(self, topic: str) -> TableCounts:
        found = self.tables.get(topic)
        if found is None:
            found = self.tables[topic] = TableCounts()
        return found

    def samples(self, connection: str, tables: Mapping[str, str], now: float) -> Iterator[Sample]:
        """`tables`: names by topic, of those that are defined now; what was counted of others is forgotten."""
        yield measures.STREAMING.of(self.streaming, connection)
        yield measures.CHANGES_READ.of(self.rows, connection)
        if self.received:
            for position, lsn in (
                ("received", self.received),
                ("durable", self.durable),
                ("confirmed", self.confirmed),
            ):
                yield measures.WAL_POSITION.of(lsn, connection, position)
        if self.streaming:
            yield measures.FEEDBACK_AGE.of(now - self.feedback_at, connection)
            yield measures.HEARTBEAT_AGE.of(now - self.heartbeat_at, connection)
            yield measures.HEARTBEAT_LATENCY.of(self.heartbeat_seconds, connection)
        yield measures.IN_FLIGHT_BYTES.of(self.in_flight_bytes, connection)
        yield measures.BACKPRESSURE.of(self.waited_seconds, connection)
        yield measures.GAPS.of(self.gaps, connection)
        for kind, count in list(self.reconnects.items()):
            yield measures.RECONNECTS.of(count, connection, kind)
        yield from self.of_tables(tables)

    def of_tables(self, tables: Mapping[str, str]) -> Iterator[Sample]:
        """As `samples`, for tables that are not read through the connection's slot."""
        for topic in self.tables.keys() - tables.keys():
            del self.tables[topic]
        for topic, counts in self.tables.items():
            yield from _of_table(counts, tables[topic])


def _of_table(counts: TableCounts, table: str) -> Iterator[Sample]:
    yield measures.RECORDS_WRITTEN.of(counts.written, table, "cdc")
    yield measures.RECORDS_WRITTEN.of(counts.backfilled, table, "backfill")
    yield measures.BACKFILL_ROWS.of(counts.backfilled, table)
    yield measures.BATCH_RECORDS.of(counts.batches, table, "cdc")
    yield measures.LOG_APPEND.of(counts.append_seconds, table)
    yield measures.COMMIT_TO_LOG.of(counts.commit_to_log, table)
    for kind in get_args(LetterKind):
        yield measures.DEAD_LETTERS.of(counts.buried[kind], table, kind)
