"""What belongs to a vector table, its topics and its storage, is made only for a table that is there.

Law: whoever removes a table deletes its definition first, then what belongs to it; whoever makes something asks for the
definition *after* it was made, and takes it back when it is gone. So either the remover comes after the maker, or the
maker sees that the table is gone: nothing is left behind, however late a role hears of the removal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from walvec.contracts.errors import LogUnavailable, NotFound, StoreUnavailable
from walvec.definitions.model import VectorTable
from walvec.definitions.ports import Control
from walvec.transport.ports import Log

_FINISH_SECONDS = 5.0
T = TypeVar("T")


async def ensure_topics(table: VectorTable, *topics: str, control: Control, log: Log) -> list[int]:
    """Creates what is missing; returns their numbers of partitions.

    Raises NotFound when the table is not defined any more (then none of the topics is there), LogUnavailable,
    ControlUnavailable.
    """

    async def create() -> list[int]:
        return await create_topics(log, topics)

    async def take_back() -> None:
        for topic in topics:
            await log.delete_topic(topic)

    return await make(table, create, take_back, control=control)


async def create_topics(log: Log, topics: Sequence[str]) -> list[int]:
    """Side by side, so that what an administrator has to do is told for all of them. Raises as `ensure_topic`."""
    made = await asyncio.gather(*(log.ensure_topic(topic) for topic in topics), return_exceptions=True)
    refused = [found for found in made if isinstance(found, LogUnavailable)]
    for found in made:
        if isinstance(found, BaseException) and not isinstance(found, LogUnavailable):
            raise found
    if refused:
        messages, cures = dict.fromkeys(e.message for e in refused), dict.fromkeys(e.cure for e in refused)
        raise LogUnavailable(" ".join(messages), "\n".join(cures)) from refused[0]
    return [found for found in made if isinstance(found, int)]


async def make(
    table: VectorTable,
    create: Callable[[], Awaitable[T]],
    take_back: Callable[[], Awaitable[None]],
    *,
    control: Control,
    generation: int | None = None,
) -> T:
    """`create()`, then `take_back()` and NotFound if the table, or this generation of it, is not defined any more.

    One question to the control database. A caller that is cancelled in between leaves nothing behind either: what was
    begun is finished first, within a few seconds.
    """
    making = asyncio.create_task(_make(table, create, take_back, control, generation))
    try:
        return await asyncio.shield(making)
    except asyncio.CancelledError:
        try:
            await asyncio.wait((making,), timeout=_FINISH_SECONDS)
        finally:
            making.cancel()
            await asyncio.gather(making, return_exceptions=True)
        raise


async def _make(
    table: VectorTable,
    create: Callable[[], Awaitable[T]],
    take_back: Callable[[], Awaitable[None]],
    control: Control,
    generation: int | None,
) -> T:
    try:
        made = await create()
    except (LogUnavailable, StoreUnavailable):
        await _ask(table, take_back, control, generation)  # it may have been made all the same
        raise
    await _ask(table, take_back, control, generation)
    return made


async def _ask(
    table: VectorTable, take_back: Callable[[], Awaitable[None]], control: Control, generation: int | None
) -> None:
    # not the feed, which may be behind: the database itself
    found = (await control.definitions.snapshot()).vector_tables.get(table.id)
    # one that is not fed any more may be kept: it is dropped by whoever ends it
    if found is not None and (generation is None or found.generation(generation) is not None):
        return
    await take_back()
    raise NotFound(f"vector table {table.name!r} was removed meanwhile.")
