"""What holds for every request: ids, bodies, the rate limit, idempotency keys, and the shape of a failure."""

import ast
import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from fastapi.openapi.utils import get_openapi

from api import problems, rate_limit
from api.app import create_app
from api.bodies import Bodies, BodyReader, faults
from api.codes import CODES
from api.idempotency import CREATES
from api.pages import page
from api.problems import Problem
from tests.unit.api.worlds import World
from walvec.contracts.errors import ControlUnavailable, WalvecError
from walvec.definitions.permits import Lease, MemoryPermits
from walvec.runtime.logging import request_id
from walvec.runtime.settings import settings_from

PROVIDER = {"name": "local", "provider": "static"}


def client_of(world: World, **api: Any) -> httpx.AsyncClient:
    """Another process's API on the same control database."""
    settings = settings_from({"data_dir": world.services.settings.data_dir, "api": api})
    app = create_app(replace(world.services, settings=settings))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")


def envelope(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == code
    assert set(error) == {"code", "message", "resolution", "docs_url", "request_id"}
    assert error["request_id"] == answer.headers["x-request-id"]
    assert error["message"]
    assert CODES[code].status == status
    found: dict[str, Any] = error
    return found


# ---------------------------------------------------------------- request ids and the log


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("req_from-a.proxy.1234", True),
        ("0af7651916cd43dd8448eb211c80319c", True),
        ("short", False),
        ("x" * 65, False),
        ("with space here", False),
        ("new\tline-1234", False),
        ("", False),
    ],
)
async def test_a_well_formed_request_id_is_kept(world: World, given: str, kept: bool) -> None:
    answer = await world.http.get("/v1/nothing", headers={"X-Request-Id": given})
    found = answer.headers["x-request-id"]
    assert (found == given) is kept
    assert kept or re.fullmatch(r"req_[0-9a-f]{16}", found)
    envelope(answer, 404, "resource_not_found")
    assert answer.headers.get_list("x-request-id") == [found]


