"""The documented guide, request by request, with its fields and codes."""

from tests.unit.api.worlds import COLUMNS, World, key


async def test_managed_postgres_guide(world: World) -> None:
    auth = {"Authorization": "Bearer sk_anything"}
    connection = await world.ask(
        "POST",
        "/v1/providers/postgresql/connections",
        {
            "name": "product-db",
            "mode": "managed",
            "credentials": {
                "host": "db", "port": 5432, "database": "myapp", "user": "reader", "password": "hunter2",
            },
        },
        201,
        headers=auth,
    )  # fmt: skip
    assert connection["id"].startswith("conn_")
    assert {k: connection[k] for k in ("name", "provider", "mode", "status")} == {
        "name": "product-db",
        "provider": "postgresql",
        "mode": "managed",
        "status": "created",
    }
    assert connection["created_at"].endswith("Z")
    assert "hunter2" not in str(connection)

    provider = await world.ask(
        "POST",
        "/v1/embedding-providers",
        {
            "name": "openai-prod",
            "provider": "openai",
            "api_key": "sk-proj-secret",
            "default_model": "text-embedding-3-small",
        },
        201,
    )
    assert provider["id"].startswith("emb_")
    assert "sk-proj-secret" not in str(provider)

    wanted = {
        "name": "products-search",
        "connection_id": connection["id"],
        "embedding_provider_id": provider["id"],
        "source_table": "public.products",
        "primary_key_column": "id",
        "embedding_model": "text-embedding-3-small",
        "embedding_dimensions": 1536,
        "columns": COLUMNS,
    }
    refused = await world.ask("POST", "/v1/vector-tables", wanted, 422)
    assert refused["error"]["code"] == "connection_not_ready"
    tested = await world.ask("POST", f"/v1/connections/{connection['id']}/test")
    assert (tested["status"], tested["latency_ms"], tested["ready"]) == ("ok", 1, True)
    assert tested["checks"] == [{"name": "wal_level", "ok": True, "detail": "logical", "cure": ""}]
    table = await world.ask("POST", "/v1/vector-tables", wanted, 201)
    assert table["id"].startswith("vt_")
    assert table["sync_status"] == "pending"
    assert table["columns"] == COLUMNS
    assert table["primary_key_column"] == "id"
    assert table["qdrant_collection"].startswith("vt_" + table["id"][3:11] + "_products-search")
    assert (table["total_rows"], table["synced_rows"]) == (0, 0)

    path = f"/v1/vector-tables/{table['id']}"
    assert (await world.ask("POST", f"{path}/query", {"query": "x"}, 422))["error"]["code"] == "vector_table_not_ready"
    task = await world.ask("POST", f"{path}/backfill")
    assert task["task_id"].startswith("task_")
    assert {k: task[k] for k in ("task_type", "target_id", "status", "vector_table_id")} == {
        "task_type": "backfill",
        "target_id": table["id"],
        "status": "pending",
        "vector_table_id": table["id"],
    }
    again = await world.ask("POST", f"{path}/backfill", status=409)
    assert again["error"]["code"] == "backfill_in_progress"
    assert (await world.ask("GET", f"/v1/tasks/{task['task_id']}"))["status"] == "pending"
    assert (await world.ask("GET", f"{path}/sync/status"))["sync_status"] == "backfilling"

    world.source.rows = {key(1): "a", key(2): "b"}
    world.store.stored = {key(1): "x", key(2): "y"}
    await world.backfilled()
    status = await world.ask("GET", f"{path}/sync/status")
    assert (status["sync_status"], status["synced_rows"], status["total_rows"]) == ("synced", 2, 2)
    assert status["last_synced_at"].endswith("Z")

    found = await world.ask(
        "POST",
        f"{path}/query",
        {
            "query": "something warm for hiking",
            "limit": 5,
            "filters": {"in_stock": {"eq": True}, "price": {"lte": 150}},
        },
    )
    first = found["results"][0]
    assert (first["id"], first["score"], first["similarity_score"]) == ("4821", 0.892, 0.892)
    assert (found["total_results"], found["model"]) == (1, "text-embedding-3-small")

    paused = await world.ask("POST", f"{path}/sync/pause")
    assert paused["sync_status"] == "paused"
    assert (await world.ask("POST", f"{path}/sync/pause", status=409))["error"]["code"] == "sync_already_paused"
    await world.ask("POST", f"{path}/query", {"query": "still served"})
    assert (await world.ask("POST", f"{path}/sync/resume"))["sync_status"] == "synced"
    assert (await world.ask("POST", f"{path}/sync/resume", status=409))["error"]["code"] == "sync_not_paused"

    schema = await world.ask("GET", f"{path}/schema")
    assert schema["columns"][0] == {"name": "id", "type": "bigint", "nullable": False}
    in_use = await world.ask("DELETE", f"/v1/connections/{connection['id']}", status=409)
    assert in_use["error"]["code"] == "connection_conflict"
    await world.ask("DELETE", path, status=204)
    assert world.store.dropped == [table["id"]]
    assert await world.log.topics() == []
    assert world.source.released == [connection["id"]]
    await world.ask("DELETE", f"/v1/connections/{connection['id']}", status=204)
    assert (await world.ask("GET", path, status=404))["error"]["code"] == "vector_table_not_found"


async def test_errors_have_one_envelope(world: World) -> None:
    for method, path, body, status, code in (
        ("GET", "/v1/nothing", None, 404, "resource_not_found"),
        ("PUT", "/v1/connections", None, 405, "method_not_allowed"),
        ("GET", "/v1/connections/conn_no", None, 404, "connection_not_found"),
        ("GET", "/v1/tasks/task_no", None, 404, "task_not_found"),
        (
            "POST",
            "/v1/embedding-providers",
            {"name": "x", "provider": "static", "apikey": "s"},
            422,
            "validation_error",
        ),
        ("POST", "/v1/embedding-providers", {"name": "x", "provider": "statc"}, 422, "validation_error"),
        ("GET", "/v1/vector-tables?limit=101", None, 422, "validation_error"),
        ("GET", "/v1/vector-tables?cursor=%ff", None, 422, "validation_error"),
    ):
        error = (await world.ask(method, path, body, status))["error"]
        assert error["code"] == code
        assert set(error) == {"code", "message", "resolution", "docs_url", "request_id"}
        assert error["request_id"].startswith("req_")


async def test_lists_have_pages(world: World) -> None:
    for n in range(5):
        await world.ask("POST", "/v1/embedding-providers", {"name": f"p{n}", "provider": "static"}, 201)
    names: list[str] = []
    cursor = ""
    while True:
        found = await world.ask("GET", f"/v1/embedding-providers?limit=2{cursor}")
        names += [p["name"] for p in found["data"]]
        assert found["pagination"]["limit"] == 2
        if not found["pagination"]["has_more"]:
            assert found["pagination"]["next_cursor"] is None
            break
        cursor = f"&cursor={found['pagination']['next_cursor']}"
    assert sorted(names) == ["p0", "p1", "p2", "p3", "p4"]
