"""The API over everything real but the log: control database, store and source on PostgreSQL, and the role cdc."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psycopg

from api.app import create_app
from api.removals import running
from api.services import Services
from cdc import service
from cdc.source import SourceAccess
from embedder.models import ModelAccess
from sink.stores.registry import Stores
from walvec.definitions.ports import Control
from walvec.definitions.postgres import open_control
from walvec.runtime.settings import Settings, settings_from
from walvec.transport.memory import MemoryLog

COLUMNS = [{"name": "name", "role": "embedding"}, {"name": "price", "role": "metadata", "filter_type": "float"}]


@dataclass
class ApiWorld:
    settings: Settings
    control: Control
    http: httpx.AsyncClient
    source: SourceAccess
    services: Services
    log: MemoryLog = field(default_factory=MemoryLog)

    async def ask(self, method: str, path: str, body: Any = None, status: int = 200) -> Any:
        answer = await self.http.request(method, path, json=body)
        assert answer.status_code == status, answer.text
        return answer.json() if answer.content else None

    async def connection(self, dsn: str, *, name: str = "shop", tested: bool = True, **more: Any) -> str:
        body = {"name": name, "mode": "managed", "credentials": {"url": dsn}, **more}
        made = await self.ask("POST", "/v1/providers/postgresql/connections", body, 201)
        if tested:
            found = await self.ask("POST", f"/v1/connections/{made['id']}/test")
            assert found["status"] == "ok", found
        return str(made["id"])

    async def provider(self) -> str:
        body = {"name": "local", "provider": "static"}
        return str((await self.ask("POST", "/v1/embedding-providers", body, 201))["id"])

    async def table(
        self, connection: str, provider: str, *, name: str = "items", status: int = 201, **more: Any
    ) -> Any:
        body = {
            "name": name,
            "connection_id": connection,
            "embedding_provider_id": provider,
            "source_table": "public.items",
            "primary_key_column": "id",
            "columns": COLUMNS,
            "embedding_model": "minilm-static-256",
            "embedding_dimensions": 256,
            **more,
        }
        return await self.ask("POST", "/v1/vector-tables", body, status)

    async def removals(self) -> list[dict[str, Any]]:
        found = await self.ask("GET", "/v1/tasks")
        return [t for t in found["data"] if t["task_type"] == "removal"]

    @asynccontextmanager
    async def streaming(self) -> AsyncIterator[None]:
        """The role cdc runs."""
        stop = asyncio.Event()
        task = asyncio.create_task(service.run(self.settings, stop, control=self.control, log=self.log))
        try:
            yield
        finally:
            stop.set()
            await task

    @asynccontextmanager
    async def removing(self) -> AsyncIterator[None]:
        """What the role api does beside its answers."""
        stop = asyncio.Event()
        task = asyncio.create_task(running(self.services.remover, stop))
        try:
            yield
        finally:
            stop.set()
            await task


@asynccontextmanager
async def api_world(directory: Path, *, control: str, store: str) -> AsyncIterator[ApiWorld]:
    settings = settings_from(
        {
            "data_dir": directory,
            "pgvector": {"url": store},
            "cdc": {"status_interval_seconds": 0.05, "heartbeat_interval_seconds": 0.2},
        }
    )
    opened = await open_control(control, environment="prod", secret_key="a passphrase")
    source, stores, models = SourceAccess(), Stores(settings, opened), ModelAccess(settings)
    log = MemoryLog()
    services = Services(settings, opened, log, source, stores, models)
    transport = httpx.ASGITransport(create_app(services))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as http:
        yield ApiWorld(settings, opened, http, source, services, log)
    for closing in (services.reach, models, stores, source, opened):
        await closing.close()


def query(dsn: str, statement: str, *arguments: object) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn, autocommit=True) as session:
        cursor = session.execute(statement, arguments or None)  # type: ignore[arg-type]
        return cursor.fetchall() if cursor.description else []


def left_at_source(dsn: str) -> list[str]:
    """Slots, publications and schemas of walvec in a database."""
    found = query(
        dsn,
        "SELECT 'slot ' || slot_name FROM pg_replication_slots WHERE database = current_database()"
        " UNION ALL SELECT 'publication ' || pubname FROM pg_publication"
        " UNION ALL SELECT 'schema ' || nspname FROM pg_namespace WHERE nspname LIKE 'walvec%'",
    )
    return [row[0] for row in found]
