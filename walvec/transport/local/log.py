"""The port `Log` over one SQLite file: opens the parts, keeps the sign of life, sweeps.

Law: one instance belongs to one event loop; threads start with the first use. Next: `consumer`, `writer`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from pathlib import Path

from walvec.contracts.errors import LogDamaged, LogUnavailable, NotFound, WalvecError
from walvec.runtime.settings import LogSettings
from walvec.transport.local import groups, processes, retention, schema
from walvec.transport.local.consumer import LocalConsumer
from walvec.transport.local.fetching import Cursor, Reader, fetch
from walvec.transport.local.file import LogFile
from walvec.transport.local.runs import Transaction
from walvec.transport.local.wake import Hub
from walvec.transport.local.writer import Writer
from walvec.transport.ports import OnRevoke
from walvec.transport.records import Record, StoredRecord, TopicStats

logger = logging.getLogger(__name__)

_READ_RECORDS, _READ_BYTES = 1000, 1024 * 1024
_LOOK_SECONDS = 2.0


def open_local_log(data_dir: Path, settings: LogSettings) -> LocalLog:
    """Opens the log of a data directory, made if need be. Raises ConfigError, LogDamaged, LogUnavailable."""
    return LocalLog(schema.log_path(data_dir), settings)


class LocalProducer:
    def __init__(self, log: LocalLog, *, patient: bool) -> None:
        self._log = log
        self._patient = patient
        self._closed = False

    async def append(self, topic: str, records: Sequence[Record]) -> None:
        if self._closed:
            raise LogUnavailable("This producer is closed.", "Open another one.")
        if records:
            await self._log.writer.append(topic, records, self._patient)

    async def close(self) -> None:
        self._closed = True


class LocalLog:
    keeps_headers = False

    def __init__(self, path: Path, settings: LogSettings, *, fallback_seconds: float = 0.25) -> None:
        """`fallback_seconds`: how often the file is looked at although no datagram came."""
        self._settings = settings
        self._fallback = fallback_seconds
        self._identity = schema.prepare(path)
        self.hub = Hub(self._identity)
        self._file = LogFile.of(path)
        self.reader = Reader(self._file, self._damaged)
        self._writer: Writer | None = None
        self._consumers: set[LocalConsumer] = set()
        self._enrolment = asyncio.Lock()
        self._pulse: asyncio.Task[None] | None = None
        self._waited: int | None = None
        self.failure: WalvecError | None = None
        self._breakage: LogDamaged | None = None
        self._broken = asyncio.Event()
        self._closed = False

    @property
    def writer(self) -> Writer:
        if self._closed:
            raise LogUnavailable("The log is closed.", "Open it again.")
        if self._writer is None:
            self._writer = Writer(self._file, self._identity, self._settings.max_bytes, self._woken, self._damaged)
            self._pulse = asyncio.get_running_loop().create_task(self._keep_alive(), name="walvec-log-pulse")
        return self._writer

    def lease_seconds(self) -> float:
        return self._settings.lease_seconds

    def _woken(self, topics: Iterable[int]) -> None:
        self.hub.wake(topics)

    # ---- topics

    async def identity(self) -> str:
        return self._identity

    async def ensure_topic(self, topic: str, partitions: int | None = None) -> int:
        wanted = self._settings.partitions if partitions is None else partitions
        if wanted < 1:
            raise ValueError("a topic has at least one partition")

        def find(connection: sqlite3.Connection) -> int | None:
            row = connection.execute("SELECT partitions FROM topics WHERE name = ?", (topic,)).fetchone()
            return int(row[0]) if row else None

        def make(transaction: Transaction) -> int:
            connection = transaction.connection
            if (present := find(connection)) is not None:
                return present
            number = connection.execute(
                "INSERT INTO topics (name, partitions) VALUES (?, ?)", (topic, wanted)
            ).lastrowid
            rows = [(number, partition) for partition in range(wanted)]
            connection.executemany("INSERT INTO partitions VALUES (?, ?, 0, 0)", rows)
            return wanted

        present: int | None = await self.reader.run(find)
        return present if present is not None else await self.writer.call(make, lasting=True)

    async def delete_topic(self, topic: str) -> None:
        def work(transaction: Transaction) -> None:
            connection = transaction.connection
            row = connection.execute("SELECT id FROM topics WHERE name = ?", (topic,)).fetchone()
            if row is None:
                return
            connection.execute("DELETE FROM topics WHERE id = ?", row)
            for table in ("partitions", "groups", "offsets", "members", "owners"):
                connection.execute(f"DELETE FROM {table} WHERE topic = ?", row)
            connection.execute("INSERT INTO doomed VALUES (?)", row)
            transaction.touched.add(row[0])

        await self.writer.call(work, lasting=True)
        while await self.writer.call(lambda transaction: retention.drop_doomed(transaction.connection), lasting=False):
            continue

    async def delete_group(self, group: str) -> None:
        def work(transaction: Transaction) -> None:
            for table in ("groups", "offsets", "members", "owners"):
                transaction.connection.execute(f"DELETE FROM {table} WHERE name = ?", (group,))

        await self.writer.call(work, lasting=True)

    async def topic_identity(self, topic: str) -> str:
        number, _ = await self.reader.run(lambda connection: schema.topic_id(connection, topic))
        return f"{self._identity}/{number}"  # numbers are never used twice

    async def topics(self) -> list[TopicStats]:
        def work(connection: sqlite3.Connection) -> list[TopicStats]:
            found: list[TopicStats] = []
            for number, name, count in connection.execute("SELECT id, name, partitions FROM topics ORDER BY name"):
                rows = connection.execute("SELECT partition, next, bytes FROM partitions WHERE topic = ?", (number,))
                ends = {partition: (end, size) for partition, end, size in rows}
                starts = schema.starts(connection, number)
                oldest = [
                    row[0]
                    for partition, first in starts.items()
                    for row in connection.execute(
                        "SELECT timestamp_ms FROM batches WHERE topic = ? AND partition = ? AND base = ?",
                        (number, partition, first),
                    )
                ]
                found.append(
                    TopicStats(
                        topic=name,
                        partitions=count,
                        start_offsets=starts,
                        end_offsets={partition: end for partition, (end, _) in ends.items()},
                        bytes=sum(size for _, size in ends.values()),
                        oldest_ms=min(oldest, default=None),
                    )
                )
            return found

        return await self.reader.run(work)

    async def end_offsets(self, topic: str) -> dict[int, int]:
        def work(connection: sqlite3.Connection) -> dict[int, int]:
            number, _ = schema.topic_id(connection, topic)
            return dict(connection.execute("SELECT partition, next FROM partitions WHERE topic = ?", (number,)))

        return await self.reader.run(work)

    async def offsets_at(self, topic: str, since_ms: int) -> dict[int, int]:
        """A batch has one time; a partition's batches are looked through, without their data."""

        def work(connection: sqlite3.Connection) -> dict[int, int]:
            number, _ = schema.topic_id(connection, topic)
            return dict(
                connection.execute(
                    "SELECT partition, coalesce((SELECT min(base) FROM batches b WHERE b.topic = p.topic"
                    " AND b.partition = p.partition AND b.timestamp_ms >= ?), next) FROM partitions p WHERE topic = ?",
                    (since_ms, number),
                )
            )

        return await self.reader.run(work)

    # ---- groups

    async def committed(self, topic: str, group: str) -> dict[int, int]:
        def work(connection: sqlite3.Connection) -> dict[int, int]:
            return groups.committed(connection, schema.topic_id(connection, topic)[0], group)

        return await self.reader.run(work)

    async def reset(self, topic: str, group: str, offsets: Mapping[int, int]) -> None:
        def work(transaction: Transaction) -> None:
            number, partitions = schema.topic_id(transaction.connection, topic)
            for partition in offsets:
                if not 0 <= partition < partitions:
                    raise NotFound(f"Topic {topic} has no partition {partition}.", f"It has {partitions}, from 0 on.")
            groups.reset(transaction.connection, number, group, offsets)
            transaction.touched.add(number)

        await self.writer.call(work, lasting=True)

    # ---- reading and writing

    async def read(
        self, topic: str, partition: int, offset: int, end: int | None = None
    ) -> AsyncIterator[StoredRecord]:
        ends = await self.end_offsets(topic)
        if partition not in ends:
            raise NotFound(f"Topic {topic} has no partition {partition}.", f"It has {len(ends)}, from 0 on.")
        last = ends[partition] if end is None else min(end, ends[partition])
        cursor = Cursor(max(0, offset))
        while cursor.offset < last:

            def work(connection: sqlite3.Connection, cursor: Cursor = cursor) -> tuple[Sequence[StoredRecord], Cursor]:
                number, _ = schema.topic_id(connection, topic)
                limits = (_READ_RECORDS, _READ_BYTES)
                piece, _ = fetch(connection, number, partition, cursor, *limits, at_least_one=True)
                return piece.records, piece.cursor

            records, cursor = await self.reader.run(work)
            for record in records:
                if record.offset >= last:
                    return
                yield record
            if not records:
                return

    def producer(self, *, backpressure: bool = False) -> LocalProducer:
        return LocalProducer(self, patient=backpressure)

    def consumer(self, topic: str, group: str, on_revoke: OnRevoke | None = None) -> LocalConsumer:
        consumer = LocalConsumer(self, topic, group, on_revoke)
        self._consumers.add(consumer)
        return consumer

    def forget(self, consumer: LocalConsumer) -> None:
        self._consumers.discard(consumer)

    async def wait_for_append(self, timeout: float) -> None:
        # What came since the last call returned counts: the caller looked at something in between.
        ticket = self.hub.ticket() if self._waited is None else self._waited
        known = self.writer.process is not None
        await self.enrol()
        if known:
            await self.hub.wait(None, ticket, timeout)
        # Else nobody could tell us of what came before we were enrolled: the caller looks once more.
        self._waited = self.hub.ticket()

    def _damaged(self, error: LogDamaged) -> None:
        self._breakage = self._breakage or error
        self._broken.set()

    async def broken(self) -> WalvecError:
        # a process that neither reads nor writes for a while would notice nothing
        while not self._broken.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._broken.wait()
            try:
                self._file.check()
            except LogDamaged as error:
                self._damaged(error)
        assert self._breakage is not None
        return self._breakage

    async def close(self) -> None:
        if self._closed:
            return
        try:
            for consumer in list(self._consumers):
                await consumer.close()
            await self._sign_off()
        except WalvecError as error:
            # Others find this process dead; what was not committed is read again.
            logger.warning("log was left without a goodbye", extra={"action": "log_close_failed", "reason": str(error)})
        finally:
            self._closed = True
            if self._pulse is not None:
                self._pulse.cancel()
                await asyncio.wait((self._pulse,))
            if self._writer is not None:
                await self._writer.close()
            await self.reader.close()
            self.hub.close()

    async def _sign_off(self) -> None:
        process = self._writer.process if self._writer is not None else None
        if process is not None:

            def work(transaction: Transaction) -> None:
                transaction.touched |= processes.strike_off(transaction.connection, process)

            await self.writer.call(work, lasting=False)

    # ---- sign of life

    async def enrol(self) -> int:
        """This process's row, where others find the port to wake it and its sign of life."""
        async with self._enrolment:
            writer = self.writer
            if writer.process is None:
                port = await self.hub.open()

                def work(transaction: Transaction) -> int:
                    transaction.touched |= processes.bury(transaction.connection, None, self.lease_seconds())
                    return processes.enrol(transaction.connection, port)

                writer.process = await writer.call(work, lasting=False)
            return writer.process

    async def _keep_alive(self) -> None:
        """On the event loop on purpose: a process whose loop hangs must lose its partitions."""
        period = min(0.25, self.lease_seconds() / 4)
        looked = beaten = swept = time.monotonic()
        version = -1
        while True:
            await asyncio.sleep(period)
            now = time.monotonic()
            try:
                if now - beaten >= self.lease_seconds() / 4 or await self.reader.run(self._anyone_dead):
                    beaten = now
                    await self._beat()
                # every sign of life moves the version: with datagrams it is looked at now and then only
                if now - looked >= self._fallback * (4 if self.hub.listening else 1):
                    looked = now
                    before, version = version, await self.reader.run(_data_version)
                    if before not in (-1, version):
                        self.hub.wake(None)
                if now - swept >= min(30.0, max(1.0, self._settings.retention_seconds / 10)):
                    swept = now
                    await self.sweep()
                self.failure = None
            except WalvecError as error:
                # Readers would see an empty or old file for ever: they are told.
                self.failure = error if isinstance(error, LogDamaged) else None
                self.hub.wake(None)
                logger.warning(
                    "log cannot be kept up",
                    extra={"action": "log_pulse_failed", "kind": error.kind, "reason": str(error)},
                )
                await asyncio.sleep(self.lease_seconds() / 4)

    def _anyone_dead(self, connection: sqlite3.Connection) -> bool:
        me = self._writer.process if self._writer is not None else None
        now = time.monotonic()
        return any(
            row.id != me and processes.is_dead(row, self.lease_seconds(), now) for row in processes.rows(connection)
        )

    async def _beat(self) -> None:
        writer = self.writer
        process = writer.process

        def work(transaction: Transaction) -> bool:
            transaction.touched |= processes.bury(transaction.connection, process, self.lease_seconds())
            return process is None or processes.beat(transaction.connection, process)

        if not await writer.call(work, lasting=False):
            # Struck off while this process hung: its consumers find out in their next look and join anew.
            writer.process = None
            self.hub.wake(None)

    async def sweep(self) -> None:
        """Deletes what retention allows. Runs by itself; public for those who cannot wait."""
        cutoff = int((time.time() - self._settings.retention_seconds) * 1000)
        steps: list[Callable[[sqlite3.Connection], bool]] = [
            retention.drop_doomed,
            lambda connection: retention.drop_consumed(connection, cutoff),
            retention.shrink,
        ]
        for step in steps:
            while await self.writer.call(lambda transaction, step=step: step(transaction.connection), lasting=False):  # type: ignore[misc]
                continue


def _data_version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA data_version").fetchone()[0])
