"""Conventions over a real control database: two API processes that count as one, and databases that go away."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.app import create_app
from tests.integration.api_world import ApiWorld, api_world
from tests.plugins.eventually import eventually
from tests.plugins.postgres import PostgresDatabase

ITEMS = "CREATE TABLE public.items (id bigint PRIMARY KEY, name text, price double precision)"


def served(world: ApiWorld, **api: Any) -> httpx.AsyncClient:
    settings = world.settings.model_copy(update={"api": world.settings.api.model_copy(update=api)})
    app = create_app(replace(world.services, settings=settings))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost", timeout=30)


@pytest.fixture
async def two(tmp_path: Path, postgres: PostgresDatabase) -> AsyncIterator[list[ApiWorld]]:
    """Two processes of one control database."""
    control = postgres.another()
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(api_world(tmp_path / name, control=control, store=postgres.dsn))
            for name in ("one", "other")
        ]


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the control database is, no process counts by itself."""
    monkeypatch.setattr("api.rate_limit._PATIENCE_SECONDS", 60.0)


@pytest.mark.usefixtures("patient")
async def test_two_processes_admit_the_limit_together(two: list[ApiWorld]) -> None:
    async with served(two[0], rate_limit="300/day") as one, served(two[1], rate_limit="300/day") as other:
        answers = await asyncio.gather(*((one, other)[n % 2].get("/v1/environments") for n in range(400)))
    codes = [a.status_code for a in answers]
    assert codes.count(200) == 300
    assert codes.count(429) == 100
    assert {a.headers["x-ratelimit-limit"] for a in answers} == {"300"}
    assert all(int(a.headers["retry-after"]) >= 1 for a in answers if a.status_code == 429)


@pytest.mark.usefixtures("patient")
async def test_a_large_limit_costs_few_round_trips_and_is_kept(two: list[ApiWorld]) -> None:
    async with served(two[0], rate_limit="1000/day") as one, served(two[1], rate_limit="1000/day") as other:
        answers = await asyncio.gather(*((one, other)[n % 3 == 0].get("/v1/environments") for n in range(1100)))
    # each process may be left with a part of its last block of five
    assert 990 < [a.status_code for a in answers].count(200) <= 1000


async def test_organizations_are_counted_apart(two: list[ApiWorld]) -> None:
    async with served(two[0], rate_limit="5/day") as http:
        made = await http.post("/v1/organizations", json={"name": "second"})
        assert made.status_code == 201, made.text
        theirs = {"Authorization": f"Bearer {made.json()['api_key']}"}
        ours = {"Authorization": "Bearer sk_live_nobody"}
        seen = [(await http.get("/v1/environments", headers=theirs)).status_code for _ in range(6)]
        assert seen == [200] * 5 + [429]
        assert (await http.get("/v1/environments", headers=ours)).status_code != 429


async def test_an_idempotency_key_holds_in_every_process(two: list[ApiWorld]) -> None:
    one, other = (w.http for w in two)
    key = {"Idempotency-Key": "a-key"}
    body = {"name": "local", "provider": "static", "api_key": "hunter2"}
    answers = await asyncio.gather(
        *((one, other)[n % 2].post("/v1/embedding-providers", json=body, headers=key) for n in range(8))
    )
    fresh = [a for a in answers if a.status_code == 201 and "idempotent-replayed" not in a.headers]
    assert len(fresh) == 1, [(a.status_code, a.text) for a in answers]
    assert {a.status_code for a in answers} <= {201, 409}
    again = await other.post("/v1/embedding-providers", json=body, headers=key)
    assert again.headers["idempotent-replayed"] == "true"
    assert again.json() == fresh[0].json()
    assert len((await one.get("/v1/embedding-providers")).json()["data"]) == 1


