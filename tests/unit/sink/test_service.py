"""A desk ends when it is told to, also while its worker fails: the next tables wait for that."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from sink.service import Service, _Desk
from tests.plugins.embedder_world import generation
from walvec.contracts.errors import NotFound
from walvec.definitions.memory import MemoryControl
from walvec.definitions.model import VectorTable
from walvec.runtime.settings import settings_from
from walvec.transport.memory import MemoryLog


async def test_a_desk_whose_worker_fails_while_it_is_ended_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(
        settings_from({}), control=MemoryControl(), log=MemoryLog(), stores=cast("Any", None)
    )  # never asked
    began = asyncio.Event()

    async def reads_a_topic_that_is_deleted() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise NotFound("There is no topic.")

    async def work(desk: _Desk) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(reads_a_topic_that_is_deleted())
        except ExceptionGroup as e:
            raise e.exceptions[0] from e

    monkeypatch.setattr(service, "_work", work)
    table = VectorTable(
        "vt_1", "items", "conn_1", "prov_1", "static", "public", "items", "pgvector", "managed", (generation(),)
    )
    desk = _Desk(table, asyncio.create_task(asyncio.sleep(0)))
    task = asyncio.create_task(service._keep(desk))
    await began.wait()
    task.cancel()
    async with asyncio.timeout(5):
        await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()


async def test_a_desk_whose_worker_fails_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the worker's own task group failed, which leaves its parent marked as cancelled."""
    service = Service(
        settings_from({}), control=MemoryControl(), log=MemoryLog(), stores=cast("Any", None)
    )  # never asked
    attempts = 0
    again = asyncio.Event()

    async def fails() -> None:
        await asyncio.sleep(0)
        raise NotFound("There is no topic.")

    async def work(desk: _Desk) -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 2:
            again.set()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(fails())
                group.create_task(asyncio.Event().wait())
        except ExceptionGroup as e:
            raise e.exceptions[0] from e

    monkeypatch.setattr(service, "_work", work)
    table = VectorTable(
        "vt_1", "items", "conn_1", "prov_1", "static", "public", "items", "pgvector", "managed", (generation(),)
    )
    task = asyncio.create_task(service._keep(_Desk(table, asyncio.create_task(asyncio.sleep(0)))))
    try:
        async with asyncio.timeout(5):
            await again.wait()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
