"""Keys, permissions, organizations and environments."""

from typing import Any

import pytest

from api.access import Access, check_open
from api.problems import Problem
from tests.unit.api.worlds import DOCUMENT, World
from walvec.contracts.errors import ConfigError, Conflict
from walvec.definitions.memory import MemoryControl
from walvec.definitions.model import Organization
from walvec.definitions.tenancy import digest, new_environment, new_key, new_organization, view_schema
from walvec.runtime.settings import settings_from


def access(*keys: str, loopback: bool = True) -> Access:
    return Access(keys, loopback, "prod")


def admitted(found: Access, control: MemoryControl, token: str | None, **asked: Any) -> Any:
    given = "" if token is None else f"Bearer {token}"
    wanted = {"method": "GET", "path": "/v1/connections", "environment": None, **asked}
    return found.admit(control.feed.current, authorization=given, **wanted)


def refused(found: Access, control: MemoryControl, token: str | None, **asked: Any) -> tuple[int, str]:
    with pytest.raises(Problem) as problem:
        admitted(found, control, token, **asked)
    assert not token or token not in str(problem.value)
    return problem.value.status, problem.value.code


async def made(control: MemoryControl, permission: Any = "full", organization: Organization | None = None) -> str:
    token, key = new_key(organization or control.feed.current.default_organization, "k", permission)
    await control.accounts.create_key(key)
    return token


async def test_on_loopback_everybody_may_ask_until_there_is_a_full_key() -> None:
    control, door = MemoryControl(), access()
    assert admitted(door, control, None).permission == "full"
    assert admitted(door, control, "whatever").permission == "full"
    reader = await made(control, "read_only")
    assert admitted(door, control, None).permission == "full"
    assert admitted(door, control, reader).permission == "read_only"  # who shows a key is held to it
    token = await made(control)
    assert refused(door, control, None) == (401, "unauthorized")
    assert refused(door, control, "whatever") == (401, "unauthorized")
    assert admitted(door, control, token).permission == "full"
    (key,) = [k for k in control.feed.current.api_keys.values() if k.permission == "full"]
    await control.accounts.revoke_key(key.id)
    assert refused(door, control, token) == (401, "key_revoked")
    assert refused(door, control, None) == (401, "unauthorized")  # the door does not open again


async def test_beyond_loopback_and_with_keys_of_the_settings_a_key_is_needed() -> None:
    control = MemoryControl()
    assert refused(access(loopback=False), control, None) == (401, "unauthorized")
    door = access("first", "second")
    assert refused(door, control, None) == (401, "unauthorized")
    assert refused(door, control, "firs") == (401, "unauthorized")
    assert refused(door, control, "") == (401, "unauthorized")
    assert [admitted(door, control, k).permission for k in ("first", "second")] == ["full", "full"]
    with pytest.raises(Problem):
        door.admit(control.feed.current, "GET", "/v1/connections", "Basic first", None)


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("evil.example", None),  # a name that was made to lead to this machine
        ("evil.example:8080", "http://evil.example:8080"),
        ("localhost.evil.example", None),
        ("127.0.0.1.evil.example:8080", None),
        ("localhost:8080", "http://evil.example"),
        ("localhost:8080", "http://localhost:3000"),
        ("localhost:8080", "null"),
        ("", "http://evil.example"),
    ],
)
async def test_an_open_door_is_closed_to_pages_of_other_sites(host: str, origin: str | None) -> None:
    control, door = MemoryControl(), access()
    assert refused(door, control, None, host=host, origin=origin) == (403, "permission_denied")
    assert refused(door, control, "whatever", host=host, origin=origin, method="POST") == (403, "permission_denied")
    token = await made(control)
    assert admitted(door, control, token, host=host, origin=origin).permission == "full"  # no page has it


