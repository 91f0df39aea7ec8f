"""Definitions and tasks as the documented JSON objects. Secrets have no place in them. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from api.responses import dump, iso, key_json
from api.specs import wanted
from walvec.contracts.letters import DeadLetter
from walvec.contracts.sources import Check
from walvec.contracts.stores import Hit
from walvec.definitions.model import Column, Connection, EmbeddingProvider, Generation, SyncStatus, Task, VectorTable
from walvec.definitions.removals import Removal


def connection(c: Connection, org_id: str) -> dict[str, Any]:
    return {
        "id": c.id,
        "org_id": org_id,
        "environment_id": c.environment_id,
        "name": c.name,
        "provider": c.provider,
        "mode": c.mode,
        "status": c.status,
        "status_message": c.status_message,
        "on_slot_loss": c.on_slot_loss,
        "slot": c.slot,
        "last_tested_at": c.last_tested_at,
        "created_at": c.created_at,
    }


def checks(found: Sequence[Check]) -> list[dict[str, Any]]:
    return [{"name": c.name, "ok": c.ok, "detail": c.detail, "cure": c.cure} for c in found]


def provider(p: EmbeddingProvider, org_id: str) -> dict[str, Any]:
    return {
        "id": p.id,
        "org_id": org_id,
        "environment_id": p.environment_id,
        "name": p.name,
        "provider": p.provider,
        "default_model": p.default_model,
        "has_api_key": bool(p.api_key),
        "base_url": p.base_url,
        "limits": dict(p.limits),
        "created_at": p.created_at,
    }


def column(c: Column) -> dict[str, Any]:
    """As the user wrote it: what was left out stays out."""
    out: dict[str, Any] = {"name": c.name, "role": c.role}
    if c.ordinal is not None:
        out["ordinal"] = c.ordinal
    if c.name_prefix:
        out["name_prefix"] = c.name_prefix
    if c.filter_type is not None:
        out["filter_type"] = c.filter_type
    if c.alias is not None:
        out["alias"] = c.alias
    return out


def vector_table(
    t: VectorTable,
    org_id: str,
    state: SyncStatus,
    total: int,
    synced: int,
    progress: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The wanted definition: of the generation that is being built, if there is one; `active` is what serves queries
    now. `progress`: of the building one's backfill."""
    newest = wanted(t)
    key = [k.name for k in newest.key]
    return {
        "id": t.id,
        "org_id": org_id,
        "environment_id": t.environment_id,
        "connection_id": t.connection_id,
        "embedding_provider_id": t.provider_of(newest),
        "name": t.name,
        "source_table": t.raw_source_table or f"{t.source_schema}.{t.source_table}",
        "primary_key_column": t.raw_primary_key or (key[0] if len(key) == 1 else key),
        "columns": [column(c) for c in newest.columns],
        "embedding_model": newest.embedding_model,
        "embedding_dimensions": newest.embedding_dimensions,
        "mode": t.mode,
        "sync_mode": t.sync_mode,
        "sync_status": state,
        "store": t.store,
        "source": asdict(t.source) if t.source else None,
        "backfill": t.backfill,
        "separator": newest.separator,
        "index": dict(newest.index),
        "keep_previous": t.keep_previous,
        "keep_embedding_columns": newest.keep_embedding_columns,
        "generation": t.active.number,
        "building_generation": t.building.number if t.building else None,
        "active": serving(t),
        "generations": {
            "active": t.active.number,
            "building": generation(t, t.building, progress) if t.building else None,
            "previous": generation(t, t.previous, None) if t.previous else None,
        },
        "qdrant_collection": t.storage_name if t.mode == "managed" else None,
        "platform_vector_ref": t.view_name if t.mode == "platform" else None,
        "view": t.view_name,
        "total_rows": total,
        "synced_rows": synced,
        "created_at": t.created_at,
        "updated_at": t.updated_at,
    }


def serving(t: VectorTable) -> dict[str, Any]:
    """What answers queries now."""
    active = t.active
    return {
        "generation": active.number,
        "embedding_provider_id": t.provider_of(active),
        "embedding_model": active.embedding_model,
        "embedding_dimensions": active.embedding_dimensions,
        "columns": [column(c) for c in active.columns],
        "separator": active.separator,
        "index": dict(active.index),
    }


def generation(t: VectorTable, g: Generation, progress: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "generation": g.number,
        "state": "swapping" if g.swapping else g.state,
        "embedding_provider_id": t.provider_of(g),
        "embedding_model": g.embedding_model,
        "embedding_dimensions": g.embedding_dimensions,
        "columns": [column(c) for c in g.columns],
        "separator": g.separator,
        "index": dict(g.index),
        "filled": t.backfilled if g.state == "active" else g.filled,
        "indexed": g.ready,
        "reason": g.stalled,
        "kept_until": g.kept_until,
        "progress": dict(progress) if progress else None,
    }


def task(t: Task, org_id: str) -> dict[str, Any]:
    progress = dict(t.progress)
    last = progress.get("next")
    one = last[0] if isinstance(last, list) and len(last) == 1 else last
    progress |= {"last_processed_pk": one, "rows_processed": progress.get("rows", 0)}
    return {
        "id": t.id,
        "task_id": t.id,
        "org_id": org_id,
        "task_type": t.task_type,
        "target_id": t.target_id,
        "status": t.status,
        "priority": 3,
        "generation": t.generation,
        "progress": progress,
        "attempts": t.attempts,
        "max_attempts": t.max_attempts,
        "last_error": t.last_error,
        "created_at": t.created_at,
        "updated_at": t.updated_at,
    }


def removal(r: Removal, org_id: str) -> dict[str, Any]:
    """In the shape of a task. It is tried until it succeeds, so `max_attempts` is 0; once it has, it is gone."""
    return {
        "id": r.id,
        "task_id": r.id,
        "org_id": org_id,
        "task_type": "removal",
        "target_id": r.target_id,
        "status": "running" if r.attempts else "pending",
        "priority": 3,
        "generation": 0,
        "progress": {"what": r.what, "name": r.name, "rows_processed": 0, "last_processed_pk": None},
        "attempts": r.attempts,
        "max_attempts": 0,
        "last_error": r.last_error,
        "created_at": r.created_at,
        "updated_at": r.updated_at,
    }


def letter(found: DeadLetter, *, whole: bool = False) -> dict[str, Any]:
    out: dict[str, Any] = {
        "id": found.id,
        "key": key_json(found.key),
        "kind": found.kind,
        "reason": found.reason,
        "position": str(found.position),
        "attempts": found.attempts,
        "generation": found.generation,
        "created_at": iso(found.created_ms),
    }
    if whole:
        out["payload"] = key_json(found.payload)
    return out


def hit(h: Hit, include: Collection[str] = ("embedded_text",)) -> dict[str, Any]:
    """Both documented spellings of the score; the id is a string, of a composite key its JSON object."""
    values = list(h.key.values())
    only = values[0] if len(values) == 1 else None
    name = only if isinstance(only, str) else dump(only if len(values) == 1 else dict(h.key)).decode()
    found = {
        "id": name,
        "key": dict(h.key),
        "chunk": h.chunk,
        "score": h.score,
        "similarity_score": h.score,
        "metadata": dict(h.metadata),
    }
    if "embedded_text" in include:
        found["embedded_text"] = h.text
    if "vector" in include:
        found["vector"] = h.vector
    return found
