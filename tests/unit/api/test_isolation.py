"""Every route, asked by another organization, by another environment, and with a read-only key."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest

from api.access import Caller
from tests.unit.api.worlds import COLUMNS, DOCUMENT, World, key, position
from walvec.contracts.letters import DeadLetter
from walvec.runtime.settings import settings_from

# as unlike anything that a message says by itself as can be
SHOP, LOCAL, ITEMS, REASON = "zebrashop", "zebramodel", "zebraitems", "zebrareason"
_CREDENTIALS = {"url": "postgresql://u:hunter2@db/shop"}
_BODIES: dict[tuple[str, str], Any] = {
    ("PUT", "/v1/connections/{connection_id}"): {"name": "other"},
    ("PUT", "/v1/embedding-providers/{provider_id}"): {"name": "other"},
    ("PUT", "/v1/vector-tables/{table_id}"): {"name": "other"},
    ("POST", "/v1/vector-tables/{table_id}/query"): {"query": "fleece"},
    ("POST", "/v1/vector-tables/{table_id}/replay"): {"from": "earliest"},
}
_MAKES = {
    ("POST", "/v1/providers/{provider}/connections"): {"name": "n", "mode": "managed", "credentials": _CREDENTIALS},
    ("POST", "/v1/embedding-providers"): {"name": "n", "provider": "static"},
    ("POST", "/v1/vector-tables"): {
        "name": "n", "connection_id": SHOP, "embedding_provider_id": LOCAL, "source_table": "products",
        "columns": COLUMNS,
    },
    ("POST", "/v1/apply"): {"document": {}, "prune": True},
    ("POST", "/v1/organizations"): {"name": "n"},
    ("POST", "/v1/environments"): {"name": "n"},
    ("POST", "/v1/api-keys"): {"name": "n"},
}  # fmt: skip


@dataclass
class Held:
    """What the default organization has, and the headers of those who should see nothing of it."""

    ids: dict[str, list[str]]
    reader: dict[str, str]
    stranger: dict[str, str]
    neighbour: dict[str, str]

    @property
    def words(self) -> set[str]:
        own = (one for name, found in self.ids.items() if name not in ("letter_id", "provider") for one in found)
        return {SHOP, LOCAL, ITEMS, REASON, *own}


@pytest.fixture
async def held(world: World) -> Held:
    document = {
        "connections": [{"name": SHOP, "url": _CREDENTIALS["url"]}],
        "embedding_providers": [{"name": LOCAL, "provider": "static", "api_key": "sk-secret"}],
        "vector_tables": [
            {**DOCUMENT["vector_tables"][0], "name": ITEMS, "connection": SHOP, "embedding_provider": LOCAL}
        ],
    }
    await world.ask("POST", "/v1/apply", {"document": document})
    table = world.table
    await world.backfilled()
    await world.append("changes", key(1))
    await world.control.letters.put([DeadLetter(table.id, 1, key(1), "provider", REASON, position(5))])
    (letter,) = await world.control.letters.page(table.id)
    (task,) = (await world.ask("GET", "/v1/tasks"))["data"]
    left = await world.control.removals.put(replace(table, name=REASON), ["storage"])
    environment = world.control.feed.current.environments[table.environment_id]
    other = await world.ask("POST", "/v1/environments", {"name": "other"}, 201)
    admin = await world.ask("POST", "/v1/api-keys", {"name": ITEMS}, 201)
    home = {"Authorization": f"Bearer {admin['key']}"}
    reader = await world.ask("POST", "/v1/api-keys", {"name": "r", "permission": "read_only"}, 201, headers=home)
    acme = await world.ask("POST", "/v1/organizations", {"name": "acme"}, 201, headers=home)
    ids = {
        "table_id": [table.id, ITEMS],
        "connection_id": [table.connection_id, SHOP],
        "provider_id": [table.embedding_provider_id, LOCAL],
        "letter_id": [str(letter.id)],
        "task_id": [task["id"], *left],
        "org_id": [environment.org_id],
        "environment_id": [environment.id],
        "key_id": [admin["api_key"]["id"]],
        "provider": ["postgresql"],
    }
    return Held(
        ids,
        {"Authorization": f"Bearer {reader['key']}"},
        {"Authorization": f"Bearer {acme['api_key']}"},
        {**home, "X-Environment-Id": other["id"]},
    )


def places(world: World, held: Held) -> list[tuple[str, str, str, Any]]:
    """(method, documented path, path with what is held, body) of all routes under /v1."""
    found = []
    for template, item in world.app.openapi()["paths"].items():
        names = re.findall(r"{(\w+)}", template)
        if not template.startswith("/v1/") or any(name not in held.ids for name in names):
            continue  # of people: they have none, for anybody
        for number in range(max((len(held.ids[name]) for name in names), default=1)):
            path = template
            for name in names:
                path = path.replace(f"{{{name}}}", held.ids[name][min(number, len(held.ids[name]) - 1)])
            of = [(method.upper(), template) for method in item]
            found += [(*one, path, _BODIES.get(one, _MAKES.get(one))) for one in of]
    return found


def stored(world: World) -> Any:
    now = world.control.feed.current
    return now.connections, now.providers, now.vector_tables, now.environments, now.organizations, now.api_keys


async def asked(world: World, method: str, path: str, body: Any, headers: dict[str, str]) -> httpx.Response:
    return await world.http.request(method, path, json=body, headers=headers)


@pytest.mark.parametrize("who", ["stranger", "neighbour"])
async def test_what_another_one_holds_is_not_found_by_any_route(world: World, held: Held, who: str) -> None:
    headers = getattr(held, who)
    before = stored(world)
    letters, tasks = await world.control.letters.page(world.table.id), await world.control.tasks.recent()
    records = await world.log.topics()
    seen = 0
    for method, template, path, body in places(world, held):
        if (method, template) in _MAKES or template.startswith(("/v1/auth", "/v1/billing")):
            continue
        account = who == "neighbour" and template.startswith(("/v1/organizations", "/v1/environments", "/v1/api-keys"))
        if account:
            continue  # these are the organization's, in whatever environment
        answer = await asked(world, method, path, body, headers)
        if "{" in template:
            assert answer.status_code in (404, 501), (method, path, answer.text)
            told = answer.text.replace(path.split("/")[3], "")  # what was asked for may be said again
        else:
            assert answer.status_code == 200, (method, path, answer.text)
            told = answer.text
        assert not [word for word in held.words if word in told], (method, path, answer.text)
        seen += 1
    assert seen > 30
    assert stored(world) == before
    assert await world.control.letters.page(world.table.id) == letters
    assert await world.control.tasks.recent() == tasks
    assert await world.log.topics() == records
    assert len(await world.control.removals.open()) == 1


@pytest.mark.parametrize("who", ["stranger", "neighbour"])
async def test_nothing_is_built_on_what_another_one_holds(world: World, held: Held, who: str) -> None:
    headers = getattr(held, who)
    before = stored(world)
    table = {"name": "n", "source_table": "products", "columns": COLUMNS}
    for number in (0, 1):
        places = {"connection_id": held.ids["connection_id"][number], "embedding_provider_id": LOCAL}
        answer = await asked(world, "POST", "/v1/vector-tables", {**table, **places}, headers)
        assert answer.status_code == 404
        answer = await asked(world, "POST", "/v1/drain", {"tables": [held.ids["table_id"][number]]}, headers)
        assert answer.status_code == 404
    named = {**DOCUMENT["vector_tables"][0], "connection": SHOP, "embedding_provider": LOCAL}
    answer = await asked(world, "POST", "/v1/apply", {"document": {"vector_tables": [named]}}, headers)
    assert answer.status_code == 422
    pruned = await asked(world, "POST", "/v1/apply", {"document": {}, "prune": True}, headers)
    assert pruned.json()["differences"] == []
    for path in (f"/v1/tasks?target_id={world.table.id}", f"/v1/tasks?table={ITEMS}"):
        assert (await asked(world, "GET", path, None, headers)).status_code == 404
    assert stored(world) == before


async def test_a_read_only_key_changes_nothing_by_any_route(world: World, held: Held) -> None:
    before = stored(world)
    letters, tasks = await world.control.letters.page(world.table.id), await world.control.tasks.recent()
    refused = 0
    for method, template, path, body in places(world, held):
        answer = await asked(world, method, path, body, held.reader)
        if method == "GET" or template.endswith("/query"):
            assert answer.status_code in (200, 501), (method, path, answer.text)
            assert not [secret for secret in ("hunter2", "sk-secret", "sk_live_") if secret in _shown(answer)], path
        else:
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "permission_denied"), (method, path)
            refused += 1
    assert refused > 30
    assert stored(world) == before
    assert await world.control.letters.page(world.table.id) == letters
    assert await world.control.tasks.recent() == tasks


def _shown(answer: httpx.Response) -> str:
    """Without the prefixes of keys, which are there to be told apart."""
    return re.sub(r'"key_prefix":"sk_live_.{4}"', "", answer.text)


async def test_one_idempotency_key_of_two_organizations_is_two(world: World, held: Held) -> None:
    body = {"name": "same", "provider": "static"}
    ids = set()
    for headers in (held.stranger, held.neighbour, {"Authorization": held.neighbour["Authorization"]}):
        answer = await asked(world, "POST", "/v1/embedding-providers", body, {**headers, "Idempotency-Key": "k"})
        assert answer.status_code == 201, answer.text
        assert "idempotent-replayed" not in answer.headers
        ids.add(answer.json()["id"])
    assert len(ids) == 3


@pytest.mark.parametrize("end", ["revoked", "deleting", "table"])
async def test_who_follows_the_log_is_let_go_with_the_key(world: World, held: Held, end: str) -> None:
    await asked(world, "POST", "/v1/apply", {"document": DOCUMENT}, held.stranger)
    path = "/v1/vector-tables/products/tail?follow=true&from=earliest"
    following = asyncio.create_task(asked(world, "GET", path, None, held.stranger))
    done, _ = await asyncio.wait({following}, timeout=0.5)
    assert not done  # it goes on as long as the key is good
    if end == "revoked":
        (key,) = (await asked(world, "GET", "/v1/api-keys", None, held.stranger)).json()["data"]
        await world.control.accounts.revoke_key(key["id"])
    elif end == "deleting":
        (org,) = (await asked(world, "GET", "/v1/organizations", None, held.stranger)).json()["data"]
        await world.control.accounts.mark_deleting(org["id"])
    else:
        await asked(world, "DELETE", "/v1/vector-tables/products", None, held.stranger)
    async with asyncio.timeout(10):
        assert (await following).status_code == 200


async def test_a_file_that_waits_for_its_source_keeps_nobody_else_waiting(
    world: World, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, answered = asyncio.Event(), asyncio.Event()

    async def silent(*_: Any) -> float:
        waiting.set()
        await answered.wait()
        return 1.0

    monkeypatch.setattr(world.source, "test", silent)
    document = {"connections": [{"name": "slow", "url": _CREDENTIALS["url"]}]}
    first = asyncio.create_task(asked(world, "POST", "/v1/apply", {"document": document}, held.stranger))
    try:
        await waiting.wait()
        body = {"document": {"embedding_providers": [{"name": "quick", "provider": "static"}]}}
        async with asyncio.timeout(10):
            assert (await asked(world, "POST", "/v1/apply", body, held.neighbour)).status_code == 200
        assert not first.done()
    finally:
        answered.set()
        assert (await first).status_code == 200


async def test_topics_of_the_log_are_the_default_organizations_alone(world: World, held: Held) -> None:
    """Whoever may name any topic of a shared log as a source could read what others have in it."""
    kafka = settings_from({"data_dir": world.services.settings.data_dir, "log": {"kind": "kafka"}})
    services = replace(world.services, settings=kafka)
    assert services.shared_log is services.log  # of the server itself
    for organization in world.control.feed.current.organizations.values():
        found = services.within(Caller(organization, "full", None)).shared_log
        assert (found is services.log) is (organization.name == "default")
