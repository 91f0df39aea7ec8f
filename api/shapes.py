"""Definitions and tasks as the documented JSON objects. Secrets have no place in them. Pure."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from api.responses import dump, iso, key_json
from walvec.contracts.letters import DeadLetter
from walvec.contracts.stores import Hit
from walvec.definitions.model import Column, Connection, EmbeddingProvider, SyncStatus, Task, VectorTable

ORG = "org_local"


def connection(c: Connection) -> dict[str, Any]:
    return {
        "id": c.id,
        "org_id": ORG,
        "environment_id": None,
        "name": c.name,
        "provider": c.provider,
        "mode": c.mode,
        "status": c.status,
        "status_message": c.status_message,
        "on_slot_loss": c.on_slot_loss,
        "slot": c.slot,
        "created_at": c.created_at,
    }


def provider(p: EmbeddingProvider) -> dict[str, Any]:
    return {
        "id": p.id,
        "name": p.name,
        "provider": p.provider,
        "default_model": p.default_model,
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


def vector_table(t: VectorTable, state: SyncStatus, environment: str, total: int, synced: int) -> dict[str, Any]:
    newest = t.generations[-1] if t.pending_rebackfill else t.active
    key = [k.name for k in newest.key]
    return {
        "id": t.id,
        "org_id": ORG,
        "environment_id": f"env_{environment}",
        "connection_id": t.connection_id,
        "embedding_provider_id": t.embedding_provider_id,
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
        "index": dict(newest.index),
        "qdrant_collection": t.storage_name if t.mode == "managed" else None,
        "platform_vector_ref": t.view_name if t.mode == "platform" else None,
        "view": t.view_name,
        "total_rows": total,
        "synced_rows": synced,
        "created_at": t.created_at,
        "updated_at": t.updated_at,
    }


def task(t: Task) -> dict[str, Any]:
    progress = dict(t.progress)
    if "rows" in progress:
        progress["rows_processed"] = progress["rows"]
    return {
        "id": t.id,
        "task_id": t.id,
        "org_id": ORG,
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


def hit(h: Hit) -> dict[str, Any]:
    """Both documented spellings of the score; the id is a string, of a composite key its JSON object."""
    values = list(h.key.values())
    only = values[0] if len(values) == 1 else None
    name = only if isinstance(only, str) else dump(only if len(values) == 1 else dict(h.key)).decode()
    return {
        "id": name,
        "key": dict(h.key),
        "chunk": h.chunk,
        "score": h.score,
        "similarity_score": h.score,
        "metadata": dict(h.metadata),
        "embedded_text": h.text,
    }
