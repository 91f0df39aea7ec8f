"""What a vector table is doing, from what is stored and what the roles report."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from api.lag import Lag, lag_of
from api.lifecycle import layers_of
from api.services import Services
from walvec.contracts.errors import WalvecError
from walvec.contracts.position import format_lsn
from walvec.contracts.sources import RowCount
from walvec.definitions.model import BACKFILLS, OPEN, Connection, Snapshot, SyncStatus, Task, VectorTable
from walvec.transport.records import bridge_group, changes_topic, embedder_group, sink_group, vectors_topic

_PATIENCE = 3.0  # seconds that a status waits for a source or store that may be down
_FRESH = 10.0  # seconds after which a role's report says that the role is not there

T = TypeVar("T")
Reports = Mapping[tuple[str, str], tuple[Mapping[str, Any], float]]


def state_of(table: VectorTable, tasks: Sequence[Task]) -> SyncStatus:
    """Worst first. `tasks`: the table's recent ones."""
    return layers_of(table, tasks)[0][1]


def backfill_progress(tasks: Sequence[Task], generation: int | None = None) -> dict[str, Any] | None:
    """Of the newest backfill (of that generation) that is open."""
    found = (t for t in tasks if t.task_type in BACKFILLS and t.status in OPEN)
    task = next((t for t in found if generation in (None, t.generation)), None)
    if task is None:
        return None
    progress = task.progress
    done = rows_done(task)
    estimate = progress.get("estimate")
    rate = progress.get("rate")
    total = max(int(estimate), done) if isinstance(estimate, int | float) else None
    remaining = (total - done) / rate if total is not None and isinstance(rate, int | float) and rate > 0 else None
    return {
        "task_id": task.id,
        "task_type": task.task_type,
        "status": task.status,
        "rows_done": done,
        "estimated_total": total,
        "rate": rate,
        "remaining_seconds": round(remaining, 1) if remaining is not None else None,
        "waiting": progress.get("waiting") or None,
        "last_error": task.last_error,
    }


def rows_done(task: Task) -> int:
    found = task.progress.get("rows", 0)
    return found if isinstance(found, int) else 0


async def reports_of(services: Services) -> Reports:
    return {(role, subject): (report, age) for role, subject, report, age in await services.control.reports.all()}


async def all_statuses(services: Services, tables: Sequence[VectorTable], snapshot: Snapshot) -> list[dict[str, Any]]:
    reports = await reports_of(services)
    return list(await asyncio.gather(*(table_status(services, t, snapshot, reports) for t in tables)))


async def table_status(services: Services, table: VectorTable, snapshot: Snapshot, reports: Reports) -> dict[str, Any]:
    """Every number that can be had; what is out of reach is null and named in `unreachable`."""
    unreachable: list[str] = []
    tasks = await services.control.tasks.recent(table.id, 20)
    dead = await services.control.letters.count(table.id)
    found, synced = await _counted(services, table, snapshot, unreachable)
    stages = await _stages(services, table, unreachable)
    known = list(stages.values())
    lags = [lag for lag in known if lag is not None]
    whole = len(lags) == len(known)
    state = state_of(table, tasks)
    total = _total(found, synced, dead, caught_up=state == "synced" and whole and not any(lag.changes for lag in lags))
    sent = _report(reports, "embedder", table.id)
    applied = _report(reports, "sink", table.id)
    connection = snapshot.connections.get(table.connection_id)
    backfill = backfill_progress(tasks)
    if backfill and backfill["estimated_total"] is None and total is not None:
        backfill["estimated_total"] = max(total, backfill["rows_done"])
    return {
        "id": table.id,
        "name": table.name,
        "state": state,
        "sync_status": state,
        "total_rows": total,
        "synced_rows": synced,
        "dead_letters": dead,
        "lag_changes": sum(lag.changes for lag in lags) if whole else None,
        "lag_seconds": max(lag.seconds for lag in lags) if whole else None,
        "stages": {name: _lag_json(lag) for name, lag in stages.items()},
        "backfill": backfill,
        "last_error": last_error(table, tasks) or _source_error(connection),
        "last_error_at": last_error_at(table, tasks),
        "error": dict(table.error) if table.error else None,
        "blocked": table.blocked,
        "texts_sent": sent.get("texts_sent"),
        "texts_saved": sent.get("texts_saved"),
        "embedder": sent,
        "sink": applied,
        "source": await _changes_status(services, table, reports)
        | {
            "connection": connection.name if connection else None,
            "status": connection.status if connection else None,
            "status_message": connection.status_message if connection else "",
        },
        "generation": table.active.number,
        "embedding_model": table.active.embedding_model,
        "store": table.store,
        "unreachable": unreachable,
    }


async def _changes_status(services: Services, table: VectorTable, reports: Reports) -> dict[str, Any]:
    """Where the table's changes come from, and how that is going."""
    if table.source is None:
        return await source_status(services, table.connection_id, reports)
    report, age = reports.get(("bridge", table.id), ({}, None))
    return {
        **report,
        "kafka_topic": table.source.kafka_topic,
        "report_age_seconds": round(age, 1) if age is not None else None,
        "reading": age is not None and age < _FRESH and report.get("state") == "reading",
    }


