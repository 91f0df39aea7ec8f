"""Hostile identifiers and values in every field of every route, on real databases: nothing else breaks or changes."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from psycopg import sql

from api.app import create_app
from api.codes import CODES
from tests.integration.api_world import ApiWorld, api_world, query
from tests.plugins.postgres import PostgresDatabase

SCHEMA = "sch'ema \"x"
HOSTILE = [
    "'; DROP TABLE canary; --",
    '"; DROP SCHEMA walvec_control CASCADE; --',
    '" OR ""="',
    "' OR '1'='1",
    "%s %(name)s %% %",
    "{} {0} {name!r} ${HOME}",
    "\\'; SELECT pg_sleep(9); --\\",
    "a\x00b",
    "\ud800",
    "\u202egnp.exe \u0645\u0631\u062d\u0628\u0627",
    "🧨\U000e0001é́",
    "x" * 10_000,
    "$$; $1 $2 :name @x /* */ --",
    "../../etc/passwd",
    "\r\nX-Forged: yes",
    "",
]
NUMBERS = ["-1", str(2**63), str(10**30), "1e999", "nan", "0"]
ODD = [None, True, -1, 10**30, [], {"$gt": {}}]


def relations(dsn: str) -> set[str]:
    found = query(
        dsn,
        "SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND c.relkind IN ('r', 'v', 'p', 'm')",
    )
    return {row[0] for row in found}


def judge(answer: httpx.Response, asked: Any) -> None:
    about = (answer.request.method, str(answer.request.url)[:200], str(asked)[:300], answer.text[:500])
    # a source that is named may be away; of our own databases nothing may look so
    assert answer.status_code not in (500, 503) or answer.json()["error"]["code"] == "source_unavailable", about
    if answer.status_code >= 400:
        error = answer.json()["error"]
        assert CODES[error["code"]].status == answer.status_code, about
    assert "x-forged" not in answer.headers


def leaves(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Places of everything in a body; containers as well."""
    yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, one in inner:
        yield from leaves(one, (*at, name))


def with_value(body: Any, at: tuple[Any, ...], value: Any) -> Any:
    if not at:
        return value
    copied = json.loads(json.dumps(body))
    place = copied
    for name in at[:-1]:
        place = place[name]
    place[at[-1]] = value
    return copied


async def send(http: httpx.AsyncClient, method: str, path: str, body: Any) -> httpx.Response:
    content = json.dumps(body)  # in ASCII: half a surrogate pair travels as its escape
    return await http.request(method, path, content=content, headers={"Content-Type": "application/json"})


@pytest.fixture
async def world(tmp_path: Path, postgres: PostgresDatabase) -> AsyncIterator[ApiWorld]:
    postgres.execute(
        "CREATE TABLE canary (n int); INSERT INTO canary VALUES (7);"
        "CREATE TABLE public.items (id bigint PRIMARY KEY, name text, price double precision)"
    )
    async with api_world(tmp_path, control=postgres.another(), store=postgres.dsn) as made:
        yield made


@pytest.fixture
async def unchanged(world: ApiWorld, postgres: PostgresDatabase) -> AsyncIterator[None]:
    """Only storages and views of vector tables may come or go."""
    control = postgres._others[0]
    control_dsn = postgres.server.dsn(control)
    before = relations(control_dsn), relations(postgres.dsn)
    yield
    assert relations(control_dsn) == before[0]
    new = relations(postgres.dsn) ^ before[1]
    assert {name for name in new if not name.startswith(("walvec", SCHEMA))} == set()
    assert postgres.execute("SELECT n FROM canary") == [(7,)]


