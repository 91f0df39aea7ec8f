"""What only a log of several processes must keep: kills, hangs, wake-ups across processes, damage."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.contract.log_child import TOPIC
from walvec.contracts.errors import ConfigError, LogDamaged, LogUnavailable, NotFound, PartitionLost
from walvec.runtime.settings import LogSettings, settings_from
from walvec.transport.kafka import KafkaLog
from walvec.transport.local import LocalLog, check, log_path, move_aside, open_local_log
from walvec.transport.local.runs import Transaction
from walvec.transport.open import open_log
from walvec.transport.records import Record

GROUP = "group"
Start = Callable[..., Awaitable[asyncio.subprocess.Process]]


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[LocalLog]:
    settings = LogSettings.model_validate({"lease_seconds": 5.0})
    log = LocalLog(log_path(tmp_path), settings, fallback_seconds=3600)
    await log.ensure_topic(TOPIC)
    yield log
    await log.close()


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    children: list[asyncio.subprocess.Process] = []

    async def run(*words: str) -> asyncio.subprocess.Process:
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            str(Path(__file__).with_name("log_child.py")),
            str(tmp_path),
            *words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        children.append(child)
        return child

    yield run
    for child in children:
        if child.returncode is None:
            child.kill()
        await child.communicate()


async def line(child: asyncio.subprocess.Process, start: str = "") -> str:
    """The next line that starts so."""
    assert child.stdout is not None
    async with asyncio.timeout(30):
        while True:
            text = (await child.stdout.readline()).decode().strip()
            assert text, "the child ended"
            if text.startswith(start):
                return text


async def values(log: LocalLog) -> list[str]:
    return [record.value.decode() for partition in range(4) async for record in log.read(TOPIC, partition, 0)]


async def test_every_acknowledged_record_survives_a_kill(log: LocalLog, start: Start) -> None:
    child = await start("append", "a", "0")
    acknowledged = int(await line(child))
    while acknowledged < 100:
        acknowledged = int(await line(child))
    child.kill()
    rest, _ = await child.communicate()
    # What was said last may be half a line: only whole lines count.
    said = [acknowledged, *(int(text) for text in rest.decode().split("\n")[:-1])]
    stored = {int(value.split(":")[1]) for value in await values(log)}
    assert stored >= set(range(said[-1] + 1))
    check(Path(log._file.path.parent))


async def test_two_processes_append_without_losing_or_doubling(log: LocalLog, start: Start) -> None:
    children = [await start("append", name, "200") for name in "ab"]
    for child in children:
        assert (await child.communicate())[0].split()[-1] == b"199"
        assert child.returncode == 0
    stored = await values(log)
    assert sorted(stored) == sorted(f"{name}:{number}" for name in "ab" for number in range(200))
    for partition, end in (await log.end_offsets(TOPIC)).items():
        assert [record.offset async for record in log.read(TOPIC, partition, 0)] == list(range(end))


async def test_an_append_in_another_process_wakes_at_once(log: LocalLog, start: Start) -> None:
    consumer = log.consumer(TOPIC, GROUP)
    child = await start("once")
    await line(child, "ready")
    await consumer.poll(max_records=1, max_bytes=1, timeout=0)
    waiting = asyncio.ensure_future(consumer.poll(max_records=1, max_bytes=100, timeout=3000))
    await log.wait_for_append(0)
    watching = asyncio.ensure_future(log.wait_for_append(3000))
    assert child.stdin is not None
    child.stdin.write(b"go\n")
    (fetch,) = await asyncio.wait_for(waiting, 20)
    assert fetch.records[0].value == b"told"
    await asyncio.wait_for(watching, 20)


async def owns_all(consumer: Any) -> float:
    """Seconds until it does."""
    began = time.monotonic()
    async with asyncio.timeout(20):
        while len(consumer.assignment()) < 4:
            await consumer.poll(max_records=1, max_bytes=1, timeout=0.02)
    return time.monotonic() - began


async def test_a_killed_owner_is_replaced_long_before_its_lease_ends(tmp_path: Path, start: Start) -> None:
    log = LocalLog(log_path(tmp_path), LogSettings.model_validate({"lease_seconds": 3600}), fallback_seconds=3600)
    await log.ensure_topic(TOPIC)
    child = await start("own", GROUP)
    assert await line(child, "owns") == "owns [0, 1, 2, 3]"
    consumer = log.consumer(TOPIC, GROUP)
    while len(consumer.assignment()) < 2:
        await consumer.poll(max_records=1, max_bytes=1, timeout=0.02)
    assert await line(child, "revoked") == "revoked [2, 3]"
    # Killed and not reaped: a zombie is dead too.
    child.kill()
    await owns_all(consumer)
    await log.close()


async def test_a_killed_owner_is_replaced_at_start(log: LocalLog, start: Start) -> None:
    child = await start("own", GROUP)
    await line(child, "owns")
    child.kill()
    await child.communicate()
    consumer = log.consumer(TOPIC, GROUP)
    await consumer.poll(max_records=1, max_bytes=1, timeout=0)
    assert consumer.assignment() == {0, 1, 2, 3}


async def test_a_reused_pid_is_no_owner(log: LocalLog, start: Start) -> None:
    child = await start("own", GROUP)
    await line(child, "owns")
    with sqlite3.connect(log._file.path) as connection:
        connection.execute("UPDATE processes SET started = '1'")
    connection.close()
    consumer = log.consumer(TOPIC, GROUP)
    await consumer.poll(max_records=1, max_bytes=1, timeout=0)
    assert consumer.assignment() == {0, 1, 2, 3}


async def test_an_owner_that_hangs_loses_its_partitions_and_learns_of_it(log: LocalLog, start: Start) -> None:
    child = await start("own", GROUP)
    await line(child, "owns")
    os.kill(child.pid, signal.SIGSTOP)
    consumer = log.consumer(TOPIC, GROUP)
    try:
        assert await owns_all(consumer) > 1
        await log.producer().append(TOPIC, [Record(b"", b"", 3)])
        await consumer.poll(max_records=1, max_bytes=1, timeout=5)
        await consumer.commit({3: 1})
    finally:
        os.kill(child.pid, signal.SIGCONT)
    polling = asyncio.ensure_future(consumer.poll(max_records=1, max_bytes=1, timeout=20))
    assert await line(child, "revoked") == "revoked [0, 1, 2, 3]"
    assert len((await line(child, "owns")).split(",")) <= 2
    await consumer.close()
    await polling


async def test_a_hung_consumers_late_commit_is_refused(log: LocalLog, tmp_path: Path) -> None:
    await log.producer().append(TOPIC, [Record(b"", b"", 0)])
    old = log.consumer(TOPIC, GROUP)
    await old.poll(max_records=1, max_bytes=1, timeout=5)
    # As if this process had given no sign of life for longer than its lease.
    with sqlite3.connect(log._file.path) as connection:
        connection.execute("UPDATE processes SET beat = -1000")
    connection.close()
    other = open_local_log(tmp_path, LogSettings.model_validate({}))
    new = other.consumer(TOPIC, GROUP)
    await new.poll(max_records=1, max_bytes=1, timeout=0)
    assert new.assignment() == {0, 1, 2, 3}
    with pytest.raises(PartitionLost):
        await old.commit({0: 1})
    await new.commit({0: 1})
    await other.close()


# ---- the file


async def test_a_file_that_is_no_log_is_named_and_kept(tmp_path: Path) -> None:
    log_path(tmp_path).write_bytes(b"not a database, certainly not" * 1000)
    with pytest.raises(LogDamaged, match="walvec up --rebackfill"):
        open_local_log(tmp_path, LogSettings.model_validate({}))
    with pytest.raises(LogDamaged):
        check(tmp_path)
    kept = move_aside(tmp_path)
    assert kept.read_bytes().startswith(b"not a database")
    with pytest.raises(NotFound):
        move_aside(tmp_path)
    log = open_local_log(tmp_path, LogSettings.model_validate({}))
    assert await log.topics() == []
    await log.close()
    check(tmp_path)


async def test_overwritten_pages_are_damage(tmp_path: Path) -> None:
    log = open_local_log(tmp_path, LogSettings.model_validate({}))
    await log.ensure_topic(TOPIC, 1)
    identity = await log.identity()
    for _ in range(4):
        await log.producer().append(TOPIC, [Record(None, os.urandom(200_000))])
    await log.close()
    size = log_path(tmp_path).stat().st_size
    with log_path(tmp_path).open("r+b") as file:
        file.seek(size // 3)
        file.write(b"\xff" * (size // 3))
    log = open_local_log(tmp_path, LogSettings.model_validate({}))
    with pytest.raises(LogDamaged, match="rebackfill"):
        [record async for record in log.read(TOPIC, 0, 0)]
    with pytest.raises(LogDamaged, match="rebackfill"):
        await log.consumer(TOPIC, GROUP).poll(max_records=100, max_bytes=10**7, timeout=0)
    await log.close()
    move_aside(tmp_path)
    log = open_local_log(tmp_path, LogSettings.model_validate({}))
    assert await log.identity() != identity
    await log.close()


async def test_a_record_that_changed_on_disk_is_damage(tmp_path: Path) -> None:
    """SQLite itself keeps no checksums: a flipped bit inside a batch leaves its file well-formed."""
    log = open_local_log(tmp_path, LogSettings.model_validate({}))
    await log.ensure_topic(TOPIC, 1)
    await log.producer().append(TOPIC, [Record(None, b"needle" + os.urandom(100_000))])
    await log.close()
    check(tmp_path)
    path = log_path(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"needle", b"noodle"))
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA quick_check").fetchone() == ("ok",)
    connection.close()
    with pytest.raises(LogDamaged, match="checksum"):
        check(tmp_path)
    log = open_local_log(tmp_path, LogSettings.model_validate({}))
    broken = asyncio.create_task(log.broken())
    with pytest.raises(LogDamaged):
        [record async for record in log.read(TOPIC, 0, 0)]
    assert isinstance(await asyncio.wait_for(broken, 5), LogDamaged)
    await log.close()


async def test_a_file_removed_in_use_takes_no_records(log: LocalLog) -> None:
    for path in log._file.path.parent.glob("log.db*"):
        path.unlink()
    with pytest.raises(LogDamaged, match="removed or replaced"):
        await log.producer().append(TOPIC, [Record(b"", b"")])


async def test_whoever_reads_a_removed_file_is_told(tmp_path: Path) -> None:
    log = LocalLog(log_path(tmp_path), LogSettings.model_validate({"lease_seconds": 0.2}), fallback_seconds=3600)
    await log.ensure_topic(TOPIC)
    consumer = log.consumer(TOPIC, GROUP)
    await consumer.poll(max_records=1, max_bytes=1, timeout=0)
    for name in ("log.db", "log.db-wal", "log.db-shm"):
        os.unlink(tmp_path / name)
    with pytest.raises(LogDamaged, match="removed or replaced"):
        await asyncio.wait_for(consumer.poll(max_records=1, max_bytes=1, timeout=3600), 20)
    await log.close()


async def test_a_process_that_only_asks_is_not_told_of_a_removed_files_past(tmp_path: Path) -> None:
    """SQLite goes on with a file that is gone: what it says there would be a lie for ever."""
    made = LocalLog(log_path(tmp_path), LogSettings.model_validate({}))
    await made.ensure_topic(TOPIC)
    asking, idle = (LocalLog(log_path(tmp_path), LogSettings.model_validate({})) for _ in range(2))
    assert sum((await asking.end_offsets(TOPIC)).values()) == 0
    told = [asyncio.create_task(log.broken()) for log in (asking, idle)]
    for name in ("log.db", "log.db-wal", "log.db-shm"):
        os.unlink(tmp_path / name)
    with pytest.raises(LogDamaged, match="removed or replaced"):
        await asking.end_offsets(TOPIC)
    for error in await asyncio.wait_for(asyncio.gather(*told), 20):
        assert isinstance(error, LogDamaged)
    for log in (made, asking, idle):
        await log.close()


async def test_a_full_disk_is_waited_out(log: LocalLog) -> None:
    def limit(pages: int) -> Callable[[Transaction], None]:
        return lambda transaction: transaction.connection.execute(f"PRAGMA max_page_count = {pages}").close()

    await log.producer().append(TOPIC, [Record(b"", b"before", 0)])
    await log.writer.call(limit(60), lasting=False)
    with pytest.raises(LogUnavailable, match="No space"):
        await log.producer().append(TOPIC, [Record(b"", os.urandom(1024 * 1024), 0)])
    assert (await log.end_offsets(TOPIC))[0] == 1
    await log.writer.call(limit(10**9), lasting=False)
    await log.producer().append(TOPIC, [Record(b"", b"after", 0)])
    assert [record.value async for record in log.read(TOPIC, 0, 0)] == [b"before", b"after"]


async def test_a_lost_datagram_costs_a_fallback_poll(tmp_path: Path, start: Start) -> None:
    log = LocalLog(log_path(tmp_path), LogSettings.model_validate({}), fallback_seconds=0.1)
    await log.ensure_topic(TOPIC)
    consumer = log.consumer(TOPIC, GROUP)
    child = await start("once")
    await line(child, "ready")
    await consumer.poll(max_records=1, max_bytes=1, timeout=0)

    def deafen(transaction: Transaction) -> None:
        transaction.connection.execute("UPDATE processes SET port = 0")

    await log.writer.call(deafen, lasting=True)
    waiting = asyncio.ensure_future(consumer.poll(max_records=1, max_bytes=100, timeout=3600))
    assert child.stdin is not None
    child.stdin.write(b"go\n")
    (fetch,) = await asyncio.wait_for(waiting, 20)
    assert fetch.records[0].value == b"told"
    await log.close()


async def test_many_openers_at_once_agree_on_one_log(tmp_path: Path) -> None:
    settings = LogSettings.model_validate({})
    logs = await asyncio.gather(*(asyncio.to_thread(open_local_log, tmp_path / "new", settings) for _ in range(8)))
    assert len({await log.identity() for log in logs}) == 1
    await asyncio.gather(*(log.ensure_topic(TOPIC) for log in logs))
    await asyncio.gather(*(log.producer().append(TOPIC, [Record(b"", b"", 0)] * 10) for log in logs))
    assert await logs[0].end_offsets(TOPIC) == {0: 80, 1: 0, 2: 0, 3: 0}
    for log in logs:
        await log.close()


async def test_a_data_directory_that_cannot_be_made_is_a_matter_of_configuration(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="WALVEC_DATA_DIR"):
        open_local_log(tmp_path / "file", LogSettings.model_validate({}))


async def test_the_setting_chooses_the_log(tmp_path: Path) -> None:
    log = open_log(settings_from({"data_dir": tmp_path}))
    assert await log.topics() == []
    await log.close()
    over_kafka = open_log(settings_from({"data_dir": tmp_path, "log": {"kind": "kafka"}}))  # waits for its brokers
    assert isinstance(over_kafka, KafkaLog)
    await over_kafka.close()
    with pytest.raises(ConfigError, match="acks"):
        open_log(settings_from({"data_dir": tmp_path, "log": {"kind": "kafka"}, "kafka": {"acksx": "all"}}))


async def test_space_is_reused_and_given_back(tmp_path: Path) -> None:
    settings = LogSettings.model_validate({"retention_seconds": 0})
    log = open_local_log(tmp_path, settings)
    await log.ensure_topic(TOPIC, 1)
    consumer = log.consumer(TOPIC, GROUP)
    await consumer.poll(max_records=1, max_bytes=1, timeout=0)
    for number in range(100):
        await log.producer().append(TOPIC, [Record(None, os.urandom(1024 * 1024))])
        assert (await log.end_offsets(TOPIC))[0] == number + 1
    grown = log_path(tmp_path).stat().st_size
    await consumer.commit({0: 100})
    await log.sweep()
    await log.close()
    assert grown > 90 * 1024**2
    assert log_path(tmp_path).stat().st_size < 60 * 1024**2
    assert sorted(os.listdir(tmp_path)) == ["log.db", "log.lock"]
