"""One backfill: the table in key order, chunk by chunk, beside the live stream; resumable, pausable.

Law: a chunk's progress is stored after its records are durable (rule progress-after), the next key and the lowest stamp
together (rule lowest-stored); what was stored under another slot, log or timeline does not count (rule
restart-on-loss). Next: `jobs` runs it.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from time import monotonic
from typing import Any

from cdc import reading
from cdc.chunks import Read, RowReader
from cdc.stamping import ReadAgain
from cdc.work import ChunkWriter, StreamRestarted, TaskEnded, Work, sweep_record
from walvec.contracts.position import Position
from walvec.definitions.making import ensure_topics
from walvec.definitions.model import OPEN, Generation, Task, VectorTable
from walvec.transport.records import changes_topic, embedder_group, sink_group, vectors_topic

log = logging.getLogger(__name__)

MAX_CHUNK_BYTES = 4 * 1024**2
TARGET_SECONDS = 0.4
_IDENTITY_SECONDS = 2.0


@dataclass(slots=True)
class Cursor:
    """What a backfill has done. `of`: see Work.token. `read`: every chunk is durable."""

    of: str
    next: list[str] | None = None
    lowest: Position | None = None
    rows: int = 0
    read: bool = False

    @classmethod
    def load(cls, progress: Any, token: str) -> Cursor:
        """Rule restart-on-loss: another slot, log or timeline = from the first key, with a new lowest stamp."""
        if not progress or progress.get("of") != token:
            return cls(token)
        lowest = progress.get("lowest")
        return cls(
            token,
            progress.get("next"),
            Position(*lowest) if lowest else None,
            int(progress.get("rows", 0)),
            bool(progress.get("read", False)),
        )

    def store(self) -> dict[str, Any]:
        return {
            "of": self.of,
            "next": self.next,
            "lowest": list(self.lowest) if self.lowest else None,
            "rows": self.rows,
            "read": self.read,
        }


class ChunkSize:
    """Rows of the next chunk, from how the last one went. Pure."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.rows = most

    def learn(self, rows: int, size: int, seconds: float) -> None:
        if rows == 0:
            return
        by_bytes = MAX_CHUNK_BYTES * rows // max(size, 1)
        by_time = int(rows * TARGET_SECONDS / max(seconds, 0.001))
        self.rows = max(1, min(self._most, by_bytes, max(by_time, self.rows // 4), self.rows * 4))


class Backfill:
    """The task of one generation."""

    def __init__(self, work: Work, task: Task) -> None:
        self._work = work
        self._task = task
        self._size = ChunkSize(min(work.settings.cdc.backfill_chunk_rows, work.settings.cdc.backfill_max_backlog))
        self._estimate = 0
        self._started = monotonic()
        self._rows_before = 0
        self._waiting = ""
        self._cursor = Cursor("")
        self._losses = -1
        self._session = 0

    async def run(self) -> None:
        """Until completed. Raises TaskEnded, and the source's, the log's and the control database's errors."""
        work = self._work
        table, generation = work.table(self._task), work.generation(self._task)
        topics = (changes_topic(table.storage_name), vectors_topic(table.storage_name))
        await ensure_topics(table, *topics, control=work.control, log=work.log)
        await work.update(self._task, status="running")
        while True:
            try:
                await work.stream.wait_live()
                await self._once(table, generation)
                return
            except StreamRestarted as e:
                log.info(
                    "backfill goes on from its stored key",
                    extra={"action": "backfill_again", "table": table.name, "reason": str(e)},
                )

    async def _once(self, table: VectorTable, generation: Generation) -> None:
        """From the stored key to the end, within one session of the stream."""
        work = self._work
        session = self._session = work.stream.session
        if self._losses not in (-1, work.stream.losses):
            await work.update(self._task, progress={})  # rule restart-on-loss, within this process
        self._losses = work.stream.losses
        stored = await work.control.tasks.get(self._task.id)
        if stored.status not in OPEN:
            raise TaskEnded("the task was ended")
        cursor = self._cursor = Cursor.load(stored.progress, await work.token(table))
        self._rows_before, self._started = cursor.rows, monotonic()
        if not cursor.read:
            if not await work.stream.wait_routed(table.id, generation.number):
                raise StreamRestarted("the stream was restarted")
            async with work.sessions.borrow(work.connection()) as source:
                target = await reading.target(source, table, generation)
                self._estimate = max(target.estimated_rows, cursor.rows)
                reader = work.reader(source, target, table, generation.number, self._report)
                # the active generation of a backfilled table reconciles: equal texts are claimed, not paid again
                writer = ChunkWriter(table, generation, target.shape, force=False)
                await self._chunks(reader, writer, table)
        if session != work.stream.session:
            raise StreamRestarted("the stream was restarted")
        await self._finish(table, generation, session)

    # ------------------------------------------------------------------ chunks

    async def _chunks(self, reader: RowReader, writer: ChunkWriter, table: VectorTable) -> None:
        """The next chunk is read while this one is judged and appended; a chunk that does not count drops it."""
        cursor = self._cursor
        ahead: asyncio.Task[Read] | None = None
        try:
            while not cursor.read:
                await self._allowed()
                read = await (ahead or self._read(reader, cursor.next))
                ahead = None
                last = self._last_key(reader, read)
                if not read.whole and last is not None:
                    ahead = asyncio.create_task(self._read(reader, last))
                stamp = await reader.judge(read)
                if isinstance(stamp, ReadAgain):
                    raise StreamRestarted(stamp.reason)
                await self._append(writer, table, read, stamp)
                cursor.next = last if last is not None else cursor.next
                cursor.lowest = stamp if cursor.lowest is None else min(cursor.lowest, stamp)
                cursor.rows += len(read.lines)
                cursor.read = read.whole
                await self._store()
        finally:
            if ahead is not None:
                ahead.cancel()
                found = (await asyncio.gather(ahead, return_exceptions=True))[0]
                if isinstance(found, Read):
                    reader.drop(found)

    async def _read(self, reader: RowReader, after: list[str] | None) -> Read:
        read = await reader.chunk(after, limit=self._size.rows, max_bytes=MAX_CHUNK_BYTES)
        self._size.learn(len(read.lines), read.size, read.seconds)
        return read

    @staticmethod
    def _last_key(reader: RowReader, read: Read) -> list[str] | None:
        if not read.lines:
            return None
        return [raw.decode() for raw in reader.target.shape.key_texts(read.lines[-1])]

    async def _append(self, writer: ChunkWriter, table: VectorTable, read: Read, stamp: Position) -> None:
        records, letters = writer.records(read.lines, stamp)
        topic = changes_topic(table.storage_name)
        counts = self._work.stream.counts.table(topic)
        if letters:
            await self._work.control.letters.put(letters)  # the letter is durable before its delete
            counts.buried.update(letter.kind for letter in letters)
        if records:
            await self._work.producer.append(topic, records)
        counts.backfilled += len(read.lines)

    async def _allowed(self) -> None:
        """Live changes first: waits while the table is paused or in error, or the embedder has enough to do."""
        work = self._work
        most = work.settings.cdc.backfill_max_backlog
        while True:
            now = work.table(self._task)
            if now.paused or now.error:
                await self._report("the table is paused" if now.paused else "the table is in error")
                await work.control.feed.changed(work.control.feed.current.version)
            elif await work.backlog(now) > most:
                await self._report("the embedder has changes to do first")
                await work.log.wait_for_append(1.0)
            else:
                await self._report("")
                return

    # ------------------------------------------------------------------ the end

    async def _finish(self, table: VectorTable, generation: Generation, session: int) -> None:
        """Consumed, swept, marked. Rule sweep-drained: the marker follows what it must not delete."""
        work, cursor = self._work, self._cursor
        name = table.storage_name
        for _ in range(2):  # a claim may come back once as a record of `.changes`
            await self._consumed(changes_topic(name), embedder_group(name), session)
            await self._consumed(vectors_topic(name), sink_group(name), session)
        await self._report("")
        if (await work.control.tasks.get(self._task.id)).status != "running":
            raise TaskEnded("the task was ended")
        if await work.token(table) != cursor.of:
            raise StreamRestarted("a topic was deleted meanwhile")
        if self._task.params.get("sweep") and cursor.lowest is not None:
            # rule sweep, rule sweep-floor: the floor rises to the lowest stamp of this backfill
            marker = sweep_record(table, generation.number, cursor.lowest)
            await work.producer.append(changes_topic(name), [marker])
        if not await work.control.states.set_backfilled(table.id, generation.number, by=self._task.id):
            raise TaskEnded("the task was ended")
        await work.update(self._task, status="completed", progress=self._progress())
        log.info(
            "backfill completed",
            extra={"action": "backfill_completed", "table": table.name, "rows": cursor.rows},
        )

    async def _consumed(self, topic: str, group: str, session: int) -> None:
        work = self._work
        ends = await work.log.end_offsets(topic)
        identity, look_at = await work.log.topic_identity(topic), monotonic() + _IDENTITY_SECONDS
        while await work.behind(topic, group, ends):
            if monotonic() >= look_at:
                look_at = monotonic() + _IDENTITY_SECONDS
                if await work.log.topic_identity(topic) != identity:
                    raise StreamRestarted(f"topic {topic} was deleted")
            work.table(self._task)
            await self._report("the last rows are on their way to the store")
            await work.log.wait_for_append(1.0)
            if work.stream.session != session:
                raise StreamRestarted("the stream was restarted")

    # ------------------------------------------------------------------ progress

    async def _report(self, waiting: str) -> None:
        if waiting == self._waiting:
            return
        self._waiting = waiting
        if waiting:
            log.debug("backfill waits", extra={"action": "backfill_waits", "task": self._task.id, "reason": waiting})
        await self._store()

    async def _store(self) -> None:
        if self._work.stream.session != self._session:
            # what was lost meanwhile may have reset the progress: it must not be written over (rule restart-on-loss)
            raise StreamRestarted("the stream was restarted")
        await self._work.update(self._task, progress=self._progress())

    def _progress(self) -> dict[str, Any]:
        rows = self._cursor.rows
        seconds = monotonic() - self._started
        rate = (rows - self._rows_before) / seconds if seconds > 0 else 0.0
        left = max(0, self._estimate - rows)
        eta = 0 if self._cursor.read else round(left / rate) if rate > 0 else None
        return {
            **self._cursor.store(),
            "estimate": rows if self._cursor.read else max(self._estimate, rows),
            "rate": round(rate, 1),
            "eta_seconds": eta,
            "waiting": self._waiting,
        }