async def source_status(services: Services, connection_id: str, reports: Reports) -> dict[str, Any]:
    report, age = reports.get(("cdc", connection_id), ({}, None))
    progress = await services.control.progress.get(connection_id)
    durable = max(progress.lsn, durable_lsn(report))
    return {
        **report,
        "durable_lsn": format_lsn(durable),
        "lag_seconds": report.get("lag_seconds"),
        "report_age_seconds": round(age, 1) if age is not None else None,
        "reading": age is not None and age < _FRESH,
    }


def durable_lsn(report: Mapping[str, Any]) -> int:
    found = report.get("durable_lsn", 0)
    return found if isinstance(found, int) else 0


def last_error(table: VectorTable, tasks: Sequence[Task]) -> str | None:
    if table.error:
        return f"{table.error.get('message', '')} {table.error.get('cure', '')}".strip()
    if table.blocked:
        return table.blocked
    if table.building is not None and table.building.stalled:
        return table.building.stalled
    newest = next((t for t in tasks if t.task_type in BACKFILLS), None)
    # what was cancelled was ended on purpose: no error is left of it
    return newest.last_error if newest is not None and newest.status not in ("completed", "cancelled") else None


def _source_error(connection: Connection | None) -> str | None:
    """Nothing new comes from there, though all that was read is applied."""
    return connection.status_message or None if connection is not None and connection.status == "error" else None


def last_error_at(table: VectorTable, tasks: Sequence[Task]) -> str | None:
    """When what `last_error` says came up; of a backfill that goes on, when it last got anywhere."""
    if table.wrong:
        return table.failed_at
    newest = next((t for t in tasks if t.task_type in BACKFILLS), None)
    return newest.updated_at if newest is not None and last_error(table, tasks) is not None else None


async def counts(services: Services, table: VectorTable, snapshot: Snapshot) -> tuple[int, int]:
    """(total rows, synced rows); what cannot be reached now counts as it was last seen, else 0."""
    ignored: list[str] = []
    found, synced = await _counted(services, table, snapshot, ignored)
    caught_up, dead = False, 0
    if found is not None and not found.exact:
        lags = (await _stages(services, table, ignored)).values()
        state = state_of(table, await services.control.tasks.recent(table.id, 20))
        caught_up = state == "synced" and all(lag is not None and not lag.changes for lag in lags)
        dead = await services.control.letters.count(table.id)
    return _total(found, synced, dead, caught_up=caught_up) or 0, synced or 0


async def _counted(
    services: Services, table: VectorTable, snapshot: Snapshot, unreachable: list[str]
) -> tuple[RowCount | None, int | None]:
    connection = snapshot.connections[table.connection_id]
    return await asyncio.gather(
        _reached(lambda: services.source.count(connection, table), f"rows:{table.id}", services, unreachable),
        _reached(
            lambda: services.store.count(table, table.active),
            f"vectors:{table.id}:{table.active.number}",
            services,
            unreachable,
        ),
    )


def _total(found: RowCount | None, synced: int | None, dead: int, *, caught_up: bool) -> int | None:
    """Where counting takes too long, and nothing is left to do, the store knows better than the planner."""
    if found is None or found.exact or synced is None or not caught_up:
        return found.rows if found is not None else None
    return synced + dead


async def _reached(find: Callable[[], Awaitable[T]], name: str, services: Services, unreachable: list[str]) -> T | None:
    try:
        async with asyncio.timeout(_PATIENCE):
            return await services.memory.recall(name, find)
    except TimeoutError:
        unreachable.append(f"{name.partition(':')[0]}: no answer within {_PATIENCE:g} s")
    except WalvecError as e:
        unreachable.append(f"{name.partition(':')[0]}: {e.message}")
    last: T | None = services.memory.last(name)
    return last


def stages_of(table: VectorTable) -> dict[str, tuple[str, str]]:
    """Topic and group of each stage, in the order of the flow."""
    name = table.storage_name
    groups = {"embedder": (changes_topic(name), embedder_group(name)), "sink": (vectors_topic(name), sink_group(name))}
    if table.source is not None:
        groups = {"bridge": (table.source.kafka_topic, bridge_group(name)), **groups}
    return groups


async def _stages(services: Services, table: VectorTable, unreachable: list[str]) -> dict[str, Lag | None]:
    """How far each stage is behind. None = the log cannot be reached."""
    groups = stages_of(table)
    try:
        async with asyncio.timeout(_PATIENCE):
            return {stage: await lag_of(services.log, *place) for stage, place in groups.items()}
    except TimeoutError:
        unreachable.append(f"log: {services.reach.silent(_PATIENCE)}")
    except WalvecError as e:
        unreachable.append(f"log: {e}")
    return dict.fromkeys(groups)


def _lag_json(lag: Lag | None) -> dict[str, Any] | None:
    return {"lag_changes": lag.changes, "lag_seconds": lag.seconds} if lag else None


def _report(reports: Reports, role: str, subject: str) -> dict[str, Any]:
    report, age = reports.get((role, subject), ({}, None))
    return {**report, "report_age_seconds": round(age, 1)} if age is not None else {}


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
