"""`POST /v1/vector-tables/{id}/query`: a text or a vector into the rows whose vectors are nearest.

Answered by one generation, the active one, with its own provider and model. Next: `filters`, `cursors`, `freshness`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import Response

from api import cursors, filters, shapes
from api.freshness import Freshness
from api.problems import Problem, invalid
from api.responses import Json
from api.schemas import Query
from api.services import Services, Use, find_table
from walvec.contracts.errors import StoreRejected
from walvec.contracts.position import format_lsn
from walvec.definitions.model import BACKFILLS, Generation, Snapshot, VectorTable

router = APIRouter(prefix="/v1", tags=["query"])


@router.post("/vector-tables/{table_id}/query")
async def query(table_id: str, body: Query, services: Use, request: Request) -> Response:
    """Also while another generation is built, while the table is paused, backfilling or in error."""
    seen: Snapshot | None = getattr(request.state, "snapshot", None)
    own = services.own(seen) if seen is not None else await services.snapshot()
    table = find_table(own, table_id)
    while True:
        try:
            return Json(await answer(services, request.app.state.freshness, own, table, body))
        except (StoreRejected, Overtaken):
            # a swap that keeps nothing, or a deletion, may have removed the generation since the look
            own = await services.snapshot()
            again = find_table(own, table.id)
            if again.active.number == table.active.number:
                raise
            table = again


class Overtaken(Exception):
    """Another generation has become the active one: of this one nothing is promised any more."""


async def answer(
    services: Services, freshness: Freshness, snapshot: Snapshot, table: VectorTable, body: Query
) -> dict[str, Any]:
    """Raises WalvecError; StoreRejected also where the generation is gone, Overtaken where another is shown by now."""
    generation = table.active
    if not table.backfilled:
        await _begun(services, table)
    where = filters.parse(body.filters, filters.filter_types(generation))
    given = _given(body.vector, generation)
    mark = cursors.fingerprint(
        table.id, body.query, b"" if given is None else given.tobytes(), body.filters, body.min_similarity_score
    )
    after, vector = None, given
    if body.cursor is not None:
        after, kept = cursors.read(body.cursor, mark, generation.number, generation.embedding_dimensions)
        vector = given if given is not None else kept
    if vector is None:
        assert body.query is not None
        provider = snapshot.providers[table.provider_of(generation)]
        vector = await services.models.embed_query(provider, generation, body.query)
    fresh = await freshness.of(services, table)  # before the search: what it promises is found
    if fresh.generation > generation.number:
        raise Overtaken
    hits = await services.store.search(
        table,
        generation,
        vector,
        limit=body.limit + 1,
        where=where,
        min_score=body.min_similarity_score,
        after=after,
        vectors="vector" in body.include,
    )
    page = hits[: body.limit]
    more = len(hits) > body.limit
    return {
        "results": [shapes.hit(h, body.include) for h in page],
        "query": body.query,
        "model": generation.embedding_model,
        "total_results": len(page),
        "next_cursor": (
            cursors.write(page[-1].place, mark, generation.number, vector if given is None else None) if more else None
        ),
        "has_more": more,
        "generation": generation.number,
        "as_of_lsn": format_lsn(fresh.lsn) if fresh.lsn is not None else None,
        "staleness_secs": round(fresh.seconds, 3) if fresh.seconds is not None else None,
        "freshness_reason": fresh.reason,
    }


async def _begun(services: Services, table: VectorTable) -> None:
    recent = await services.control.tasks.recent(table.id, 20)
    if not any(t.task_type in BACKFILLS for t in recent):
        raise Problem(
            422,
            "vector_table_not_ready",
            f"vector table {table.name!r} has no vectors yet: its first backfill was not asked for.",
            f"POST /v1/vector-tables/{table.id}/backfill",
        )


def _given(numbers: list[float] | None, generation: Generation) -> np.ndarray | None:
    if numbers is None:
        return None
    if len(numbers) != generation.embedding_dimensions:
        raise invalid(
            f"vector: it has {len(numbers)} dimensions, the vector table {generation.embedding_dimensions}.",
            f"Embed the query with {generation.embedding_model}.",
        )
    with np.errstate(over="ignore"):
        vector = np.array(numbers, dtype=np.float32)
    if not np.isfinite(vector).all() or not vector.any():
        raise invalid("vector: its numbers must be 32-bit floats, and not all zero.", "Embed the query again.")
    return vector
