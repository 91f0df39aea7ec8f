"""`POST /v1/vector-tables/{id}/query`: a text into the rows whose vectors are nearest."""

from __future__ import annotations

from fastapi import APIRouter

from api import filters, shapes
from api.problems import Problem
from api.responses import Json
from api.schemas import Query
from api.services import Use, find_table
from api.status import BACKFILLS

router = APIRouter(prefix="/v1", tags=["query"])


@router.post("/vector-tables/{table_id}/query")
async def query(table_id: str, body: Query, services: Use) -> Json:
    """Answered by the active generation and its own model, also while another is built, paused or in error."""
    snapshot = await services.snapshot()
    table = find_table(snapshot, table_id)
    generation = table.active
    if not table.backfilled:
        recent = await services.control.tasks.recent(table.id, 20)
        if not any(t.task_type in BACKFILLS for t in recent):
            raise Problem(
                422,
                "vector_table_not_ready",
                f"vector table {table.name!r} has no vectors yet: its first backfill was not asked for.",
                f"POST /v1/vector-tables/{table.id}/backfill",
            )
    where = filters.parse(body.filters, filters.filter_types(generation))
    provider = snapshot.providers[table.embedding_provider_id]
    vector = await services.models.embed_query(provider, generation, body.query)
    hits = await services.store.search(
        table, generation, vector, limit=body.limit, where=where, min_score=body.min_similarity_score
    )
    return Json(
        {
            "results": [shapes.hit(h) for h in hits],
            "query": body.query,
            "model": generation.embedding_model,
            "total_results": len(hits),
        }
    )
