"""The log as lists and dicts of one process: the tests' fake, held to the contract of the real ones.

Law: what the port promises, except survival: members are consumers of one MemoryLog, and nobody dies.
Next: `tests/contract/test_log.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import uuid4

from walvec.contracts.errors import LogUnavailable, NotFound, PartitionLost, WalvecError
from walvec.contracts.keys import partition_of
from walvec.runtime.settings import LogSettings
from walvec.transport.ports import OnRevoke
from walvec.transport.records import Fetch, Record, StoredRecord, TopicStats
from walvec.transport.sharing import given_away, not_owned, share


@dataclass(slots=True)
class _Partition:
    start: int = 0
    records: list[StoredRecord] = field(default_factory=list)

    @property
    def end(self) -> int:
        return self.start + len(self.records)

    def from_offset(self, offset: int) -> Sequence[StoredRecord]:
        return self.records[max(0, offset - self.start) :]

    def size(self) -> int:
        return sum(len(record.value) + len(record.key or b"") for record in self.records)


@dataclass(slots=True)
class _Group:
    committed: dict[int, int] = field(default_factory=dict)
    members: list[int] = field(default_factory=list)
    owners: dict[int, int | None] = field(default_factory=dict)
    generations: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Topic:
    partitions: list[_Partition]
    groups: dict[str, _Group] = field(default_factory=dict)
    identity: str = field(default_factory=lambda: str(uuid4()))

    def group(self, name: str) -> _Group:
        group = self.groups.setdefault(name, _Group())
        for partition in range(len(self.partitions)):
            group.owners.setdefault(partition, None)
            group.generations.setdefault(partition, 0)
        return group

    def committed(self, name: str) -> dict[int, int]:
        stored = self.groups[name].committed if name in self.groups else {}
        return {p: max(part.start, stored.get(p, 0)) for p, part in enumerate(self.partitions)}


class MemoryLog:
    keeps_headers = True

    def __init__(self, settings: LogSettings | None = None) -> None:
        self._settings = settings or LogSettings.model_validate({})
        self._identity = str(uuid4())
        self._topics: dict[str, _Topic] = {}
        self._changed = asyncio.Condition()
        self._count = 0
        self._waited = 0
        self._members = 0
        self._line = asyncio.Lock()

    async def identity(self) -> str:
        return self._identity

    async def ensure_topic(self, topic: str, partitions: int | None = None) -> int:
        count = self._settings.partitions if partitions is None else partitions
        if count < 1:
            raise ValueError("a topic has at least one partition")
        if topic not in self._topics:
            self._topics[topic] = _Topic([_Partition() for _ in range(count)])
        return len(self._topics[topic].partitions)

    async def delete_topic(self, topic: str) -> None:
        self._topics.pop(topic, None)
        await self.notify()

    async def topic_identity(self, topic: str) -> str:
        return self.topic(topic).identity

    async def topics(self) -> list[TopicStats]:
        return [
            TopicStats(
                topic=name,
                partitions=len(topic.partitions),
                start_offsets={p: part.start for p, part in enumerate(topic.partitions)},
                end_offsets={p: part.end for p, part in enumerate(topic.partitions)},
                bytes=sum(part.size() for part in topic.partitions),
                oldest_ms=min(
                    (part.records[0].timestamp_ms for part in topic.partitions if part.records), default=None
                ),
            )
            for name, topic in sorted(self._topics.items())
        ]

    async def end_offsets(self, topic: str) -> dict[int, int]:
        return {p: part.end for p, part in enumerate(self.topic(topic).partitions)}

    async def offsets_at(self, topic: str, since_ms: int) -> dict[int, int]:
        return {
            p: next((record.offset for record in part.records if record.timestamp_ms >= since_ms), part.end)
            for p, part in enumerate(self.topic(topic).partitions)
        }

    async def committed(self, topic: str, group: str) -> dict[int, int]:
        return self.topic(topic).committed(group)

    async def delete_group(self, group: str) -> None:
        for topic in self._topics.values():
            state = topic.groups.get(group)
            if state is None:
                continue
            if not state.members:
                del topic.groups[group]
                continue
            state.committed.clear()
            for partition in state.owners:  # its members begin anew; what they had in hand is void
                state.owners[partition] = None
                state.generations[partition] += 1
        await self.notify()

    async def reset(self, topic: str, group: str, offsets: Mapping[int, int]) -> None:
        found = self.topic(topic)
        for partition in offsets:
            _partition(found, topic, partition)
        state = found.group(group)
        for partition, offset in offsets.items():
            part = found.partitions[partition]
            state.committed[partition] = min(max(offset, part.start), part.end)
            state.generations[partition] += 1
        await self.notify()

    async def read(
        self, topic: str, partition: int, offset: int, end: int | None = None
    ) -> AsyncIterator[StoredRecord]:
        part = _partition(self.topic(topic), topic, partition)
        last = part.end if end is None else min(end, part.end)
        for record in list(part.from_offset(offset)):
            if record.offset >= last:
                return
            yield record

    def producer(self, *, backpressure: bool = False) -> MemoryProducer:
        return MemoryProducer(self, patient=backpressure)

    def consumer(self, topic: str, group: str, on_revoke: OnRevoke | None = None) -> MemoryConsumer:
        self._members += 1
        return MemoryConsumer(self, self._members, topic, group, on_revoke)

    async def wait_for_append(self, timeout: float) -> None:
        await self.wait(self._waited, timeout)
        self._waited = self._count

    async def broken(self) -> WalvecError:
        await asyncio.Event().wait()  # memory does not break
        raise AssertionError

    async def close(self) -> None:
        await self.notify()

    async def sweep(self) -> None:
        """Deletes what retention allows; the local log does so by itself."""
        self._drop(int((time.time() - self._settings.retention_seconds) * 1000))

    # ---- for producers and consumers

    def topic(self, topic: str) -> _Topic:
        if topic not in self._topics:
            raise NotFound(f"There is no topic {topic} in the log.", "Apply its vector table again, or check the name.")
        return self._topics[topic]

    def has(self, name: str, topic: _Topic | None) -> bool:
        return self._topics.get(name) is topic

    def ticket(self) -> int:
        return self._count

    async def notify(self) -> None:
        async with self._changed:
            self._count += 1
            self._changed.notify_all()

    async def wait(self, ticket: int, timeout: float) -> None:
        if timeout <= 0:
            return
        try:
            async with asyncio.timeout(timeout), self._changed:
                await self._changed.wait_for(lambda: self._count > ticket)
        except TimeoutError:
            return

    async def append(self, topic: str, records: Sequence[Record], patient: bool) -> None:
        if not patient:
            await self._store(topic, records)
            return
        async with self._line:
            while self._full():
                ticket = self._count
                self._drop(None)
                if self._full():
                    await self.wait(ticket, 3600)
            await self._store(topic, records)

    async def _store(self, topic: str, records: Sequence[Record]) -> None:
        found = self.topic(topic)
        count = len(found.partitions)
        places = [
            partition_of(record.key or b"", count) if record.partition is None else record.partition
            for record in records
        ]
        for place in places:
            _partition(found, topic, place)
        now = int(time.time() * 1000)
        for place, (key, value, _, headers) in zip(places, records, strict=True):
            part = found.partitions[place]
            part.records.append(StoredRecord(part.end, now, key, value, headers))
        await self.notify()

    def _full(self) -> bool:
        used = sum(part.size() for topic in self._topics.values() for part in topic.partitions)
        return used > self._settings.max_bytes

    def _drop(self, cutoff_ms: int | None) -> None:
        for topic in self._topics.values():
            for number, part in enumerate(topic.partitions):
                if not topic.groups:
                    continue
                floor = min(group.committed.get(number, 0) for group in topic.groups.values())
                gone = 0
                for record in part.records:
                    if record.offset >= floor or (cutoff_ms is not None and record.timestamp_ms > cutoff_ms):
                        break
                    gone += 1
                del part.records[:gone]
                part.start += gone


class MemoryProducer:
    def __init__(self, log: MemoryLog, *, patient: bool) -> None:
        self._log = log
        self._patient = patient

    async def append(self, topic: str, records: Sequence[Record]) -> None:
        if records:
            await self._log.append(topic, records, self._patient)

    async def close(self) -> None:
        return


class MemoryConsumer:
    def __init__(self, log: MemoryLog, member: int, topic: str, group: str, on_revoke: OnRevoke | None) -> None:
        self._log = log
        self._me = member
        self._name = topic
        self._group = group
        self._on_revoke = on_revoke
        self._topic: _Topic | None = None
        self._held: dict[int, int] = {}
        self._positions: dict[int, int] = {}
        self._turn = 0
        self._paused = False
        self._closed = False

    async def poll(self, *, max_records: int, max_bytes: int, timeout: float) -> list[Fetch]:
        deadline = time.monotonic() + timeout
        self._check_open()
        while not self._closed:
            ticket = self._log.ticket()
            if await self._settle():
                continue
            fetches = [] if self._paused else self._take(max_records, max_bytes)
            left = deadline - time.monotonic()
            if fetches or left <= 0:
                return fetches
            await self._log.wait(ticket, left)
        return []

    async def commit(self, offsets: Mapping[int, int]) -> None:
        self._check_open()
        lost = set(offsets)
        if self._topic is not None and self._log.has(self._name, self._topic):
            state = self._topic.group(self._group)
            for partition, offset in offsets.items():
                if (
                    state.owners.get(partition) == self._me
                    and self._held.get(partition) == state.generations[partition]
                ):
                    state.committed[partition] = max(offset, state.committed.get(partition, 0))
                    lost.discard(partition)
        await self._log.notify()
        if lost:
            raise given_away(lost, self._name)

    def assignment(self) -> frozenset[int]:
        return frozenset(self._held)

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False

    async def seek(self, partition: int, offset: int) -> None:
        self._check_open()
        if partition not in self._held:
            raise not_owned(partition, self._name)
        self._positions[partition] = max(0, offset)
        await self._log.notify()

    async def close(self) -> None:
        if self._closed:
            return
        try:
            await self._give_up(frozenset(self._held))
        finally:
            self._closed = True
            if self._topic is not None:
                state = self._topic.group(self._group)
                state.members.remove(self._me)
            await self._log.notify()

    async def _settle(self) -> bool:
        """Brings what is held in line with the group. True: something changed, look again."""
        if self._topic is not None and not self._log.has(self._name, self._topic):
            await self._give_up(frozenset(self._held))
            self._topic = None
        if self._topic is None:
            self._topic = self._log.topic(self._name)
            self._topic.group(self._group).members.append(self._me)
            await self._log.notify()
        state = self._topic.group(self._group)
        if lost := frozenset(p for p, generation in self._held.items() if state.generations[p] != generation):
            await self._give_up(lost)
        due = share(self._me, state.members, state.owners)
        if due.release:
            await self._give_up(frozenset(due.release))
            for partition in due.release:
                state.owners[partition] = None
                state.generations[partition] += 1
            await self._log.notify()
            return True
        for partition in due.claim:
            state.owners[partition] = self._me
            state.generations[partition] += 1
        committed = self._topic.committed(self._group)
        for partition, owner in state.owners.items():
            if owner == self._me and partition not in self._held:
                self._held[partition] = state.generations[partition]
                self._positions[partition] = committed[partition]
        return False

    async def _give_up(self, partitions: frozenset[int]) -> None:
        try:
            if partitions and self._on_revoke is not None:
                await self._on_revoke(partitions)
        except PartitionLost:
            # It was reset or deleted meanwhile: what was in hand is void.
            return
        finally:
            for partition in partitions:
                self._held.pop(partition, None)
                self._positions.pop(partition, None)

    def _take(self, max_records: int, max_bytes: int) -> list[Fetch]:
        if self._topic is None:
            return []
        order = sorted(self._held)
        turn = self._turn % len(order) if order else 0
        self._turn += 1
        fetches: list[Fetch] = []
        for partition in (*order[turn:], *order[:turn]):
            records: list[StoredRecord] = []
            for record in self._topic.partitions[partition].from_offset(self._positions[partition]):
                size = len(record.value) + len(record.key or b"")
                if max_records <= 0 or (size > max_bytes and (records or fetches)):
                    break
                records.append(record)
                max_records -= 1
                max_bytes -= size
            if records:
                self._positions[partition] = records[-1].offset + 1
                fetches.append(Fetch(partition, records))
        return fetches

    def _check_open(self) -> None:
        if self._closed:
            raise LogUnavailable("This consumer is closed.", "Open another one.")


def _partition(topic: _Topic, name: str, partition: int) -> _Partition:
    if not 0 <= partition < len(topic.partitions):
        count = len(topic.partitions)
        raise NotFound(f"Topic {name} has no partition {partition}.", f"It has {count}, counted from 0.")
    return topic.partitions[partition]
