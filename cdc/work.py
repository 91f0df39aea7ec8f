"""What every task of a connection works with, and the records that it writes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from time import time
from typing import Any

from cdc.bridge_reads import BridgedReader
from cdc.chunks import Report, RowReader, StampedReader
from cdc.reading import Target
from cdc.rows import Line, RowShape, record_encoder
from cdc.session import Session, Sessions
from cdc.stream import Stream
from walvec.contracts.changes import Change, Op
from walvec.contracts.errors import DecodeError, NotFound
from walvec.contracts.headers import headers_of
from walvec.contracts.letters import DeadLetter
from walvec.contracts.position import Position
from walvec.contracts.wire import encode_change
from walvec.definitions.model import Connection, Generation, Task, VectorTable
from walvec.definitions.ports import Control
from walvec.runtime.settings import Settings
from walvec.transport.ports import Log, Producer
from walvec.transport.records import Record, changes_topic, embedder_group, vectors_topic

log = logging.getLogger(__name__)


class StreamRestarted(Exception):
    """The stream's session ended, or a read does not count: go on from what is stored."""


class TaskEnded(Exception):
    """Cancelled, or its table is gone: nothing is to be done any more."""


@dataclass(frozen=True, slots=True)
class Work:
    """One connection's tools, shared by its tasks."""

    settings: Settings
    control: Control
    log: Log
    stream: Stream
    connection_id: str
    sessions: Sessions
    producer: Producer

    def reader(
        self, session: Session, target: Target, table: VectorTable, generation: int, report: Report
    ) -> RowReader:
        """Reads of that generation whose stamps are on the scale of the table's changes."""
        if table.source is not None:
            return BridgedReader(session, self.control, target, table.id, self.stream.epoch, report)
        return StampedReader(session, self.stream, target, table.id, generation, report)

    def connection(self) -> Connection:
        found = self.control.feed.current.connections.get(self.connection_id)
        if found is None:
            raise TaskEnded("the connection was deleted")
        return found

    def table(self, task: Task) -> VectorTable:
        found = self.control.feed.current.vector_tables.get(task.target_id)
        if found is None:
            raise TaskEnded("the vector table was deleted")
        return found

    def generation(self, task: Task) -> Generation:
        table = self.table(task)
        found = table.generation(task.generation) if task.generation else table.active
        if found is None or found not in table.live_generations:
            raise TaskEnded(f"generation {task.generation} is not fed any more")
        return found

    async def token(self, table: VectorTable) -> str:
        """Names the slot, the log, its topics and the timeline that a backfill's progress belongs to (rule
        restart-on-loss)."""
        found = await self.control.progress.get(self.connection_id)
        name = table.storage_name
        topics = [await self.log.topic_identity(topic) for topic in (changes_topic(name), vectors_topic(name))]
        return ":".join((str(found.slot_created_lsn), str(found.epoch), found.log_identity, *topics))

    async def backlog(self, table: VectorTable) -> int:
        """Records of `.changes` that the embedder has not committed."""
        topic = changes_topic(table.storage_name)
        return await self.behind(topic, embedder_group(table.storage_name), await self.log.end_offsets(topic))

    async def behind(self, topic: str, group: str, ends: Mapping[int, int]) -> int:
        done = await self.log.committed(topic, group)
        return sum(max(0, end - done.get(partition, 0)) for partition, end in ends.items())

    async def update(self, task: Task, **changes: Any) -> None:
        """Stores a task's progress. Raises TaskEnded when it was cancelled or deleted."""
        try:
            open_ = await self.control.tasks.update(task.id, **changes)
        except NotFound as e:
            raise TaskEnded("the task was deleted") from e
        if not open_:
            raise TaskEnded("the task was ended")


class ChunkWriter:
    """Rows of one generation -> records of `.changes` at one stamp."""

    def __init__(self, table: VectorTable, generation: Generation, shape: RowShape, force: bool) -> None:
        self._table = table
        self._generation = generation.number
        newest = table.next_generation - 1
        self._newest = newest if newest > generation.number else 0
        self._shape = shape
        self._force = force

    def records(self, lines: Iterable[Line], position: Position) -> tuple[list[Record], list[DeadLetter]]:
        """Records, and a letter for each row that cannot be written as one; its key's text is deleted then."""
        shape = self._shape
        now = int(time() * 1000)
        source = _source(self._table, position, now)
        encode = record_encoder(
            shape,
            position=position,
            generation=self._generation,
            newest=self._newest,
            force=self._force,
            read_ms=now,
            source=source,
        )
        key_of = shape.key
        headers = headers_of(position)
        records: list[Record] = []
        letters: list[DeadLetter] = []
        for line in lines:
            try:
                records.append(Record(key_of(line), encode(line), None, headers))
            except DecodeError as e:
                key = self._key(line)
                letters.append(DeadLetter(self._table.id, self._generation, key, "decode", str(e), position))
                if key:
                    records.append(delete_record(self._table, self._generation, key, position))
        return records, letters

    def _key(self, line: Line) -> bytes:
        try:
            return self._shape.key(line)
        except DecodeError:
            log.warning("row without a readable key", extra={"action": "row_rejected", "table": self._table.name})
            return b""


def delete_record(table: VectorTable, generation: int, key: bytes, position: Position) -> Record:
    return Record(key, _marker(table, "d", generation, key, position), None, headers_of(position))


def sweep_record(table: VectorTable, generation: int, position: Position) -> Record:
    """Rows below the position are gone: there is one floor per table and generation, so one partition will do."""
    return Record(None, _marker(table, "t", generation, b"", position), 0, headers_of(position))


def _source(table: VectorTable, position: Position, now: int) -> dict[str, Any]:
    names = {"schema": table.source_schema, "table": table.source_table, "snapshot": "true"}
    return {**names, "lsn": position.lsn, "ts_ms": now}


def _marker(table: VectorTable, op: Op, generation: int, key: bytes, position: Position) -> bytes:
    now = int(time() * 1000)
    change = Change(op=op, position=position, key=key, generation=generation, commit_ms=now)
    return encode_change(change, source=_source(table, position, now))
