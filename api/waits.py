"""Read-your-writes: `POST …/sync/drain` and `wait_for_lsn` of `sync/status`. An application commits, takes the source's
LSN, and waits until that is searchable. Next: `drain`.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from api.drain import Drained, drain
from api.operations import while_connected
from api.problems import Problem, invalid
from api.responses import Json
from api.schemas import DrainTable, Lsn
from api.services import Services, Use, find_table
from walvec.contracts.errors import SourceRejected, SourceUnavailable
from walvec.contracts.position import format_lsn, parse_lsn
from walvec.definitions.model import Snapshot, VectorTable

WaitForLsn = Annotated[
    Lsn | None, Query(description="Answer once everything up to this LSN of the source is searchable.")
]
WaitSeconds = Annotated[float, Query(ge=0, le=86_400, allow_inf_nan=False, description="Seconds to wait at most.")]
router = APIRouter(prefix="/v1/vector-tables/{table_id}", tags=["sync"])
_STATUSES = {
    "vector_table_not_found": 404,
    "vector_table_not_ready": 422,
    "connection_not_ready": 422,
    "sync_paused": 409,
    "sync_error": 409,
}


@router.post("/sync/drain")
async def drained(table_id: str, services: Use, request: Request, body: DrainTable | None = None) -> Json:
    """Answers once everything up to `lsn`, or committed before the call, is searchable."""
    body = body or DrainTable.model_validate({})
    snapshot = await services.snapshot()
    table = find_table(snapshot, table_id)
    wanted = await checked_lsn(services, snapshot, table, body.lsn)
    result = await while_connected(services, request, drain(services, [table], body.timeout, rebuilds=False))
    if not result.drained:
        raise _failed(table, result)
    reached = result.markers.get(table.connection_id) if table.source is None else None
    return Json(
        {
            "vector_table_id": table.id,
            "drained": True,
            "lsn": format_lsn(wanted) if wanted is not None else None,
            "as_of_lsn": format_lsn(reached) if reached is not None else None,
            "seconds": round(result.seconds, 3),
            "dead_letters": result.dead_letters.get(table.name, 0),
        }
    )


async def reaches(
    services: Services, request: Request, snapshot: Snapshot, table: VectorTable, lsn: str, timeout: float
) -> dict[str, Any]:
    """What `sync/status` says of an LSN that it was to wait for."""
    asked = format_lsn(parse_lsn(lsn))
    try:
        await checked_lsn(services, snapshot, table, lsn, "wait_for_lsn")
    except (SourceUnavailable, SourceRejected) as e:
        return {"wait_for_lsn": asked, "lsn_reached": False, "wait_reason": str(e)}
    result = await while_connected(services, request, drain(services, [table], timeout, rebuilds=False))
    return {
        "wait_for_lsn": asked,
        "lsn_reached": result.drained,
        "wait_reason": result.reasons.get(table.name),
    }


async def checked_lsn(
    services: Services, snapshot: Snapshot, table: VectorTable, text: str | None, field: str = "lsn"
) -> int | None:
    """Raises Problem for an LSN that the server has not written yet: nothing would ever wait for it to an end."""
    if text is None:
        return None
    if table.source is not None and table.source.slot is None:
        raise invalid(
            f"{field}: the changes of {table.name!r} come from a topic that does not tell of LSNs.",
            "Leave it out, or name the connector's slot in the table's `source`.",
        )
    lsn = parse_lsn(text)
    now = await services.source.written(snapshot.connections[table.connection_id])
    if lsn > now:
        raise invalid(
            f"{field}: {format_lsn(lsn)} is above {format_lsn(now)}, which the source has written so far.",
            "Take it from the source itself, after the commit: SELECT pg_current_wal_lsn().",
        )
    return lsn


def _failed(table: VectorTable, result: Drained) -> Problem:
    code, reason = result.codes.get(table.name), result.reasons[table.name]
    if code is None:
        return Problem(504, "drain_timeout", f"{table.name!r} is not drained: {reason}.", "Ask again; it goes on.")
    return Problem(
        _STATUSES.get(code, 409), code, f"{table.name!r} will not be drained: {reason}", "See its sync/status."
    )