async def test_every_line_of_a_request_has_its_id(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []

    async def snapshot(*_: Any, **__: Any) -> Any:
        await asyncio.sleep(0)
        seen.append(request_id.get())
        raise WalvecError("no")

    monkeypatch.setattr(world.control.tasks, "page", snapshot)
    one, other = await asyncio.gather(
        world.http.get("/v1/tasks", headers={"X-Request-Id": "first-request"}),
        world.http.get("/v1/tasks", headers={"X-Request-Id": "second-request"}),
    )
    assert sorted(map(str, seen)) == ["first-request", "second-request"]
    envelope(one, 500, "internal_error")
    envelope(other, 500, "internal_error")


async def test_the_access_line_tells_neither_query_nor_body_nor_token(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "api.requests")
    auth = {"Authorization": "Bearer sk_live_hunter2"}
    await world.http.get("/v1/tasks?cursor=hunter2", headers=auth)
    await world.http.post("/v1/embedding-providers", json={**PROVIDER, "api_key": "hunter2"}, headers=auth)
    await world.http.get("/v1/%0Aforged%20line")
    lines = [r for r in caplog.records if r.name == "api.requests"]
    assert [(r.levelname, r.method, r.path, r.status) for r in lines] == [  # type: ignore[attr-defined]
        ("DEBUG", "GET", "/v1/tasks", 422),
        ("INFO", "POST", "/v1/embedding-providers", 201),
        ("DEBUG", "GET", "/v1/%0Aforged%20line", 404),
    ]
    assert all(r.ms >= 0 for r in lines)  # type: ignore[attr-defined]
    assert "hunter2" not in str([vars(r) for r in lines])


async def test_what_nobody_expected_tells_nothing_of_itself(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a secret of the inside")

    monkeypatch.setattr(world.control.tasks, "page", broken)
    answer = await world.http.get("/v1/tasks")
    envelope(answer, 500, "internal_error")
    assert "secret" not in answer.text
    assert "x-ratelimit-limit" in answer.headers
    assert "a secret of the inside" in caplog.text


# ---------------------------------------------------------------- a body that does not come


async def test_a_body_that_does_not_come_is_not_waited_for(world: World) -> None:
    sent: list[Any] = []
    parts = [{"type": "http.request", "body": b'{"name"', "more_body": True}]

    async def receive() -> Any:
        return parts.pop() if parts else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    async def app(*_: Any) -> None:
        raise AssertionError("half a body went on")

    scope = {
        "type": "http", "method": "POST", "path": "/v1/environments", "query_string": b"", "headers": [], "state": {},
    }  # fmt: skip
    await Bodies(app, BodyReader(world.services.settings.api, patience=0.01))(scope, receive, send)
    assert sent[0]["status"] == CODES["request_timeout"].status == 408
    assert (b"connection", b"close") in sent[0]["headers"]
    assert json.loads(sent[1]["body"])["error"]["code"] == "request_timeout"


# ---------------------------------------------------------------- codes


def test_every_problem_in_the_code_stands_in_the_table() -> None:
    """With the same status: found in the source, so that a new one cannot be forgotten."""
    seen = []
    for file in (Path(problems.__file__).parent).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Problem") and len(node.args) > 2):
                continue
            status, code = node.args[0], node.args[1]
            if isinstance(status, ast.Constant) and isinstance(code, ast.Constant):
                seen.append((file.name, code.value, status.value))
    assert len(seen) > 20
    assert [s for s in seen if CODES.get(s[1], (None,))[0] != s[2]] == []


def test_every_kind_of_error_has_a_code() -> None:
    def kinds(of: type[WalvecError]) -> set[str]:
        own = (
            set() if of.__module__.startswith(("walvec.cli", "tests")) else {of.kind}
        )  # a command's own, not the API's
        return own | {k for sub in of.__subclasses__() for k in kinds(sub)}

    inside = {"records_lost", "record_too_large"}  # between a role and the log
    assert kinds(WalvecError) - inside - set(problems.KINDS) == set()
    assert set(problems.KINDS.values()) <= set(CODES)


def test_every_code_says_what_it_means_and_what_cures_it() -> None:
    for name, code in CODES.items():
        assert re.fullmatch("[a-z_]+", name)
        assert 400 <= code.status < 600
        assert code.means.endswith(".")
        assert code.cure


async def test_docs_url_leads_to_the_code(world: World) -> None:
    error = envelope(await world.http.get("/v1/nothing"), 404, "resource_not_found")
    told = await world.ask("GET", error["docs_url"])
    assert told == {"code": "resource_not_found", **CODES["resource_not_found"]._asdict()}
    shown = await world.http.get(error["docs_url"], headers={"Accept": "text/html"})
    assert "<h1>resource_not_found</h1>" in shown.text
    assert {c["code"] for c in (await world.ask("GET", "/errors"))["data"]} == set(CODES)
    envelope(await world.http.get("/errors/%3Cscript%3E", headers={"Accept": "text/html"}), 404, "resource_not_found")


async def test_a_wrong_method_names_the_right_ones(world: World) -> None:
    answer = await world.http.patch("/v1/tasks")
    envelope(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "GET"


async def test_what_is_away_says_when_to_come_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: Any, **__: Any) -> Any:
        raise ControlUnavailable("the control database cannot be reached.")

    monkeypatch.setattr(world.control.definitions, "snapshot", away)
    answer = await world.http.get("/v1/connections")
    envelope(answer, 503, "control_unavailable")
    assert int(answer.headers["retry-after"]) >= 1


# ---------------------------------------------------------------- bodies


async def post(world: World, content: Any, kind: str | None = "application/json") -> httpx.Response:
    headers = {} if kind is None else {"Content-Type": kind}
    return await world.http.post("/v1/embedding-providers", content=content, headers=headers)


async def test_a_body_above_the_limit_is_refused_by_its_length(world: World) -> None:
    async with client_of(world, max_body_bytes=2048, max_apply_bytes=8192) as http:
        answer = await http.post("/v1/embedding-providers", json={"name": "x" * 4000})
        assert "2048 bytes" in envelope(answer, 413, "payload_too_large")["message"]
        assert answer.headers["connection"] == "close"
        large = {"document": {"connections": ["x" * 4000]}}
        envelope(await http.post("/v1/apply", json=large), 422, "validation_error")
        envelope(await http.post("/v1/apply", json={"document": "x" * 9000}), 413, "payload_too_large")


async def test_a_body_without_length_is_counted_as_it_comes(world: World) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield b" " * 1024

    async with client_of(world, max_body_bytes=8192) as http:
        answer = await http.post("/v1/embedding-providers", content=endless(), headers={"Content-Type": "text/json"})
    envelope(answer, 413, "payload_too_large")
    assert sent <= 10


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"",
        b"nonsense",
        b'{"name": NaN}',
        b'{"name": 1e999}',
        b'{"name": ' + b"9" * 5000 + b"}",
        b'{"name": "\\ud800", "provider": "static"}',
        b'{"name": "a\\u0000b", "provider": "static"}',
        b'{"a\\u0000b": 1}',
        b'{"name": "\xff"}',
        b"[" * 200_000,
        b'{"limits":' * 101 + b"1" + b"}" * 101,
        b"[]",
        b"null",
        b'"text"',
        b'{"name": {}, "provider": []}',
    ],
)
async def test_what_is_not_a_fitting_json_body_is_the_clients_fault(world: World, body: bytes) -> None:
    envelope(await post(world, body), 422, "validation_error")


