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
from tests.plugins.ports import free_port
from tests.unit.api.worlds import DOCUMENT, World, key, position
from walvec.cli.commands import register
from walvec.contracts.changes import Change
from walvec.contracts.errors import ConfigError, NotFound
from walvec.contracts.headers import headers_of
from walvec.contracts.keys import partition_of
from walvec.contracts.letters import DeadLetter
from walvec.contracts.position import Position
from walvec.contracts.vectors import Chunk, VectorRecord
from walvec.contracts.wire import encode_change, encode_vector
from walvec.runtime.settings import settings_from
from walvec.transport.records import Record, changes_topic, dead_topic, letter_record, vectors_topic

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
    one = [json.loads(line) for line in lines if json.loads(line)["partition"] == 1]
    found = (await served.command("tail", "products", "--partition", "1", "--json")).stdout.splitlines()
    assert [json.loads(line) for line in found] == one
    await served.command("tail", "products", "--partition", "4", code=1)
    found = (await served.command("tail", "products", "changes", "--from", "10m", "--key", "3")).stdout
    assert len(found.splitlines()) == 1
    assert (await served.command("tail", "products", "--from", "latest")).stdout == ""
    await served.command("tail", "products", "--from", "soon", code=1)
    await served.command("tail", "products", "nothing", code=2)


async def test_tail_shows_what_a_person_looks_for(served: Served) -> None:
    table = await served.world.ready()
    log, name = served.world.log, table.storage_name
    change = Change("u", Position(1, 0x16B3748, 3), key(7), {"name": "Lamp", "price": 2}, unchanged=("description",))
    vector = VectorRecord(
        "metadata", change.position, key(7), 1, {"price": 2}, chunks=(Chunk(0, "Product:\nLamp", "a"),)
    )
    letter = DeadLetter(table.id, 1, key(7), "provider", "too odd", change.position, 3)
    producer = log.producer()
    await producer.append(
        changes_topic(name),
        [
            Record(key(7), encode_change(change), None, headers_of(change.position)),
            Record(b"\xff", b"not \x1bours\n", 2),
            Record(None, b'{"walvec":5,"op":["?"],"after":"x"}', 3),
        ],
    )
    await producer.append(vectors_topic(name), [Record(key(7), encode_vector(vector))])
    await producer.append(dead_topic(name), [letter_record(letter)])

    async def shown(topic: str, *args: str) -> list[str]:
        return (await served.command("tail", "products", topic, *args)).stdout.splitlines()

    assert [line.split(" ", 2)[2] for line in await shown("changes", "--key", "7")] == [
        f"{partition_of(key(7), 4)}:0 u        7 1:0/16B3748:3 (unchanged description) name=Lamp, price=2"
    ]
    assert len(await shown("changes")) == 3
    assert [line.split(" ", 3)[3] for line in await shown("changes", "--partition", "2")] == [
        "?        /w== not \N{REPLACEMENT CHARACTER}ours"
    ]
    assert (await shown("changes", "--key", '{"id":7}', "--headers"))[1:] == [
        "    content-type: application/json",
        "    walvec-schema: 1",
        "    traceparent: 00-000000000000000100000000016b3748-1000000000000003-01",
    ]
    assert [line.split(" ", 3)[3] for line in await shown("vectors")] == [
        "metadata 7 1:0/16B3748:3 (generation 1) Product: Lamp"
    ]
    assert [line.split(" ", 3)[3] for line in await shown("dead")] == [
        "provider 7 1:0/16B3748:3 (generation 1) 3 attempts: too odd"
    ]
    whole = json.loads((await served.command("tail", "products", "changes", "--key", "7", "--json")).stdout)
    assert whole["value"] == json.loads(encode_change(change))
    assert whole["headers"]["content-type"] == "application/json"


async def test_topics_tell_lag_in_changes_and_seconds(served: Served) -> None:
    table = await served.world.ready()
    await served.world.append("changes", *(key(n) for n in range(5)))
    found = {t["kind"]: t for t in (await served.json("topics"))["topics"]}
    changes = found["changes"]
    assert (changes["group"], changes["lag"]) == (f"walvec.{table.storage_name}.embedder", 5)
    assert 0 <= changes["lag_seconds"] < 60
    assert (found["vectors"]["lag"], found["vectors"]["lag_seconds"], found["dead"]["lag"]) == (0, 0, None)
    await served.world.consume("changes")
    assert [t["lag"] for t in (await served.json("topics"))["topics"] if t["kind"] == "changes"] == [0]
    shown = (await served.command("topics")).stdout
    assert "behind" in shown
    assert f"walvec.{table.storage_name}.dead" in shown


async def test_replay_appends_the_same_records_to_the_same_partitions(served: Served) -> None:
    table = await served.world.ready()
    topic = changes_topic(table.storage_name)
    log = served.world.log
    old = [Record(key(n), b"%d" % n, n % 4, (("x", b"%d" % n),)) for n in range(10)]
    await log.producer().append(topic, old)
    marks = await log.end_offsets(topic)
    assert (await served.json("replay", "products", "--from", "earliest")) | {"oldest": ""} == {
        "replayed": 10, "of": 10, "oldest": "", "done": True,
    }  # fmt: skip
    for partition, mark in marks.items():
        records = [r async for r in log.read(topic, partition, 0)]
        assert len(records) == 2 * mark
        again = [(r.key, r.value, r.headers) for r in records[mark:]]
        assert again == [(r.key, r.value, r.headers) for r in records[:mark]]
    assert "8 records appended again" in (await served.command("replay", "products", "--from", "3")).stdout
    assert "no changes" in (await served.command("replay", "products", "--from", "latest")).stdout
    assert (await served.json("replay", "nothing", "--from", "10m", code=1))["error"][
        "code"
    ] == "vector_table_not_found"
    assert (await served.json("replay", "products", "--from", "soon", code=1))["error"]["code"] == "validation_error"
    await served.command("replay", "products", code=2)


async def test_replay_in_many_batches_tells_its_progress(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.replay._BATCH_RECORDS", 3)
    table = await served.world.ready()
    topic = changes_topic(table.storage_name)
    await served.world.log.producer().append(topic, [Record(key(n), b"%d" % n, 0) for n in range(8)])
    async with served.world.http.stream(
        "POST", f"/v1/vector-tables/{table.id}/replay", json={"from": "earliest"}
    ) as answer:
        lines = [json.loads(line) async for line in answer.aiter_lines()]
    assert [line["replayed"] for line in lines] == [3, 6, 8, 8]
    assert [r.value async for r in served.world.log.read(topic, 0, 8)] == [b"%d" % n for n in range(8)]


async def test_replay_of_a_topic_that_went_away_fails(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    table = await served.world.ready()
    topic = changes_topic(table.storage_name)
    await served.world.append("changes", *(key(n) for n in range(5)))

    async def gone(log: Any, topic: str, starts: Any) -> AsyncIterator[dict[str, Any]]:
        yield {"replayed": 1, "of": 5}
        raise NotFound(f"There is no topic {topic} in the log.", "Apply again.")

    monkeypatch.setattr("api.logs.replay", gone)
    done = await served.command("replay", "products", "--from", "earliest", code=1)
    assert topic in done.stderr


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
