"""What the routes work with, and how they find a definition by id or by name. Next: `app`, `drain`, `verify`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request

from api.memory import Memory
from api.ports import Models, SearchStore, Source
from api.problems import Problem
from api.reach import LogReach
from walvec.definitions.model import Connection, EmbeddingProvider, Snapshot, VectorTable
from walvec.definitions.ports import Control
from walvec.runtime.settings import Settings
from walvec.transport.ports import Log


@dataclass(frozen=True, slots=True)
class Services:
    """`stop`: set when the process is asked to end; what streams or waits ends then."""

    settings: Settings
    control: Control
    log: Log
    source: Source
    store: SearchStore
    models: Models
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    memory: Memory = field(default_factory=Memory)
    reach: LogReach = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "reach", LogReach(self.log, self.settings))

    @property
    def shared_log(self) -> Log | None:
        """The log, where other programs can write topics of their own to it."""
        return self.log if self.settings.log.kind == "kafka" else None

    async def snapshot(self) -> Snapshot:
        """As stored now: what a request wrote, the next one reads. (The feed may be a second late.)"""
        return await self.control.definitions.snapshot()

    async def table(self, ref: str) -> VectorTable:
        return find_table(await self.snapshot(), ref)

    async def connection(self, ref: str) -> Connection:
        return find_connection(await self.snapshot(), ref)


def services_of(request: Request) -> Services:
    found: Services = request.app.state.services
    return found


Use = Annotated[Services, Depends(services_of)]
Named = TypeVar("Named", VectorTable, Connection, EmbeddingProvider)


def find_table(snapshot: Snapshot, ref: str) -> VectorTable:
    return _find(snapshot.vector_tables, ref, "vector_table")


def find_connection(snapshot: Snapshot, ref: str) -> Connection:
    return _find(snapshot.connections, ref, "connection")


def find_provider(snapshot: Snapshot, ref: str) -> EmbeddingProvider:
    return _find(snapshot.providers, ref, "embedding_provider")


def _find(existing: Mapping[str, Named], ref: str, what: str) -> Named:
    if ref in existing:
        return existing[ref]
    for one in existing.values():
        if one.name == ref:
            return one
    words = what.replace("_", " ")
    names = _names(v.name for v in existing.values())
    raise Problem(404, f"{what}_not_found", f"there is no {words} {ref!r}.", f"There are: {names}.")


def _names(names: Iterable[Any]) -> str:
    found = sorted(map(str, names))
    return ", ".join(found[:20]) + (", …" if len(found) > 20 else "") if found else "none yet"