async def test_a_text_has_characters_and_no_items(world: World) -> None:
    for name, said in (("", "at least 1 character."), ("é" * 101, "at most 100 characters.")):
        body = {"name": name, "provider": "static"}
        told = (await world.ask("POST", "/v1/embedding-providers", body, 422))["error"]["message"]
        assert told == f"name: must have {said}"


_KEY = "primary_key_column: must be the name of a column, or a list of 1 to 32 different ones."


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"primary_key_column": ""}, _KEY),
        ({"primary_key_column": 5}, _KEY),
        ({"primary_key_column": ["a", "a"]}, _KEY),
        ({"columns": "body"}, "columns: must be a list."),
        ({"columns": []}, "columns: must have at least 1 item."),
        ({"columns": ["body"]}, "columns.0: must be an object."),
        ({"columns": [{"name": "body", "role": "x"}]}, "columns.0.role: Input should be 'embedding' or 'metadata'."),
        ({"index": 5}, "index: must be an object."),
    ],
)
async def test_what_does_not_fit_is_told_once_and_in_json_s_words(
    world: World, part: dict[str, Any], said: str
) -> None:
    column = {"name": "body", "role": "embedding"}
    body = {"name": "n", "connection_id": "c", "embedding_provider_id": "e", "source_table": "t", "columns": [column]}
    told = await world.ask("POST", "/v1/vector-tables", {**body, **part}, 422)
    assert told["error"]["message"] == said


async def test_a_body_of_another_type_is_refused(world: World) -> None:
    good = orjson.dumps(PROVIDER)
    for kind in (None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        envelope(await post(world, good, kind), 415, "unsupported_media_type")
    assert (await post(world, good, "Application/JSON; charset=utf-8")).status_code == 201


def test_faults_are_those_of_the_json_alone() -> None:
    assert faults(orjson.dumps({"a": "[" * 5000, "b": '"[{' * 500, "c": ["\\u0000", "\\\\u0000"]})) is None
    assert faults(b'"\\\\u0000"') is None
    assert "NUL" in str(faults(b'"\\\\\\u0000"'))
    assert "deeper" in str(faults(b'"\\"[",' + b"[" * 101))
    assert faults(b"[" * 100 + b"]" * 100) is None


async def test_nul_in_an_address(world: World) -> None:
    for path in ("/v1/connections/a%00b", "/v1/tasks?cursor=%00", "/v1/vector-tables/%00"):
        envelope(await world.http.get(path), 422, "validation_error")


# ---------------------------------------------------------------- rate limit


async def test_the_count_is_told_on_every_answer_and_shared(world: World) -> None:
    async with client_of(world, rate_limit="20/hour") as one, client_of(world, rate_limit="20/hour") as other:
        answers = [await (one, other)[n % 2].get(("/v1/tasks", "/v1/nothing")[n % 3 == 0]) for n in range(26)]
        assert [a.status_code for a in answers].count(429) == 6
        assert [a.status_code for a in answers[20:]] == [429] * 6
        for answer in answers:
            assert answer.headers["x-ratelimit-limit"] == "20"
            assert 0 <= int(answer.headers["x-ratelimit-remaining"]) < 20
            assert int(answer.headers["x-ratelimit-reset"]) > 1_700_000_000
        refused = answers[-1]
        envelope(refused, 429, "rate_limit_exceeded")
        assert 1 <= int(refused.headers["retry-after"]) <= 3600
        assert refused.headers["x-ratelimit-remaining"] == "0"
        for path in ("/health", "/docs", "/openapi.json", "/errors"):
            free = await one.get(path)
            assert free.status_code != 429
            assert "x-ratelimit-limit" not in free.headers


async def test_without_a_limit_nothing_is_counted(world: World) -> None:
    async with client_of(world, rate_limit="none") as http:
        assert "x-ratelimit-limit" not in (await http.get("/v1/tasks")).headers


@pytest.mark.parametrize("value", ["", "many", "0/minute", "10", "10/fortnight", "-1/minute", "10 per minute"])
def test_a_rate_that_cannot_be_read_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="6000/minute"):
        settings_from({"api": {"rate_limit": value}})


