"""What a member of a group holds: the state that the thread and the event loop share. PURE but for its lock.

Law: everything here is touched under `lock`, which may be taken again by who has it. Next: `commits` and `rebalances`
change it for the group, `fetcher` fills it, `consumer` takes from it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from walvec.transport.kafka.buffer import Buffer
from walvec.transport.records import StoredRecord


@dataclass(slots=True)
class Holding:
    """A partition that is owned.

    `committed`: up to where. `leader_epoch`: of what was read last. `read`: the offset behind the last record that was
    fetched. `end`: how far there is none behind it: markers of transactions and what was compacted have offsets, too.
    """

    committed: int
    read: int
    leader_epoch: int = -1
    end: int = 0

    def reached(self, offset: int) -> int:
        """What to commit when all before `offset` is done."""
        return max(offset, self.end) if offset >= self.read else offset


class Membership:
    """`revoking`: asked for by the group, and given up when the caller has done what must be done before. `lost`: gone
    without that; the caller is told afterwards. `held_back`: paused at librdkafka."""

    def __init__(self) -> None:
        self.lock = threading.Condition()
        self.buffer = Buffer()
        self.owned: dict[int, Holding] = {}
        self.revoking: frozenset[int] = frozenset()
        self.taken_up = False
        self.lost: set[int] = set()
        self.joined = False
        self.closing = False
        self.seeks: dict[int, int] = {}
        self.unreadable: set[int] = set()
        self.held_back: frozenset[int] = frozenset()
        self.still_held: frozenset[int] = frozenset()  # librdkafka keeps a pause when the partition leaves
        self.ends: set[int] = set()

    # ---- for the event loop

    def close(self) -> None:
        with self.lock:
            self.closing = True
            self.revoking = frozenset()
            self.lock.notify_all()

    def seek(self, partition: int, offset: int) -> None:
        """What was fetched from elsewhere is dropped, and what is under way too."""
        with self.lock:
            self.buffer.drop((partition,))
            self.seeks[partition] = offset
            self.lock.notify_all()

    def take_up(self) -> frozenset[int]:
        """The partitions that must be given up; the caller promises `release`."""
        with self.lock:
            self.taken_up = bool(self.revoking)
            self.lock.notify_all()
            return self.revoking

    def release(self) -> None:
        """Nothing of them is handed out from now on, however long the thread takes to notice."""
        with self.lock:
            self.forget(self.revoking)
            self.revoking = frozenset()
            self.lock.notify_all()

    def held(self) -> frozenset[int]:
        """All that the caller has not been told to be gone."""
        with self.lock:
            return frozenset(self.owned) | self.lost

    # ---- for the thread

    def assigned(self, starts: Mapping[int, int]) -> None:
        """By partition, the offset to start at; maybe none."""
        with self.lock:
            self.owned |= {p: Holding(offset, offset) for p, offset in starts.items()}
            self.held_back -= frozenset(starts)
            self.joined = True

    def forget(self, partitions: frozenset[int]) -> None:
        with self.lock:
            self.buffer.drop(partitions)
            self.unreadable -= partitions
            self.still_held |= self.held_back & partitions
            self.held_back -= partitions
            for partition in partitions:
                self.owned.pop(partition, None)
                self.seeks.pop(partition, None)

    def lose_all(self) -> None:
        with self.lock:
            self.lost |= set(self.owned)
            self.forget(frozenset(self.owned))

    def take_seeks(self) -> dict[int, int]:
        """By partition, where it is to be read from now on."""
        with self.lock:
            seeks = {p: offset for p, offset in self.seeks.items() if p in self.owned}
            self.seeks = {}
            for partition, offset in seeks.items():
                self.owned[partition].read, self.owned[partition].end = offset, 0
            return seeks

    def reassigned(self, partition: int) -> None:
        """Taken from librdkafka and given to it again."""
        with self.lock:
            self.still_held |= self.held_back & {partition}
            self.held_back -= {partition}

    def reading(self, partition: int) -> Holding | None:
        """None: it is not owned, or is to be read from elsewhere; what comes from it now is worth nothing."""
        return None if partition in self.seeks else self.owned.get(partition)

    def take_in(
        self, batches: Mapping[int, Sequence[StoredRecord]], epochs: Mapping[int, int | None], ends: Mapping[int, int]
    ) -> bool:
        """Fetched records, leader epochs and ends, by partition. True when there is something to take again."""
        with self.lock:
            was_empty = not self.buffer.records
            for partition, batch in batches.items():
                holding = self.reading(partition)
                if holding is not None:
                    epoch = epochs[partition]
                    holding.leader_epoch = -1 if epoch is None else epoch
                    holding.read = batch[-1].offset + 1
                    self.buffer.put(partition, batch)
            for partition, end in ends.items():
                holding = self.reading(partition)
                if holding is not None:
                    holding.end = end
                    self.ends.add(partition)
            return was_empty and self.buffer.records > 0
