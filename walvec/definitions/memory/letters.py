"""Dead letters, at most one open per table, generation and key. Implements `ports.Letters`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count

from walvec.contracts.letters import DeadLetter
from walvec.contracts.position import Position
from walvec.definitions import transitions
from walvec.definitions.memory.feed import MemoryFeed


class MemoryLetters:
    def __init__(self, feed: MemoryFeed) -> None:
        self._feed = feed
        self._letters: dict[tuple[str, int, bytes], DeadLetter] = {}
        self._ids = count(1)

    async def put(self, letters: Sequence[DeadLetter]) -> None:
        for new in letters:
            self._feed.table(new.vector_table_id)
            place = (new.vector_table_id, new.generation, new.key)
            stored = transitions.letter(self._letters.get(place), new)
            self._letters[place] = replace(
                stored, id=stored.id or next(self._ids), created_ms=stored.created_ms or int(time.time() * 1000)
            )

    def _of(self, table_id: str) -> list[DeadLetter]:
        found = [v for v in self._letters.values() if v.vector_table_id == table_id]
        return sorted(found, key=lambda v: v.id)

    async def page(self, table_id: str, *, limit: int = 1000, after_id: int = 0) -> list[DeadLetter]:
        return [v for v in self._of(table_id) if v.id > after_id][:limit]

    async def get(self, table_id: str, ids: Sequence[int]) -> list[DeadLetter]:
        return [v for v in self._of(table_id) if v.id in ids]

    async def count(self, table_id: str) -> int:
        return len(self._of(table_id))

    async def keys(self, table_id: str, generation: int) -> set[bytes]:
        return {v.key for v in self._of(table_id) if v.generation == generation}

    async def settle(self, table_id: str, generation: int, settled: Mapping[bytes, Position]) -> int:
        places = [(table_id, generation, key) for key in settled]
        gone = [p for p in places if p in self._letters and self._letters[p].position < settled[p[2]]]
        for place in gone:
            del self._letters[place]
        return len(gone)

    async def remove(self, table_id: str, ids: Sequence[int]) -> int:
        gone = [p for p, v in self._letters.items() if v.vector_table_id == table_id and v.id in ids]
        for place in gone:
            del self._letters[place]
        return len(gone)

    def forget(self, table_id: str) -> None:
        self._letters = {p: v for p, v in self._letters.items() if p[0] != table_id}
