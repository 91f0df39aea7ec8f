"""What a definition changes of a vector table that is there: nothing, in place, or a new generation. Pure.

`PUT /v1/vector-tables/{id}` and the definitions file ask the same question here. Next: `api.redefine` carries it out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from api.specs import wanted
from walvec.definitions.model import Column, Generation, VectorTable

Change = tuple[Any, Any] | str
"""Before and after; a secret shows as "changed" alone."""
Kind = Literal["nothing", "in_place", "back", "generation", "recover"]
TABLE_FIELDS = ("name", "keep_previous", "sync_mode", "backfill", "source")
"""Of the table itself, and free to change at any time."""


@dataclass(frozen=True, slots=True)
class Redefinition:
    """`kind` in_place: the same vectors. back: the active generation's again, so what is being built is given up.
    generation: others, in one of their own. recover: the active generation does not fit its source any more, and what
    takes its place is read at once. `table`: as it would be stored. `fixed`: what cannot change, by field."""

    kind: Kind
    old: VectorTable
    table: VectorTable
    generation: Generation
    fields: Mapping[str, Change] = field(default_factory=dict)
    fixed: Mapping[str, Change] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, Any]:
        """The table's own fields that change together with its generation."""
        pairs = {name: (getattr(self.old, name), getattr(self.table, name)) for name in TABLE_FIELDS}
        return {name: after for name, (before, after) in pairs.items() if before != after}


def redefinition(old: VectorTable, new: VectorTable) -> Redefinition:
    """`new`: as `api.validation` builds it, with one generation, whatever its number."""
    asked = new.active
    former = wanted(old)
    provider = new.embedding_provider_id, new.provider_kind
    asked = _in_order(former, asked)
    fixed = changes(
        {
            "connection": (old.connection_id, new.connection_id),
            "source_table": (_name(old), _name(new)),
            "primary_key_column": ([k.name for k in former.key], [k.name for k in asked.key]),
            "store": (old.store, new.store),
            "mode": (old.mode, new.mode),
            "source": (_topic(old), _topic(new)),
        }
    )
    vectors = _vectors(old, former, asked, provider)
    fields = {**vectors, **_loose(former, asked), **_free(old, new)}
    if (old.error or {}).get("kind") == "table_changed":
        return _recovery(old, new, fields, fixed)
    free = replace(old, **{name: getattr(new, name) for name in TABLE_FIELDS})
    if not vectors:
        generation = _adopt(former, asked)
        kind: Kind = "in_place" if fields else "nothing"
        return Redefinition(kind, old, with_one(free, generation), generation, fields, fixed)
    back = _in_order(old.active, asked)
    if old.building is not None and not _vectors(old, old.active, back, provider):
        generation = _adopt(old.active, back)
        return Redefinition("back", old, with_one(free, generation), generation, fields, fixed)
    generation = replace(
        asked,
        number=old.next_generation,
        state="building",
        ready=False,
        embedding_provider_id=provider[0],
        provider_kind=provider[1],
    )
    return Redefinition("generation", old, free, generation, fields, fixed)


def _recovery(
    old: VectorTable, new: VectorTable, fields: Mapping[str, Change], fixed: Mapping[str, Change]
) -> Redefinition:
    """The storage stays where its columns and vectors do; other ones get storage of their own, and nothing is mixed."""
    before, asked = old.active, _in_order(old.active, new.active)
    same = stored(before) == stored(asked) and (
        (old.embedding_provider_id, before.embedding_model, before.embedding_dimensions)
        == (new.embedding_provider_id, asked.embedding_model, asked.embedding_dimensions)
    )
    if same:
        generation = replace(asked, number=before.number, ready=before.ready)
    else:
        generation = replace(asked, number=old.next_generation, ready=False)
    fields = {**fields, **{k: v for k, v in fixed.items() if k == "source_table"}}
    if asked.source != before.source:
        fields["source columns"] = (_types(before), _types(asked))
    fields["error"] = ("table_changed", None)
    kept = tuple(g for g in old.generations if g.state != "active") if same else ()
    table = replace(
        new,
        generations=(*kept, generation),
        pending_rebackfill=old.pending_rebackfill if same else False,
        environment_id=old.environment_id,
        view_schema=old.view_schema,
        storage=old.storage,
        last_generation=old.last_generation,
        updated_at=old.updated_at,
    )
    rest = {k: v for k, v in fixed.items() if k != "source_table"}
    return Redefinition("recover", old, table, generation, fields, rest)


