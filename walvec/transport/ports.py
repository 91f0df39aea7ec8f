"""The log as the roles see it. Implementations: `local` (one SQLite file), `memory` (tests), Kafka.

Contract, held by tests/contract for every implementation:

* Order: records of one partition are read in the order of their offsets; a key always maps to one partition.
* Durability: `append` returns only when its records survive a kill of every process and a power cut.
* Groups: each partition of a topic has at most one owner in a group. A dead owner's partitions are taken over; a late
  `commit` of the old owner raises PartitionLost.
* Delivery: after a take-over or restart, reading goes on from the last committed offset (0 = earliest kept).
* A consumer is woken within milliseconds of an append by any process, and costs next to nothing while idle.
* Retention: a log of walvec's own (local, memory) keeps a record until every group has it, and holds back producers
  that are patient while it is full. Kafka keeps records for a time, read or not; who is late gets RecordsLost.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from walvec.contracts.errors import WalvecError
from walvec.transport.records import Fetch, Record, StoredRecord, TopicStats

OnRevoke = Callable[[frozenset[int]], Awaitable[None]]


class Producer(Protocol):
    async def append(self, topic: str, records: Sequence[Record]) -> None:
        """Durable on return; all of them or an exception (then some may be there: at-least-once).

        Several calls may be in flight: they become durable in call order. Waits while the log is over its size limit if
        this producer was opened with `backpressure`. Raises LogUnavailable, NotFound (no such topic) and, before
        anything of the call was sent, RecordTooLarge. A failed append leaves those called after it in doubt: a caller
        that needs its order starts again from what is durable. Cancelling it is harmless; its records may land.
        """

    async def close(self) -> None: ...


class Consumer(Protocol):
    """One member of one group on one topic. Not safe for concurrent `poll`s; `commit` may run beside a `poll`."""

    async def poll(self, *, max_records: int, max_bytes: int, timeout: float) -> list[Fetch]:
        """Records of owned, unpaused partitions, at most one Fetch each; [] after `timeout` seconds of nothing.

        Reading advances; only `commit` makes it stick. At least one record is returned when one is there, even if it
        is larger than `max_bytes`. Before a partition is given up, `on_revoke(partitions)` is awaited within `poll`.
        Raises RecordsLost when the place to read from is not kept any more; `seek` to its `resume_at` to go on.
        """

    async def commit(self, offsets: Mapping[int, int]) -> None:
        """Next offset to read, by partition. Never moves backwards. Raises PartitionLost if one is not owned any more
        (those that are still owned have been committed then)."""

    def assignment(self) -> frozenset[int]: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    async def seek(self, partition: int, offset: int) -> None: ...

    async def close(self) -> None:
        """Gives the partitions up at once (after `on_revoke`)."""


class Log(Protocol):
    @property
    def keeps_headers(self) -> bool:
        """Whether records come back with their headers; where not, nobody need make them."""

    async def identity(self) -> str:
        """Changes when the log was lost and made anew: what was in it is gone, and the tables must be rebackfilled."""

    async def ensure_topic(self, topic: str, partitions: int | None = None) -> int:
        """Creates it if need be (default partition count from settings); returns its number of partitions."""

    async def delete_topic(self, topic: str) -> None:
        """Returns once it is gone; a topic that is not there is no error."""

    async def topic_identity(self, topic: str) -> str:
        """Changes when the topic was deleted and made anew: offsets of the old one mean nothing. Raises NotFound."""

    async def topics(self) -> list[TopicStats]: ...

    async def end_offsets(self, topic: str) -> dict[int, int]:
        """By partition, the offset that the next record will get. Raises NotFound."""

    async def offsets_at(self, topic: str, since_ms: int) -> dict[int, int]:
        """By partition, the first offset that was appended then (milliseconds since 1970) or later, else the end;
        0 gives the earliest kept ones. Raises NotFound."""

    async def committed(self, topic: str, group: str) -> dict[int, int]:
        """By partition; without a commit, where a member would start. Where records were lost that the group has not
        read, it is below the end until a member has heard of it (RecordsLost) and committed its `resume_at`."""

    async def reset(self, topic: str, group: str, offsets: Mapping[int, int]) -> None:
        """Moves a group, backwards too; members read from there. Where members cannot be told (Kafka), a group that has
        some is refused with Conflict."""

    async def delete_group(self, group: str) -> None:
        """What is kept of a group, of all topics; one that is not there is no error. Raises Conflict while it has
        members and they cannot be told (Kafka)."""

    def read(self, topic: str, partition: int, offset: int, end: int | None = None) -> AsyncIterator[StoredRecord]:
        """Records from `offset` up to `end` (exclusive; default: the end as of the call), without a group."""

    def producer(self, *, backpressure: bool = False) -> Producer: ...

    def consumer(self, topic: str, group: str, on_revoke: OnRevoke | None = None) -> Consumer: ...

    async def wait_for_append(self, timeout: float) -> None:
        """Returns soon after any append or commit by any process, after `timeout` seconds, or earlier for no reason:
        the caller looks again."""

    async def broken(self) -> WalvecError:
        """Returns when the log was found unusable in a way that no waiting mends, with the reason and its cure."""

    async def close(self) -> None: ...