@pytest.mark.parametrize(
    "host", ["", "localhost", "LOCALHOST:8080", "walvec.localhost", "127.0.0.1:8080", "[::1]:8080"]
)
def test_an_open_door_is_open_to_programs_of_this_machine_and_to_its_own_pages(host: str) -> None:
    control, door = MemoryControl(), access()
    assert admitted(door, control, None, host=host).permission == "full"
    assert admitted(door, control, None, host=host, origin=f"http://{host}").permission == "full"


@pytest.mark.parametrize("more", [{"Origin": "http://evil.example"}, {"Host": "evil.example"}])
async def test_a_page_of_another_site_changes_nothing(world: World, more: dict[str, str]) -> None:
    """A form's POST without a body needs no leave of ours."""
    await world.apply()
    answer = await world.http.post("/v1/vector-tables/products/sync/pause", headers=more)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "permission_denied")
    assert not world.table.paused
    assert answer.headers.get("access-control-allow-origin") is None


@pytest.mark.parametrize("host", ["x/health?", "x/docs#", "x\\health", "health/..", "[/health"])
async def test_no_host_header_opens_a_door(world: World, host: str) -> None:
    await made(world.control)
    for path in ("/v1/connections", "//health", "/v1/connections?x=/health"):
        answer = await world.http.get(path, headers={"Host": host})
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")


@pytest.mark.parametrize(
    ("method", "path", "may"),
    [
        ("GET", "/v1/connections", True),
        ("HEAD", "/v1/connections", True),
        ("POST", "/v1/vector-tables/vt_1/query", True),
        ("POST", "/v1/vector-tables/vt_1/query/", False),
        ("POST", "/v1/vector-tables/a/b/query", False),
        ("POST", "/v1/vector-tables/vt_1/backfill", False),
        ("DELETE", "/v1/vector-tables/vt_1", False),
        ("POST", "/v1/api-keys", False),
        ("PUT", "/v1/vector-tables/vt_1", False),
        ("POST", "/v1/apply", False),
        ("POST", "/v1/drain", False),
    ],
)
async def test_a_read_only_key_reads_and_queries(method: str, path: str, may: bool) -> None:
    control = MemoryControl()
    token = await made(control, "read_only")
    if may:
        assert admitted(access(), control, token, method=method, path=path).permission == "read_only"
    else:
        assert refused(access(), control, token, method=method, path=path) == (403, "permission_denied")


async def test_environments_of_a_request() -> None:
    control = MemoryControl()
    home = control.feed.current.default_organization
    other = new_organization("other")
    _, key = new_key(other, "first", "full")
    await control.accounts.create_organization(other, new_environment(other, "prod"), key)
    test = new_environment(home, "test")
    await control.accounts.create_environment(test)
    door, token, foreign = access(), await made(control), await made(control, organization=other)
    for named in (test.id, "test"):
        assert admitted(door, control, token, environment=named).environment.id == test.id
        assert refused(door, control, foreign, environment=named) == (404, "environment_not_found")
    assert admitted(door, control, token).environment.org_id == home.id
    assert admitted(door, control, foreign).environment.org_id == other.id
    assert refused(door, control, token, environment="none") == (404, "environment_not_found")
    assert admitted(door, control, token, environment="none", path="/v1/environments").organization == home
    await control.accounts.mark_deleting(other.id)
    assert refused(door, control, foreign) == (403, "org_deleting")
    with pytest.raises(Conflict):
        await control.accounts.mark_deleting(home.id)


async def test_an_address_that_others_reach_needs_a_key() -> None:
    control, settings = MemoryControl(), settings_from({"api": {"host": "0.0.0.0"}})
    with pytest.raises(ConfigError, match="walvec keys create"):
        check_open(settings, control.feed.current)
    await made(control)
    check_open(settings, control.feed.current)
    (key,) = control.feed.current.api_keys
    await control.accounts.revoke_key(key)
    with pytest.raises(ConfigError):
        check_open(settings, control.feed.current)
    with pytest.raises(ConfigError, match="empty"):
        check_open(settings_from({"api": {"keys": [""]}}), control.feed.current)


