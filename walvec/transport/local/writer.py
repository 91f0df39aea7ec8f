"""Queued appends and calls to committed transactions: one thread, one transaction for all that waits (group commit).

Law: in call order; a future is resolved after the commit is on disk, or gets the error and nothing of it was stored.
Appends of patient producers (back-pressure) are held, in their order, while the log is over its size; nobody else is.
Next: `retention` makes room, `wake` tells the readers.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from walvec.contracts.errors import LogDamaged, LogUnavailable, WalvecError
from walvec.transport.local import processes, retention, schema
from walvec.transport.local.file import LogFile
from walvec.transport.local.runs import Append, Outcome, Run, Transaction
from walvec.transport.local.wake import Sender
from walvec.transport.records import Record

_BYTES_AT_ONCE = 4 * 1024**2
_HELD_LOOK_SECONDS = 0.1


T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """`work` raises before it writes. `lasting`: worth a sync of the disk."""

    work: Callable[[Transaction], Any]
    lasting: bool
    future: asyncio.Future[Any]


Item = Append | Call


class Writer:
    def __init__(
        self,
        file: LogFile,
        identity: str,
        max_bytes: int,
        woken: Callable[[Iterable[int]], None],
        damaged: Callable[[LogDamaged], None],
    ) -> None:
        """On the event loop: `woken(topics)` is called after each commit, `damaged(error)` when the file is."""
        self._file = file
        self._max_bytes = max_bytes
        self._woken = woken
        self._damaged = damaged
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[Item | None] = SimpleQueue()
        self._held: deque[Append] = deque()
        self._sender = Sender(identity)
        self._durable = True
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="walvec-log-writer", daemon=True)
        self._thread.start()
        self.process: int | None = None
        """This process's row: it is told of its own commits directly."""

    async def append(self, topic: str, records: Sequence[Record], patient: bool) -> None:
        future = self._loop.create_future()
        self._submit(Append(topic, records, patient, future))
        await future

    async def call(self, work: Callable[[Transaction], T], *, lasting: bool) -> T:
        future: asyncio.Future[T] = self._loop.create_future()
        self._submit(Call(work, lasting, future))
        return await future

    async def close(self) -> None:
        """Finishes what is queued; held appends fail."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    def _submit(self, item: Item) -> None:
        if self._closed:
            raise LogUnavailable("The log is closed.", "Open it again.")
        self._queue.put(item)

    # ---- the thread

    def _run(self) -> None:
        connection: sqlite3.Connection | None = None
        going = True
        while going:
            items, going = self._gather()
            try:
                if connection is None:
                    with schema.translated(self._file.path):
                        connection = schema.connect(self._file.path)
                with schema.translated(self._file.path):
                    self._cycle(connection, items)
            except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to the callers who wait
                if connection is not None and connection.in_transaction:
                    connection.execute("ROLLBACK")
                self._report([(item.future, error) for item in (*items, *self._held)], None)
                self._held.clear()
        closed = LogUnavailable("The log was closed before there was room.", "Append again.")
        self._report([(item.future, closed) for item in self._held], None)
        self._sender.close()
        if connection is not None:
            connection.close()

    def _gather(self) -> tuple[list[Item], bool]:
        """All that waits, up to a size; False when it is the last."""
        items: list[Item] = []
        size = 0
        try:
            item = self._queue.get(timeout=_HELD_LOOK_SECONDS if self._held else None)
            while item is not None:
                items.append(item)
                if isinstance(item, Append):
                    size += sum(len(record.value) for record in item.records)
                if size >= _BYTES_AT_ONCE:
                    return items, True
                item = self._queue.get_nowait()
        except Empty:
            return items, True
        return items, False

    def _cycle(self, connection: sqlite3.Connection, items: list[Item]) -> None:
        self._file.check()
        self._make_room(connection, items)
        if not items:
            return
        ready = self._pack(connection, items)
        durable = any(isinstance(item, Append) or item.lasting for item in items)
        if durable != self._durable:
            connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._durable = durable
        transaction = Transaction(connection)
        outcomes: list[Outcome] = []
        schema.begin(connection)
        for step in ready:
            if isinstance(step, Call):
                try:
                    outcomes.append((step.future, step.work(transaction)))
                except WalvecError as error:
                    outcomes.append((step.future, error))
            else:
                outcomes += step.store(transaction)
        ports = processes.ports(connection, self.process)
        connection.execute("COMMIT")
        # A sign of life alone is nobody's business.
        told = transaction.touched if durable or transaction.touched else None
        if told is not None:
            self._sender.tell(ports, told)
        self._report(outcomes, told)
        self._bound_wal(connection)

    def _make_room(self, connection: sqlite3.Connection, items: list[Item]) -> None:
        """Moves appends that must wait from `items` to the held ones, and back in front when there is room."""
        self._held = deque(item for item in self._held if not item.future.cancelled())
        patient = [item for item in items if isinstance(item, Append) and item.patient]
        if not patient and not self._held:
            return
        while retention.used_bytes(connection) > self._max_bytes:
            schema.begin(connection)
            dropped = retention.drop_doomed(connection) or retention.drop_consumed(connection, None)
            connection.execute("COMMIT")
            if not dropped:
                self._held.extend(patient)
                items[:] = [item for item in items if not (isinstance(item, Append) and item.patient)]
                return
        size = 0
        released: list[Item] = []
        while self._held and size < _BYTES_AT_ONCE:
            item = self._held.popleft()
            size += sum(len(record.value) for record in item.records)
            released.append(item)
        if self._held:
            self._held.extend(patient)
            items[:] = [item for item in items if not (isinstance(item, Append) and item.patient)]
        items[:0] = released

    def _pack(self, connection: sqlite3.Connection, items: list[Item]) -> list[Call | Run]:
        """Neighbouring appends to one topic become one run; packing happens before the lock on the file is taken."""
        steps: list[Call | Run] = []
        runs: dict[str, Run] = {}
        for item in items:
            if isinstance(item, Call):
                steps.append(item)
                runs = {}
            elif item.topic in runs:
                runs[item.topic].appends.append(item)
            else:
                runs[item.topic] = run = Run(item.topic, [item])
                steps.append(run)
        for step in steps:
            if isinstance(step, Run):
                step.prepare(connection)
        return steps

    def _bound_wal(self, connection: sqlite3.Connection) -> None:
        try:
            size = os.stat(f"{self._file.path}-wal").st_size
        except FileNotFoundError:
            return
        if size > schema.WAL_LIMIT:
            # The automatic checkpoint never waits; under constant readers it may fail to start the file anew.
            connection.execute("PRAGMA busy_timeout = 500")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            connection.execute(f"PRAGMA busy_timeout = {schema.LOCK_SECONDS * 1000}")

    def _report(self, outcomes: Sequence[Outcome], touched: Iterable[int] | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._resolve, outcomes, touched)
        except RuntimeError:
            # The loop is closed: nobody waits any more.
            self._closed = True

    def _resolve(self, outcomes: Sequence[Outcome], touched: Iterable[int] | None) -> None:
        for future, outcome in outcomes:
            if isinstance(outcome, LogDamaged):
                self._damaged(outcome)
            if future.done():
                continue
            if isinstance(outcome, BaseException):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
        if touched is not None:
            self._woken(touched)
