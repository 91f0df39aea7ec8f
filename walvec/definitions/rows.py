"""Definitions <-> JSON, as the control database keeps them. Pure. The inverse of each other; next: `postgres`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from walvec.contracts.errors import ConfigError
from walvec.definitions.model import Column, Generation, SourceColumn, TopicSource, VectorTable

_BESIDE = ("dead_in_row", "environment_id", "view_schema")


def table_json(table: VectorTable) -> dict[str, Any]:
    """Everything but what the database keeps in columns of its own."""
    return {k: v for k, v in asdict(table).items() if k not in _BESIDE}


def table_from(stored: Mapping[str, Any], dead_in_row: int, environment_id: str, view_schema: str) -> VectorTable:
    """Raises ConfigError for what a newer version wrote."""
    try:
        generations = tuple(_generation(g) for g in stored["generations"])
        source = TopicSource(**stored["source"]) if stored.get("source") else None
        beside = {"dead_in_row": dead_in_row, "environment_id": environment_id, "view_schema": view_schema}
        return VectorTable(**{**stored, **beside, "generations": generations, "source": source})
    except (TypeError, KeyError) as e:
        raise ConfigError(
            "the control database holds a vector table in a form that this version does not know.",
            "A newer walvec wrote it: upgrade this one.",
        ) from e


def _generation(stored: Mapping[str, Any]) -> Generation:
    return Generation(
        **{
            **stored,
            "columns": tuple(Column(**c) for c in stored["columns"]),
            "key": tuple(SourceColumn(**c) for c in stored["key"]),
            "source": tuple(SourceColumn(**c) for c in stored["source"]),
        }
    )