class Counting:
    """Permits that can go away, and tell how often they were asked."""

    def __init__(self, now: "Now") -> None:
        self.inner = MemoryPermits(now)
        self.asked = 0
        self.away = False

    async def lease(self, subject: str, limit: int, seconds: int, wanted: int) -> Lease:
        self.asked += 1
        await asyncio.sleep(0)
        if self.away:
            raise ControlUnavailable("away")
        return await self.inner.lease(subject, limit, seconds, wanted)


class Now:
    def __init__(self) -> None:
        self.at = 60_000_000.0

    def __call__(self) -> float:
        return self.at


async def admitted(storage: rate_limit.LeasedPermits, times: int, limit: int) -> int:
    return sum([await storage.acquire_sliding_window_entry("a", limit, 60) for _ in range(times)])


async def test_permits_are_leased_in_blocks_and_never_exceed_the_limit() -> None:
    now = Now()
    permits = Counting(now)
    processes = [rate_limit.LeasedPermits(permits, now) for _ in range(3)]
    found = await asyncio.gather(*(admitted(p, 9000, 20_000) for p in processes))
    assert sum(found) == 20_000
    assert permits.asked <= 20_000 / 100 + 3 * 3
    before = permits.asked
    assert await admitted(processes[0], 100, 20_000) == 0
    assert permits.asked <= before + 1, "a flood of refused requests asks nobody"
    now.at += 60  # the window before counts in full at first
    assert await admitted(processes[0], 100, 20_000) == 0
    now.at += 30
    assert 9_900 <= sum(await asyncio.gather(*(admitted(p, 9000, 20_000) for p in processes))) <= 10_000


async def test_permits_of_a_window_end_with_it() -> None:
    now = Now()
    storage = rate_limit.LeasedPermits(Counting(now), now)
    assert await admitted(storage, 1, 20_000) == 1
    now.at += 59.9
    assert await admitted(storage, 1, 20_000) == 1
    assert storage._permits.asked == 1  # type: ignore[attr-defined]
    now.at += 0.2
    assert await admitted(storage, 1, 20_000) == 1
    assert storage._permits.asked == 2  # type: ignore[attr-defined]


async def test_a_window_that_ends_while_permits_are_on_their_way_refuses_nobody() -> None:
    now = Now()
    permits = Counting(now)
    inner = permits.inner.lease

    async def slow(subject: str, limit: int, seconds: int, wanted: int) -> Lease:
        lease = await inner(subject, limit, seconds, wanted)
        now.at += 0.02
        return lease

    permits.inner.lease = slow  # type: ignore[method-assign]
    storage = rate_limit.LeasedPermits(permits, now)
    now.at += 59.99
    assert await admitted(storage, 1, 20_000) == 1
    assert await admitted(storage, 1, 20_000) == 1, "the next one is of the next window"
    assert permits.asked == 2


async def test_an_outage_of_the_counter_locks_nobody_out_and_is_not_asked_each_time() -> None:
    now = Now()
    permits = Counting(now)
    permits.away = True
    storage = rate_limit.LeasedPermits(permits, now)
    assert await admitted(storage, 150, 100) == 100, "each process counts alone, against the whole limit"
    assert permits.asked == 1
    permits.away = False
    now.at += 300
    assert await admitted(storage, 150, 100) == 100
    assert permits.asked > 1


