"""What a connection's reader has made durable. Implements `ports.Progress`; does not move the feed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from walvec.definitions.memory.feed import MemoryFeed
from walvec.definitions.model import BridgeProgress, SourceProgress


class MemoryProgress:
    def __init__(self, feed: MemoryFeed) -> None:
        self._feed = feed
        self._progress: dict[str, SourceProgress] = {}
        self._published: dict[str, Mapping[str, str]] = {}
        self._topics: dict[str, dict[str, str]] = {}
        self._bridges: dict[str, BridgeProgress] = {}

    async def get(self, connection_id: str) -> SourceProgress:
        return self._progress.get(connection_id, SourceProgress())

    async def put(self, connection_id: str, progress: SourceProgress) -> None:
        self._feed.connection(connection_id)
        self._progress[connection_id] = progress

    async def advance(self, connection_id: str, progress: SourceProgress) -> bool:
        stored = self._progress.get(connection_id)
        if stored is None or stored.slot_created_lsn != progress.slot_created_lsn:
            return False
        self._progress[connection_id] = replace(stored, lsn=progress.lsn)
        return True

    async def published(self, connection_id: str) -> Mapping[str, str] | None:
        return self._published.get(connection_id)

    async def put_published(self, connection_id: str, marks: Mapping[str, str]) -> None:
        self._feed.connection(connection_id)
        self._published[connection_id] = dict(marks)

    async def topics(self, table_ids: Sequence[str]) -> Mapping[str, str]:
        return {t: identity for i in table_ids for t, identity in self._topics.get(i, {}).items()}

    async def put_topics(self, table_id: str, identities: Mapping[str, str]) -> None:
        self._feed.table(table_id)
        self._topics.setdefault(table_id, {}).update(identities)

    async def bridge(self, table_id: str) -> BridgeProgress | None:
        return self._bridges.get(table_id)

    async def put_bridge(
        self,
        table_id: str,
        *,
        starts: Mapping[int, int] | None = None,
        sequence: int = 0,
        snapshots: Mapping[int, Sequence[tuple[int, int]]] | None = None,
    ) -> None:
        self._feed.table(table_id)
        found = self._bridges.get(table_id, BridgeProgress())
        if starts is not None:
            found = BridgeProgress(dict(starts), found.sequence)
        merged = {p: set(v) for p, v in found.snapshots.items()}
        for partition, met in (snapshots or {}).items():
            merged.setdefault(partition, set()).update((offset, lsn) for offset, lsn in met)
        self._bridges[table_id] = BridgeProgress(
            found.starts, max(found.sequence, sequence), {p: tuple(sorted(v)) for p, v in merged.items()}
        )

    def forget_table(self, table_id: str) -> None:
        self._topics.pop(table_id, None)
        self._bridges.pop(table_id, None)

    def forget(self, connection_id: str) -> None:
        self._progress.pop(connection_id, None)
        self._published.pop(connection_id, None)
