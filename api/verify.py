"""Source against store, by key and text hash; what differs counts only if it still does after another drain.

The active generation is what is compared, from the first look to the last: one that another took the place of meanwhile
is not fed any more, and all is begun anew. Next: `repair` tasks, which cdc works off as small backfills.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from api.drain import Drained, drain, pace
from api.problems import Problem
from api.responses import key_json
from api.services import Services
from walvec.contracts.errors import Conflict, StoreRejected
from walvec.contracts.letters import DeadLetter
from walvec.contracts.stores import Differences
from walvec.definitions.model import OPEN, Connection, Generation, VectorTable

KINDS = ("missing", "orphaned", "stale", "duplicate")
_LOOKS = 3  # a live table's busiest rows may change between drain and scan; they do not differ every time
_REPAIR_KEYS = 5_000


@dataclass(frozen=True, slots=True)
class Verified:
    """Canonical keys; `dead` are keys with an open dead letter, which may be absent from the store."""

    differences: Differences = field(default_factory=Differences)
    dead: Sequence[bytes] = ()

    def __bool__(self) -> bool:
        return bool(self.differences or self.dead)

    def as_json(self) -> dict[str, Any]:
        found = {kind: [key_json(k) for k in getattr(self.differences, kind)] for kind in KINDS}
        return {**found, "dead": [key_json(k) for k in self.dead]}


class _Overtaken(Exception):
    """Another generation has become the active one."""


async def verify(services: Services, ref: str, *, repair: bool, timeout: float) -> Verified:
    """Raises Problem `not_drained` when the table cannot be drained within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            table, found = await _look(services, ref, deadline)
            if repair and found:
                await _repair(services, table, found, deadline)
                _, found = await _look(services, ref, deadline)
        except _Overtaken:
            continue
        return found


async def _look(services: Services, ref: str, deadline: float) -> tuple[VectorTable, Verified]:
    """As of its return the table's active generation is the one that was compared."""
    table = await _drained(services, ref, deadline)
    connection = (await services.snapshot()).connections[table.connection_id]
    differences = await _compare(services, connection, table, None)
    for _ in range(_LOOKS):
        keys = keys_of(differences)
        if not keys:
            break
        await _drained(services, ref, deadline)
        differences = await _compare(services, connection, table, keys)
    dead = await services.control.letters.keys(table.id, table.active.number)
    missing = [k for k in differences.missing if k not in dead]
    left = Differences(missing, differences.orphaned, differences.stale, differences.duplicate)
    await _still_active(services, table)
    return table, Verified(left, sorted(dead))


async def _still_active(services: Services, table: VectorTable) -> None:
    """Raises _Overtaken."""
    if (await services.table(table.id)).active.number != table.active.number:
        raise _Overtaken


async def _drained(services: Services, ref: str, deadline: float) -> VectorTable:
    table = await services.table(ref)
    result: Drained = await drain(services, [table], max(0.0, deadline - time.monotonic()), rebuilds=False)
    if not result.drained:
        raise Problem(
            409,
            "not_drained",
            f"{table.name} cannot be verified before it is drained: {result.reasons.get(table.name, '')}",
            "Mend what holds it up, or give more time.",
        )
    return await services.table(ref)


async def _compare(
    services: Services, connection: Connection, table: VectorTable, only: Sequence[bytes] | None
) -> Differences:
    generation = table.active
    rows = hashed(services.source.scan(connection, table, generation, only=only), table, generation)
    try:
        return await services.store.compare(table, generation, rows, only=only)
    except StoreRejected:
        await _still_active(services, table)  # a swap that keeps nothing has removed its storage
        raise


async def hashed(
    rows: AsyncIterator[Sequence[tuple[bytes, str | None]]], table: VectorTable, generation: Generation
) -> AsyncIterator[Sequence[tuple[bytes, str | None]]]:
    """(key, text) into (key, content hash)."""
    hash_of: Callable[[str], str] = generation.hasher(table.provider_kind)
    async for batch in rows:
        yield [(key, None if text is None else hash_of(text)) for key, text in batch]


def keys_of(differences: Differences) -> list[bytes]:
    """Every key that differs, once."""
    return list(dict.fromkeys(k for kind in KINDS for k in getattr(differences, kind)))


async def _repair(services: Services, table: VectorTable, found: Verified, deadline: float) -> None:
    number = table.active.number
    letters = await open_letters(services, table)
    ids = [letter.id for letter in letters if letter.generation == number]
    for i in range(0, len(ids), _REPAIR_KEYS):
        await _work(services, "replay", table, {"letters": ids[i : i + _REPAIR_KEYS]}, deadline)
    keys = [k.decode() for k in keys_of(found.differences)]
    for i in range(0, len(keys), _REPAIR_KEYS):
        await _work(services, "repair", table, {"keys": keys[i : i + _REPAIR_KEYS]}, deadline)


async def _work(services: Services, kind: Any, table: VectorTable, params: dict[str, Any], deadline: float) -> None:
    try:
        task = await services.control.tasks.create(kind, table.id, table.active.number, params)
    except Conflict:
        await _still_active(services, table)
        raise
    while task.status in OPEN:
        if time.monotonic() > deadline:
            raise Problem(
                409, "not_drained", f"the {kind} of {table.name} did not end in time.", f"See GET /v1/tasks/{task.id}."
            )
        await pace(services)
        task = await services.control.tasks.get(task.id)
    if task.status != "completed":
        await _still_active(services, table)  # a swap ends what is open of the one before
        raise Problem(409, "repair_failed", f"the {kind} of {table.name} {task.status}: {task.last_error}", "")


async def open_letters(services: Services, table: VectorTable) -> list[DeadLetter]:
    """All of them, page by page."""
    found: list[DeadLetter] = []
    while True:
        more = await services.control.letters.page(table.id, after_id=found[-1].id if found else 0)
        found += more
        if len(more) < 1000:
            return found