@pytest.mark.parametrize(
    ("lease", "limit"),
    [
        (Lease(0, 100, 0, 0.0), 100),
        (Lease(0, 100, 50, 20.0), 100),
        (Lease(0, 0, 100, 10.0), 100),
        (Lease(0, 1, 100, 10.0), 100),
        (Lease(0, 5, 1, 1.0), 1),
    ],
)
def test_retry_after_is_when_one_more_fits_and_not_long_before(lease: Lease, limit: int) -> None:
    def room(later: float) -> float:
        at = lease.elapsed + later
        previous, current = [(lease.previous, lease.current), (lease.current, 0), (0, 0)][int(at // 60)]
        return limit - previous * (1 - (at % 60) / 60) - current

    found = rate_limit.wait(lease, limit, 60)
    assert room(found + 1e-6) >= 1 - 1e-6
    if found > 0.2:
        assert room(found - 0.2) < 1


# ---------------------------------------------------------------- idempotency keys


async def test_a_repeat_makes_nothing_twice(world: World) -> None:
    key = {"Idempotency-Key": "first"}
    answers = [await world.http.post("/v1/embedding-providers", json=PROVIDER, headers=key) for _ in range(2)]
    assert [a.status_code for a in answers] == [201, 201]
    assert answers[0].json() == answers[1].json()
    assert answers[0].headers["content-type"] == answers[1].headers["content-type"]
    assert "idempotent-replayed" not in answers[0].headers
    assert answers[1].headers["idempotent-replayed"] == "true"
    assert answers[0].headers["x-request-id"] != answers[1].headers["x-request-id"]
    other = await world.http.post("/v1/embedding-providers", json={**PROVIDER, "name": "b"}, headers=key)
    envelope(other, 422, "idempotency_key_reused")
    elsewhere = await world.http.post("/v1/environments", json=PROVIDER, headers=key)
    assert elsewhere.status_code == 422
    plain = await world.http.post("/v1/embedding-providers", json=PROVIDER)
    envelope(plain, 409, "embedding_provider_conflict")


async def test_an_api_key_is_shown_again_to_who_repeats(world: World) -> None:
    key = {"Idempotency-Key": "k"}
    body = {"name": "ci", "permission": "full"}
    first = await world.http.post("/v1/api-keys", json=body, headers=key)
    assert first.status_code == 201, first.text
    key["Authorization"] = f"Bearer {first.json()['key']}"
    again = await world.http.post("/v1/api-keys", json=body, headers=key)
    assert again.json() == first.json()
    assert len((await world.http.get("/v1/api-keys", headers=key)).json()["data"]) == 1


async def test_a_second_one_at_the_same_time_is_told_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, go = asyncio.Event(), asyncio.Event()
    real = world.control.definitions.put_provider

    async def slow(provider: Any) -> None:
        inside.set()
        await go.wait()
        await real(provider)

    monkeypatch.setattr(world.control.definitions, "put_provider", slow)
    key = {"Idempotency-Key": "first"}
    first = asyncio.create_task(world.http.post("/v1/embedding-providers", json=PROVIDER, headers=key))
    await inside.wait()
    second = await world.http.post("/v1/embedding-providers", json=PROVIDER, headers=key)
    envelope(second, 409, "idempotency_in_progress")
    go.set()
    assert (await first).status_code == 201
    third = await world.http.post("/v1/embedding-providers", json=PROVIDER, headers=key)
    assert third.headers["idempotent-replayed"] == "true"


async def test_what_failed_may_be_sent_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    key = {"Idempotency-Key": "first"}
    bad = await world.http.post("/v1/embedding-providers", json={"name": "x"}, headers=key)
    assert bad.status_code == 422
    with monkeypatch.context() as patched:

        async def broken(*_: Any) -> None:
            raise RuntimeError("boom")

        patched.setattr(world.control.definitions, "put_provider", broken)
        assert (await world.http.post("/v1/embedding-providers", json=PROVIDER, headers=key)).status_code == 500
    assert (await world.http.post("/v1/embedding-providers", json=PROVIDER, headers=key)).status_code == 201


@pytest.mark.parametrize("key", ["", "x" * 256, "with space", "tab\t"])
async def test_a_malformed_key_is_refused(world: World, key: str) -> None:
    answer = await world.http.post("/v1/embedding-providers", json=PROVIDER, headers={"Idempotency-Key": key})
    envelope(answer, 422, "validation_error")


def test_every_route_that_creates_takes_a_key(world: World) -> None:
    created = {
        path
        for path, item in get_openapi(title="", version="", routes=create_app(world.services).routes)["paths"].items()
        for method, operation in item.items()
        if method == "post" and "201" in operation["responses"]
    }
    assert len(created) > 4
    missing = [path for path in created if not CREATES.fullmatch(re.sub(r"\{\w+\}", "x", path))]
    assert missing == []
    assert CREATES.fullmatch("/v1/vector-tables/vt_1/backfill")


# ---------------------------------------------------------------- pages

ITEMS = [(f"2026-01-0{1 + n % 3}", f"id{n:02}") for n in range(9)]


def walk(items: list[tuple[str, str]], limit: int, *, newest_first: bool = False, between: Any = None) -> list[str]:
    cursor, seen = None, []
    while True:
        found, told = page(items, limit, cursor, lambda i: i, newest_first=newest_first)
        seen += [name for _, name in found]
        assert told["limit"] == limit
        assert told["has_more"] is (told["next_cursor"] is not None)
        if not told["has_more"]:
            return seen
        cursor = told["next_cursor"]
        if between is not None:
            between(items, found)


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("limit", [1, 2, 4, 9, 100])
def test_pages_show_everything_once_in_order(limit: int, newest_first: bool) -> None:
    wanted = [name for _, name in sorted(ITEMS, reverse=newest_first)]
    assert walk(list(ITEMS), limit, newest_first=newest_first) == wanted


@pytest.mark.parametrize("newest_first", [False, True])
def test_pages_are_stable_while_items_come_and_go(newest_first: bool) -> None:
    """What was there all the time is shown exactly once; the last item of a page may be gone by the next."""
    number = iter(range(100))

    def between(items: list[tuple[str, str]], found: list[tuple[str, str]]) -> None:
        items.remove(found[-1])
        items.insert(0, ("2026-01-00" if not newest_first else "2026-12-31", f"new{next(number):02}"))

    seen = walk(list(ITEMS), 2, newest_first=newest_first, between=between)
    assert [name for name in seen if name.startswith("id")] == [n for _, n in sorted(ITEMS, reverse=newest_first)]
    assert not any(name.startswith("new") for name in seen)


@pytest.mark.parametrize(
    "cursor", ["", "x", "%00", "e30=", "W10=", "bnVsbA==", "ëë", "eyJhdCI6MSwiaWQiOjJ9", "====", "A" * 9999]
)
async def test_a_cursor_that_is_not_ours_is_refused(world: World, cursor: str) -> None:
    for path in ("connections", "embedding-providers", "vector-tables", "tasks", "api-keys", "environments"):
        answer = await world.http.get(f"/v1/{path}", params={"cursor": cursor})
        envelope(answer, 422, "validation_error")
    with pytest.raises(Problem):
        page([], 1, cursor, lambda i: i)


@pytest.mark.parametrize("limit", ["0", "101", "-1", "x", "1e9", "9" * 400])
async def test_a_limit_out_of_bounds_is_refused(world: World, limit: str) -> None:
    for path in ("connections", "embedding-providers", "vector-tables", "tasks", "api-keys", "environments"):
        envelope(await world.http.get(f"/v1/{path}", params={"limit": limit}), 422, "validation_error")


async def test_lists_are_walked_over_http_while_they_change(world: World) -> None:
    async def create(name: str) -> str:
        made = await world.ask("POST", "/v1/embedding-providers", {**PROVIDER, "name": name}, 201)
        return str(made["id"])

    ids = [await create(f"p{n}") for n in range(5)]
    first = await world.ask("GET", "/v1/embedding-providers?limit=2")
    last = first["data"][-1]["id"]
    await world.ask("DELETE", f"/v1/embedding-providers/{last}", status=204)
    await create("later")
    cursor, seen = first["pagination"]["next_cursor"], [p["id"] for p in first["data"]]
    while cursor:
        found = await world.ask("GET", f"/v1/embedding-providers?limit=2&cursor={cursor}")
        seen += [p["id"] for p in found["data"]]
        cursor = found["pagination"]["next_cursor"]
    assert set(ids) <= set(seen)
    assert len(seen) == len(set(seen)) == 6


def test_settings_of_the_conventions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WALVEC_API__RATE_LIMIT", "6000/MINUTE")
    monkeypatch.setenv("WALVEC_API__ALLOWED_HOSTS", "db, *.example.com,10.0.0.0/8")
    monkeypatch.setenv("WALVEC_API__ALLOWED_CERTIFICATES", "/etc/ca.pem, /etc/walvec")
    found = settings_from({}).api
    assert found.allowed_certificates == ("/etc/ca.pem", "/etc/walvec")
    assert found.rate_limit == "6000/minute"
    assert found.allowed_hosts == ("db", "*.example.com", "10.0.0.0/8")
    monkeypatch.setenv("WALVEC_API__ALLOWED_HOSTS", json.dumps(["http://x"]))
    with pytest.raises(ValueError, match="neither a name"):
        settings_from({})
    monkeypatch.delenv("WALVEC_API__ALLOWED_HOSTS")
    monkeypatch.setenv("WALVEC_API__ALLOWED_CERTIFICATES", "ca.pem")
    with pytest.raises(ValueError, match="not an absolute path"):
        settings_from({})