def test_view_schemas_are_apart_and_fit() -> None:
    home, other = Organization("org_1", "default"), Organization("org_0123456789abcdef", "acme")
    assert [view_schema(home, n) for n in ("prod", "test")] == ["walvec", "walvec_test"]
    assert view_schema(other, "prod") == "walvec_01234567_prod"
    assert view_schema(home, "control") != "walvec_control"  # walvec's own
    long = [view_schema(other, "x" * 49 + end) for end in "yz"]
    assert len(set(long)) == 2
    assert all(len(name) <= 63 for name in long)


async def test_a_key_is_shown_once_and_kept_as_its_hash(world: World) -> None:
    made = await world.ask("POST", "/v1/api-keys", {"name": "ci"}, 201)
    token, key = made["key"], made["api_key"]
    assert token.startswith("sk_live_")
    assert (key["key_prefix"], key["permission"], key["revoked_at"]) == (token[:12], "full", None)
    await world.ask("GET", "/v1/api-keys", status=401)
    with_key = {"headers": {"Authorization": f"Bearer {token}"}}
    reader = await world.ask("POST", "/v1/api-keys", {"name": "r", "permission": "read_only"}, 201, **with_key)
    assert reader["api_key"]["created_by"] == key["id"]
    denied = await world.ask(
        "POST", "/v1/api-keys", {"name": "no"}, 403, headers={"Authorization": f"Bearer {reader['key']}"}
    )
    assert denied["error"]["code"] == "permission_denied"
    await world.ask("DELETE", f"/v1/api-keys/{reader['api_key']['id']}", status=204, **with_key)
    listed = (await world.ask("GET", "/v1/api-keys", **with_key))["data"]
    assert [k["revoked_at"] is None for k in listed] == [True, False]
    assert token not in str(listed)
    stored = world.control.feed.current.api_keys[key["id"]]
    assert stored.digest == digest(token)
    assert token not in repr(world.control.feed.current)
    missing = await world.ask("DELETE", "/v1/api-keys/key_none", status=404, **with_key)
    assert missing["error"]["code"] == "api_key_not_found"


async def test_environments_hold_the_same_names_apart(world: World) -> None:
    made = await world.ask("POST", "/v1/environments", {"name": "test"}, 201)
    assert made["id"].startswith("env_")
    conflict = await world.ask("POST", "/v1/environments", {"name": "test"}, 409)
    assert conflict["error"]["code"] == "environment_conflict"
    await world.ask("POST", "/v1/environments", {"name": "Not So"}, 422)
    inside = {"headers": {"X-Environment-Id": made["id"]}}
    for more in ({}, inside):
        await world.ask("POST", "/v1/apply", {"document": DOCUMENT}, **more)
        await world.ask("POST", "/v1/embedding-providers", {"name": "more", "provider": "static"}, 201, **more)
        credentials = {"url": "postgresql://u:p@db/d"}
        await world.ask(
            "POST", "/v1/providers/postgresql/connections",
            {"name": "more", "mode": "managed", "credentials": credentials}, 201, **more,
        )  # fmt: skip
    (prod,) = (await world.ask("GET", "/v1/vector-tables"))["data"]
    (test,) = (await world.ask("GET", "/v1/vector-tables", **inside))["data"]
    assert prod["name"] == test["name"] == "products"
    assert test["environment_id"] == made["id"] != prod["environment_id"]
    assert test["org_id"] == prod["org_id"] == made["org_id"]
    tables = world.control.feed.current.vector_tables
    assert {tables[t["id"]].view_schema for t in (prod, test)} == {"walvec", "walvec_test"}
    for what in ("connections", "embedding-providers"):
        ids = [{c["id"] for c in (await world.ask("GET", f"/v1/{what}", **m))["data"]} for m in ({}, inside)]
        assert [len(found) for found in ids] == [2, 2]
        assert not ids[0] & ids[1]
        for foreign in ids[0]:
            await world.ask("GET", f"/v1/{what}/{foreign}", status=404, **inside)
    (task,) = (await world.ask("GET", "/v1/tasks", **inside))["data"]
    assert task["target_id"] == test["id"]
    await world.ask("GET", f"/v1/tasks/{task['id']}", status=404)
    await world.ask("GET", f"/v1/vector-tables/{prod['id']}", status=404, **inside)
    held = await world.ask("DELETE", f"/v1/environments/{made['id']}", status=409)
    assert held["error"]["code"] == "environment_conflict"
    await world.ask("POST", "/v1/apply", {"document": {}, "prune": True}, **inside)
    await world.ask("DELETE", "/v1/environments/test", status=204)
    gone = await world.ask("GET", "/v1/vector-tables", status=404, **inside)
    assert gone["error"]["code"] == "environment_not_found"
    await world.ask("DELETE", "/v1/environments/prod", status=409)