async def test_hostile_addresses_and_headers(world: ApiWorld, postgres: PostgresDatabase, unchanged: None) -> None:
    """Every path parameter, query parameter and header of every route."""
    document = create_app(world.services).openapi()
    asked = 0
    for path, item in document["paths"].items():
        for method, operation in item.items():
            parameters = operation.get("parameters", [])
            names = [p["name"] for p in parameters if p.get("in") == "query" and p["name"] not in ("follow", "timeout")]
            for value in (*HOSTILE, *NUMBERS):
                text = value.encode("utf-8", "replace").decode()
                place = re.sub(r"\{\w+\}", lambda _, t=text: quote(t, safe="") or "-", path)  # type: ignore[misc]
                given = dict.fromkeys(names, text)
                if place == path and not given:
                    continue
                answer = await send(world.http, method.upper(), f"{place}?{httpx.QueryParams(given)}", {})
                judge(answer, value)
                asked += 1
    assert asked > 500
    ids = {"connection_id": await world.connection(postgres.dsn), "provider_id": await world.provider()}
    ids["table_id"] = (await world.table(ids["connection_id"], ids["provider_id"]))["id"]
    for path, item in document["paths"].items():
        parameters = item.get("get", {}).get("parameters", [])
        names = [p["name"] for p in parameters if p.get("in") == "query" and p["name"] not in ("follow", "timeout")]
        for value in (*HOSTILE, *NUMBERS):  # one at a time, about what is there
            text = value.encode("utf-8", "replace").decode()
            place = re.sub(r"\{(\w+)\}", lambda m, t=text: ids.get(m[1], quote(t, safe="") or "-"), path)  # type: ignore[misc]
            for name in names:
                judge(await world.http.get(f"{place}?{httpx.QueryParams({name: text})}"), (name, value))
    for value in HOSTILE:
        text = value.encode("ascii", "ignore").decode().replace("\r\n", " ").replace("\x00", "")[:5000]
        for name in ("X-Environment-Id", "Idempotency-Key", "Authorization", "X-Request-Id", "If-Match", "Accept"):
            judge(await world.http.get("/v1/connections", headers={name: text}), (name, value))
            judge(await world.http.post("/v1/environments", json={"name": "A B"}, headers={name: text}), (name, value))


async def test_hostile_bodies(world: ApiWorld, postgres: PostgresDatabase, unchanged: None) -> None:
    """Every field of every body, one at a time, with texts and with values of other types."""
    made = await world.ask("POST", "/v1/api-keys", {"name": "ci"}, 201)
    world.http.headers["Authorization"] = f"Bearer {made['key']}"  # organizations close the open door
    connection, provider = await world.connection(postgres.dsn), await world.provider()
    table = await world.table(connection, provider)
    await world.control.states.set_backfilled(table["id"], 1)
    column = {"name": "name", "role": "embedding", "ordinal": 1, "name_prefix": "N: "}
    filtered = {"name": "price", "role": "metadata", "filter_type": "float", "alias": "cost"}
    definition = {"name": "new", "source_table": "public.items", "primary_key_column": "id", "sync_mode": "cdc"}
    definition |= {"columns": [column, filtered], "embedding_model": "minilm-static-256", "embedding_dimensions": 256}
    url = {"credentials": {"url": "postgresql://u:p@127.0.0.1:1/d"}}
    parts = {"host": "127.0.0.1", "port": 1, "database": "d", "user": "u", "password": "p", "ssl_mode": "prefer"}
    own = f"/v1/vector-tables/{table['id']}"
    search = {"query": "warm", "limit": 5, "min_similarity_score": 0.1, "include": ["vector"]}
    search |= {"filters": {"price": {"gt": 1, "in": [2]}, "$or": [{"price": 3}]}}
    bodies: list[tuple[str, str, Any]] = [
        ("POST", "/v1/providers/postgresql/connections", {"name": "c", "mode": "managed", **url}),
        ("POST", "/v1/providers/postgresql/connections", {"name": "d", "mode": "managed", "credentials": parts}),
        ("POST", "/v1/embedding-providers", {"name": "p", "provider": "custom", "api_key": "k", "default_model": "m",
                                             "base_url": "http://127.0.0.1:1/v1", "limits": {"max_items": 3}}),
        ("POST", "/v1/vector-tables",
         {**definition, "connection_id": connection, "embedding_provider_id": provider, "separator": " ",
          "index": {"kind": "hnsw", "m": 4}, "keep_previous": 3600}),
        ("PUT", own, {"name": "items", "columns": [column, filtered]}),
        ("POST", f"{own}/query", search),
        ("POST", f"{own}/query", {"vector": [0.1] * 3, "limit": 1}),
        ("POST", f"{own}/backfill", {"sweep": True}),
        ("POST", f"{own}/dead-letters/replay", {"ids": [1]}),
        ("POST", "/v1/organizations", {"name": "o"}),
        ("POST", "/v1/environments", {"name": "e"}),
        ("POST", "/v1/api-keys", {"name": "k", "permission": "read_only"}),
        ("POST", "/v1/apply", {"dry_run": True, "prune": False, "document": {
            "embedding_providers": [{"name": "local", "provider": "static"}],
            "vector_tables": [{**definition, "connection": "shop", "embedding_provider": "local"}],
        }}),
        ("PUT", f"/v1/connections/{connection}", {"name": "shop"}),
        ("PUT", f"/v1/embedding-providers/{provider}", {"name": "local", "limits": {}}),
    ]  # fmt: skip
    created = set()

    async def ask(method: str, path: str, asked: Any) -> int:
        answer = await send(world.http, method, path, asked)
        judge(answer, asked)
        if answer.status_code == 201:
            created.add(answer.text)
        return answer.status_code

    for method, path, body in bodies:
        assert await ask(method, path, body) < 300 or "vector" in body or "ids" in body, (path, body)
        fresh = method == "POST" and "name" in body
        for number, at in enumerate(leaves(body)):
            every = [with_value(body, at, value) for value in (*HOSTILE, *ODD)]
            if fresh and at not in ((), ("name",)):  # a name that is taken would hide what else is refused
                every = [with_value(one, ("name",), f"n{len(created)}-{number}-{n}") for n, one in enumerate(every)]
            await asyncio.gather(*(ask(method, path, one) for one in every))
    assert len(created) > 100


