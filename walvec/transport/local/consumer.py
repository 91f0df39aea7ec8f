"""One member of a group: what it owns, where it reads, and when it gives partitions up.

Law: a record is handed out only while its partition is held under a generation that is still valid in the file; a
commit under an old generation raises PartitionLost. Next: `groups` has the rows, `fetching` the records.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Protocol

from walvec.contracts.errors import LogUnavailable, NotFound, PartitionLost, WalvecError
from walvec.transport.local import groups, processes, schema
from walvec.transport.local.fetching import Cursor, Reader, View, look
from walvec.transport.local.groups import Holding
from walvec.transport.local.runs import Transaction
from walvec.transport.local.wake import Hub
from walvec.transport.local.writer import Writer
from walvec.transport.ports import OnRevoke
from walvec.transport.records import Fetch
from walvec.transport.sharing import given_away, not_owned, share

logger = logging.getLogger(__name__)


class Engine(Protocol):
    """What the log lends to its consumers."""

    @property
    def hub(self) -> Hub: ...

    @property
    def writer(self) -> Writer: ...

    @property
    def reader(self) -> Reader: ...

    @property
    def failure(self) -> WalvecError | None: ...

    async def enrol(self) -> int: ...

    def lease_seconds(self) -> float: ...

    def forget(self, consumer: LocalConsumer) -> None: ...


class LocalConsumer:
    def __init__(self, engine: Engine, topic: str, group: str, on_revoke: OnRevoke | None) -> None:
        self._engine = engine
        self._topic = topic
        self._group = group
        self._on_revoke = on_revoke
        self._number: int | None = None
        self._member: int | None = None
        self._generations: dict[int, int] = {}
        self._cursors: dict[int, Cursor] = {}
        self._joining: asyncio.Task[None] | None = None
        self._turn = 0
        self._paused = False
        self._closed = False

    async def poll(self, *, max_records: int, max_bytes: int, timeout: float) -> list[Fetch]:
        deadline = time.monotonic() + timeout
        self._check_open()
        while not self._closed:
            ticket = self._engine.hub.ticket()
            if self._engine.failure is not None:
                raise self._engine.failure
            if self._member is None:
                # Shielded: a poll that is cancelled must not leave a member behind that nobody knows of.
                self._joining = self._joining or asyncio.create_task(self._join())
                joining = self._joining
                await asyncio.shield(joining)
            view = await self._look(max_records, max_bytes)
            if await self._settle(view):
                continue
            fetches = self._take(view)
            left = deadline - time.monotonic()
            if fetches or left <= 0:
                return fetches
            await self._engine.hub.wait(self._number, ticket, left)
        return []

    async def commit(self, offsets: Mapping[int, int]) -> None:
        self._check_open()
        number, member = self._number, self._member
        fenced = {p: (self._generations[p], offset) for p, offset in offsets.items() if p in self._generations}
        lost = frozenset(offsets) - frozenset(fenced)
        if fenced and number is not None and member is not None:

            def work(transaction: Transaction) -> frozenset[int]:
                return groups.commit(transaction.connection, number, self._group, member, fenced)

            lost |= await self._engine.writer.call(work, lasting=True)
        if lost:
            raise given_away(lost, self._topic)

    def assignment(self) -> frozenset[int]:
        return frozenset(self._generations)

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        if self._number is not None:
            self._engine.hub.wake((self._number,))

    async def seek(self, partition: int, offset: int) -> None:
        self._check_open()
        if partition not in self._generations:
            raise not_owned(partition, self._topic)
        self._cursors[partition] = Cursor(max(0, offset))
        if self._number is not None:
            self._engine.hub.wake((self._number,))

    async def close(self) -> None:
        if self._closed:
            return
        if self._joining is not None:
            await asyncio.wait((self._joining,))
        try:
            if self._generations:
                await self._revoke(frozenset(self._generations))
        finally:
            self._closed = True
            number, member = self._number, self._member
            self._generations, self._cursors, self._member = {}, {}, None
            self._engine.forget(self)
            if number is not None:
                self._engine.hub.wake((number,))
            if number is not None and member is not None:

                def work(transaction: Transaction) -> None:
                    groups.leave(transaction.connection, member)
                    transaction.touched.add(number)

                await self._engine.writer.call(work, lasting=False)

    # ---- one round of a poll

    async def _join(self) -> None:
        try:
            await self._enter()
        finally:
            self._joining = None

    async def _enter(self) -> None:
        process = await self._engine.enrol()
        lease = self._engine.lease_seconds()

        def work(transaction: Transaction) -> tuple[int, int, dict[int, Holding]]:
            number, _ = schema.topic_id(transaction.connection, self._topic)
            transaction.touched |= processes.bury(transaction.connection, process, lease)
            member = groups.join(transaction.connection, number, self._group, process)
            transaction.touched.add(number)
            return number, member, groups.claim(transaction.connection, number, self._group, member) or {}

        self._number, self._member, held = await self._engine.writer.call(work, lasting=False)
        self._hold(held)
        logger.info(
            "consumer joined its group",
            extra={"action": "consumer_joined", "topic": self._topic, "partitions": sorted(held)},
        )

    async def _look(self, max_records: int, max_bytes: int) -> View:
        order = sorted(self._cursors)
        turn = self._turn % len(order) if order else 0
        self._turn += 1
        cursors = [] if self._paused else [(p, self._cursors[p]) for p in (*order[turn:], *order[:turn])]
        return await self._engine.reader.run(
            lambda connection: look(connection, self._topic, self._group, cursors, max_records, max_bytes)
        )

    async def _settle(self, view: View) -> bool:
        """Brings what is held in line with the file. True: something changed, look again."""
        member, number = self._member, self._number
        if member is None or number is None or view.topic != number or member not in view.members:
            # Struck off (this process hung longer than its lease), or the topic was deleted, perhaps made anew.
            await self._lose(frozenset(self._generations))
            self._member = self._number = None
            if view.topic is None:
                raise NotFound(
                    f"There is no topic {self._topic} in the log.", "Apply its vector table again, or check the name."
                )
            return True
        mine = {p: generation for p, (owner, generation) in view.owners.items() if owner == member}
        lost = frozenset(p for p, generation in self._generations.items() if mine.get(p) != generation)
        if lost:
            await self._lose(lost)
        due = share(member, view.members, {p: owner for p, (owner, _) in view.owners.items()})
        if release := frozenset(due.release) & frozenset(self._generations):
            await self._revoke(release)
            fences = {p: self._generations.pop(p) for p in release & frozenset(self._generations)}
            for partition in release:
                self._cursors.pop(partition, None)

            def give(transaction: Transaction) -> None:
                groups.release(transaction.connection, number, self._group, member, fences)
                transaction.touched.add(number)

            await self._engine.writer.call(give, lasting=False)
            return True
        if due.claim or frozenset(mine) != frozenset(self._generations):

            def claim(transaction: Transaction) -> dict[int, Holding] | None:
                transaction.touched.add(number)
                return groups.claim(transaction.connection, number, self._group, member)

            held = await self._engine.writer.call(claim, lasting=False)
            self._hold(held or {})
            return True
        return bool(lost)

    def _take(self, view: View) -> list[Fetch]:
        fetches: list[Fetch] = []
        for piece in view.pieces:
            # Not if it was paused, sought or given up while the reader was at it.
            if not self._paused and self._cursors.get(piece.partition) is piece.origin:
                self._cursors[piece.partition] = piece.cursor
                fetches.append(Fetch(piece.partition, piece.records))
        return fetches

    def _hold(self, held: Mapping[int, Holding]) -> None:
        for partition, holding in held.items():
            if self._generations.get(partition) != holding.generation:
                self._generations[partition] = holding.generation
                self._cursors[partition] = Cursor(holding.offset)

    async def _lose(self, partitions: frozenset[int]) -> None:
        """They are gone already: whoever has them in hand is told, and may find that it can't commit any more."""
        if not partitions:
            return
        logger.warning(
            "partitions were taken over",
            extra={"action": "partitions_lost", "topic": self._topic, "partitions": sorted(partitions)},
        )
        try:
            await self._revoke(partitions)
        except PartitionLost:
            logger.info("commit came too late", extra={"action": "commit_late", "topic": self._topic})
        finally:
            for partition in partitions:
                self._generations.pop(partition, None)
                self._cursors.pop(partition, None)

    async def _revoke(self, partitions: frozenset[int]) -> None:
        if self._on_revoke is not None:
            await self._on_revoke(partitions)

    def _check_open(self) -> None:
        if self._closed:
            raise LogUnavailable("This consumer is closed.", "Open another one.")