def with_one(table: VectorTable, generation: Generation) -> VectorTable:
    """The table with this one in the place of its namesake."""
    found = tuple(generation if g.number == generation.number else g for g in table.generations)
    return replace(table, generations=found)


def changes(pairs: Mapping[str, tuple[Any, Any]]) -> dict[str, Change]:
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def stored(generation: Generation) -> list[tuple[str, str]]:
    """What the storage has columns for: key and metadata columns in their order, with their types."""
    names = [c.name for c in generation.metadata_columns]
    return [(k.name, k.type) for k in generation.key] + [(n, generation.source_column(n).type) for n in names]


def _vectors(table: VectorTable, former: Generation, asked: Generation, provider: tuple[str, str]) -> dict[str, Change]:
    """What makes other vectors or another storage."""
    return changes(
        {
            "embedding_provider": (table.provider_of(former), provider[0]),
            "columns": (_columns(former), _columns(asked)),
            "separator": (former.separator, asked.separator),
            "embedding_model": (former.embedding_model, asked.embedding_model),
            "embedding_dimensions": (former.embedding_dimensions, asked.embedding_dimensions),
        }
    )


def _columns(generation: Generation) -> tuple[list[tuple[str, str]], list[str]]:
    return list(generation.text_spec.columns), [c.name for c in generation.metadata_columns]


def _loose(former: Generation, asked: Generation) -> dict[str, Change]:
    """What the same vectors and the same storage may have otherwise."""
    same = {c.name for c in former.metadata_columns} == {c.name for c in asked.metadata_columns}
    found = changes(
        {
            "alias": (_aliases(former), _aliases(asked)),
            "index": (dict(former.index), dict(asked.index)),
            "ordinal": (_ordinals(former), _ordinals(asked)),
            "keep_embedding_columns": (former.keep_embedding_columns, asked.keep_embedding_columns),
        }
    )
    if same:
        found |= changes({"filter_type": (_filters(former), _filters(asked))})
    return found


def _aliases(generation: Generation) -> dict[str, str]:
    return {c.name: c.alias for c in generation.columns if c.alias}


def _ordinals(generation: Generation) -> dict[str, int]:
    return {c.name: c.ordinal for c in generation.columns if c.role == "embedding" and c.ordinal is not None}


def _filters(generation: Generation) -> dict[str, str | None]:
    return {c.name: c.filter_type for c in generation.metadata_columns}


def _free(old: VectorTable, new: VectorTable) -> dict[str, Change]:
    found = changes({name: (getattr(old, name), getattr(new, name)) for name in TABLE_FIELDS if name != "source"})
    if old.source and new.source and old.source.kafka_topic == new.source.kafka_topic:
        a, b = ((s.unavailable_value, s.slot) for s in (old.source, new.source))
        found |= changes({"source options": (a, b)})
    return found


def _name(table: VectorTable) -> str:
    return f"{table.source_schema}.{table.source_table}"


def _types(generation: Generation) -> dict[str, str]:
    return {c.name: c.type for c in generation.source}


def _topic(table: VectorTable) -> str | None:
    return table.source.kafka_topic if table.source else None


def _adopt(former: Generation, asked: Generation) -> Generation:
    """What a running generation may take over; its recorded key and source columns are cdc's to move on."""
    return replace(
        former, columns=asked.columns, index=asked.index, keep_embedding_columns=asked.keep_embedding_columns
    )


def _in_order(former: Generation, asked: Generation) -> Generation:
    """Metadata columns that only stand in another order keep the storage's; embedding columns keep theirs where the
    text stays the same."""
    # by role: a value that is only kept stands among the embedding columns, and must not be listed twice
    names = [c.name for c in former.columns if c.role == "metadata"]
    mine: dict[str, Column] = {c.name: c for c in asked.columns if c.role == "metadata"}
    if sorted(names) != sorted(mine):
        return asked
    embedding = [c for c in asked.columns if c.role == "embedding"]
    placed = iter([mine[name] for name in names])
    texts = iter(embedding)
    roles = [c.role for c in former.columns]
    if len(embedding) != roles.count("embedding"):
        return replace(asked, columns=(*embedding, *placed))
    return replace(asked, columns=tuple(next(texts if role == "embedding" else placed) for role in roles))
