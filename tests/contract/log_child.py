"""Another process at a local log: `log_child.py DIR COMMAND …`; prints one line per event."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from walvec.runtime.settings import LogSettings
from walvec.transport.local import LocalLog, log_path
from walvec.transport.records import Record

TOPIC = "walvec.vt_test.changes"


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def open_here(folder: str, fallback_seconds: float = 3600) -> LocalLog:
    settings = LogSettings.model_validate({"lease_seconds": 5.0, "retention_seconds": 3600})
    return LocalLog(log_path(Path(folder)), settings, fallback_seconds=fallback_seconds)


async def append(folder: str, name: str, count: str) -> None:
    """Appends `count` records one call after the other and says each number once it is durable; 0 = for ever."""
    log = open_here(folder)
    producer = log.producer()
    number = 0
    while int(count) == 0 or number < int(count):
        await producer.append(TOPIC, [Record(f"{name}-{number}".encode(), f"{name}:{number}".encode())])
        say(str(number))
        number += 1
    await log.close()


async def own(folder: str, group: str) -> None:
    """Polls for ever, says what it owns whenever that changes and what it reads; commits nothing."""
    log = open_here(folder)

    async def revoked(partitions: frozenset[int]) -> None:
        say(f"revoked {sorted(partitions)}")

    consumer = log.consumer(TOPIC, group, revoked)
    owned: frozenset[int] = frozenset()
    while True:
        for fetch in await consumer.poll(max_records=100, max_bytes=10**6, timeout=0.05):
            say(f"read {fetch.partition} {fetch.records[0].offset} {fetch.next_offset}")
        if consumer.assignment() != owned:
            owned = consumer.assignment()
            say(f"owns {sorted(owned)}")


async def once(folder: str) -> None:
    """Appends one record when told by a line on standard input."""
    log = open_here(folder)
    producer = log.producer()
    await log.end_offsets(TOPIC)
    say("ready")
    await asyncio.to_thread(sys.stdin.readline)
    await producer.append(TOPIC, [Record(b"k", b"told")])
    await log.close()


if __name__ == "__main__":
    commands: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {"append": append, "own": own, "once": once}
    asyncio.run(commands[sys.argv[2]](sys.argv[1], *sys.argv[3:]))