async def test_organizations_see_nothing_of_each_other(world: World) -> None:
    admin = await world.ask("POST", "/v1/api-keys", {"name": "admin"}, 201)
    home = {"headers": {"Authorization": f"Bearer {admin['key']}"}}
    made = await world.ask("POST", "/v1/organizations", {"name": "acme"}, 201, **home)
    acme = {"headers": {"Authorization": f"Bearer {made['api_key']}"}}
    assert made["organization"]["status"] == "active"
    taken = await world.ask("POST", "/v1/organizations", {"name": "acme"}, 409, **home)
    assert taken["error"]["code"] == "organization_conflict"
    await world.ask("POST", "/v1/organizations", {"name": "mine"}, 403, **acme)
    (environment,) = (await world.ask("GET", "/v1/environments", **acme))["data"]
    assert (environment["name"], environment["org_id"]) == ("prod", made["organization"]["id"])
    await world.ask("POST", "/v1/apply", {"document": DOCUMENT}, **acme)
    assert (await world.ask("GET", "/v1/vector-tables", **home))["data"] == []
    (table,) = (await world.ask("GET", "/v1/vector-tables", **acme))["data"]
    assert table["org_id"] == made["organization"]["id"]
    (connection,) = (await world.ask("GET", "/v1/connections", **acme))["data"]
    assert (connection["org_id"], connection["environment_id"]) == (table["org_id"], environment["id"])
    for path in (f"/v1/vector-tables/{table['id']}", f"/v1/api-keys/{admin['api_key']['id']}"):
        await world.ask("DELETE", path, status=404, **(acme if "api-keys" in path else home))
    assert [o["name"] for o in (await world.ask("GET", "/v1/organizations", **acme))["data"]] == ["acme"]
    default = world.control.feed.current.default_organization.id
    await world.ask("GET", f"/v1/organizations/{default}", status=404, **acme)
    kept = await world.ask("DELETE", f"/v1/organizations/{default}", status=409, **home)
    assert kept["error"]["code"] == "organization_conflict"
    gone = await world.ask("DELETE", f"/v1/organizations/{made['organization']['id']}", status=202, **acme)
    assert gone["status"] == "deleting"
    after = await world.ask("GET", "/v1/vector-tables", status=403, **acme)
    assert after["error"]["code"] == "org_deleting"


async def test_what_needs_people_is_refused_by_name(world: World) -> None:
    for method, path in (("POST", "/v1/auth/otp"), ("GET", "/v1/organizations/org_1/members")):
        answer = await world.ask(method, path, status=501)
        assert answer["error"]["code"] == "not_supported"


async def test_metrics_tell_the_same_names_of_two_environments_apart(world: World) -> None:
    await world.ask("POST", "/v1/environments", {"name": "test"}, 201)
    for name in ("prod", "test"):
        await world.ask("POST", "/v1/apply", {"document": DOCUMENT}, headers={"X-Environment-Id": name})
    now = world.control.feed.current
    assert {t.label for t in now.vector_tables.values()} == {"products", "walvec_test.products"}
    assert {c.label for c in now.connections.values()} == {"shop", "walvec_test.shop"}
    assert {p.label for p in now.providers.values()} == {"local", "walvec_test.local"}
