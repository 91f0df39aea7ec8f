"""Replay of dead letters and repair of single keys: small backfills by key, with forced records.

Law: a letter leaves the list only after its row's new record is durable, at a stamp of its own (rule
replay-stamp) that is above the letter's position (rule replay-above). Next: `jobs` runs them.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cdc import reading
from cdc.stamping import ReadAgain, outranks
from cdc.work import ChunkWriter, Work, delete_record
from walvec.contracts.errors import DecodeError, DefinitionError
from walvec.contracts.letters import DeadLetter
from walvec.contracts.position import ZERO, Position
from walvec.contracts.values import decode_key
from walvec.definitions.making import ensure_topics
from walvec.definitions.model import Generation, Task, VectorTable
from walvec.transport.records import changes_topic

log = logging.getLogger(__name__)

BATCH = 500


@dataclass(frozen=True, slots=True)
class Settled:
    """`stamps`: of the keys that are done; `found` had a row."""

    stamps: Mapping[bytes, Position]
    found: int


class Reread:
    """A replay or repair task."""

    def __init__(self, work: Work, task: Task) -> None:
        self._work = work
        self._task = task
        self._progress: dict[str, Any] = {}

    async def run(self) -> None:
        work, table = self._work, self._work.table(self._task)
        await ensure_topics(table, changes_topic(table.storage_name), control=work.control, log=work.log)
        await work.update(self._task, status="running")
        if self._task.task_type == "replay":
            await self._replay(table)
        else:
            await self._repair(table)
        await work.update(self._task, status="completed", progress=self._progress)
        extra = {"action": f"{self._task.task_type}_completed", "table": table.name}
        log.info("keys were read again", extra=extra)

    async def _replay(self, table: VectorTable) -> None:
        letters = await self._work.control.letters.get(table.id, list(self._task.params.get("letters", ())))
        without_key = [letter for letter in letters if not letter.key]
        self._progress = {"rows": 0, "gone": 0, "estimate": len(letters)}
        if without_key:
            self._progress["skipped"] = len(without_key)
            self._progress["reason"] = (
                f"{len(without_key)} letter(s) have no readable key: "
                f"run `walvec verify {table.name} --repair`, then drop them."
            )
        by_generation: dict[int, list[DeadLetter]] = {}
        for letter in letters:
            if letter.key:
                by_generation.setdefault(letter.generation, []).append(letter)
        for number, group in by_generation.items():
            generation = table.generation(number) if number else table.active
            if generation is None or generation not in table.live_generations:
                # what it stands for is not fed any more, and never will be again (rule never-back)
                await self._work.control.letters.remove(table.id, [letter.id for letter in group])
                continue
            for start in range(0, len(group), BATCH):
                batch = group[start : start + BATCH]
                done = await self._read_again(
                    table, generation, {letter.key: letter.position for letter in batch}, False
                )
                # strictly below the stamp: a letter that came meanwhile for the same key stays
                await self._work.control.letters.settle(table.id, number, done.stamps)
                await self._count(done)

    async def _repair(self, table: VectorTable) -> None:
        generation = self._work.generation(self._task)
        keys = [parse_key(k) for k in self._task.params.get("keys", ())]
        self._progress = {"rows": 0, "gone": 0, "estimate": len(keys)}
        for start in range(0, len(keys), BATCH):
            batch = dict.fromkeys(keys[start : start + BATCH], ZERO)
            await self._count(await self._read_again(table, generation, batch, True))

    async def _count(self, done: Settled) -> None:
        self._progress["rows"] += done.found
        self._progress["gone"] += len(done.stamps) - done.found
        await self._work.update(self._task, progress=self._progress)

    async def _read_again(
        self, table: VectorTable, generation: Generation, above: Mapping[bytes, Position], delete: bool
    ) -> Settled:
        """Forced records of these keys' rows, durable on return; `delete`: of keys without a row as well."""
        work = self._work
        left, stamps, found, pause = dict(above), dict[bytes, Position](), 0, 0.05
        async with work.sessions.borrow(work.connection()) as session:
            target = await reading.target(session, table, generation)
            reader = work.reader(session, target, table, generation.number, self._report)
            writer = ChunkWriter(table, generation, target.shape, force=True)
            while left:
                work.table(self._task)
                read = await reader.keys(_texts(list(left), target))
                stamp = await reader.judge(read, above=tuple(left.values()))
                if isinstance(stamp, ReadAgain):
                    continue
                done = {key for key, letter in left.items() if outranks(stamp, letter)}
                lines = {key: line for line in read.lines if (key := target.shape.key(line)) in done}
                records, letters = writer.records(lines.values(), stamp)
                if letters:
                    await work.control.letters.put(letters)
                    counts = work.stream.counts.table(changes_topic(table.storage_name))
                    counts.buried.update(letter.kind for letter in letters)
                if delete:
                    records += [delete_record(table, generation.number, k, stamp) for k in done if k not in lines]
                if records:
                    await work.producer.append(changes_topic(table.storage_name), records)
                for key in done:
                    del left[key]
                    stamps[key] = stamp
                found += len(lines)
                if left:
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, 1.0)
        return Settled(stamps, found)

    async def _report(self, waiting: str) -> None:
        if self._progress.get("waiting", "") != waiting:
            self._progress["waiting"] = waiting
            await self._work.update(self._task, progress=self._progress)


def _texts(keys: Sequence[bytes], target: reading.Target) -> list[tuple[str, ...]]:
    """Key texts; a key of another shape (an orphan of an older definition) has no row."""
    texts = []
    for key in keys:
        try:
            texts.append(decode_key(key, target.shape.key_codecs))
        except DecodeError:
            log.info("a key of another shape has no row", extra={"action": "key_without_row", "table": target.name})
    return texts


def parse_key(text: str) -> bytes:
    """A canonical key as a task's params carry it: itself, or in base64."""
    if text.startswith("{"):
        return text.encode()
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as e:
        raise DefinitionError("a key to repair is neither a canonical key nor base64.", "Take it from `verify`.") from e
