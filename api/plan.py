"""A definitions file against what is stored: what would change. Only reads; a dry run is a plan that is not applied.

Next: `reconcile` makes it true.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from api.ports import Models, SearchStore, Source
from api.redefinition import Change, Redefinition, changes, redefinition
from api.validation import build_vector_table, known_provider, new_id
from walvec.contracts.errors import DefinitionError
from walvec.definitions.document import (
    ConnectionSpec,
    Document,
    ProviderSpec,
    VectorTableSpec,
    same_dsn,
    with_stored_secrets,
)
from walvec.definitions.model import Connection, EmbeddingProvider, Environment, Snapshot, StoreKind, VectorTable
from walvec.runtime.addresses import check_base_url, check_connection_address
from walvec.transport.ports import Log

Action = Literal["created", "changed", "unchanged", "removed"]
Kind = Literal["connection", "embedding_provider", "vector_table"]


@dataclass(frozen=True, slots=True)
class Difference:
    """One line of what `apply` prints. `fields`: name -> (before, after); a secret shows as "changed" alone."""

    action: Action
    kind: Kind
    name: str
    fields: Mapping[str, Change] = field(default_factory=dict)

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
    change: Redefinition | None = field(default=None, repr=False)


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
    environment: Environment | None = None,
) -> Plan:
    """What would change. Asks the sources, creates nothing. Raises DefinitionError and what sources raise.

    `snapshot` holds one environment, and new definitions become part of it. `store` is not asked anything yet: storage
    is checked by `ensure`, when the plan is applied.
    """
    steps: list[Step] = []
    removed = _removed(document, snapshot) if prune else []
    gone = {s.before.id for s in removed if s.before is not None}
    connections = {c.name: c for c in snapshot.connections.values() if c.id not in gone}
    for connection_spec in document.connections:
        step = await _connection(connection_spec, connections.get(connection_spec.name), source, environment)
        steps.append(step)
        assert isinstance(step.value, Connection)
        connections[connection_spec.name] = step.value
    providers = {p.name: p for p in snapshot.providers.values() if p.id not in gone}
    for provider_spec in document.embedding_providers:
        known_provider(provider_spec.provider, models)
        provider_step = _provider(provider_spec, providers.get(provider_spec.name), snapshot, models, environment)
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
            environment,
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


def _step(
    kind: Kind,
    name: str,
    before: Connection | EmbeddingProvider | VectorTable | None,
    value: Connection | EmbeddingProvider | VectorTable,
    fields: Mapping[str, Change],
) -> Step:
    action: Action = "created" if before is None else "changed" if fields else "unchanged"
    return Step(Difference(action, kind, name, {} if before is None else fields), value, before)


def _place(old: Connection | EmbeddingProvider | None, environment: Environment | None) -> str:
    """Id of its environment; empty: the one that the control database was opened with."""
    return old.environment_id if old else environment.id if environment else ""


async def _connection(
    spec: ConnectionSpec, old: Connection | None, source: Source, environment: Environment | None
) -> Step:
    new = Connection(
        id=old.id if old else new_id("conn"),
        name=spec.name,
        provider=spec.provider,
        mode=spec.mode,
        dsn=with_stored_secrets(spec.dsn, old.dsn) if old else spec.dsn,
        on_slot_loss=spec.on_slot_loss,
        status="connected",
        created_at=old.created_at if old else "",
        environment_id=_place(old, environment),
    )
    fields: dict[str, Change] = {}
    if old is not None:
        fields = changes({"mode": (old.mode, new.mode), "on_slot_loss": (old.on_slot_loss, new.on_slot_loss)})
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


def _provider(
    spec: ProviderSpec,
    old: EmbeddingProvider | None,
    snapshot: Snapshot,
    models: Models,
    environment: Environment | None,
) -> Step:
    if spec.base_url is not None and (old is None or old.base_url != spec.base_url):
        check_base_url(spec.base_url)
    new = EmbeddingProvider(
        id=old.id if old else new_id("emb"),
        name=spec.name,
        provider=spec.provider,
        api_key=_api_key(spec, old),
        base_url=spec.base_url,
        default_model=spec.default_model,
        limits=spec.limits,
        created_at=old.created_at if old else "",
        environment_id=_place(old, environment),
    )
    fields: dict[str, Change] = {}
    if old is not None:
        fields = changes(
            {
                "provider": (old.provider, new.provider),
                "base_url": (old.base_url, new.base_url),
                "default_model": (old.default_model, new.default_model),
                "limits": (dict(old.limits), dict(new.limits)),
            }
        )
        if old.api_key != new.api_key:
            fields["api_key"] = "changed"
        users = [t.name for t in snapshot.vector_tables.values() if old.id in {t.provider_of(g) for g in t.generations}]
        if "provider" in fields and users:
            raise DefinitionError(
                f"embedding provider {spec.name!r} cannot become of kind {spec.provider!r}: its vectors are in use by "
                + ", ".join(sorted(users))
                + ".",
                "Define a provider under a new name, or delete those vector tables first.",
            )
    if old is None or {"provider", "base_url", "api_key"} & fields.keys():
        models.check_provider(new)
    return _step("embedding_provider", spec.name, old, new, fields)


def _api_key(spec: ProviderSpec, old: EmbeddingProvider | None) -> str | None:
    """One that is not given stays as it is stored, but is never sent to another address."""
    if spec.api_key is not None:
        return spec.api_key.get_secret_value() or None
    if old is None or old.api_key is None:
        return None
    if (old.provider, old.base_url) != (spec.provider, spec.base_url):
        raise DefinitionError(
            f"embedding provider {spec.name!r} has another provider or base_url, and its api_key is not given.",
            "Give the api_key for the new address (an empty one if it needs none).",
        )
    return old.api_key


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
    environment: Environment | None,
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
        environment=environment,
    )
    if old is None:
        return _step("vector_table", spec.name, None, new, {})
    change = redefinition(old, new)
    if change.fixed:
        raise DefinitionError(
            f"vector table {spec.name!r} exists with another " + ", ".join(sorted(change.fixed)) + ".",
            "Apply it under a new name, or delete it first.",
        )
    fields = dict(change.fields)
    if old.error is not None and old.error.get("kind") not in ("dead_letters", "table_changed"):
        fields["error"] = (old.error.get("kind"), None)
    if change.kind == "generation":
        fields["rebuild"] = "new generation"
    step = _step("vector_table", spec.name, old, change.table, fields)
    return replace(step, change=change)


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
