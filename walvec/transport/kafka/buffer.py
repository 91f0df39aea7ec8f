"""What was fetched and not yet asked for, by partition; handed out in turn. PURE.

Law: within a partition offsets only rise; a partition with a backlog does not hide the others.
Next: `membership` holds it, `fetcher` fills it, `consumer` takes from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from walvec.transport.records import Fetch, StoredRecord


def size_of(record: StoredRecord) -> int:
    return len(record.value) + len(record.key or b"")


class Buffer:
    """`records` and `bytes` are what it holds now."""

    def __init__(self) -> None:
        self.records = 0
        self.bytes = 0
        self._held: dict[int, list[StoredRecord]] = {}  # in the order in which partitions have their turn

    def put(self, partition: int, records: Sequence[StoredRecord]) -> None:
        self._held.setdefault(partition, []).extend(records)
        self.records += len(records)
        self.bytes += sum(map(size_of, records))

    def drop(self, partitions: Iterable[int]) -> None:
        for partition in partitions:
            gone = self._held.pop(partition, [])
            self.records -= len(gone)
            self.bytes -= sum(map(size_of, gone))

    def take(self, max_records: int, max_bytes: int) -> list[Fetch]:
        """At most so many; one record at least, if there is one. Each partition gets an equal part of the room, and
        what one does not need is shared among the others."""
        counts = dict.fromkeys(self._held, 0)
        open_ = list(self._held)
        room = max_bytes
        left = max_records
        while open_ and left > 0:
            part = max(1, left // len(open_))
            byte_part = max(1, room // len(open_))
            still = []
            for partition in open_:
                records, start = self._held[partition], counts[partition]
                number = used = 0
                for record in records[start : start + min(part, left)]:
                    size = size_of(record)
                    first = left == max_records and number == 0
                    if not first and (used + size > room or (number and used + size > byte_part)):
                        break
                    number += 1
                    used += size
                counts[partition] = start + number
                left -= number
                room = max(0, room - used)
                if number and start + number < len(records):
                    still.append(partition)
                if left <= 0:
                    break
            open_ = still
        return self._cut({partition: count for partition, count in counts.items() if count})

    def _cut(self, counts: dict[int, int]) -> list[Fetch]:
        fetches = []
        for partition, count in counts.items():
            records = self._held.pop(partition)
            taken = records if count == len(records) else records[:count]
            if count < len(records):
                self._held[partition] = records[count:]  # to the end of the line
            self.records -= count
            self.bytes -= sum(map(size_of, taken))
            fetches.append(Fetch(partition, taken))
        return fetches
