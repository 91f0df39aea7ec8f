"""`/v1/topics`, `…/tail` and `…/replay`: what is in the log, on either transport. Next: `tail`, `replay`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import StreamingResponse

from api.drain import pace
from api.lag import lag_between
from api.problems import Problem, invalid
from api.replay import replay
from api.responses import Json, dump, iso
from api.schemas import ReplayFrom
from api.services import Services, Use
from api.tail import has_key, start_offsets, tail
from walvec.contracts.errors import ControlUnavailable, NotFound, WalvecError
from walvec.definitions.model import VectorTable
from walvec.transport.ports import Log
from walvec.transport.records import (
    TopicStats,
    changes_topic,
    dead_topic,
    embedder_group,
    sink_group,
    vectors_topic,
)

router = APIRouter(prefix="/v1", tags=["log"])
Topic = Literal["changes", "vectors", "dead"]
_NAMES = {"changes": changes_topic, "vectors": vectors_topic, "dead": dead_topic}
_GROUPS = {"changes": embedder_group, "vectors": sink_group}
_AT_ONCE = 16
NDJSON = "application/x-ndjson"


@router.get("/topics")
async def topics(services: Use) -> Json:
    """Topics of this environment's vector tables; the default organization also sees those of no table. Groups are
    asked side by side, a few at a time."""
    everything, found = await asyncio.gather(services.control.definitions.snapshot(), services.log.topics())
    owners = {_NAMES[kind](t.storage_name): (t, kind) for t in everything.vector_tables.values() for kind in _NAMES}
    stray = services.organization.id == everything.default_organization.id

    def visible(topic: str) -> bool:
        return owners[topic][0].environment_id == services.environment.id if topic in owners else stray

    found = [stats for stats in found if visible(stats.topic)]
    turn = asyncio.Semaphore(_AT_ONCE)

    async def one(stats: TopicStats) -> dict[str, Any]:
        async with turn:
            return await _described(services.log, stats, owners.get(stats.topic))

    return Json({"topics": await asyncio.gather(*(one(s) for s in sorted(found, key=lambda s: s.topic)))})


async def _described(log: Log, stats: TopicStats, owner: tuple[VectorTable, str] | None) -> dict[str, Any]:
    table, kind = owner or (None, None)
    maker = _GROUPS.get(kind or "")
    group = maker(table.storage_name) if table is not None and maker is not None else None
    committed: Mapping[int, int] = {}
    lag = None
    if group is not None:
        try:
            committed = await log.committed(stats.topic, group)
            lag = await lag_between(log, stats.topic, committed, stats.end_offsets)
        except NotFound:  # removed since the list was made
            group = None
    return {
        "topic": stats.topic,
        "vector_table": table.name if table is not None else None,
        "kind": kind,
        "partitions": stats.partitions,
        "records": sum(end - stats.start_offsets.get(p, 0) for p, end in stats.end_offsets.items()),
        "start_offsets": stats.start_offsets,
        "end_offsets": stats.end_offsets,
        "group": group,
        "committed": committed,
        "lag": lag.changes if lag is not None else None,
        "lag_seconds": lag.seconds if lag is not None else None,
        "bytes": stats.bytes,
        "oldest": iso(stats.oldest_ms),
        "differences": list(stats.differences),
    }


@router.get("/vector-tables/{table_id}/tail")
async def tailed(
    table_id: str,
    services: Use,
    request: Request,
    topic: Topic = "changes",
    start: Annotated[str | None, Query(alias="from")] = None,
    follow: bool = False,
    key: str | None = None,
    partition: Annotated[int | None, Query(ge=0)] = None,
) -> StreamingResponse:
    """One JSON object per line. Default start: `latest` when following, else `earliest`."""
    table = await services.table(table_id)
    name = _NAMES[topic](table.storage_name)
    offsets = await start_offsets(services.log, name, start or ("latest" if follow else "earliest"))
    if partition is not None:
        if offsets and partition not in offsets:
            raise invalid(f"{name} has no partition {partition}.", f"It has 0 to {max(offsets)}.")
        offsets = {p: offset for p, offset in offsets.items() if p == partition}
    only = None if partition is None else frozenset({partition})
    lines = _lines(services, request, table.id, name, offsets, only=only, follow=follow, key=key)
    return StreamingResponse(lines, media_type=NDJSON)


@router.post("/vector-tables/{table_id}/replay")
async def replayed(table_id: str, services: Use, body: ReplayFrom) -> StreamingResponse:
    """Appends what `.changes` holds from a place on once more. One JSON object per line with the count so far; the last
    one has `done`. Whoever hangs up ends it, and may ask again: the guard makes it harmless."""
    table = await services.table(table_id)
    name = changes_topic(table.storage_name)
    starts = await start_offsets(services.log, name, body.start)
    return StreamingResponse(_replayed(services, name, starts), media_type=NDJSON)


async def _replayed(services: Services, topic: str, starts: Mapping[int, int]) -> AsyncIterator[bytes]:
    try:
        async for progress in replay(services.log, topic, starts):
            if services.stop.is_set():
                raise Problem(503, "shutting_down", "walvec's API is ending.", "Ask again when it is back.")
            yield dump(progress) + b"\n"
    except WalvecError as e:  # too late for a status: the stream has begun
        code = e.code if isinstance(e, Problem) else e.kind
        yield dump({"error": {"code": code, "message": e.message, "resolution": e.cure}}) + b"\n"


async def _lines(
    services: Services,
    request: Request,
    table_id: str,
    topic: str,
    offsets: dict[int, int],
    *,
    only: frozenset[int] | None,
    follow: bool,
    key: str | None,
) -> AsyncIterator[bytes]:
    count = 0
    while True:
        async for record in tail(services.log, topic, offsets, only):
            if key is None or has_key(record, key):
                yield dump(record) + b"\n"
            count += 1
            if count % 50 == 0:
                await asyncio.sleep(0)  # lets a hang-up through
                if await request.is_disconnected():
                    return
        if not follow or services.stop.is_set() or await request.is_disconnected():
            return
        await pace(services)
        if not await _goes_on(services, table_id):
            return


async def _goes_on(services: Services, table_id: str) -> bool:
    """Whether who follows may still ask, and what is followed is there."""
    try:
        now = await services.control.definitions.snapshot()
    except ControlUnavailable:
        return True  # nothing is heard of either now; the log itself may well go on
    caller = services.caller
    if caller is not None and caller.key_id is not None:
        key = now.api_keys.get(caller.key_id)
        if key is None or key.revoked_at is not None or now.organizations[key.org_id].status == "deleting":
            return False
    return table_id in services.own(now).vector_tables
