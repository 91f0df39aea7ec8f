"""What a generation's batches write: `.vectors` records, and letters with the deletes that follow them.

A row that no provider takes: its letter first, then its delete (rule dead-delete, rule forced-delete).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from embedder import encoder
from embedder.context import Context
from embedder.planner import Delete, Row, Truncate
from walvec.contracts import wire
from walvec.contracts.errors import ControlUnavailable, LogUnavailable
from walvec.contracts.headers import headers_of
from walvec.contracts.letters import DeadLetter, LetterKind
from walvec.contracts.position import Position
from walvec.definitions.model import VectorTable
from walvec.definitions.oversized import append_fitting, words
from walvec.runtime.retry import persistently
from walvec.transport.records import Record, dead_topic, letter_record, vectors_topic

_log = logging.getLogger(__name__)
_PAYLOAD = 1024**2


class Outbox:
    """All of it is durable on return; outages are waited out. Raises Stalled when letters in a row are too many."""

    def __init__(self, context: Context, generation: int) -> None:
        self._context = context
        self._generation = generation

    async def emit(self, records: list[Record]) -> None:
        if records:
            buried = await self._append_vectors(records)
            if buried < len(records):
                await self._context.forget_dead(self._generation)

    async def refuse(self, refused: Sequence[tuple[Row, str]]) -> None:
        """Every row that gets here may have another text than the store, or is forced."""
        letters = [
            letter_of(
                self._context.table,
                self._generation,
                row.key,
                "provider",
                reason,
                row.position,
                row.commit_ms,
                encoder.claim(row),
            )
            for row, reason in refused
        ]
        await self.bury(letters)
        await self.remove([Delete(row.key, row.position, row.generation, row.commit_ms) for row, _ in refused])

    async def remove(self, deletes: Sequence[Delete]) -> None:
        """What follows a letter. Not an output in the sense of `emit`: the letters in a row go on."""
        await self._append_vectors([gone(d) for d in deletes])

    async def bury(self, letters: Sequence[DeadLetter]) -> None:
        context = self._context
        found = list(letters)
        await persistently(lambda: context.control.letters.put(found), ControlUnavailable, action="put_letters")
        topic = dead_topic(context.table.storage_name)
        records = [letter_record(letter) for letter in found]
        await persistently(lambda: context.producer.append(topic, records), LogUnavailable, action="append")
        _log.warning(
            "dead letters written",
            extra={"action": "dead_letters", "vector_table": context.table.id, "count": len(found)},
        )
        context.usage.buried.update(letter.kind for letter in found)
        await context.count_dead(self._generation, len(found))

    async def _append_vectors(self, records: Sequence[Record]) -> int:
        """Returns how many were too large: their letters are durable then, and so is the delete of each key."""
        topic, buried = vectors_topic(self._context.table.storage_name), 0

        async def instead(large: Sequence[Record], limit: int) -> list[Record | None]:
            nonlocal buried
            places, letters = self._too_large(topic, large, limit)
            buried += len(letters)
            if letters:
                await self.bury(letters)
            return places

        producer = self._context.producer
        await persistently(lambda: append_fitting(producer, topic, records, instead), LogUnavailable, action="append")
        self._context.usage.written += len(records)
        return buried

    def _too_large(
        self, topic: str, large: Sequence[Record], limit: int
    ) -> tuple[list[Record | None], list[DeadLetter]]:
        places: list[Record | None] = []
        letters: list[DeadLetter] = []
        for record in large:
            vector = wire.decode_vector(record.key, record.value)
            if vector.op == "delete":  # nothing smaller can be said of this key, and no row of it got here
                _log.error("delete is too large", extra={"action": "too_large", "topic": topic, "limit": limit})
                places.append(None)
                continue
            letters.append(
                letter_of(
                    self._context.table,
                    vector.generation,
                    vector.key,
                    "too_large",
                    words(topic, record, limit),
                    vector.position,
                    vector.commit_ms,
                )
            )
            places.append(gone(Delete(vector.key, vector.position, vector.generation, vector.commit_ms)))
        return places, letters


def upsert(row: Row, text: str, vector: bytes) -> Record:
    return Record(row.key, encoder.upsert(row, text, vector), None, headers_of(row.position))


def claim(row: Row) -> Record:
    return Record(row.key, encoder.claim(row), None, headers_of(row.position))


def gone(plan: Delete) -> Record:
    return Record(plan.key, encoder.gone(plan), None, headers_of(plan.position))


def cleared(plan: Truncate, partition: int) -> Record:
    return Record(None, encoder.cleared(plan), partition, headers_of(plan.position))


def letter_of(
    table: VectorTable,
    generation: int,
    key: bytes,
    kind: LetterKind,
    reason: str,
    position: Position,
    at_ms: int,
    payload: bytes = b"",
) -> DeadLetter:
    return DeadLetter(
        table.id, generation, key, kind, reason[:2000], position, created_ms=at_ms, payload=payload[:_PAYLOAD]
    )
