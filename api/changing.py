"""`PUT /v1/vector-tables/{id}`: what a body changes of a definition, read, merged and stored as one.

Whoever gave no If-Match is not refused when another writer comes in between: its change is made again of what the
definition is then. Next: `redefinition` (what that means), `redefine` (carried out).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from pydantic import BaseModel, ValidationError

from api.lifecycle import Event
from api.permits import permit
from api.ports import Source
from api.preconditions import demanded
from api.problems import Problem, invalid
from api.readonly import refuse_others
from api.redefine import redefine, refuse_fixed
from api.redefinition import TABLE_FIELDS, Redefinition, redefinition
from api.schemas import ChangedVectorTable
from api.services import Services, find_table
from api.specs import exact_name, spec_of, wanted
from api.validation import build_vector_table, check_source
from walvec.contracts.errors import Conflict, PreconditionFailed
from walvec.definitions.document import VectorTableSpec, spelled
from walvec.definitions.generations import GENERATION_TAKEN
from walvec.definitions.model import Connection, EmbeddingProvider, Snapshot, SyncStatus, TopicSource, VectorTable
from walvec.definitions.views import check_view

_TRIES = 10
_OWN = frozenset((*TABLE_FIELDS, "index"))
"""What can change without a word of the source."""
_WISHES = frozenset(VectorTableSpec.model_fields) | {"connection_id", "embedding_provider_id"}
"""What a body may ask for; all else that it may hold tells how the table is."""
_BY_NAME = "It is made of `name`: change that."
_CURES: Mapping[str, str] = {
    "qdrant_collection": "Storage and topics keep their names; leave it out.",
    "platform_vector_ref": _BY_NAME,
    "view": _BY_NAME,
}


async def change(services: Services, ref: str, body: ChangedVectorTable, if_match: str | None) -> SyncStatus:
    """The state afterwards. Raises Problem, DefinitionError, PreconditionFailed, and what cannot be reached."""
    for left in reversed(range(_TRIES)):
        snapshot = await services.snapshot()
        table = find_table(snapshot, ref)
        seen = demanded(table, if_match)
        _refuse_others(services, table, body)
        made = await _made(services, table, body, snapshot)
        state = await _allowed(services, table, made)
        try:
            await redefine(made, control=services.control, store=services.store)
            return state
        except (Conflict, PreconditionFailed) as e:
            moved = isinstance(e, PreconditionFailed) or e.code == GENERATION_TAKEN
            if not moved:
                if isinstance(e, Conflict) and e.code == "conflict":
                    raise Problem(409, "vector_table_conflict", e.message, e.cure) from e
                raise
            if seen is not None:
                raise PreconditionFailed(e.message, e.cure) from e
            if not left:
                raise Problem(409, "conflict", f"{table.name!r} is changed by others all the time.", e.cure) from e
    raise AssertionError("unreachable")


async def _allowed(services: Services, table: VectorTable, made: Redefinition) -> SyncStatus:
    if made.kind == "recover":
        return "backfilling"  # also while one is swapped in: nobody goes on with that before the error is mended
    tasks = await services.control.tasks.recent(table.id, 100)
    event: Event = {"generation": "change", "back": "abort"}.get(made.kind, "adjust")  # type: ignore[assignment]
    return permit(table, tasks, event)


async def _made(services: Services, table: VectorTable, body: ChangedVectorTable, snapshot: Snapshot) -> Redefinition:
    wishes = body.model_fields_set & _WISHES
    given = {name: getattr(body, name) for name in wishes if getattr(body, name) is not None}
    _same_connection(table, given, snapshot)
    _same_topic(table, given)
    given = {name: value for name, value in given.items() if not _as_it_is(table, name, value)}
    now = _stored(table)
    changed = {name: value for name, value in given.items() if name not in now or _plain(value) != now[name]}
    others = [t for t in snapshot.vector_tables.values() if t.id != table.id]
    if any(t.name == given.get("name") for t in others):
        raise Problem(
            409, "vector_table_conflict", f"there is a vector table {given['name']!r} already.", "Take another name."
        )
    if changed.keys() <= _OWN and (table.error or {}).get("kind") != "table_changed":
        made = redefinition(table, _own(table, changed))
        check_view(made.table, made.generation, others)
        return made
    connection = snapshot.connections[table.connection_id]
    provider = _provider(table, given, snapshot)
    if "source_table" in given and table.error is None:
        await _same_source(services.source, connection, table, given["source_table"])
    new = await build_vector_table(
        _spec(table, given, snapshot, provider),
        connection,
        provider,
        services.source,
        services.models,
        others=others,
        default_store=services.settings.store,
        existing=table,
        preflight=False,
        log=services.shared_log,
    )
    if "source_table" not in given:  # it was asked for by its exact name, and stays as it was written
        new = replace(new, raw_source_table=table.raw_source_table)
    made = redefinition(table, new)
    refuse_fixed(made)
    if made.kind in ("generation", "recover"):
        await _checked(made, source=services.source, snapshot=snapshot)
    return made


async def _checked(made: Redefinition, *, source: Source, snapshot: Snapshot) -> None:
    """Columns that are new to the stream must be readable, too."""
    trial = replace(made.table, generations=(replace(made.generation, state="active"),))
    await check_source(trial, snapshot.connections[made.table.connection_id], source)


def _refuse_others(services: Services, table: VectorTable, body: ChangedVectorTable) -> None:
    views = {table.view_name, replace(table, name=body.name or table.name).view_name}
    known = {
        "id": (table.id,),
        "org_id": (services.organization.id,),
        "environment_id": (table.environment_id,),
        "qdrant_collection": (table.storage_name,) if table.mode == "managed" else (),
        "platform_vector_ref": views if table.mode == "platform" else (),
        "view": views,
    }
    refuse_others(body, known, _CURES)
    if body.sync_status == "paused" and not table.paused:
        raise invalid("sync_status: it cannot be changed.", f"POST /v1/vector-tables/{table.id}/sync/pause")


def _stored(table: VectorTable) -> dict[str, Any]:
    """Of what can be changed: as a body would say it."""
    generation = wanted(table)
    return {
        "columns": [asdict(c) for c in generation.columns],
        "embedding_model": generation.embedding_model,
        "embedding_dimensions": generation.embedding_dimensions,
        "embedding_provider_id": table.provider_of(generation),
        "separator": generation.separator,
        "keep_embedding_columns": generation.keep_embedding_columns,
        "source": asdict(table.source) if table.source else None,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump()
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def _same_connection(table: VectorTable, given: dict[str, Any], snapshot: Snapshot) -> None:
    ref = given.get("connection_id")
    if ref is not None and ref not in (table.connection_id, snapshot.connections[table.connection_id].name):
        raise invalid(
            "connection_id: a vector table keeps its connection.", "Define a new vector table, and delete this one."
        )


async def _same_source(source: Source, connection: Connection, table: VectorTable, name: str) -> None:
    """Before it is asked for columns that another table need not have."""
    found = await source.inspect(connection, name)
    if (found.schema, found.name) != (table.source_schema, table.source_table):
        raise invalid(
            "source_table: a vector table keeps its source table.", "Define a new vector table, and delete this one."
        )


def _same_topic(table: VectorTable, given: dict[str, Any]) -> None:
    if "source" in given and given["source"].kafka_topic != (table.source.kafka_topic if table.source else None):
        raise invalid("source: a vector table keeps what it reads.", "Define a new vector table, and delete this one.")


def _as_it_is(table: VectorTable, name: str, value: Any) -> bool:
    """Of what cannot be changed: given, and spelled in one of the ways in which it is stored."""
    key = [k.name for k in table.active.key]
    known: dict[str, tuple[Any, ...]] = {
        "connection_id": (value,),
        "mode": (table.mode,),
        "store": (table.store,),
        "source_table": (table.raw_source_table, f"{table.source_schema}.{table.source_table}", exact_name(table)),
        "primary_key_column": (table.raw_primary_key, key, key[0] if len(key) == 1 else key),
    }
    return name in known and value in known[name]


def _provider(table: VectorTable, given: dict[str, Any], snapshot: Snapshot) -> EmbeddingProvider:
    ref = given.get("embedding_provider_id")
    if ref is None:
        return snapshot.providers[table.provider_of(wanted(table))]
    for provider in snapshot.providers.values():
        if ref in (provider.id, provider.name):
            return provider
    raise Problem(404, "embedding_provider_not_found", f"there is no embedding provider {ref!r}.")


def _own(table: VectorTable, given: dict[str, Any]) -> VectorTable:
    """The definition as it is asked for, where the source has no say. One generation, as validation makes it."""
    generation = wanted(table)
    if "index" in given:
        generation = replace(generation, index=given["index"].model_dump(exclude_none=True))
    if "source" in given:
        given = {**given, "source": TopicSource(**given["source"].model_dump())}
    return replace(
        table,
        embedding_provider_id=table.provider_of(generation),
        provider_kind=table.kind_of(generation),
        generations=(replace(generation, state="active"),),
        **{name: given[name] for name in TABLE_FIELDS if name in given},
    )


def _spec(
    table: VectorTable, given: dict[str, Any], snapshot: Snapshot, provider: EmbeddingProvider
) -> VectorTableSpec:
    generation = wanted(table)
    now = spec_of(table, generation, snapshot.connections[table.connection_id], provider)
    values: dict[str, Any] = {name: getattr(now, name) for name in VectorTableSpec.model_fields}
    another = given.get("embedding_model", generation.embedding_model) != generation.embedding_model
    if another or provider.id != table.provider_of(generation):
        values["embedding_dimensions"] = None
    if provider.id != table.provider_of(generation):
        values["embedding_model"] = None
    values |= {name: value for name, value in given.items() if name in VectorTableSpec.model_fields}
    try:
        return VectorTableSpec.model_validate(values)
    except ValidationError as e:
        found = [f"{spelled(d['loc'])}: {str(d['msg']).removeprefix('Value error, ')}" for d in e.errors()]
        raise invalid("; ".join(found) + ".", "Correct the fields that are named.") from None
