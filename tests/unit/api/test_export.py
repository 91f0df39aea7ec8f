"""What is exported applies to no difference, whatever it is called, and holds no secret."""

from typing import Any

import pytest
import yaml

from tests.unit.api.worlds import World
from walvec.definitions.document import Document, loads, same_dsn
from walvec.definitions.export import document_of, yaml_of
from walvec.definitions.model import (
    Column,
    Connection,
    EmbeddingProvider,
    Generation,
    Snapshot,
    TopicSource,
    VectorTable,
)

HOSTILE = [
    "a$b", "${HOME}", "$$", "yes", "1e3", "0x10", "null", "~", "# x", ": ", "- a", "'q'", '"d"', "tab\there", "nl\nx",
    "\x85nel", "\u2028ls", "é日本", "😀", "\\", "  pad  ", "%TAG", "&a", "*b", "!t", "|", "@", "`", "{a}", "[a]",
    "2020-01-01", "\x7f", "\x01ctl", "\ufeffbom", "a" * 100, "12:30:45", "=", "<<", "password=x",
]  # fmt: skip
ADDRESSES = [
    "postgresql://u:hunter2@h/d",
    "host=/tmp/x dbname='a b' user='o\\'x' password='hunter2 y'",
    "postgresql://u:hunter2@h1:1,h2:2/d?target_session_attrs=any&sslpassword=hunter2",
    "postgresql:///d",
    "host=h dbname=d options='-c x=1\\'' password=hunter2",
]


async def test_it_applies_to_no_difference(world: World) -> None:
    table = {
        "keep_previous": 5, "sync_mode": "batch", "backfill": "manual", "separator": " $ ", "index": {"kind": "none"},
        "primary_key_column": ["id"], "source_table": "products",
    }  # fmt: skip
    await world.apply(**table)
    await world.backfilled()
    for body in ({}, {"separator": "\n- "}, {"name": "other $name"}):  # also while a generation is built
        await world.ask("PUT", world.path, body)
        answer = await world.http.get("/v1/export")
        assert answer.headers["content-type"].startswith("application/yaml")
        assert "hunter2" not in answer.text
        assert "sk-secret" not in answer.text
        before = world.control.feed.current
        applied = await world.ask("POST", "/v1/apply", {"document": loads(answer.text, environment={}).wire()})
        assert [d["action"] for d in applied["differences"]] == ["unchanged"] * 3, applied
        as_json = await world.ask("GET", "/v1/export?format=json")
        applied = await world.ask("POST", "/v1/apply", {"document": as_json})
        assert applied["changed"] is False
        assert world.control.feed.current == before


async def test_placeholders_are_variables(world: World) -> None:
    await world.apply()
    answer = await world.http.get("/v1/export?placeholders=true")
    assert "${SHOP_PASSWORD}" in answer.text
    assert "${LOCAL_API_KEY}" in answer.text
    found = loads(answer.text, environment={"SHOP_PASSWORD": "hunter2", "LOCAL_API_KEY": "sk-secret"})
    applied = await world.ask("POST", "/v1/apply", {"document": found.wire()})
    assert [d["action"] for d in applied["differences"]] == ["unchanged"] * 3


async def test_an_empty_environment(world: World) -> None:
    assert await world.ask("GET", "/v1/export?format=json") == {
        "connections": [], "embedding_providers": [], "vector_tables": [],
    }  # fmt: skip
    assert loads((await world.http.get("/v1/export")).text) == Document(
        connections=(), embedding_providers=(), vector_tables=()
    )


def snapshot(name: str, dsn: str) -> Snapshot:
    connection = Connection("c", name, "postgresql", "platform", dsn, on_slot_loss="halt")
    provider = EmbeddingProvider(
        "p", name, "openai", "hunter2", "http://h/v1", name, {"max_items": 3, "max_tokens": 10**9}
    )
    columns = (
        Column(name, "embedding", -3, name, None, name),
        Column(name, "metadata", filter_type="datetime"),
        Column(name + "x", "metadata"),
    )
    generation = Generation(1, "active", name, 3, columns, (), (), {"kind": "hnsw", "m": 4}, separator=name)
    table = VectorTable(
        "t", name, "c", "p", "openai", name, name, "qdrant", "managed", (generation,), backfill="manual",
        sync_mode="batch", raw_source_table=name, raw_primary_key=[name, "x"], keep_previous=0,
        source=TopicSource("a.b", "_" + name, "slot_1"),
    )  # fmt: skip
    return Snapshot(1, {"c": connection}, {"p": provider}, {"t": table})


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("dsn", ADDRESSES)
def test_every_field_comes_back(name: str, dsn: str) -> None:
    found = snapshot(name, dsn)
    text = yaml_of(document_of(found))
    assert "hunter2" not in text
    back = loads(text, environment={})
    (connection,), (provider,), (table,) = back.connections, back.embedding_providers, back.vector_tables
    assert (connection.name, connection.mode, connection.on_slot_loss) == (name, "platform", "halt")

    assert same_dsn(connection.dsn, _without_secrets(dsn))
    assert (provider.name, provider.base_url, provider.default_model) == (name, "http://h/v1", name)
    assert provider.limits == {"max_items": 3, "max_tokens": 10**9}
    (generation,) = found.vector_tables["t"].generations
    assert [tuple(c.model_dump().values()) for c in table.columns] == [
        (c.name, c.role, c.ordinal, c.name_prefix, c.filter_type, c.alias) for c in generation.columns
    ]
    assert (table.name, table.connection, table.embedding_provider, table.source_table) == (name,) * 4
    assert (table.primary_key_column, table.separator, table.embedding_model) == ([name, "x"], name, name)
    assert (table.store, table.mode, table.sync_mode, table.backfill) == ("qdrant", "managed", "batch", "manual")
    assert (table.keep_previous, table.index.m, table.embedding_dimensions) == (0, 4, 3)
    assert table.source is not None
    assert (table.source.kafka_topic, table.source.unavailable_value, table.source.slot) == (
        "a.b",
        "_" + name,
        "slot_1",
    )


def _without_secrets(dsn: str) -> str:
    from psycopg.conninfo import conninfo_to_dict, make_conninfo

    parts: dict[str, Any] = conninfo_to_dict(dsn)
    return make_conninfo("", **{k: v for k, v in parts.items() if k not in ("password", "sslpassword")})


def test_variables_of_a_file_have_one_name_each() -> None:
    providers = {str(n): EmbeddingProvider(str(n), name, "openai", "k") for n, name in enumerate(("a b", "a-b", "1"))}
    text = yaml_of(document_of(Snapshot(1, {}, providers, {}), placeholders=True), placeholders=True)
    keys = [p["api_key"] for p in yaml.safe_load(text)["embedding_providers"]]
    assert keys == ["${WALVEC_SECRET_1_API_KEY}", "${A_B_API_KEY}", "${A_B_API_KEY_2}"]
