"""`/v1/topics` and `…/tail`: what is in the log, on either transport. Next: `tail`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import StreamingResponse

from api.drain import pace
from api.responses import Json, dump, iso
from api.services import Services, Use
from api.tail import has_key, start_offsets, tail
from walvec.transport.records import (
    changes_topic,
    dead_topic,
    embedder_group,
    sink_group,
    vectors_topic,
)

router = APIRouter(prefix="/v1", tags=["log"])
Topic = Literal["changes", "vectors", "dead"]
_NAMES = {"changes": changes_topic, "vectors": vectors_topic, "dead": dead_topic}


@router.get("/topics")
async def topics(services: Use) -> Json:
    snapshot = await services.snapshot()
    owners = {_NAMES[kind](t.storage_name): (t, kind) for t in snapshot.vector_tables.values() for kind in _NAMES}
    found = []
    for stats in sorted(await services.log.topics(), key=lambda s: s.topic):
        owner = owners.get(stats.topic)
        group = None
        if owner is not None:
            makers = {"changes": embedder_group, "vectors": sink_group}
            maker = makers.get(owner[1])
            group = maker(owner[0].storage_name) if maker else None
        committed = await services.log.committed(stats.topic, group) if group else {}
        records = sum(end - stats.start_offsets.get(p, 0) for p, end in stats.end_offsets.items())
        lag = sum(max(0, end - committed.get(p, 0)) for p, end in stats.end_offsets.items()) if group else None
        found.append(
            {
                "topic": stats.topic,
                "vector_table": owner[0].name if owner else None,
                "kind": owner[1] if owner else None,
                "partitions": stats.partitions,
                "records": records,
                "start_offsets": stats.start_offsets,
                "end_offsets": stats.end_offsets,
                "group": group,
                "committed": committed,
                "lag": lag,
                "bytes": stats.bytes,
                "oldest": iso(stats.oldest_ms),
            }
        )
    return Json({"topics": found})


@router.get("/vector-tables/{table_id}/tail")
async def tailed(
    table_id: str,
    services: Use,
    request: Request,
    topic: Topic = "changes",
    start: Annotated[str | None, Query(alias="from")] = None,
    follow: bool = False,
    key: str | None = None,
) -> StreamingResponse:
    """One JSON object per line. Default start: `latest` when following, else `earliest`."""
    table = await services.table(table_id)
    name = _NAMES[topic](table.storage_name)
    offsets = await start_offsets(services.log, name, start or ("latest" if follow else "earliest"))
    lines = _lines(services, request, name, offsets, follow=follow, key=key)
    return StreamingResponse(lines, media_type="application/x-ndjson")


async def _lines(
    services: Services, request: Request, topic: str, offsets: dict[int, int], *, follow: bool, key: str | None
) -> AsyncIterator[bytes]:
    count = 0
    while True:
        async for record in tail(services.log, topic, offsets):
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