NAMES = ['we"ird; DROP TABLE canary; --', "%s {} \\'", "ünï 🧨"]


async def test_hostile_names_in_the_source_work(world: ApiWorld, postgres: PostgresDatabase, unchanged: None) -> None:
    """Quoted everywhere: a table and columns of such names are indexed, filtered and deleted like any other."""
    connection, provider = await world.connection(postgres.dsn), await world.provider()
    key, text, kept = (name[:40] for name in NAMES)
    place = sql.Identifier(SCHEMA, NAMES[0])
    with_names = sql.SQL("CREATE SCHEMA {}; CREATE TABLE {} ({} bigint PRIMARY KEY, {} text, {} text)").format(
        sql.Identifier(SCHEMA), place, *(sql.Identifier(n) for n in (key, text, kept))
    )
    postgres.execute(with_names.as_string(None))
    made = await world.table(
        connection,
        provider,
        name="; DROP TABLE canary; -- %s {}",
        source_table=place.as_string(None),
        primary_key_column=key,
        columns=[
            {"name": text, "role": "embedding", "name_prefix": "'; %s {"},
            {"name": kept, "role": "metadata", "filter_type": "keyword"},
        ],
        separator="'; DROP TABLE canary; -- %s {}",
    )
    await world.control.states.set_backfilled(made["id"], 1)
    for value in HOSTILE:
        clean = value.replace("\x00", "").encode("utf-8", "ignore").decode()
        for filters in ({kept: clean}, {kept: {"neq": clean}}, {kept: {"in": [clean]}}, {"$or": [{kept: clean}]}):
            body = {"query": clean or "-", "filters": filters}
            answer = await send(world.http, "POST", f"/v1/vector-tables/{made['id']}/query", body)
            assert answer.status_code == 200, (body, answer.text)
    found = await world.ask("POST", f"/v1/vector-tables/{made['id']}/query", {"query": "x", "filters": {kept: "a'b"}})
    assert found["results"] == []
    assert {c["name"] for c in (await world.ask("GET", f"/v1/vector-tables/{made['id']}/schema"))["columns"]} == {
        key, text, kept,
    }  # fmt: skip
    await world.ask("DELETE", f"/v1/vector-tables/{made['id']}", status=204)
