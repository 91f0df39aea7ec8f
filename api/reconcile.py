"""A definitions file against what is stored: `plan` finds the differences, `apply` makes them true. Idempotent.

`plan` only reads: a dry run is a plan that is not applied. Nothing half-made stays: a vector table is entered last,
once its storage, its view and its topics are there. Next: `cdc` feels the new definition through the feed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from api.ports import Models, SearchStore, Source
from api.validation import build_vector_table, known_provider, new_id
from walvec.contracts.errors import Conflict, DefinitionError, NotFound, WalvecError
from walvec.definitions.document import ConnectionSpec, Document, ProviderSpec, VectorTableSpec, same_dsn
from walvec.definitions.making import create_topics
from walvec.definitions.model import Connection, EmbeddingProvider, Generation, Snapshot, StoreKind, VectorTable
from walvec.definitions.ports import Control
from walvec.runtime.addresses import check_base_url, check_connection_address
from walvec.transport.ports import Log
from walvec.transport.records import changes_topic, dead_topic, vectors_topic

_log = logging.getLogger(__name__)
Action = Literal["created", "changed", "unchanged", "removed"]
Kind = Literal["connection", "embedding_provider", "vector_table"]


@dataclass(frozen=True, slots=True)
class Difference:
    """One line of what `apply` prints. `fields`: name -> (before, after); a secret shows as "changed" alone."""

    action: Action
    kind: Kind
    name: str
    fields: Mapping[str, tuple[Any, Any] | str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.action} {self.kind.replace('_', ' ')} {self.name}"]
        for name, change in self.fields.items():
            lines.append(f"  {name}: {change if isinstance(change, str) else f'{change[0]!r} -> {change[1]!r}'}")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Step:
    """A difference and the value it would store (None: nothing, it is removed). `before`: what is stored now."""

    difference: Difference
    value: Connection | EmbeddingProvider | VectorTable | None = field(default=None, repr=False)
    before: Connection | EmbeddingProvider | VectorTable | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Plan:
    steps: tuple[Step, ...]

    @property
    def differences(self) -> list[Difference]:
        return [s.difference for s in self.steps]

    @property
    def empty(self) -> bool:
        return all(d.action == "unchanged" for d in self.differences)


async def plan(
    document: Document,
    snapshot: Snapshot,
    source: Source,
    models: Models,
    store: SearchStore,
    *,
    prune: bool = False,
    default_store: StoreKind = "pgvector",
    log: Log | None = None,
) -> Plan:
    """What would change. Asks the sources, creates nothing. Raises DefinitionError and what sources raise.

    `store` is not asked anything yet: storage is checked by `ensure`, when the plan is applied.
    """
    steps: list[Step] = []
    removed = _removed(document, snapshot) if prune else []
    gone = {s.before.id for s in removed if s.before is not None}
    connections = {c.name: c for c in snapshot.connections.values() if c.id not in gone}
    for connection_spec in document.connections:
        step = await _connection(connection_spec, connections.get(connection_spec.name), source)
        steps.append(step)
        assert isinstance(step.value, Connection)
        connections[connection_spec.name] = step.value
    providers = {p.name: p for p in snapshot.providers.values() if p.id not in gone}
    for provider_spec in document.embedding_providers:
        known_provider(provider_spec.provider, models)
        provider_step = _provider(provider_spec, providers.get(provider_spec.name), snapshot)
        steps.append(provider_step)
        assert isinstance(provider_step.value, EmbeddingProvider)
        providers[provider_spec.name] = provider_step.value
    tables = {t.name: t for t in snapshot.vector_tables.values()}
    others = {t.id: t for t in tables.values() if t.id not in gone}
    for spec in document.vector_tables:
        step = await _vector_table(
            spec,
            tables.get(spec.name),
            _named(spec.connection, connections, "connection", spec.name),
            _named(spec.embedding_provider, providers, "embedding provider", spec.name),
            source,
            models,
            others.values(),
            default_store,
            log,
        )
        steps.append(step)
        assert isinstance(step.value, VectorTable)
        others[step.value.id] = step.value
    # removals first: what they free (a name, a view) may be taken by what is created
    return Plan((*removed, *steps))


def _named(name: str, existing: Mapping[str, Any], what: str, table: str) -> Any:
    if name not in existing:
        known = ", ".join(sorted(existing)) or "none yet"
        raise DefinitionError(f"vector table {table!r}: there is no {what} {name!r}.", f"There are: {known}.")
    return existing[name]


def _changes(pairs: Mapping[str, tuple[Any, Any]]) -> dict[str, tuple[Any, Any] | str]:
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _step(
    kind: Kind,
    name: str,
    before: Connection | EmbeddingProvider | VectorTable | None,
    value: Connection | EmbeddingProvider | VectorTable,
    fields: Mapping[str, tuple[Any, Any] | str],
) -> Step:
    action: Action = "created" if before is None else "changed" if fields else "unchanged"
    return Step(Difference(action, kind, name, {} if before is None else fields), value, before)


async def _connection(spec: ConnectionSpec, old: Connection | None, source: Source) -> Step:
    new = Connection(
        id=old.id if old else new_id("conn"),
        name=spec.name,
        provider=spec.provider,
        mode=spec.mode,
        dsn=spec.dsn,
        on_slot_loss=spec.on_slot_loss,
        status="connected",
        created_at=old.created_at if old else "",
    )
    fields: dict[str, tuple[Any, Any] | str] = {}
    if old is not None:
        fields = _changes({"mode": (old.mode, new.mode), "on_slot_loss": (old.on_slot_loss, new.on_slot_loss)})
        if same_dsn(old.dsn, new.dsn):
            new = replace(new, dsn=old.dsn)
        else:
            fields["credentials"] = "changed"
    if old is None or "credentials" in fields:
        check_connection_address(new.dsn)
    if old is None or "credentials" in fields or old.status != "connected":
        await source.test(new)
        if old is not None and old.status != "connected":
            fields["status"] = (old.status, "connected")
    return _step("connection", spec.name, old, new, fields)


def _provider(spec: ProviderSpec, old: EmbeddingProvider | None, snapshot: Snapshot) -> Step:
    if spec.base_url is not None and (old is None or old.base_url != spec.base_url):
        check_base_url(spec.base_url)
    new = EmbeddingProvider(
        id=old.id if old else new_id("emb"),
        name=spec.name,
        provider=spec.provider,
        api_key=None if spec.api_key is None else spec.api_key.get_secret_value(),
        base_url=spec.base_url,
        default_model=spec.default_model,
        limits=spec.limits,
        created_at=old.created_at if old else "",
    )
    fields: dict[str, tuple[Any, Any] | str] = {}
    if old is not None:
        fields = _changes(
            {
                "provider": (old.provider, new.provider),
                "base_url": (old.base_url, new.base_url),
                "default_model": (old.default_model, new.default_model),
                "limits": (dict(old.limits), dict(new.limits)),
            }
        )
        if old.api_key != new.api_key:
            fields["api_key"] = "changed"
        users = [t.name for t in snapshot.vector_tables.values() if t.embedding_provider_id == old.id]
        if "provider" in fields and users:
            raise DefinitionError(
                f"embedding provider {spec.name!r} cannot become of kind {spec.provider!r}: its vectors are in use by "
                + ", ".join(sorted(users))
                + ".",
                "Define a provider under a new name, or delete those vector tables first.",
            )
    return _step("embedding_provider", spec.name, old, new, fields)


async def _vector_table(
    spec: VectorTableSpec,
    old: VectorTable | None,
    connection: Connection,
    provider: EmbeddingProvider,
    source: Source,
    models: Models,
    others: Iterable[VectorTable],
    default_store: StoreKind,
    log: Log | None,
) -> Step:
    changed_at_source = old is not None and (old.error or {}).get("kind") == "table_changed"
    new = await build_vector_table(
        spec,
        connection,
        provider,
        source,
        models,
        others=others,
        default_store=default_store,
        existing=old,
        preflight=old is None or changed_at_source,
        log=log,
    )
    if old is None:
        return _step("vector_table", spec.name, None, new, {})
    fixed, loose = _fixed(old, new), _loose(old, new)
    recoverable = {"columns", "separator", "source_table"} if changed_at_source else set()
    refused = sorted(set(fixed) - recoverable)
    if refused:
        raise DefinitionError(
            f"vector table {spec.name!r} exists with another " + ", ".join(refused) + ".",
            "Apply it under a new name, or delete it first.",
        )
    fields: dict[str, tuple[Any, Any] | str] = {**fixed, **loose}
    if not changed_at_source:
        # the recorded source columns are the cdc's to move on; a file that is applied again leaves them alone
        active = replace(new.active, key=old.active.key, source=old.active.source)
        new = replace(new, generations=(active,))
    else:
        if new.active.source != old.active.source:
            fields["source columns"] = (_types(old.active), _types(new.active))
        if _stored(new.active) != _stored(old.active):
            # the storage's columns are of the former definition: a new one, and nothing is mixed up
            new = replace(new, generations=(replace(new.active, number=_next_number(old), ready=False),))
    if old.error is not None and old.error.get("kind") != "dead_letters":
        fields["error"] = (old.error.get("kind"), None)
    kept = tuple(g for g in old.generations if g.state != "active")
    new = replace(
        new, generations=(*kept, new.active), pending_rebackfill=old.pending_rebackfill, updated_at=old.updated_at
    )
    return _step("vector_table", spec.name, old, new, fields)


def _stored(generation: Generation) -> list[tuple[str, str]]:
    """What the storage has columns for: key and metadata columns in their order, with their types."""
    names = [c.name for c in generation.metadata_columns]
    return [(k.name, k.type) for k in generation.key] + [(n, generation.source_column(n).type) for n in names]


def _next_number(table: VectorTable) -> int:
    return max(g.number for g in table.generations) + 1


def _types(generation: Generation) -> dict[str, str]:
    return {c.name: c.type for c in generation.source}


def _embedded(generation: Generation) -> list[tuple[str, str]]:
    return list(generation.text_spec.columns)


def _fixed(old: VectorTable, new: VectorTable) -> dict[str, tuple[Any, Any] | str]:
    """What makes other vectors or another storage: a running table does not change it in place."""
    a, b = old.active, new.active
    return _changes(
        {
            "connection": (old.connection_id, new.connection_id),
            "embedding_provider": (old.embedding_provider_id, new.embedding_provider_id),
            "source_table": (
                f"{old.source_schema}.{old.source_table}",
                f"{new.source_schema}.{new.source_table}",
            ),
            "primary_key_column": ([k.name for k in a.key], [k.name for k in b.key]),
            "columns": (
                (_embedded(a), [c.name for c in a.metadata_columns]),
                (_embedded(b), [c.name for c in b.metadata_columns]),
            ),
            "separator": (a.separator, b.separator),
            "embedding_model": (a.embedding_model, b.embedding_model),
            "embedding_dimensions": (a.embedding_dimensions, b.embedding_dimensions),
            "store": (old.store, new.store),
            "mode": (old.mode, new.mode),
            "source": (_topic_of(old), _topic_of(new)),
        }
    )


def _topic_of(table: VectorTable) -> str | None:
    return table.source.kafka_topic if table.source else None


def _loose(old: VectorTable, new: VectorTable) -> dict[str, tuple[Any, Any] | str]:
    """What a running table may change."""
    a, b = old.active, new.active
    return _changes(
        {
            "filter_type": (
                {c.name: c.filter_type for c in a.metadata_columns},
                {c.name: c.filter_type for c in b.metadata_columns},
            )
            if {c.name for c in a.metadata_columns} == {c.name for c in b.metadata_columns}
            else (None, None),
            "alias": ({c.name: c.alias for c in a.columns if c.alias}, {c.name: c.alias for c in b.columns if c.alias}),
            "index": (dict(a.index), dict(b.index)),
            "backfill": (old.backfill, new.backfill),
            "sync_mode": (old.sync_mode, new.sync_mode),
            "source options": (
                (old.source.unavailable_value, old.source.slot) if old.source else None,
                (new.source.unavailable_value, new.source.slot) if new.source else None,
            ),
        }
    )


def _removed(document: Document, snapshot: Snapshot) -> list[Step]:
    """What the file does not name: tables first, they stand on the others."""
    kinds: Sequence[tuple[Kind, Mapping[str, Any], set[str]]] = (
        ("vector_table", snapshot.vector_tables, {t.name for t in document.vector_tables}),
        ("embedding_provider", snapshot.providers, {p.name for p in document.embedding_providers}),
        ("connection", snapshot.connections, {c.name for c in document.connections}),
    )
    return [
        Step(Difference("removed", kind, one.name), None, one)
        for kind, existing, named in kinds
        for one in existing.values()
        if one.name not in named
    ]


async def apply(plan: Plan, control: Control, store: SearchStore, log: Log, source: Source) -> list[Difference]:
    """Makes the plan true and returns its differences. What it has created is taken back when a later step fails."""
    created: list[Any] = []
    try:
        for step in plan.steps:
            await _apply_step(step, control, store, log, source)
            if step.difference.action == "created":
                created.append(step.value)
    except WalvecError:
        for value in reversed(created):
            try:
                await _remove(value, control, store, log, source)
            except WalvecError as e:
                _log.warning("a definition of a refused file stays", extra={"action": "undo", "kind": e.kind})
        raise
    return plan.differences


async def _apply_step(step: Step, control: Control, store: SearchStore, log: Log, source: Source) -> None:
    difference, value, before = step.difference, step.value, step.before
    if difference.action == "removed":
        await _remove(before, control, store, log, source)
    elif isinstance(value, VectorTable):
        await _apply_table(step, value, before, control, store, log)
    elif difference.action == "unchanged":
        return
    elif isinstance(value, Connection):
        await control.definitions.put_connection(value)
    elif isinstance(value, EmbeddingProvider):
        await control.definitions.put_provider(value)
    if difference.action != "unchanged":
        _log.info(
            "definition applied",
            extra={"action": "apply", "what": difference.action, "kind": difference.kind, "subject": difference.name},
        )


async def _apply_table(
    step: Step, value: VectorTable, before: Any, control: Control, store: SearchStore, log: Log
) -> None:
    if step.difference.action == "created":
        await create_vector_table(value, control, store, log)
        return
    if step.difference.action == "changed":
        await store.ensure(value, value.active)
        await store.show(value, value.active)
        await control.definitions.put_vector_table(value)
        if "error" in step.difference.fields:
            if before.error["kind"] == "table_changed":
                await _reread(value, control)
            await control.states.clear_error(value.id)
        if before.active.number != value.active.number:
            await store.drop(value, before.active.number)
    await _first_backfill(value, before.backfilled, control)


async def _reread(table: VectorTable, control: Control) -> None:
    """An open backfill began under the former definition: it gives way to one that reads all rows and sweeps."""
    open_tasks = await control.tasks.open_tasks([table.id])
    former = [t.id for t in open_tasks if t.task_type in ("backfill", "rebackfill")]
    with suppress(Conflict):  # asked for meanwhile
        await control.tasks.create(
            "rebackfill",
            table.id,
            table.active.number,
            {"sweep": True},
            instead_of=former,
            reason="the definition was applied anew",
        )


async def _first_backfill(table: VectorTable, backfilled: bool, control: Control) -> None:
    """Also where a former apply was killed between entering the table and asking for its backfill."""
    if table.backfill == "auto" and not backfilled and not await control.tasks.recent(table.id, 1):
        with suppress(Conflict):  # asked for meanwhile
            await control.tasks.create("backfill", table.id, table.active.number, {})


async def create_vector_table(table: VectorTable, control: Control, store: SearchStore, log: Log) -> None:
    """Storage, view and topics, then the definition, then the first backfill unless it is manual."""
    for other in (await control.definitions.snapshot()).vector_tables.values():
        if other.view_name == table.view_name:
            raise Conflict(f"there is already a vector table named {other.name!r}.", "Choose another name.")
    try:
        await store.ensure(table, table.active)
        await store.show(table, table.active)
        await create_topics(log, _topics(table))
        await control.definitions.put_vector_table(table)
    except WalvecError:
        await _undo(table, control, store, log)
        raise
    await _first_backfill(table, False, control)


async def _undo(table: VectorTable, control: Control, store: SearchStore, log: Log) -> None:
    """The definition first here too: it may have been entered although the answer was lost, and roles are at work."""
    try:
        with suppress(NotFound):
            await control.definitions.delete_vector_table(table.id)
        await store.drop(table)
        for topic in _topics(table):
            await log.delete_topic(topic)
    except WalvecError as e:
        _log.warning(
            "storage of a refused vector table stays behind",
            extra={"action": "undo", "storage": table.storage_name, "kind": e.kind},
        )


async def remove_vector_table(table: VectorTable, control: Control, store: SearchStore, log: Log) -> None:
    """The definition first, so that roles let go; then its storage and its topics."""
    await control.definitions.delete_vector_table(table.id)
    await store.drop(table)
    for topic in _topics(table):
        await log.delete_topic(topic)


async def _remove(before: Any, control: Control, store: SearchStore, log: Log, source: Source) -> None:
    if isinstance(before, VectorTable):
        await remove_vector_table(before, control, store, log)
    elif isinstance(before, EmbeddingProvider):
        await control.definitions.delete_provider(before.id)
    elif isinstance(before, Connection):
        await control.definitions.delete_connection(before.id)
        await source.release(before)


def _topics(table: VectorTable) -> tuple[str, str, str]:
    name = table.storage_name
    return changes_topic(name), vectors_topic(name), dead_topic(name)
