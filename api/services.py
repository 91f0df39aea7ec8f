"""What the routes work with, and how they find a definition by id or by name. Next: `app`, `drain`, `verify`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request

from api.access import Caller
from api.memory import Memory
from api.ports import Models, SearchStore, Source
from api.problems import Problem
from api.reach import LogReach
from api.removals import Remover
from walvec.definitions.model import (
    DEFAULT_ORGANIZATION,
    Connection,
    EmbeddingProvider,
    Environment,
    Organization,
    Snapshot,
    VectorTable,
)
from walvec.definitions.ports import Control
from walvec.runtime.settings import Settings
from walvec.transport.ports import Log


class Parts:
    """Snapshots by environment: made once for each version, not for each request."""

    def __init__(self) -> None:
        self._whole: Snapshot | None = None
        self._found: dict[str, Snapshot] = {}

    def of(self, whole: Snapshot, environment_id: str) -> Snapshot:
        if self._whole is not whole:
            self._whole, self._found = whole, {}
        found = self._found.get(environment_id)
        if found is None:
            found = self._found[environment_id] = whole.within(environment_id)
        return found


@dataclass(frozen=True, slots=True)
class Services:
    """`stop`: set when the process is asked to end; what streams or waits ends then. `caller`: who asks, where this is
    of one request (`within`); then it shows that environment's definitions alone."""

    settings: Settings
    control: Control
    log: Log
    source: Source
    store: SearchStore
    models: Models
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    memory: Memory = field(default_factory=Memory)
    caller: Caller | None = None
    reach: LogReach = field(init=False)
    _parts: Parts = field(init=False, default_factory=Parts)

    def __post_init__(self) -> None:
        object.__setattr__(self, "reach", LogReach(self.log, self.settings))

    @property
    def shared_log(self) -> Log | None:
        """The log, where other programs can write topics of their own to it. They belong to whoever runs walvec: any
        organization that could name one would read its records."""
        if self.settings.log.kind != "kafka":
            return None
        if self.organization.name != DEFAULT_ORGANIZATION:
            return None
        return self.log

    def within(self, caller: Caller) -> Services:
        made = copy(self)
        object.__setattr__(made, "caller", caller)
        return made

    @property
    def environment(self) -> Environment:
        """That of the request; outside of one, the server's own."""
        if self.caller is not None:
            found = self.caller.environment
        else:
            now = self.control.feed.current
            found = now.environment(now.default_organization.id, self.settings.environment)
        if found is None:
            raise Problem(404, "environment_not_found", "there is no environment here.", "Name one: X-Environment-Id.")
        return found

    @property
    def organization(self) -> Organization:
        """That of the request; outside of one, the default one."""
        return self.caller.organization if self.caller else self.control.feed.current.default_organization

    @property
    def remover(self) -> Remover:
        return Remover(self.control, self.store, self.log, self.source)

    async def snapshot(self) -> Snapshot:
        """As stored now: what a request wrote, the next one reads. (The feed may be a second late.)"""
        return self.own(await self.control.definitions.snapshot())

    def own(self, snapshot: Snapshot) -> Snapshot:
        """What of it the request's environment holds."""
        return snapshot if self.caller is None else self._parts.of(snapshot, self.environment.id)

    async def account(self) -> Snapshot:
        """What the request's organization has, over all its environments, as stored now."""
        found, own = await self.control.definitions.snapshot(), self.organization.id
        return replace(
            found,
            environments={k: e for k, e in found.environments.items() if e.org_id == own},
            api_keys={k: a for k, a in found.api_keys.items() if a.org_id == own},
        )

    async def table(self, ref: str) -> VectorTable:
        return find_table(await self.snapshot(), ref)

    async def connection(self, ref: str) -> Connection:
        return find_connection(await self.snapshot(), ref)


async def services_of(request: Request) -> Services:
    # a coroutine, so that no thread is asked for it
    found: Services = request.app.state.services
    caller: Caller | None = getattr(request.state, "caller", None)  # None: what needs no key
    return found if caller is None else found.within(caller)


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
