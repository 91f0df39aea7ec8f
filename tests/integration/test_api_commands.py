"""The commands against a served API: exit codes, JSON on stdout alone, streams, and its end."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from api.service import run
from tests.acceptance.harness import free_port
from tests.unit.api.worlds import DOCUMENT, World, key, position
from walvec.cli.commands import register
from walvec.contracts.errors import ConfigError
from walvec.contracts.letters import DeadLetter
from walvec.runtime.settings import settings_from

APP = typer.Typer()
register(APP)


class Served:
    def __init__(self, world: World, url: str) -> None:
        self.world = world
        self.url = url

    async def command(self, *args: str, code: int = 0) -> Any:
        done = await asyncio.to_thread(CliRunner().invoke, APP, [*args, "--url", self.url])
        assert done.exit_code == code, (args, done.exit_code, done.stdout, done.stderr, done.exception)
        return done

    async def json(self, *args: str, code: int = 0) -> Any:
        return json.loads((await self.command(*args, "--json", code=code)).stdout)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    world = World(tmp_path)
    port = free_port()
    settings = settings_from({"data_dir": tmp_path, "api": {"port": port}})
    services = world.services
    serving = asyncio.create_task(
        run(
            settings,
            services.stop,
            control=services.control,
            log=services.log,
            source=services.source,
            store=services.store,
            models=services.models,
        )
    )
    yield Served(world, f"http://127.0.0.1:{port}")
    services.stop.set()
    async with asyncio.timeout(10):
        await serving
    await world.close()


async def test_every_command(served: Served, tmp_path: Path) -> None:
    file = tmp_path / "definitions.yaml"
    file.write_text(yaml.safe_dump(DOCUMENT))
    planned = await served.json("apply", "-f", str(file), "--dry-run")
    assert [d["action"] for d in planned["differences"]] == ["created"] * 3
    assert planned["applied"] is False
    assert "created vector table products" in (await served.command("apply", "-f", str(file))).stdout
    assert "unchanged vector table products" in (await served.command("apply", "-f", str(file))).stdout
    world = served.world
    await world.ready()
    world.source.rows = {key(1): "a"}
    status = (await served.json("status"))["tables"][0]
    assert {k: status[k] for k in ("name", "state", "total_rows", "synced_rows", "dead_letters", "lag_changes")} == {
        "name": "products",
        "state": "synced",
        "total_rows": 1,
        "synced_rows": 0,
        "dead_letters": 0,
        "lag_changes": 0,
    }
    assert status["lag_seconds"] == 0
    assert "products" in (await served.command("status", "products")).stdout
    assert (await served.json("search", "products", "warm", "--filter", '{"price": 5}'))["results"][0]["id"] == "4821"
    await served.command("search", "products", "warm", "--filter", "{", code=2)
    await served.command("search", "products", "warm", "--filter", '{"no": 1}', code=1)
    assert (await served.json("drain", "products", "--timeout", "20"))["drained"]
    assert (await served.json("verify", "products", code=1))["missing"] == [{"id": 1}]
    await served.command("pause", "products")
    assert "paused" in (await served.command("drain", code=1)).stderr
    assert (await served.json("pause", "products", code=1))["error"]["code"] == "sync_already_paused"
    await served.command("resume", "products")
    task = await served.json("backfill", "products")
    assert task["task_type"] == "rebackfill"
    assert (await world.control.tasks.get(task["task_id"])).params == {"sweep": True}
    await served.command("backfill", "products", code=1)
    assert (await served.json("doctor"))["ok"]
    assert "wal_level" in (await served.command("doctor", "shop")).stdout
    assert {t["kind"] for t in (await served.json("topics"))["topics"]} == {"changes", "vectors", "dead"}
    assert (await served.json("status", "nothing", code=1))["error"]["code"] == "vector_table_not_found"


async def test_dead_letters(served: Served) -> None:
    table = await served.world.ready()
    letters = [DeadLetter(table.id, 1, key(n), "provider", f"too odd {n}", position(n), 3) for n in (1, 2, 3)]
    await served.world.control.letters.put(letters)
    found = (await served.json("dead", "list", "products"))["dead_letters"]
    assert [(v["key"], v["kind"], v["reason"], v["attempts"]) for v in found] == [
        ({"id": n}, "provider", f"too odd {n}", 3) for n in (1, 2, 3)
    ]
    ids = [v["id"] for v in found]
    assert "too odd 2" in (await served.command("dead", "show", "products", str(ids[1]))).stdout
    assert (await served.json("dead", "replay", "products", str(ids[0])))["replayed"] == 1
    assert (await served.json("dead", "replay", "products"))["replayed"] == 3
    tasks = await served.world.control.tasks.open_tasks([table.id])
    assert [t.params for t in tasks] == [{"letters": ids[:1]}, {"letters": ids}]
    assert (await served.json("dead", "drop", "products", str(ids[0])))["dropped"] == 1
    await served.command("dead", "drop", "products", str(ids[0]), code=1)
    assert (await served.json("dead", "drop", "products"))["dropped"] == 2


async def test_resume_replays_letters_before_the_table_goes_on(served: Served) -> None:
    table = await served.world.ready()
    await served.world.control.letters.put([DeadLetter(table.id, 1, key(1), "provider", "no", position(1))])
    await served.world.control.states.set_error(table.id, "dead_letters", "100 in a row.", "")
    await served.command("resume", "products")
    assert served.world.table.error is None
    assert [t.task_type for t in await served.world.control.tasks.open_tasks([table.id])] == ["replay"]


async def test_tail(served: Served) -> None:
    await served.world.ready()
    await served.world.append("changes", *(key(n) for n in range(5)))
    lines = (await served.command("tail", "products", "changes", "--json")).stdout.splitlines()
    assert sorted(json.loads(line)["key"]["id"] for line in lines) == [0, 1, 2, 3, 4]
    found = (await served.command("tail", "products", "changes", "--from", "10m", "--key", "3")).stdout
    assert len(found.splitlines()) == 1
    assert (await served.command("tail", "products", "--from", "latest")).stdout == ""
    await served.command("tail", "products", "--from", "soon", code=1)
    await served.command("tail", "products", "nothing", code=2)


async def test_nobody_there() -> None:
    done = await asyncio.to_thread(
        CliRunner().invoke, APP, ["status", "--json", "--url", f"http://127.0.0.1:{free_port()}"]
    )
    assert done.exit_code == 3
    assert json.loads(done.stdout)["error"]["code"] == "unreachable"
    assert "walvec up" in done.stderr


async def test_another_address_needs_keys(tmp_path: Path) -> None:
    world = World(tmp_path)
    services = world.services
    settings = settings_from({"data_dir": tmp_path, "api": {"host": "0.0.0.0", "port": free_port()}})
    with pytest.raises(ConfigError, match="WALVEC_API__KEYS"):
        await run(
            settings,
            services.stop,
            control=services.control,
            log=services.log,
            source=services.source,
            store=services.store,
            models=services.models,
        )
    await world.close()