async def test_a_connection_to_a_metadata_service_is_refused(two: list[ApiWorld]) -> None:
    ask = two[0].ask
    body: dict[str, Any] = {"name": "a", "mode": "managed"}
    path = "/v1/providers/postgresql/connections"
    for url in ("postgresql://u:hunter2@169.254.169.254/d", "postgresql://u:hunter2@db/d?service=x"):
        told = await ask("POST", path, {**body, "credentials": {"url": url}}, 422)
        assert told["error"]["code"] == "validation_error"
        assert "hunter2" not in str(told)
    parts = {"host": "[fe80::1]", "database": "d"}
    await ask("POST", path, {**body, "credentials": parts}, 422)
    provider = {"name": "p", "provider": "custom", "base_url": "http://2852039166/v1"}
    assert (await ask("POST", "/v1/embedding-providers", provider, 422))["error"]["code"] == "validation_error"
    document = {"connections": [{"name": "a", "url": "postgresql://u:hunter2@169.254.169.254/d"}]}
    told = await ask("POST", "/v1/apply", {"document": document}, 422)
    assert "169.254.169.254" in told["error"]["message"]


async def test_a_name_that_leads_to_a_metadata_service_is_refused_when_connected_to(
    two: list[ApiWorld], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = asyncio.BaseEventLoop.getaddrinfo

    async def rebound(self: Any, host: Any, port: Any, **more: Any) -> Any:
        return await real(self, "169.254.169.254" if host == "innocent.example" else host, port, **more)

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", rebound)
    world = two[0]
    made = await world.connection("postgresql://u:hunter2@innocent.example/d", tested=False)
    told = await world.ask("POST", f"/v1/connections/{made}/test")
    assert told["status"] == "failed"
    assert "innocent.example" in told["error"]["message"]
    assert "may connect to" in told["error"]["message"]


def refused(answer: httpx.Response, code: str) -> None:
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, code), answer.text
    assert int(answer.headers["retry-after"]) >= 1


async def test_databases_that_go_away_are_503_until_they_are_back(
    tmp_path: Path, own_postgres: PostgresDatabase, postgres_with: Any
) -> None:
    """The control database on one server; source and store on another."""
    control = postgres_with()
    own_postgres.execute(ITEMS)
    async with api_world(tmp_path, control=control.dsn, store=own_postgres.dsn) as world:
        made = await world.table(await world.connection(own_postgres.dsn), await world.provider())
        table = f"/v1/vector-tables/{made['id']}"
        body = {"query": "warm"}
        await world.control.states.set_backfilled(made["id"], 1)
        assert (await world.http.post(f"{table}/query", json=body)).status_code == 200

        own_postgres.server.stop("immediate")
        refused(await world.http.get(f"{table}/schema"), "source_unavailable")
        other = {"name": "b", "connection_id": made["connection_id"], "source_table": "public.items"}
        other |= {k: made[k] for k in ("embedding_provider_id", "embedding_model", "embedding_dimensions")}
        other |= {"primary_key_column": "id", "columns": [{"name": "name", "role": "embedding"}]}
        refused(await world.http.post("/v1/vector-tables", json=other), "source_unavailable")
        refused(await world.http.post(f"{table}/query", json=body), "store_unavailable")
        assert (await world.http.get("/v1/vector-tables")).status_code == 200
        own_postgres.server.start()
        assert (await world.http.get(f"{table}/schema")).status_code == 200
        assert (await world.http.post(f"{table}/query", json=body)).status_code == 200

        control.server.stop("immediate")
        key = {"Idempotency-Key": "k"}
        new = {"name": "c", "provider": "static"}
        refused(await world.http.get("/v1/connections"), "control_unavailable")
        refused(await world.http.post(f"{table}/query", json=body), "control_unavailable")
        refused(await world.http.post("/v1/embedding-providers", json=new, headers=key), "control_unavailable")
        control.server.start()

        async def back() -> bool:
            return (await world.http.get("/v1/connections")).status_code == 200

        await eventually(back)
        assert (await world.http.post("/v1/embedding-providers", json=new, headers=key)).status_code == 201
