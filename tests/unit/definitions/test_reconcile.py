"""Plan and apply against fakes: what is created, refused, left alone, recovered and removed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from api.plan import Plan, plan
from api.reconcile import apply
from embedder.providers import registry
from walvec.contracts.errors import ConfigError, DefinitionError, StoreRejected
from walvec.contracts.sources import Check, SourceTable, TableColumn
from walvec.definitions.document import Document, loads
from walvec.definitions.memory import MemoryControl
from walvec.definitions.model import Connection, EmbeddingProvider, Generation, VectorTable
from walvec.runtime.settings import settings_from

TEXT = """
connections: [{name: shop, url: "postgresql://u:s3cr3t@h/d"}]
embedding_providers: [{name: local, provider: static}]
vector_tables:
  - name: products
    connection: shop
    embedding_provider: local
    source_table: products
    columns:
      - {name: name, role: embedding}
      - {name: price, role: metadata}
"""


def column(name: str, kind: str, codec: str = "text", *, nullable: bool = True) -> TableColumn:
    return TableColumn(name, kind, 0, kind, codec, nullable, False)


PRODUCTS = SourceTable(
    "public",
    "products",
    1,
    (
        column("id", "bigint", "int", nullable=False),
        column("name", "text"),
        column("price", "numeric", "numeric"),
        column("code", "text", nullable=False),
        column("picture", "bytea", "bytea"),
    ),
    ("id",),
    {"products_code": ("code",)},
    "d",
    ("id",),
    False,
    10,
)


class World:
    """Source, store, models and log at once; remembers what was done to it."""

    def __init__(self) -> None:
        self.control = MemoryControl()
        self.table = PRODUCTS
        self.failing: list[Check] = []
        self.done: list[tuple[Any, ...]] = []
        self.refuses: str | None = None

    async def test(self, connection: Connection) -> float:
        return 1.0

    async def doctor(self, connection: Connection, tables: Sequence[VectorTable]) -> list[Check]:
        return [Check("server", True, "18"), *self.failing]

    async def inspect(self, connection: Connection, source_table: str) -> SourceTable:
        return self.table

    async def release(self, connection: Connection) -> None:
        self.done.append(("release", connection.name))

    async def ensure(self, table: VectorTable, generation: Generation) -> None:
        self.done.append(("ensure", table.name, generation.number))
        if self.refuses:
            raise StoreRejected(self.refuses)

    async def show(self, table: VectorTable, generation: Generation) -> None:
        self.done.append(("show", table.name, generation.number))

    async def drop(self, table: VectorTable, generation: int | None = None) -> None:
        self.done.append(("drop", table.name, generation))

    async def remove(self, table: VectorTable, dsn: str | None) -> None:
        await self.drop(table)

    async def delete_group(self, group: str) -> None:
        self.done.append(("no group", group.rpartition(".")[2]))

    async def ensure_topic(self, topic: str, partitions: int | None = None) -> int:
        self.done.append(("topic", topic.rpartition(".")[2]))
        return 1

    async def delete_topic(self, topic: str) -> None:
        self.done.append(("no topic", topic.rpartition(".")[2]))

    def defaults(self, provider: str) -> tuple[str | None, int | None]:
        return ("minilm-static-256", 256) if provider == "static" else (None, None)

    async def check(self, provider: EmbeddingProvider, model: str, dimensions: int | None) -> int:
        if dimensions not in (None, 256):
            raise DefinitionError(f"{model} has 256 dimensions, not {dimensions}.", "Remove it.")
        return 256

    def check_provider(self, provider: EmbeddingProvider) -> None:
        registry.check(provider, settings_from({}))

    def providers(self) -> Mapping[str, Sequence[tuple[str, int]]]:
        return {"static": [("minilm-static-256", 256)], "openai": []}

    async def plan(self, document: Document, **options: Any) -> Plan:
        found: Any = self
        return await plan(document, await self.control.definitions.snapshot(), found, found, found, **options)

    async def apply(self, document: Document, **options: Any) -> list[tuple[str, str]]:
        found: Any = self
        made = await apply(await self.plan(document, **options), self.control, found, found, found)
        return [(d.action, d.name) for d in made]

    @property
    def products(self) -> VectorTable:
        return next(t for t in self.control.feed.current.vector_tables.values() if t.name == "products")


def changed(old: str, new: str) -> Document:
    assert old in TEXT
    return loads(TEXT.replace(old, new))


async def test_a_new_table_is_made_in_order_and_backfilled() -> None:
    world = World()
    assert await world.apply(loads(TEXT)) == [("created", "shop"), ("created", "local"), ("created", "products")]
    table = world.products
    assert world.done == [
        ("ensure", "products", 1),
        ("show", "products", 1),
        ("topic", "changes"),
        ("topic", "vectors"),
        ("topic", "dead"),
    ]
    assert [s.name for s in table.active.source] == ["id", "name", "price"]
    assert [c.filter_type for c in table.active.metadata_columns] == ["float"]
    assert (table.active.embedding_model, table.active.embedding_dimensions) == ("minilm-static-256", 256)
    assert [t.task_type for t in await world.control.tasks.open_tasks([table.id])] == ["backfill"]


async def test_applied_again_nothing_changes() -> None:
    world = World()
    await world.apply(loads(TEXT))
    version, done = world.control.feed.current.version, list(world.done)
    assert {a for a, _ in await world.apply(loads(TEXT))} == {"unchanged"}
    assert (world.control.feed.current.version, world.done) == (version, done)


async def test_a_plan_touches_nothing() -> None:
    world = World()
    made = await world.plan(loads(TEXT))
    assert not made.empty
    assert world.done == []
    assert world.control.feed.current.version == 1
    assert "s3cr3t" not in repr(made)


async def test_backfill_manual_waits() -> None:
    world = World()
    await world.apply(changed("source_table: products", "source_table: products\n    backfill: manual"))
    assert await world.control.tasks.recent() == []


async def test_a_backfill_that_a_kill_swallowed_is_asked_for_again() -> None:
    world = World()
    await world.apply(loads(TEXT))
    world.control.tasks.forget(world.products.id)
    await world.apply(loads(TEXT))
    assert len(await world.control.tasks.open_tasks([world.products.id])) == 1


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("{name: name, role", "{name: nmae, role", "no column 'nmae'. Did you mean 'name'"),
        ("{name: name, role", "{name: picture, role", "type bytea, which has no text"),
        ("source_table: products", "source_table: products\n    primary_key_column: price", "not a key"),
        ("source_table: products", "source_table: products\n    primary_key_column: idd", "no key column 'idd'"),
        ("source_table: products", "source_table: products\n    embedding_dimensions: 3", "256 dimensions, not 3"),
        ("source_table: products", "source_table: products\n    mode: platform\n    store: qdrant", "pgvector"),
        ("connection: shop", "connection: shpo", "no connection 'shpo'"),
        ("embedding_provider: local", "embedding_provider: lcal", "no embedding provider 'lcal'"),
        ("provider: static", "provider: statik", "Did you mean 'static'"),
        ("{name: price, role: metadata}", "{name: price, role: metadata, alias: chunk}", "alias: source_price"),
        ("{name: price, role: metadata}", "{name: price, role: metadata, alias: id}", "both be called 'id'"),
    ],
)
async def test_what_does_not_fit_is_refused_with_its_cure(old: str, new: str, said: str) -> None:
    world = World()
    with pytest.raises(DefinitionError) as refused:
        await world.apply(changed(old, new))
    assert said in str(refused.value)
    assert world.done == []
    assert world.control.feed.current.version == 1


async def test_failing_checks_are_all_listed() -> None:
    world = World()
    world.failing = [
        Check("wal_level", False, "is replica.", "ALTER SYSTEM SET wal_level = logical;"),
        Check("select", False, "no right.", "GRANT SELECT ON products TO u;"),
    ]
    with pytest.raises(DefinitionError, match=r"(?s)ALTER SYSTEM.*GRANT SELECT"):
        await world.apply(loads(TEXT))
    assert world.control.feed.current.version == 1


async def test_a_unique_key_may_be_named() -> None:
    world = World()
    await world.apply(changed("source_table: products", "source_table: products\n    primary_key_column: [code]"))
    assert [k.name for k in world.products.active.key] == ["code"]


async def test_a_table_without_a_key_is_refused() -> None:
    world = World()
    world.table = replace(PRODUCTS, key=())
    with pytest.raises(DefinitionError, match=r"(?s)no primary key.*\(code\)"):
        await world.apply(loads(TEXT))


async def test_two_names_on_one_view() -> None:
    world = World()
    await world.apply(changed("name: products", "name: my-products"))
    with pytest.raises(DefinitionError, match="both have the view 'my_products'"):
        await world.apply(changed("name: products", "name: my_products"))


async def test_what_the_store_refuses_leaves_nothing_behind() -> None:
    world = World()
    world.refuses = "no extension."
    with pytest.raises(StoreRejected):
        await world.apply(loads(TEXT))
    assert not world.control.feed.current.vector_tables
    assert ("drop", "products", None) in world.done


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("source_table: products", "source_table: products\n    store: qdrant"),
        ("source_table: products", "source_table: products\n    primary_key_column: code"),
    ],
)
async def test_what_a_table_keeps_for_ever_is_refused(old: str, new: str) -> None:
    world = World()
    await world.apply(loads(TEXT))
    before = world.products
    with pytest.raises(DefinitionError, match="under a new name"):
        await world.apply(changed(old, new))
    assert world.products == before


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("{name: name, role: embedding}", "{name: name, role: embedding, name_prefix: 'N: '}", "columns"),
        ("{name: name, role: embedding}", "{name: code, role: embedding}", "columns"),
        ("      - {name: price, role: metadata}\n", "", "columns"),
        ("source_table: products", "source_table: products\n    separator: ' '", "separator"),
    ],
)
async def test_what_makes_other_vectors_builds_a_generation(old: str, new: str, field: str) -> None:
    world = World()
    await world.apply(loads(TEXT))
    before = world.products
    await world.control.states.set_backfilled(before.id, 1)
    (*_, difference) = (await world.plan(changed(old, new))).differences
    assert difference.fields["rebuild"] == "new generation"
    assert field in difference.fields
    assert world.products.generations == before.generations  # a plan changes nothing
    assert (await world.apply(changed(old, new)))[-1] == ("changed", "products")
    now = world.products
    assert (now.active.number, now.building and now.building.number, now.pending_rebackfill) == (1, 2, True)
    assert now.active.columns == before.active.columns
    assert (await world.apply(changed(old, new)))[-1] == ("unchanged", "products")
    tasks = await world.control.tasks.open_tasks([now.id])
    assert [t.generation for t in tasks if t.task_type == "rebackfill"] == [2]
    # and back: what was being built is given up
    assert (await world.apply(loads(TEXT)))[-1] == ("changed", "products")
    assert (world.products.building, world.products.active.number) == (None, 1)


async def test_metadata_in_another_order_is_the_same() -> None:
    world = World()
    one = changed(
        "{name: price, role: metadata}", "{name: price, role: metadata}\n      - {name: code, role: metadata}"
    )
    other = changed(
        "{name: price, role: metadata}", "{name: code, role: metadata}\n      - {name: price, role: metadata}"
    )
    await world.apply(one)
    assert (await world.apply(other))[-1] == ("unchanged", "products")


async def test_a_secret_that_is_not_given_stays() -> None:
    world = World()
    await world.apply(changed("provider: static}", "provider: static, api_key: k-1}"))
    assert await world.apply(changed("u:s3cr3t@h", "u@h")) == [
        ("unchanged", "shop"), ("unchanged", "local"), ("unchanged", "products"),
    ]  # fmt: skip
    now = world.control.feed.current
    assert [("s3cr3t" in c.dsn) for c in now.connections.values()] == [True]
    assert [p.api_key for p in now.providers.values()] == ["k-1"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("u:s3cr3t@h/d", "u@elsewhere/d"),
        ("u:s3cr3t@h/d", "other@h/d"),
        ("u:s3cr3t@h/d", "u@h:5433/d"),
        ("provider: static}", "provider: static, base_url: 'http://elsewhere'}"),
    ],
)
async def test_a_stored_secret_is_not_sent_elsewhere(old: str, new: str) -> None:
    world = World()
    await world.apply(changed("provider: static}", "provider: static, api_key: k-1}"))
    before = world.control.feed.current
    with pytest.raises((DefinitionError, ConfigError), match="not given"):
        await world.apply(changed(old, new))
    assert world.control.feed.current == before


async def test_harmless_changes_are_made_in_place() -> None:
    world = World()
    await world.apply(loads(TEXT))
    document = changed("role: metadata}", "role: metadata, filter_type: keyword}\n    index: {kind: none}")
    (*_, difference) = (await world.plan(document)).differences
    assert difference.fields == {
        "filter_type": ({"price": "float"}, {"price": "keyword"}),
        "index": ({"kind": "hnsw"}, {"kind": "none"}),
    }
    assert (await world.apply(document))[-1] == ("changed", "products")
    assert world.products.active.index == {"kind": "none"}


async def test_secrets_show_as_changed_alone() -> None:
    world = World()
    await world.apply(loads(TEXT))
    made = await world.plan(changed("s3cr3t", "0th3r"))
    assert str(made.differences[0]) == "changed connection shop\n  credentials: changed"
    assert "0th3r" not in repr(made)


async def test_a_table_that_changed_recovers_by_applying_it_anew() -> None:
    world = World()
    await world.apply(loads(TEXT))
    table = world.products
    await world.control.states.set_backfilled(table.id, 1)
    await world.control.states.set_error(table.id, "table_changed", "column name was retyped", "apply it again")
    columns = tuple(replace(c, type="varchar(9)") if c.name == "name" else c for c in PRODUCTS.columns)
    world.table = replace(PRODUCTS, columns=columns)
    assert (await world.apply(loads(TEXT)))[-1] == ("changed", "products")
    now = world.products
    assert (now.error, now.active.number, now.active.source_column("name").type) == (None, 1, "varchar(9)")
    (task,) = await world.control.tasks.open_tasks([table.id])
    assert (task.task_type, task.params) == ("rebackfill", {"sweep": True})


async def test_a_recovery_with_other_metadata_gets_storage_of_its_own() -> None:
    world = World()
    await world.apply(loads(TEXT))
    table = world.products
    await world.control.states.set_backfilled(table.id, 1)
    await world.control.states.set_error(table.id, "table_changed", "column price is gone", "remove it")
    world.table = replace(PRODUCTS, columns=tuple(c for c in PRODUCTS.columns if c.name != "price"))
    await world.apply(changed("      - {name: price, role: metadata}\n", ""))
    now = world.products
    assert (now.error, now.active.number, now.backfilled, len(now.generations)) == (None, 2, False, 1)
    assert world.done[-3:] == [("ensure", "products", 2), ("show", "products", 2), ("drop", "products", 1)]
    (task,) = await world.control.tasks.open_tasks([table.id])
    assert task.generation == 2


async def test_prune_removes_what_the_file_does_not_name() -> None:
    world = World()
    await world.apply(loads(TEXT))
    nothing = loads("")
    assert (await world.plan(nothing)).empty
    assert await world.apply(nothing, prune=True) == [
        ("removed", "products"),
        ("removed", "local"),
        ("removed", "shop"),
    ]
    now = world.control.feed.current
    assert (now.connections, now.providers, now.vector_tables) == ({}, {}, {})
    assert set(world.done[-7:]) == {
        ("drop", "products", None),
        ("no topic", "changes"),
        ("no topic", "vectors"),
        ("no topic", "dead"),
        ("no group", "embedder"),
        ("no group", "sink"),
        ("release", "shop"),
    }
    assert await world.control.removals.open() == []


async def test_a_vendors_provider_without_its_key_is_refused_before_anything_is_made() -> None:
    world = World()
    for wrong in ("", ', api_key: ""'):
        with pytest.raises(DefinitionError, match="api_key"):
            await world.apply(changed("provider: static", f"provider: openai{wrong}"))
    assert world.control.feed.current.connections == {}
